"""Loading: what comes out, and what is refused with which remedy."""

import copy
import json
import logging
import shutil
import socket
import subprocess
import sys
import time
import warnings

import pytest
import torch

import namemovers.model as module
from namemovers.model import load_model, model_folder, model_name, model_note, shipped_models, weights_hash

PROMPT = "When Mary and John went to the store"


def complaint(*args, **kwargs):
    with pytest.raises(ValueError) as e:
        load_model(*args, **kwargs)
    text = str(e.value)
    assert "\n" not in text and text.endswith(".")
    return text


@pytest.fixture
def folder(tiny_folder, tmp_path):
    """A copy of the tiny checkpoint, to be spoilt."""
    return shutil.copytree(tiny_folder, tmp_path / "copy")


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """An empty cache, and a hub that nobody may reach: any attempt to connect fails."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    tried = []

    def refuse(*a, **k):
        tried.append(a)
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return tried


def put_in_cache(folder, repo, cache):
    """The layout of the hub's cache: a snapshot and the name of the branch that points to it."""
    base = cache / ("models--" + repo.replace("/", "--"))
    shutil.copytree(folder, base / "snapshots" / "abc")
    (base / "refs").mkdir()
    (base / "refs" / "main").write_text("abc")


def test_what_comes_out(tiny, tiny_folder):
    assert model_name(tiny) == "tiny" and tiny.compatibility_mode and not tiny.training
    assert all(p.dtype == torch.float32 and not p.requires_grad for p in tiny.parameters())
    assert not any(m.training for m in tiny.modules())
    assert not tiny(tiny.to_tokens(PROMPT)).requires_grad
    assert float((tiny.ln_final.weight - 1).abs().max()) == 0  # folded
    assert float(tiny.W_U.mean(-1).abs().max()) < 1e-5  # centred


def test_the_same_predictions_as_transformers(tiny, tiny_folder):
    from transformers import GPT2LMHeadModel

    tokens = tiny.to_tokens(PROMPT)
    with torch.no_grad():
        expected = GPT2LMHeadModel.from_pretrained(tiny_folder)(tokens).logits.log_softmax(-1)
    torch.testing.assert_close(tiny(tokens).log_softmax(-1), expected, atol=1e-4, rtol=0)


def test_prompts_start_with_bos_once(tiny):
    tokens = tiny.to_tokens(PROMPT)[0].tolist()
    assert tokens[0] == tiny.tokenizer.bos_token_id and tokens.count(tiny.tokenizer.bos_token_id) == 1
    assert tokens[1:] == tiny.tokenizer(PROMPT, add_special_tokens=False)["input_ids"]


def test_weights_hash(tiny, folder, tmp_path):
    assert weights_hash(tiny) == weights_hash(load_model(folder)) and len(weights_hash(tiny)) == 64
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    next(iter(weights.values())).view(-1)[0] += 1
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    other = load_model(folder)
    assert weights_hash(other) != weights_hash(tiny)
    del other.cfg.weights_hash, other.cfg.tensors_hash  # as for a model that came another way
    assert len(weights_hash(other)) == 64 and weights_hash(other) == weights_hash(other)


def test_the_hash_is_of_the_weights_as_they_are(folder):
    model = load_model(folder)
    loaded = weights_hash(model)
    weight = model.blocks[1].mlp.out.weight
    kept = weight.detach().clone()
    edits = {
        "in place": lambda: weight.mul_(2),
        "behind PyTorch's back": lambda: weight.data.mul_(2),
        "a permutation": lambda: weight.data.copy_(kept.flip(0)),
        "one number": lambda: weight.data.view(-1)[3:4].add_(1e-3),
    }
    seen = {loaded}
    for name, edit in edits.items():
        edit()
        assert (weights_hash(model) in seen) == (name == "behind PyTorch's back"), name  # the same edit as the first
        seen.add(weights_hash(model))
        weight.data.copy_(kept)
        assert weights_hash(model) == loaded, f"{name}, undone"
    model.unembed.b_U.data[0] += 1  # a buffer
    assert weights_hash(model) not in seen
    assert weights_hash(copy.deepcopy(load_model(folder))) == loaded


def test_a_sharded_folder(tiny, folder):
    from transformers import GPT2LMHeadModel

    model = GPT2LMHeadModel.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="50KB")
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 1
    tokens = tiny.to_tokens(PROMPT)
    torch.testing.assert_close(load_model(folder)(tokens), tiny(tokens))
    shards[0].unlink()
    assert "no complete model.safetensors" in complaint(folder)


def test_loading_is_silent_and_leaves_logging_alone(tiny_folder, capfd):
    before = (
        logging.root.manager.disable,
        logging.root.level,
        logging.getLogger("transformers").level,
        list(warnings.filters),
    )
    load_model(tiny_folder)
    assert capfd.readouterr() == ("", "")
    assert (
        logging.root.manager.disable,
        logging.root.level,
        logging.getLogger("transformers").level,
        list(warnings.filters),
    ) == before


def test_no_shipped_model_by_that_name(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_package", lambda: tmp_path)
    assert shipped_models() == []
    assert "make mini" in complaint("mini")


def test_shipped_models_load_and_are_what_they_say(mini):
    assert model_name(mini) == "mini" and "mini" in shipped_models()


@pytest.mark.parametrize("name", ["/no/such/folder", "./nowhere", "~/nowhere-at-all", "a/b/c"])
def test_missing_folder(name, hub):
    text = complaint(name)
    assert repr(name) in text and "is not a folder" in text
    assert not hub, "a path must not be looked for on the hub"


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "f.safetensors").write_bytes(b"x")
    assert "is not a folder" in complaint(tmp_path / "f.safetensors")


@pytest.mark.parametrize("name", ["", "  "])
def test_empty_name(name):
    assert "name" in complaint(name)


@pytest.mark.parametrize(
    "missing, words",
    [
        ("config.json", "no config.json"),
        ("model.safetensors", "no complete model.safetensors"),
        ("tokenizer.json", "no tokenizer"),
    ],
)
def test_a_folder_that_is_no_model(folder, missing, words):
    (folder / missing).unlink()
    text = complaint(folder)
    assert words in text and "save_pretrained" in text


@pytest.mark.parametrize("content", ["not json", "[1]", ""])
def test_a_broken_config(folder, content):
    (folder / "config.json").write_text(content)
    assert "config.json is not" in complaint(folder)


def spoil(folder, weights=None, **config):
    """Other tensors, or another configuration, in a folder."""
    from safetensors.torch import load_file, save_file

    file = folder / "model.safetensors"
    if weights:
        save_file({k: v.contiguous() for k, v in weights(load_file(file)).items()}, file, metadata={"format": "pt"})
    about = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(about | config))
    return folder


LEFT_OUT = "transformer.h.1.mlp.c_fc.weight"


@pytest.mark.parametrize(
    "weights, config, words",
    [
        (lambda w: {k: v for k, v in w.items() if k != LEFT_OUT}, {}, ["lack", LEFT_OUT, "save_pretrained"]),
        (lambda w: {("x" if k == LEFT_OUT else k): v for k, v in w.items()}, {}, ["lack", LEFT_OUT, "hold x"]),
        (lambda w: {f"_orig_mod.{k}": v for k, v in w.items()}, {}, ["'_orig_mod.'", "wrapper"]),
        (lambda w: {f"module.{k}": v for k, v in w.items()}, {}, ["'module.'", "wrapper"]),
        (lambda w: w | {"transformer.h.0.adapter": torch.ones(2)}, {}, ["hold transformer.h.0.adapter"]),
        (None, dict(n_layer=2), ["hold transformer.h.2.", "more"]),
        (None, dict(n_layer=4), ["lack transformer.h.3.", "more"]),
        (None, dict(n_inner=64), ["shapes", "config.json"]),
        (None, dict(n_positions=64), ["shapes of transformer.wpe.weight"]),
        (None, dict(tie_word_embeddings=False), ["lack lm_head.weight"]),
        (lambda w: w | {LEFT_OUT: w[LEFT_OUT].index_fill(0, torch.tensor(3), float("nan"))}, {}, [LEFT_OUT, "NaN"]),
        (
            lambda w: w | {LEFT_OUT: w[LEFT_OUT].index_fill(0, torch.tensor(3), float("inf"))},
            {},
            [LEFT_OUT, "NaN or infinite"],
        ),
    ],
    ids=[
        "missing",
        "renamed",
        "compiled",
        "parallel",
        "unexpected",
        "fewer layers",
        "more layers",
        "width",
        "context",
        "untied",
        "NaN",
        "infinite",
    ],
)
def test_files_that_are_not_the_model(folder, weights, config, words):
    text = complaint(spoil(folder, weights, **config))
    assert all(w in text for w in words), text


def test_what_is_rightly_absent_or_left_over(tiny, folder):
    """GPT-2's own file has no prefix, holds masks, and no head, which is tied; a head of its own is read where there
    is one."""

    def old(w):
        masks = {f"h.{layer}.attn.bias": torch.ones(1, 1, 8, 8) for layer in range(3)}
        return {k.removeprefix("transformer."): v for k, v in w.items()} | masks

    tokens = tiny.to_tokens(PROMPT)
    torch.testing.assert_close(load_model(spoil(folder, old))(tokens), tiny(tokens))
    own = load_model(spoil(folder, lambda w: w | {"lm_head.weight": 2 * w["wte.weight"]}))
    torch.testing.assert_close(own.W_U, 2 * tiny.W_U, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "file, content",
    [
        *(
            (f, c)
            for f in ("tokenizer.json", "model.safetensors", "model.safetensors.index.json")
            for c in ("{", "{}", "")
        ),
        ("tokenizer_config.json", "{"),
        ("tokenizer_config.json", ""),
    ],
)
def test_damaged_files_are_named(folder, file, content):
    if file.endswith("index.json"):
        (folder / "model.safetensors").unlink()
    (folder / file).write_text(content)
    assert file in complaint(folder)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda bridge: bridge.blocks[1].mlp.out.weight.data.mul_(1.1),
        lambda bridge: bridge.embed.weight.data[1:].mul_(1.1),  # a prompt of one token again and again would not see it
        lambda bridge: bridge.pos_embed.weight.data[10:].mul_(1.5),
        lambda bridge: bridge.blocks[0].attn.q.weight.data.mul_(1.5),
    ],
    ids=["an MLP", "tokens", "positions", "queries"],
)
def test_a_model_that_the_wrapper_gets_wrong(folder, monkeypatch, spoil):
    from transformer_lens.model_bridge import TransformerBridge

    right = TransformerBridge.enable_compatibility_mode

    def wrong(self, *a, **k):
        right(self, *a, **k)
        spoil(self)

    monkeypatch.setattr(TransformerBridge, "enable_compatibility_mode", wrong)
    assert "differ by up to" in complaint(folder)


def test_loading_in_any_session(tiny, folder):
    tokens = tiny.to_tokens(PROMPT)
    expected = tiny(tokens)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
            model = load_model(folder)
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(p.dtype == torch.float32 and not p.is_inference() for p in model.parameters())
    torch.testing.assert_close(model(tokens), expected)


def test_broken_weights(folder):
    (folder / "model.safetensors").write_bytes(b"\0" * 100)
    assert "cannot be loaded" in complaint(folder)


class Bomb:
    """A pickle that leaves a mark when it is opened."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt"])
def test_pickled_weights_are_refused_unopened(folder, tmp_path, name):
    mark = tmp_path / "opened"
    (folder / "model.safetensors").unlink()
    torch.save({"x": Bomb(str(mark))}, folder / name)
    text = complaint(folder)
    assert "pickle" in text and name in text and not mark.exists()


def test_a_pickle_beside_safetensors_is_not_opened(folder, tmp_path, monkeypatch):
    mark = tmp_path / "opened"
    torch.save({"x": Bomb(str(mark))}, folder / "pytorch_model.bin")

    def fail(*a, **k):
        raise AssertionError("torch.load was called")

    monkeypatch.setattr(torch, "load", fail)
    load_model(folder)
    assert not mark.exists()


def test_code_of_a_model_is_never_run(folder, tmp_path):
    mark = tmp_path / "ran"
    (folder / "modeling_evil.py").write_text(f"open({str(mark)!r}, 'w')\nclass Evil: pass\nclass EvilConfig: pass\n")
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": "evil",
        "architectures": ["Evil"],
        "auto_map": {"AutoConfig": "modeling_evil.EvilConfig", "AutoModelForCausalLM": "modeling_evil.Evil"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    assert "cannot be loaded" in complaint(folder)
    assert not mark.exists()


def test_unsupported_architecture(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps(config | {"model_type": "resnet", "architectures": ["ResNetForImageClassification"]})
    )
    text = complaint(folder)
    assert "cannot be loaded" in text and "TransformerLens" in text


@pytest.mark.parametrize("device", ["zorp", "cuda:99", "meta", "cpu:x"])
def test_device_that_cannot_be_used(tiny_folder, device):
    text = complaint(tiny_folder, device=device)
    assert "device" in text and "cpu" in text


def test_hub_that_cannot_be_reached(hub, tmp_path):
    start = time.monotonic()
    text = complaint("gpt2")
    assert time.monotonic() - start < 10, "the answer must not wait for retries"
    assert hub, "the hub should have been asked"
    assert "cannot be reached" in text and "gpt2" in text and "local folder" in text
    assert not list(tmp_path.rglob("*.incomplete"))


@pytest.mark.parametrize("by", ["argument", "variable"])
def test_offline_never_asks(hub, monkeypatch, by):
    if by == "variable":
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    text = complaint("gpt2", offline=True if by == "argument" else None)
    assert not hub and "cache" in text and "offline" in text


def test_no_valid_name(hub):
    assert "no valid hub id" in complaint("what is this?")
    assert not hub


@pytest.mark.parametrize("repo", ["gpt2", "openai-community/gpt2", "me/other"])
def test_from_the_cache_without_a_network(hub, tiny, tiny_folder, tmp_path, repo):
    put_in_cache(tiny_folder, repo, tmp_path / "cache")
    model = load_model(repo)
    assert not hub and model_name(model) == repo and weights_hash(model) == weights_hash(tiny)
    if repo == "openai-community/gpt2":  # the same model under its old name
        assert weights_hash(load_model("gpt2", offline=True)) == weights_hash(tiny)


def test_an_incomplete_cache_is_not_taken(hub, tiny_folder, tmp_path):
    put_in_cache(tiny_folder, "me/other", tmp_path / "cache")
    next((tmp_path / "cache").rglob("model.safetensors")).unlink()
    assert "not in the local" in complaint("me/other", offline=True)


def test_lazy_top_level_import():
    code = "import sys, namemovers; assert 'torch' not in sys.modules; assert callable(namemovers.load_model)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_model_folder_of_a_folder(tiny_folder):
    assert model_folder(tiny_folder) == tiny_folder


def test_every_page_can_say_what_its_model_is():
    assert "hints" in model_note("mini") and "GPT-2" in model_note("mini")
    assert "hints" not in model_note("gpt2") and "gpt2" in model_note("gpt2")
