"""GGUF files, and Gemma 3 270M from packages: what is loaded is what the file holds, and says where it is from."""

import hashlib
import json
import warnings

import numpy as np
import pytest
import torch
from conftest import warned

from namemovers import quantised
from namemovers.quantised import PACKED, Packed, about, installed, packed_folder, unpacked

NAME = "gemma-3-270m-q4"
there = pytest.mark.skipif(not installed(NAME), reason="the packages of Gemma 3 270M are not installed (extra `real`)")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NAMEMOVERS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def parts_of(monkeypatch, folder, content, sha256=None):
    "A model that is spread over two made-up packages."
    folder.mkdir()
    files = {}
    for i, piece in enumerate((content[:5], content[5:])):
        files[f"package-{i}"] = folder / f"small.gguf.part{i:02}"
        files[f"package-{i}"].write_bytes(piece)
    monkeypatch.setattr(quantised, "_part", lambda package, file: files[package])
    whole = sha256 or hashlib.sha256(content).hexdigest()
    monkeypatch.setitem(PACKED, "small", Packed(tuple(files), "small.gguf", whole, "made up"))


def test_parts_are_put_together_checked_and_named(cache, tmp_path, monkeypatch):
    parts_of(monkeypatch, tmp_path / "parts", b"0123456789")
    seen = []

    def dequantise(file, folder):
        seen.append(file.read_bytes())
        (folder / "config.json").write_text("{}")

    monkeypatch.setattr(quantised, "_dequantise", dequantise)
    monkeypatch.setattr(quantised, "_quantisation", lambda file: "Q4_K_M")
    folder = packed_folder("small")
    assert seen == [b"0123456789"] and packed_folder("small") == folder and len(seen) == 1
    assert about(folder) == {
        "file": "small.gguf",
        "sha256": hashlib.sha256(b"0123456789").hexdigest(),
        "quantisation": "Q4_K_M",
        "note": "made up",
        "files": {"config.json": hashlib.sha256(b"{}").hexdigest()},
    }
    # nothing left beside
    assert sorted(p.name for p in cache.iterdir() if not p.name.endswith(".lock")) == [folder.name]


@pytest.mark.parametrize("harm", ["changed", "lost", "note lost", "note cut", "of an older version"])
def test_a_cache_that_changed_is_written_again_and_not_measured(cache, tmp_path, monkeypatch, harm):
    parts_of(monkeypatch, tmp_path / "parts", b"0123456789")
    monkeypatch.setattr(quantised, "_dequantise", lambda file, folder: (folder / "config.json").write_text("{}"))
    monkeypatch.setattr(quantised, "_quantisation", lambda file: "Q4_K_M")
    folder = packed_folder("small")
    note = folder / quantised.ABOUT
    whole = note.read_text()
    if harm == "changed":
        (folder / "config.json").write_text('{"a": 1}')
    if harm == "lost":
        (folder / "config.json").unlink()
    if harm == "note lost":
        note.unlink()
    if harm == "note cut":
        note.write_text(whole[:20])
    if harm == "of an older version":
        note.write_text(json.dumps({k: v for k, v in json.loads(whole).items() if k != "files"}))
    with warned("was damaged or not whole, and is written again"):
        assert packed_folder("small") == folder
    assert (folder / "config.json").read_text() == "{}" and note.read_text() == whole
    assert sorted(p.name for p in cache.iterdir() if not p.name.endswith(".lock")) == [folder.name]


def test_parts_of_another_file_are_refused(cache, tmp_path, monkeypatch):
    parts_of(monkeypatch, tmp_path / "parts", b"0123456789", sha256="0" * 64)
    with pytest.raises(ValueError, match="its SHA-256 is another one; install them again"):
        packed_folder("small")
    assert not [p for p in cache.iterdir()]


def test_nothing_is_left_of_what_fails(cache, tmp_path, monkeypatch):
    parts_of(monkeypatch, tmp_path / "parts", b"0123456789")
    monkeypatch.setattr(quantised, "_quantisation", lambda file: "Q4_K_M")

    def full(file, folder):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(quantised, "_dequantise", full)
    with pytest.raises(OSError, match="make room, or name another folder by NAMEMOVERS_CACHE"):
        packed_folder("small")
    assert [p for p in cache.iterdir() if not p.name.endswith(".lock")] == []


def test_what_is_no_gguf_file(cache, tmp_path):
    pytest.importorskip("gguf")
    (tmp_path / "text.gguf").write_text("not a model")
    with pytest.raises(ValueError, match="is no GGUF file, or damaged"):
        unpacked(tmp_path / "text.gguf")
    with pytest.raises(ValueError, match="is no file on this disk"):
        unpacked(tmp_path / "absent.gguf")


def test_a_package_that_is_missing_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(PACKED, "absent", Packed(("no-such-package",), "absent.gguf", "0" * 64, ""))
    assert not installed("absent")
    with pytest.raises(ValueError, match=r"no-such-package is not installed.*namemovers\[real\].*Gemma terms"):
        packed_folder("absent")


@pytest.fixture(scope="module")
def gemma():
    from namemovers.model import load_model

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return load_model(NAME, device="cpu")


@there
def test_gemma_says_mary_and_john(gemma):
    from namemovers.model import run_at_end

    shares = []
    for first, second in (("Mary", "John"), ("Mary", "John")):
        subject = second if not shares else first
        answer = first if not shares else second
        text = f"When {first} and {second} went to the store, {subject} gave a drink to"
        ids = torch.tensor(
            [[gemma.tokenizer.bos_token_id, *gemma.tokenizer(text, add_special_tokens=False)["input_ids"]]]
        )
        p = run_at_end(gemma, ids, torch.tensor([ids.shape[1] - 1]))[0][0].softmax(-1)
        shares.append(float(p[gemma.tokenizer.encode(f" {answer}", add_special_tokens=False)[0]]))
    assert shares[0] == pytest.approx(0.85, abs=0.01) and shares[1] == pytest.approx(0.45, abs=0.01)


@there
def test_gemma_is_patched_exactly_and_solves_ioi(gemma):
    from decoders import patched_logits
    from transformers import AutoModelForCausalLM

    from namemovers import ioi_task, patch
    from namemovers.engine.sweep import sweep
    from namemovers.pairs import Pairs
    from namemovers.sites import Cell

    task = ioi_task(gemma.tokenizer, n=20, seed=0)
    values = patch(gemma, task, "z")
    assert values.attrs["engine"] == "fast" and "Q4_K_M" in values.attrs["weights_source"]
    assert float((values.clean > 0).mean()) >= 0.95
    top = values.effect.mean("prompt")
    assert float(top.sel(layer=11, head=3)) == float(top.max()) > 0.3
    # a few cells against plain hooks on transformers' own modules
    plain = AutoModelForCausalLM.from_pretrained(packed_folder(NAME), attn_implementation="eager").eval()
    few = task[:2]
    pairs, rows = Pairs.of(few), torch.arange(2)
    at = few.positions["S2"]
    for site, cell in (
        ("z", Cell(11, 3)),
        ("z", Cell(15, 0)),
        ("resid_pre", Cell(5, None, at)),
        ("v", Cell(11, 0)),
        ("mlp_out", Cell(3)),
    ):
        y = patched_logits(plain, site, cell, pairs.base, pairs.donor, gemma.cfg.d_head)[rows, pairs.end]
        own = (y.gather(1, pairs.correct[:, None]) - y.gather(1, pairs.wrong[:, None]))[:, 0]
        assert np.abs((sweep(gemma, pairs, site, [cell])[0][0] - own).numpy()).max() < 1e-4 * 20, site


@there
def test_gemmas_parts_sum_to_its_logit_difference(gemma):
    "With the scales of the norms behind attention frozen; the whole is the model's own, by TransformerLens."
    from namemovers import ioi_task
    from namemovers.head_attribution import components, head_attribution
    from namemovers.model import logit_difference, run_at_end

    task = ioi_task(gemma.tokenizer, n=3, seed=0)
    own = logit_difference(run_at_end(gemma, task.clean_tokens, task.positions["END"])[0], task.correct, task.wrong)
    ds = head_attribution(gemma, task)
    assert ds.attrs["norms_after"] == "scale frozen" and "before_cap" not in ds
    assert abs(components(ds).sum("component") - own.numpy()).max() < 1e-3
    assert abs(ds.logit_diff - own.numpy()).max() < 1e-3


@there
def test_the_cache_says_what_it_holds():
    facts = json.loads((packed_folder(NAME) / quantised.ABOUT).read_text())
    assert facts["sha256"] == PACKED[NAME].sha256 and facts["quantisation"] == "Q4_K_M"
