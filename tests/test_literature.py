"""The quoted numbers against the files they were taken from."""

import importlib
import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from conftest import gpt2_tokenizer

from namemovers import literature
from namemovers.literature import (
    ASKED,
    GPT2_SMALL,
    IOI_ACTS_AT,
    IOI_HEADS,
    MRS_HEADS,
    NEAR,
    SOURCES,
    ioi_role,
    is_gpt2_small,
    pilot_prompts,
    published_figure,
    published_figures,
    published_grid,
    published_heads,
    unlike_gpt2_small,
)
from namemovers.results import provenance

REFERENCE = Path(__file__).parents[2] / "shared" / "reference"


def reference(name):
    path = REFERENCE / name
    if not path.is_file():
        pytest.skip("../shared/reference is absent")
    return json.loads(path.read_text())


@pytest.mark.parametrize("site", ["z", "q", "k", "v", "pattern"])
def test_ioi_head_grids(site):
    values = np.array(reference("gpt2_ioi_activation_patching.json")["values"]["head_" + site])
    grid = published_grid("ioi", site)
    assert grid.dims == ("layer", "head") and grid.attrs["source"] == SOURCES["demo"]
    np.testing.assert_allclose(grid.values, np.where(abs(values) >= 0.005, values, 0), atol=0.00051)


@pytest.mark.parametrize(
    "what, n, key",
    [
        ("z", 50, "head_z_effect_n50"),
        ("z", 1, "head_z_effect_n1_relative"),
        ("head_attribution", 50, "head_direct_logit_attribution_relative"),
    ],
)
def test_mrs_head_grids(what, n, key):
    grid = published_grid("mrs", what, n)
    np.testing.assert_allclose(grid.values, reference("gpt2_mrs_pilot.json")["grids"][key]["values"], atol=0.0051)
    assert grid.attrs["relative"] == int("relative" in key)
    if grid.attrs["relative"]:
        assert float(abs(grid).max()) == 1


@pytest.mark.parametrize(
    "task, n, places",
    [
        ("mrs", 1, {"S3": 16, "S3+1": 17, "S3+2": 18, "S4": 21, "S4+1": 22, "END": 28}),
        ("mrs", 50, {"S3": 16, "S3+1": 17, "S3+2": 18, "S4": 21, "S4+1": 22, "END": 28}),
        ("ioi", 8, {"S2": 10, "S2+1": 11, "END": 14}),
    ],
)
def test_residual_stream(task, n, places):
    if task == "ioi":
        values = np.array(reference("gpt2_ioi_activation_patching.json")["values"]["resid_pre"])
    else:
        values = np.array(reference("gpt2_mrs_pilot.json")["grids"][f"resid_pre_effect_n{n}"]["values"])
    grid = published_grid(task, "resid_pre", n)
    assert set(grid.position.values) == set(places)
    for name, place in places.items():
        np.testing.assert_allclose(
            grid.sel(position=name).values, values[:, place], atol=0.0051 if task == "mrs" else 0.00051
        )
    rest = np.delete(values, list(places.values()), axis=1)
    assert abs(rest).max() <= (0.03 if task == "mrs" else 0.005)  # as the page says


def test_prompts():
    prompts = reference("gpt2_mrs_pilot.json")["prompts"]
    mine = pilot_prompts()
    assert len(mine) == len(prompts) == 28
    for row, theirs in zip(mine.itertuples(), prompts):
        tops = [(t["token"], t["prob"]) for t in theirs["top"]]
        assert row.prompt == theirs["prompt"]
        assert (row.token, row.probability) == tops[0]
        assert list(row.others) == tops[1:]
        assert row.kind == {"not a subject": "none"}.get(theirs["category"], theirs["category"])


def test_kinds_follow_from_the_prompts():
    for row in pilot_prompts().itertuples():
        named = (
            row.token.strip() in row.prompt and row.token.strip()[0].isupper() and row.token.strip() not in ("King",)
        )
        assert named == (row.kind != "none"), row


def test_figures():
    assert published_figure("mrs", "logit_diff") == reference("gpt2_mrs_pilot.json")["mean_logit_difference_n50"]
    assert published_figure("ioi", "accuracy") == 0.993 and published_figure("ioi", "faithfulness") == 0.87
    table = published_figures()
    assert set(table.source) <= set(SOURCES.values())
    assert not table.duplicated(["task", "name"]).any()
    assert set(published_figures("mrs").task) == {"mrs"}


def test_heads():
    assert sum(len(h) for h in IOI_HEADS.values()) == 26
    assert ioi_role(10, 7) == "negative name mover"
    assert ioi_role(0, 0) == ""
    table = published_heads()
    assert table.loc["L8H11", "mrs_patching"] == "+1"
    assert table.loc["L9H9", "ioi"] == "name mover"
    assert not table.index.duplicated().any()
    named = table.query("mrs_attribution != '' or mrs_patching != ''")
    assert {tuple(r) for r in named[["layer", "head"]].values} == {h for heads in MRS_HEADS.values() for h in heads}


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: published_grid("mrs", "pattern"), "no published grid 'pattern'"),
        (lambda: published_grid("mrs", "z", 7), "n = 7"),
        (lambda: published_grid("xyz", "z"), "'xyz' is unknown"),
        (lambda: published_figure("mrs", "faithfulness"), "no published figure"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# Is it GPT-2 small?


class Stand:
    "What `unlike_gpt2_small` reads of a model: GPT-2 small's shape and tokenizer, whatever its name."

    def __init__(self, tokenizer, **shape):
        self.cfg = SimpleNamespace(**GPT2_SMALL | shape, model_name="anything")
        self.tokenizer = tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    found = gpt2_tokenizer()
    if found is None:
        pytest.skip("GPT-2's tokenizer is not beside the repository")
    return found


def answer(monkeypatch, tokenizer, off=0.0, token=None):
    "As if the model answered the pilot's prompts as published, but for what is `off`."
    rows = pilot_prompts().set_index("prompt")

    def say(model, prompt):
        p = torch.zeros(len(tokenizer))
        p[tokenizer.encode(token or rows.token[prompt], add_special_tokens=False)[0]] = rows.probability[prompt] + off
        return p

    monkeypatch.setattr(literature, "_next_token", say)


def test_gpt2_small_is_known_by_what_it_does(monkeypatch, tokenizer):
    answer(monkeypatch, tokenizer)
    assert unlike_gpt2_small(Stand(tokenizer)) == ""
    for off, near in ((NEAR - 0.001, True), (NEAR + 0.001, False), (0.001 - NEAR, True), (-0.001 - NEAR, False)):
        answer(monkeypatch, tokenizer, off)
        assert (unlike_gpt2_small(Stand(tokenizer)) == "") == near, off
    answer(monkeypatch, tokenizer, token=" Nobody")
    assert "continues" in unlike_gpt2_small(Stand(tokenizer))


@pytest.mark.parametrize("shape", [{name: value + 1} for name, value in GPT2_SMALL.items()])
def test_another_shape_is_another_model(monkeypatch, tokenizer, shape):
    answer(monkeypatch, tokenizer)
    assert unlike_gpt2_small(Stand(tokenizer, **shape)).startswith(next(iter(shape)))


def test_another_vocabulary_is_another_model(monkeypatch, tokenizer):
    answer(monkeypatch, tokenizer)
    stand = Stand(SimpleNamespace(encode=lambda text, add_special_tokens: [1, 2]))
    assert "its tokens of" in unlike_gpt2_small(stand)


def test_the_prompts_asked_are_of_every_kind():
    kinds = pilot_prompts().kind.iloc[list(ASKED)]
    assert set(kinds) == {"latest", "earliest", "none"}


def test_a_name_proves_nothing(gpt2_shape, monkeypatch):
    "Random weights of GPT-2 small's shape under its name: not GPT-2 small, in what they measure either."
    monkeypatch.setattr(gpt2_shape.cfg, "model_name", "gpt2")
    assert unlike_gpt2_small(gpt2_shape)
    attrs = provenance(gpt2_shape)
    assert attrs["model"] == "gpt2" and attrs["gpt2_small"] == 0 and not is_gpt2_small(attrs)
    assert not is_gpt2_small({"model": "gpt2"}) and not is_gpt2_small({"model": "openai-community/gpt2"})
    assert is_gpt2_small({"model": "my/folder", "gpt2_small": 1})


def test_what_a_model_says_is_read_at_the_end_of_the_prompt(mini):
    prompt = pilot_prompts().prompt[0]
    expected = mini(mini.to_tokens(prompt))[0, -1].softmax(-1)
    torch.testing.assert_close(literature._next_token(mini, prompt), expected.detach())


# An independent copy: typed from Wang et al. 2022 (arXiv 2211.00593, figure 2 and section 3) and from the pilot's
# notes.

PAPER = """
name movers: 9.9 9.6 10.0
negative name movers: 10.7 11.10
S-inhibition heads: 7.3 7.9 8.6 8.10
induction heads: 5.5 5.8 5.9 6.9
duplicate token heads: 0.1 0.10 3.0
previous token heads: 2.2 4.11
backup name movers: 9.0 9.7 10.1 10.2 10.6 10.10 11.2 11.9
"""


def test_the_heads_of_the_paper():
    typed = {}
    for line in PAPER.strip().splitlines():
        kind, heads = line.split(": ")
        role = kind.removesuffix(" heads").removesuffix("s") if "mover" in kind else kind.removesuffix(" heads")
        typed[role] = {tuple(map(int, h.split("."))) for h in heads.split()}
    assert {role: set(heads) for role, heads in IOI_HEADS.items()} == typed
    assert sum(map(len, typed.values())) == 26


def test_26_and_no_more():
    "The authors' code lists 2.9 as a previous token head and comments it out: with it there would be 27."
    assert ioi_role(2, 9) == "" and sum(map(len, IOI_HEADS.values())) == 26


def test_where_each_role_acts():
    "Section 3: what writes into the last position, and what the repeated name and the word after the first are for."
    at_the_end = ["name mover", "backup name mover", "negative name mover", "S-inhibition"]
    typed = dict.fromkeys(at_the_end, "END") | {"induction": "S2", "duplicate token": "S2", "previous token": "S1+1"}
    assert typed == IOI_ACTS_AT


def test_gpt2_smalls_shape():
    "As transformers knows it, whose GPT-2 is the small one where nobody says otherwise."
    from transformers import GPT2Config

    c = GPT2Config()
    assert GPT2_SMALL == {
        "n_layers": c.n_layer, "n_heads": c.n_head, "d_model": c.n_embd, "d_head": c.n_embd // c.n_head,
        "d_mlp": 4 * c.n_embd, "d_vocab": c.vocab_size, "n_ctx": c.n_positions,
    }  # fmt: skip


# The cells furthest from zero, typed from the demo's printed figures and from the pilot's notes.
LARGEST = {
    ("ioi", "z", 8): {(10, 7): -0.480, (5, 5): 0.344, (8, 6): 0.319, (11, 10): -0.278},
    ("ioi", "q", 8): {(10, 7): -0.513, (5, 5): 0.344, (11, 10): -0.337, (9, 9): 0.279},
    ("ioi", "k", 8): {(10, 7): -0.131, (11, 10): -0.114, (5, 9): 0.040, (8, 10): -0.026},
    ("ioi", "v", 8): {(8, 6): 0.317, (8, 10): 0.273, (7, 9): 0.208, (7, 3): 0.133},
    ("ioi", "pattern", 8): {(10, 7): -0.505, (5, 5): 0.344, (11, 10): -0.320, (9, 9): 0.277},
    ("mrs", "z", 50): {(8, 11): 0.44, (10, 7): -0.43, (9, 9): 0.24, (11, 10): -0.19},
    ("mrs", "z", 1): {(8, 11): 1.00, (10, 7): -0.82, (9, 9): 0.48, (11, 10): -0.37},
    ("mrs", "head_attribution", 50): {(9, 9): 1.00, (8, 11): 0.83, (10, 7): -0.79, (10, 6): 0.64},
    ("ioi", "resid_pre", 8): {(0, "S2"): 1.000, (8, "S2"): 0.657, (9, "END"): 0.938, (11, "END"): 0.991},
    ("mrs", "resid_pre", 1): {(0, "S3"): -0.53, (0, "S4"): 1.36, (9, "S4"): 1.09, (9, "END"): 0.51},
    ("mrs", "resid_pre", 50): {(0, "S3"): -0.62, (0, "S4"): 1.71, (9, "S4"): 1.40, (9, "END"): 0.51},
}


@pytest.mark.parametrize("task, what, n", LARGEST)
def test_the_largest_cells_of_every_grid(task, what, n):
    grid, typed = published_grid(task, what, n), LARGEST[task, what, n]
    over = "position" if what == "resid_pre" else "head"
    found = {cell: float(grid.sel({"layer": cell[0], over: cell[1]})) for cell in typed}
    assert found == pytest.approx(typed, abs=0.0051 if task == "mrs" else 0.0006)
    if over == "head":
        largest = abs(grid).values.ravel().argsort(kind="stable")[::-1][: len(typed)]
        assert {divmod(int(i), 12) for i in largest} == set(typed)


def test_the_order_that_the_paper_gives():
    "Figure 3b: the name movers by their effect on the logits, the negative ones likewise."
    assert IOI_HEADS["name mover"] == [(9, 9), (10, 0), (9, 6)]
    assert IOI_HEADS["negative name mover"] == [(10, 7), (11, 10)]


def test_the_figures_of_the_paper_and_the_pilot():
    typed = {
        ("ioi", "logit_diff"): 3.56,
        ("ioi", "accuracy"): 0.993,
        ("ioi", "probability"): 0.49,
        ("ioi", "name_mover_copy_score"): 0.95,
        ("ioi", "average_copy_score"): 0.20,
        ("ioi", "negative_copy_score"): 0.98,
        ("ioi", "average_negative_copy_score"): 0.12,
        ("ioi", "name_mover_attention"): 0.59,
        ("ioi", "s_inhibition_attention"): 0.51,
        ("ioi", "attention_output_correlation"): 0.81,
        ("ioi", "faithfulness"): 0.87,
        ("ioi", "faithfulness_gap"): 0.46,
        ("mrs", "logit_diff"): 3.56,
        ("mrs", "probability"): 0.900,
    }
    table = published_figures()
    assert {(r.task, r["name"]): r.value for _, r in table.iterrows()} == typed


def test_the_heads_of_the_pilot():
    assert MRS_HEADS == {
        ("head_attribution", "positive"): [(9, 9), (8, 11), (10, 6)],
        ("head_attribution", "negative"): [(10, 7), (10, 0), (11, 10)],
        ("z", "positive"): [(8, 11), (9, 9), (4, 11), (10, 0), (8, 3)],
        ("z", "negative"): [(10, 7), (11, 10)],
    }


# References

ROOT = Path(__file__).parents[1]


def cited():
    "The arXiv numbers that any notebook names."
    found = set()
    for folder in ("nbs", "ioi_nbs"):
        for path in (ROOT / folder).rglob("*.ipynb"):
            cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
            for cell in cells:
                found |= set(
                    re.findall(r"arXiv[:.\s/]*(?:abs/)?(\d{4}\.\d{4,5})", "".join(cell["source"]), re.IGNORECASE)
                )
    return found


@pytest.mark.parametrize("where", ["nbs/writeup.ipynb", "CITATION.cff"])
def test_what_is_cited_is_among_the_references(where):
    text = (ROOT / where).read_text(encoding="utf-8")
    if where.endswith("ipynb"):
        cells = ["".join(c["source"]) for c in json.loads(text)["cells"]]
        text = next(c for c in cells if c.startswith("## References"))
    assert {"2211.00593", "2310.10348"} <= cited()
    assert not [number for number in cited() if number not in text]
    title = "Controlling the False Discovery Rate: A Practical and Powerful Approach to Multiple Testing"
    assert title in text


def test_the_former_name_of_the_module_gives_the_same():
    published = importlib.import_module("namemovers.published")
    assert published.__all__ == literature.__all__
    assert all(getattr(published, name) is getattr(literature, name) for name in literature.__all__)
