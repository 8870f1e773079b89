"""The study's pages on another model, another N, seed and corruption: they run to their end, and claim nothing that is
not so there."""

import asyncio
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from conftest import small_tokenizer

from press.kernels import execute
from press.rerun import _copy

ROOT = Path(__file__).parents[1]
STEPS = [
    "00_data",
    "01_logit_lens",
    "02_activation_patching",
    "03_head_attribution",
    "04_copy_scores",
    "05_path_patching",
    "06_head_roles",
    "07_circuits",
]
FINDINGS = ["nbs/stability", "ioi_nbs/comparison", "nbs/claims", "nbs/writeup"]  # of what the steps save, in this order
PAGES = [f"{folder}/{step}" for step in STEPS for folder in ("nbs", "ioi_nbs")] + FINDINGS
SETTINGS = "[study]\nmodel = {}\nn = 6\nseed = 1\ncorruption = new_subjects\n"


def another_model(folder):
    """A small random checkpoint of Llama's architecture, with mini's tokenizer."""
    import transformers as hf

    tokenizer = small_tokenizer()
    torch.manual_seed(3)
    config = hf.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=128,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.bos_token_id,
        initializer_range=0.3,
    )
    hf.LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """Page -> what it says in words on the other model: the prose as written, and what the cells show."""
    base = tmp_path_factory.mktemp("pages") / "clone"
    base.mkdir()
    _copy(ROOT, base)
    (base / "settings.ini").unlink()
    (base / "settings.ini").write_text(SETTINGS.format(another_model(base / "strange")))
    for page in (base / "ioi_nbs").glob("0[1-6]*.ipynb"):  # the setting is of MRS: IOI gets another corruption here
        text = page.read_text(encoding="utf-8")
        page.write_text(text.replace("seed=s.seed)", 'seed=s.seed, corruption=\\"abc\\")'), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("MODEL", "N", "SEED", "CORRUPTION", "DEVICE"):
            patch.setenv(name, "")
        yield asyncio.run(run(base))


async def run(base):
    """Every page, two steps at a time; IOI's page loads what that of MRS saves of the model."""
    found, two = {}, asyncio.Semaphore(2)

    async def both(step):
        async with two:
            for folder in ("nbs", "ioi_nbs"):
                found[f"{folder}/{step}"] = said(await execute(base / folder / f"{step}.ipynb"))

    await both("04_copy_scores")  # the roles of IOI load its scores
    await asyncio.gather(*(both(step) for step in STEPS if step != "04_copy_scores"))
    for kept in (base / "nbs" / "results").glob("*.nc"):  # as a study puts beside its own what depends on no model
        shutil.copy(kept, base / "results" / "strange")
    for page in FINDINGS:
        found[page] = said(await execute(base / f"{page}.ipynb"))
    return found


def said(nb):
    """The sentences that the cells of a notebook show, and the titles of its figures."""
    texts = []
    for cell in nb.cells:
        for output in cell.get("outputs", []) if cell.cell_type == "code" else []:
            data = output.get("data", {})
            texts.append("".join(output.get("text", "")))
            texts += [str(v) for k, v in data.items() if k in ("text/markdown", "text/html")]
            if figure := data.get("application/vnd.plotly.v1+json"):
                texts.append(str(figure["layout"].get("title", {}).get("text", "")))
    return "\n".join(texts)


@pytest.mark.parametrize("page", [page for page in PAGES if page != "nbs/stability"])
def test_the_model_and_its_prompts_are_those_of_the_study(shown, page):
    text = shown[page]
    assert "strange" in text
    quoted = (  # what others measured, and where they say so
        r"GPT-2 small, N = \d+(, as)?[^.;|]*published|N = 50 \(published\)|over 50 prompts|N = 500"
        r"|The pilot study reports for GPT-2 small[^.]*?[^S]*?that S4 overshoots|\(pilot, N = 50\)"
        r"|\*\((GPT-2 small; )?[^*]*\)\*|the pilot's over 50 prompts|the pilot's values over 50 prompts|fifty give"
    )
    own = re.sub(quoted, "", text, flags=re.S)
    assert not re.search(r"N = 50\b|\b50 prompts|fifty|\bmini\b(?!mum|mal)", own)


@pytest.mark.parametrize("page", PAGES)
def test_nothing_is_said_to_be_significant_or_absent(shown, page):
    """Six prompts cannot decide: what no test can say is untested, and an effect of two runs that do not differ is
    not measured."""
    text = shown[page]
    wrong = [
        r"\b\d+ of \d+ (heads|cells) differ from 0",
        r"[Nn]o head (pushes|below|is off)",
        r"\bNone is for",
        r"called name movers from here",
        r"\b\d+ significant heads",
        r"are significant after correction",
        r"\*\*(yes|no)\*\*",
        r"Attribution marks no head|patching marks no head|Neither marks",
        r"[Nn]ame movers of \w+ by both tests, copying.*: \*\*",
        r"which subject is the most recent: through",
        r"with 0 prompts",
        r"\*\*By primary role\*\*: none: \d+ heads",
        r"\d+ heads keep their primary role",
        r"\bnan\b|[Oo]ver all 0 heads|– \(– to –\)|\b(do|keep|has|reach) –",
    ]
    assert [w for w in wrong if re.search(w, text)] == []
    if page.split("/")[1] not in ("00_data", "01_logit_lens"):
        assert "untested" in text or "not measured" in text


#: what the pages of circuits and of findings would say of a model that does the task
SAID_OF_OTHERS = {
    "07_circuits": [
        r"still (is|are) within it|(both|neither) still",
        r"their intervals (are apart|overlap)|which is ahead",
        r"[Hh]eld out they do|Edges in both|ACDC, which cuts",
        r"Nodes that speak against the answer: (?!untested)",
        r"circuit's heads do|one circuit for both|neither does the other's task|does both tasks|intervals are too wide",
        r"random, as many as \w+'s: mean \(range of 20\)</td>(<td[^>]*>\d+</td>)<td[^>]*>\d",
    ],
    "comparison": [r"The longest list is that of|are marked somewhere|Significant, of whatever size"],
    "stability": [r"patching: \d+%|by patching, \d+%|of the top \d by patching|The least is|more than \d+</td></tr>$"],
    "claims": [],
    "writeup": [
        r"keeps at least half of its largest effect|END (never )?carries",
        r"Patching marks \d+ heads|Both plots are needed",
        r"edges that were tested|edges they share",
        r"The same role in both tasks|Unclear: ",
        r"three strongest writers|serves? both",
        r"of MRS \(its own|of IOI \(its own",
    ],
}


@pytest.mark.parametrize("page", ["nbs/07_circuits", "ioi_nbs/07_circuits", *FINDINGS])
def test_no_finding_is_told_of_a_model_that_does_not_do_the_task(shown, page):
    text = shown[page]
    assert [w for w in SAID_OF_OTHERS[page.split("/")[1]] if re.search(w, text)] == []
    assert "not measured" in text


@pytest.mark.parametrize("page", ["nbs/07_circuits", "ioi_nbs/07_circuits"])
def test_what_the_searches_keep_is_not_called_a_circuit_of_the_task(shown, page):
    assert "not shown to be circuits of the task" in shown[page]
    assert "No circuit of edges is searched" in shown[page] and "No edges are drawn" in shown[page]


def test_whether_it_is_one_circuit_is_untested(shown):
    assert "whether it is one circuit is untested" in shown["ioi_nbs/07_circuits"]
    assert "Edges are not compared" in shown["ioi_nbs/07_circuits"]
    assert "edges were not searched in both" in shown["nbs/writeup"]


def test_a_claim_is_judged_only_where_it_can_be(shown):
    """On six prompts of a random model: what others published, what planted models show, and patterns on random tokens,
    which are other sequences and many."""
    rows = [line for line in shown["nbs/claims"].splitlines() if line.startswith("| ")]
    holds = [line for line in rows if "✓" in line]
    fails = [line for line in rows if "✗" in line]
    assert len(rows) > 60 and len(holds) == 3 and len(fails) == 4
    assert all("pilot's own figures" in line or "[validation]" in line for line in holds)
    assert all(re.search(r"no head has the [\w ]+ pattern", line) for line in fails)


@pytest.mark.parametrize("folder", ["nbs", "ioi_nbs"])
def test_no_number_of_prompts_is_fixed_text(folder):
    """What is written, and not computed, holds for every N: no heading or sentence has the number of the default."""
    pages = [*(ROOT / folder).glob("0*.ipynb"), *(ROOT / folder).glob("[cw]*.ipynb")]
    assert len(pages) >= 9
    for path in pages:
        nb = json.loads(path.read_text(encoding="utf-8"))
        prose = "\n".join("".join(c["source"]) for c in nb["cells"] if c["cell_type"] == "markdown")
        assert not re.search(r"\bN = 50\b|\bfifty\b|\b50 prompts\b(?! that the pilot|, read off)", prose), path.name
