"""The shipped model: what it does is measured again here, and the code that trains it is run for a few steps."""

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import namemovers
from namemovers.data import (
    CUES,
    DESCRIPTIONS,
    IOI_TEMPLATES,
    MRS_TEMPLATES,
    OBJECTS,
    PLACES,
    TITLES,
    ioi_task,
    mrs_task,
)
from namemovers.model import load_model, weights_hash
from recipes.mini import batches, measurements, network, texts, training
from recipes.mini import card as cards
from recipes.mini.__main__ import main
from recipes.mini.tokenizer import train_tokenizer

ROOT = Path(__file__).parents[1]
FOLDER = Path(namemovers.__file__).parent / "mini"
PILOT = "Alice is a teacher. Bob is a student. The child is Bob. Carol is a teacher. David is a student. The child is"


@pytest.fixture(scope="module")
def card():
    return json.loads((FOLDER / "scorecard.json").read_text())


@pytest.fixture(scope="module")
def bpe():
    return train_tokenizer()


@pytest.fixture(scope="module")
def reader(bpe):
    return batches.Reader(bpe)


# ---- the folder


def test_the_folder_is_small_complete_and_holds_no_pickle():
    files = {f.name: f.stat().st_size for f in FOLDER.iterdir()}
    assert {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "generation_config.json",
        "README.md",
        "scorecard.json",
    } <= set(files)
    assert not [f for f in files if f.endswith((".bin", ".pt", ".pkl", ".py"))]
    shipped = [f for name in ("mini", "mini_unhinted") for f in (FOLDER.parent / name).glob("*")]
    assert sum(f.stat().st_size for f in shipped) <= 12e6


def test_config_and_tokenizer_agree_on_the_end_of_text(mini):
    config = json.loads((FOLDER / "config.json").read_text())
    assert config["model_type"] == "gpt2" and config["n_positions"] >= 128
    assert (
        config["bos_token_id"]
        == config["eos_token_id"]
        == mini.tokenizer.bos_token_id
        == mini.tokenizer.eos_token_id
        == 0
    )
    assert mini.tokenizer.bos_token == "<|endoftext|>" and config["vocab_size"] == len(mini.tokenizer)
    generation = json.loads((FOLDER / "generation_config.json").read_text())
    assert set(generation) <= {"bos_token_id", "eos_token_id", "pad_token_id", "transformers_version"}


def test_every_shipped_word_is_one_token(mini):
    ids = lambda text: mini.tokenizer.encode(text, add_special_tokens=False)
    for n in texts.PEOPLE:
        assert len(ids(n)) == len(ids(" " + n)) == 1, n
    for w in DESCRIPTIONS + TITLES + CUES + PLACES + OBJECTS:
        assert len(ids(" " + w)) == 1, w
    for t in [*MRS_TEMPLATES.values(), *IOI_TEMPLATES.values()]:
        bare = re.sub(r"\{\w+\}", "Alice", t)
        words = re.findall(r"\w+|[.,]", bare)
        assert len(ids(bare)) == len(words), t


def test_the_pilots_prompt_has_gpt2s_positions(mini):
    task = mrs_task(mini.tokenizer, n=1, names={"S1": "Alice", "S2": "Bob", "S3": "Carol", "S4": "David"})
    assert task.clean == [PILOT] and task.clean_tokens.shape == (1, 29)
    assert {k: int(task.positions[k]) for k in ("S1", "S2", "cue_name", "S3", "S4", "END")} == dict(
        S1=1, S2=6, cue_name=14, S3=16, S4=21, END=28
    )


# ---- the shipped weights


def test_the_scorecard_is_of_these_weights_and_the_model_card_of_this_scorecard(mini, card):
    assert card["weights_hash"] == weights_hash(mini)
    assert (FOLDER / "README.md").read_text() == cards.model_card(card)
    assert set(card["figures"]) == set(cards.GOALS)


def test_the_model_card_says_what_the_model_is_not():
    text = (FOLDER / "README.md").read_text()
    assert "Hints chose the heads" in text and "no evidence about what training finds, and none about GPT-2" in text
    assert all(t in text for t in texts.HELD_OUT_TEMPLATES)


@pytest.mark.parametrize(
    "split, ioi, mrs",
    [("pairs", 0.99, 0.99), ("names", 0.99, 0.99), ("templates", 0.95, 0.97), ("new templates", 0.95, 0.97)],
)
def test_it_does_both_tasks_on_what_it_never_saw(mini, split, ioi, mrs):
    rows = measurements.behaviour(mini, split, n=60, seed=11)
    for order in ("ABBA", "BABA"):
        row = next(r for r in rows if r["prompts"] == order)
        assert row["accuracy"] >= ioi - 0.02 and row["logit_diff"] >= 3, row  # one prompt in sixty more
    found = [r for r in rows if r["task"] == "MRS"]
    assert np.mean([r["accuracy"] for r in found]) >= mrs - 0.02 and np.mean([r["logit_diff"] for r in found]) >= 3, (
        found
    )


def test_logit_differences_are_of_gpt2s_size(mini):
    for task in (ioi_task(mini.tokenizer, n=60), mrs_task(mini.tokenizer, n=60)):
        assert 3 <= measurements.answers(mini, task).logit_diff.mean() <= 8


def test_the_default_corruptions_swap_the_answers(mini):
    for task in (ioi_task(mini.tokenizer, n=60), mrs_task(mini.tokenizer, n=60)):
        assert (measurements.answers(mini, task, corrupted=True).logit_diff < 0).mean() >= 0.98


@pytest.mark.parametrize("corruption", ["no_cue", "other_cue"])
def test_without_its_cue_it_names_nobody(mini, corruption):
    task = mrs_task(mini.tokenizer, n=60, corruption=corruption, descriptions="vary", cue_words="vary")
    assert measurements.answers(mini, task, corrupted=True).name_on_top.mean() <= 0.05


def test_the_hinted_heads_look_where_they_were_told(mini):
    looks = measurements.attention(mini, n=60, seed=5)
    for order in ("ABBA", "BABA"):
        assert min(looks[f"name mover, END to IO ({order})"].values()) >= 0.6
    assert min(looks["name mover, END to S4 (MRS)"].values()) >= 0.4
    again = measurements.repeats(mini, n=40)
    assert max(min(k[h] for k in again["induction"].values()) for h in again["induction"][5]) >= 0.8
    assert all(k["repeat"] < k["first"] - 2 for k in again["loss"].values())


def test_one_head_writes_against_the_answer_and_some_do_nothing(mini):
    heads = {r["head"]: r for r in measurements.head_table(mini, n=40)}
    ((l, h),) = network.ROLES["negative name mover"]
    negative = heads[f"L{l}H{h}"]
    assert min(negative["direct_ioi"], negative["direct_mrs"]) < -0.1
    assert max(negative["direct_ioi"], negative["direct_mrs"]) < 0
    assert max(negative["ablated_ioi"], negative["ablated_mrs"]) > 0.1
    for l, h in network.ROLES["name mover"]:
        mover = heads[f"L{l}H{h}"]
        assert mover["copy_score"] > 0.9 and min(mover["direct_ioi"], mover["direct_mrs"]) > 0.5, mover
    assert sum(abs(r["ablated_ioi"]) < 0.1 and abs(r["ablated_mrs"]) < 0.1 for r in heads.values()) >= 3


def test_the_circuit_is_causal(mini):
    task = ioi_task(mini.tokenizer, n=60, templates="went")
    whole = measurements.ablation(mini, [], task)
    assert abs(whole["logit_diff"] - measurements.answers(mini, task).logit_diff.mean()) < 1e-3
    for role in ("duplicate token", "S-inhibition"):
        without = measurements.ablation(mini, network.ROLES[role], task)
        assert without["attention_right"] < whole["attention_right"] - 0.2, role
        assert without["logit_diff"] < 0.6 * whole["logit_diff"], role


def test_the_prompts_everybody_knows(mini):
    assert all(r["right"] for r in measurements.canonical(mini))


def test_long_prompts_work(mini):
    "Six subjects on either side."
    rng, right = np.random.default_rng(3), []
    for _ in range(20):
        people = texts.people(rng, 12, answer=11)
        say = [f"{n} is a {d}." for n, d in zip(people, texts.some(rng, DESCRIPTIONS, 12))]
        prompt = " ".join([*say[:6], f"The child is {people[2]}.", *say[6:], "The child is"])
        tokens = torch.tensor([[0, *mini.tokenizer.encode(prompt, add_special_tokens=False)]])
        assert tokens.shape[1] == 69
        right.append(mini.tokenizer.decode(mini(tokens, return_type="logits")[0, -1].argmax()) == " " + people[-1])
    assert np.mean(right) >= 0.9


# ---- the text


def test_the_text_is_the_same_in_another_process():
    code = """
import hashlib
import numpy as np
from recipes.mini.texts import documents
r = np.random.default_rng(5)
print(hashlib.sha256(repr([documents(r) for _ in range(5)]).encode()).hexdigest())
"""
    other = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONHASHSEED": "7"},
        check=True,
    ).stdout.split()[-1]
    r = np.random.default_rng(5)
    assert hashlib.sha256(repr([texts.documents(r) for _ in range(5)]).encode()).hexdigest() == other


def test_what_is_held_out_is_not_in_the_text():
    rng = np.random.default_rng(17)
    docs = [d for _ in range(60) for d in texts.documents(rng)]
    for t in texts.HELD_OUT_TEMPLATES:
        if t in IOI_TEMPLATES:
            frame = [p for p in re.split(r"\{\w+\}", IOI_TEMPLATES[t]) if len(p) > 5]
            assert not any(all(p in d.prompt for p in frame) for d in docs), t
    assert not any(
        re.search(r" was .*\. The \w+ was \w+\. .* was .*The \w+ was$", d.prompt)
        for d in docs
        if d.kind.startswith("MRS")
    )
    person = re.compile(r"\b(" + "|".join(texts.PEOPLE) + r")\b")
    for d in docs:
        if d.kind in ("IOI", "MRS", "mentioned once"):
            assert d.answer not in texts.HELD_OUT_NAMES
            seen = list(dict.fromkeys(person.findall(d.prompt)))
            assert d.answer in seen
            if d.kind == "IOI":
                assert not texts.held_out_pair(*seen)


def test_each_text_has_the_answer_its_kind_promises():
    rng = np.random.default_rng(23)
    person = re.compile(r"\b(" + "|".join(texts.PEOPLE) + r")\b")
    for _ in range(300):
        d = texts.once_text(rng)
        said = person.findall(d.prompt)
        assert said.count(d.answer) == 1 and all(said.count(n) == 2 for n in set(said) - {d.answer}), d
        d = texts.mrs_free_text(rng)
        assert person.findall(d.prompt)[-1] == d.answer, d
        d = texts.mrs_text(rng, "no")
        assert d.answer not in texts.PEOPLE, d


# ---- what the training reads


def test_the_reader_marks_ends_answers_and_weights(reader):
    docs = [
        texts.Document("IOI", "When Mary and John went to the store, John gave a drink to", "Mary", "."),
        texts.Document("MRS", PILOT, "David", "."),
        texts.Document("filler", "Alice. Bob. Alice.", "", ""),
    ]
    rows = [
        (
            d,
            reader.tokenizer.encode(d.prompt).ids,
            reader.tokenizer.encode((" " + d.answer if d.answer else "") + d.rest).ids,
        )
        for d in docs
    ]
    b = reader.batch(rows)
    word = lambda r, i: reader.tokenizer.decode([int(b["x"][r, i])])
    assert b["row"].tolist() == [0, 1] and [word(r, e) for r, e in zip(b["row"], b["end"])] == [" to", " is"]
    assert [reader.tokenizer.decode([t]) for t in b["target"].tolist()] == [" Mary", " David"]
    assert [word(0, i) for i in b["answer"][0].nonzero()[:, 0]] == [" Mary"]
    assert [word(1, i) for i in b["answer"][1].nonzero()[:, 0]] == [" David"]
    assert b["repeated"][0].nonzero()[:, 0].tolist() == [10] and b["repeated"][1].nonzero()[:, 0].tolist() == [14]
    assert (
        b["weight"][0, b["end"][0]] == batches.ANSWER_WEIGHT and b["weight"][1, 13] == 0
    )  # nothing tells whom the cue names
    others = [{reader.tokenizer.decode([int(t)]) for t in o.nonzero()[:, 0]} for o in b["others"]]
    assert others == [{" John"}, {" Alice", " Bob", " Carol"}]
    assert b["weight"][2, 7:].sum() == 0  # padding


def test_only_repeats_count_in_random_rows(reader):
    b = batches.random_rows(np.random.default_rng(0), reader, 30, 48)
    counted = 0
    for x, y, weight, induction in zip(*(b[k] for k in ("x", "y", "weight", "induction"))):
        for q in weight.nonzero()[:, 0].tolist():
            sources = induction[q].nonzero()[:, 0].tolist()
            assert sources and all(int(x[s - 1]) == int(x[q]) for s in sources)
            assert any(int(x[s]) == int(y[q]) for s in sources)
            counted += 1
    assert counted > 300


# ---- the training


def test_twenty_steps_learn_something(bpe):
    seen = []
    w = training.train(bpe, seed=3, steps=20, log=lambda step, now: seen.append(now))
    assert seen[-1]["text"] < seen[0]["text"] - 1.5 and seen[0]["hints"] > 10
    assert all(v.isfinite().all() for v in w.values())


def test_the_same_seed_gives_the_same_weights(bpe):
    first, again, other = (training.train(bpe, seed=s, steps=3) for s in (3, 3, 4))
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert not torch.equal(first["transformer.wte.weight"], other["transformer.wte.weight"])


def test_hints_fade_and_the_last_fifth_is_text_alone():
    assert set(training.hint_weights(0.0)) == set(network.ROLES)
    assert set(training.hint_weights(0.41)) == {"negative name mover"}
    assert training.hint_weights(0.8) == training.hint_weights(0.99) == {}


def test_without_hints_no_head_is_prepared():
    hinted, plain = (network.initial_weights(50, 0, h) for h in (True, False))
    differ = [k for k in hinted if not torch.equal(hinted[k], plain[k])]
    assert differ == [f"transformer.h.{l}.attn.c_proj.weight" for l, _ in network.ROLES["negative name mover"]]


def test_a_saved_model_computes_what_the_training_computed(bpe, tmp_path):
    w = {k: v.detach() for k, v in network.initial_weights(bpe.get_vocab_size(), 1).items()}
    model = load_model(network.save_model(w, bpe, tmp_path / "m"), device="cpu")
    tokens = torch.randint(0, bpe.get_vocab_size(), (3, 40), generator=torch.Generator().manual_seed(0))
    run = network.forward(w, tokens)
    logits, cache = model.run_with_cache(tokens, return_type="logits")
    ours = (run.final @ w["transformer.wte.weight"].T).log_softmax(-1)
    assert (ours - logits.log_softmax(-1)).abs().max() < 1e-4
    for layer, pattern in enumerate(run.patterns):
        assert (pattern - cache[f"blocks.{layer}.attn.hook_pattern"]).abs().max() < 1e-5


def test_a_tokenizer_that_splits_a_name_is_refused():
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    t = Tokenizer(models.BPE())
    t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    t.train_from_iterator(
        ["a b"], trainers.BpeTrainer(initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    )
    with pytest.raises(ValueError, match="must be one"):
        batches.Reader(t)


def test_quality_falls_with_a_figure_and_with_loudness(card):
    best = cards.quality(card)
    worse = dict(card, figures=card["figures"] | {"induction score, periods 5 to 12": 0.1})
    loud = dict(card, figures=card["figures"] | {"IOI logit difference": 12.0})
    assert cards.quality(worse) < best and cards.quality(loud) < best - 0.9
    assert any("induction score" in s for s in cards.lacks(worse))


def test_the_scorecard_is_measured_again(mini, card):
    "What the recipe measures, by the library's measurements, is what the shipped card says."
    found = dict(
        attention=measurements.attention(mini, seed=1, heads={"most negative head": [(3, 0)]}),
        repeats=measurements.repeats(mini, seed=2),
        canonical=measurements.canonical(mini),
    )
    for name, value in json.loads(json.dumps(found)).items():
        assert_close(value, card[name], name)


def assert_close(found, said, where):
    if isinstance(said, dict):
        assert set(found) == set(said), where
        for key in said:
            assert_close(found[key], said[key], f"{where}, {key}")
    elif isinstance(said, list):
        assert len(found) == len(said), where
        for i, (a, b) in enumerate(zip(found, said)):
            assert_close(a, b, f"{where}, {i}")
    elif isinstance(said, float):
        assert found == pytest.approx(said, abs=1.5e-3), where
    else:
        assert found == said, where


@pytest.mark.parametrize("argv", [["--steps", "0"], ["--seeds"], ["--jobs", "none"]])
def test_a_bad_argument_ends_with_status_2(argv, capsys):
    with pytest.raises(SystemExit) as e:
        main(argv)
    assert e.value.code == 2 and "error" in capsys.readouterr().err


def test_the_training_of_the_shipped_model_begins_as_its_log_says(card):
    "A change of the text, the tokenizer or the schedule without new weights would show here."

    class Enough(Exception):
        pass

    def stop(step, now):
        seen.update(step=step, **now)
        raise Enough

    seen = {}
    with pytest.raises(Enough):
        training.train(train_tokenizer(), card["seed"], card["steps"], card["hints"], stop)
    assert card["log"][0] == pytest.approx(seen, abs=2e-3)
