"""Tasks with tokenizers that write spaces and beginnings in their own way."""

import re

import conftest
import numpy as np
import pytest
from conftest import warned
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from namemovers.copy_scores import shipped_names
from namemovers.data import (
    CUES,
    DESCRIPTIONS,
    IOI_TEMPLATES,
    MRS_CORRUPTIONS,
    MRS_TEMPLATES,
    NAMES,
    NEUTRAL_SENTENCES,
    OBJECTS,
    PLACES,
    TITLES,
    Task,
    align,
    ioi_task,
    mrs_task,
    name_token,
    token_as_text,
    token_table,
    word_ids,
)
from namemovers.model import load_model

SAID = sorted(
    {
        w
        for t in [*MRS_TEMPLATES.values(), *IOI_TEMPLATES.values(), *NEUTRAL_SENTENCES]
        for w in re.findall(r"\w+", re.sub(r"\{.*?\}", "", t))
    }
)
WORDS = list(dict.fromkeys([*NAMES, *DESCRIPTIONS, *CUES, *TITLES, *PLACES, *OBJECTS, *SAID]))
LETTERS = list("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")


def unigram(words=WORDS):
    scores = [
        ("<unk>", 0.0),
        ("<s>", 0.0),
        ("</s>", 0.0),
        *[("▁" + w, -5.0) for w in words],
        *[(c, -9.0) for c in ["▁", *LETTERS]],
        (".", -3.0),
        (",", -3.0),
    ]
    return Tokenizer(models.Unigram(scores, unk_id=0))


def fast(tokenizer, **more):
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **{"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"} | more
    )


def metaspace(scheme, words=WORDS):
    tok = unigram(words)
    tok.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    tok.decoder = decoders.Metaspace(prepend_scheme=scheme)
    return fast(tok)


def llama(words=WORDS, own_bos=False):
    "As Llama 2 writes: a mark before the text, spaces as marks, nothing cut beforehand."
    tok = unigram(words)
    tok.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tok.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    if own_bos:
        tok.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return fast(tok)


def byte_level(prefix=False, own_bos=False):
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    tok.decoder = decoders.ByteLevel()
    text = [space + w for w in WORDS for space in ("", " ")] + ["."]
    trainer = trainers.BpeTrainer(
        vocab_size=6000,
        special_tokens=["<s>", "</s>", "<unk>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tok.train_from_iterator(text * 3, trainer)
    if own_bos:
        tok.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", tok.token_to_id("<s>"))]
        )
    return fast(tok)


MAKE = {
    "Metaspace, first": lambda: metaspace("first"),
    "Metaspace, always": lambda: metaspace("always"),
    "Llama 2": llama,
    "Llama 2 that adds BOS": lambda: llama(own_bos=True),
    "byte level": byte_level,
    "byte level, prefix space": lambda: byte_level(prefix=True),
    "byte level that adds BOS": lambda: byte_level(own_bos=True),
}


@pytest.fixture(scope="module", params=MAKE)
def tokenizer(request):
    return MAKE[request.param]()


def test_every_shipped_name_is_found(tokenizer, recwarn):
    task = mrs_task(tokenizer, n=20, seed=1)
    assert not [w for w in recwarn if "left out" in str(w.message)] and shipped_names(tokenizer) == NAMES
    assert {v for row in task.names for v in row.values()} - {"teacher", "student", "child"} <= set(NAMES)


@pytest.mark.parametrize(
    "make",
    [lambda t, **k: mrs_task(t, n=6, templates="all", **k), lambda t, **k: ioi_task(t, n=6, **k)],
    ids=["mrs", "ioi"],
)
def test_positions_and_answers_are_what_the_text_says(tokenizer, make):
    task = make(tokenizer)
    for i in range(len(task)):
        length = int(task.lengths[i])
        ids = task.clean_tokens[i, :length].tolist()
        assert ids == [tokenizer.bos_token_id, *tokenizer.encode(task.clean[i], add_special_tokens=False)]
        assert ids.count(tokenizer.bos_token_id) == 1
        for which, token in (
            ("IO" if task.name == "ioi" else "S4", task.correct[i]),
            ("S" if task.name == "ioi" else None, task.wrong[i]),
        ):
            if which is None:
                continue
            said = tokenizer.encode(f"{task.clean[i]} {task.names[i][which]}", add_special_tokens=False)
            # the answer is the one token that would follow
            assert [tokenizer.bos_token_id, *said] == [*ids, int(token)]
        for name, at in task.positions.items():
            if name in task.names[i]:
                assert tokenizer.decode([ids[int(at[i])]]).strip() == task.names[i][name]
        assert task.answer(i) == " " + tokenizer.decode([int(task.correct[i])]).strip()


@pytest.mark.parametrize("corruption", MRS_CORRUPTIONS)
def test_every_corruption_works(tokenizer, corruption):
    task = mrs_task(tokenizer, n=3, corruption=corruption)
    assert ((task.clean_tokens != task.corrupted_tokens).sum(1) > 0).all()


def test_pairs_and_templates_take_answers_as_they_are_written(tokenizer):
    pairs = Task.from_pairs(
        "When Mary and John went to the store, John gave a drink to",
        "When Mary and John went to the store, Mary gave a drink to",
        (" Mary", " John"),
        tokenizer,
    )
    assert pairs.correct.tolist() == [word_ids(tokenizer, ["Mary"])[0][0]] == [name_token(tokenizer, "Mary")]
    assert pairs.answer() == " Mary"
    assert [tokenizer.decode([int(pairs.clean_tokens[0, int(p[0])])]).strip() for p in pairs.positions.values()] == [
        "John",
        "to",
    ]
    made = Task.from_template(
        "{A} and {B} went to the {C}. {B} gave it to",
        dict(A=NAMES, B=NAMES, C=PLACES),
        ("A", "B"),
        ("A", "B"),
        tokenizer,
        n=5,
    )
    assert [made.answer(i).strip() for i in range(5)] == [row["A"] for row in made.names]
    assert made.subjects == (
        "A",
        "B.1",
        "B.2",
    )
    with pytest.raises(ValueError, match="write ' Mary'"):  # the advice works
        Task.from_pairs(pairs.clean, pairs.corrupted, ("Mary", " John"), tokenizer)


def test_advice_does_not_go_in_a_circle():
    "What a message says to write is not what was written."
    words = [w for w in WORDS if w not in ("Mary", "John")]
    for tok in (llama(words), metaspace("first", words)):
        for answer in (" Mary", "Mary"):
            with pytest.raises(ValueError, match=r"answers: ' ?Mary' .* is not one token but \d") as caught:
                Task.from_pairs(
                    "When the boy left the girl gave it to",
                    "When the girl left the girl gave it to",
                    (answer, " Bob"),
                    tok,
                )
            assert "write" not in str(caught.value) and "choose an answer of one token" in str(caught.value)


def test_a_name_of_two_tokens_is_named():
    tok = llama([w for w in WORDS if w not in ("Mary", "John")])
    with warned(r"2 of the 136 shipped names .*'John' is 5: \[.*'Mary' is 5: \["):
        assert len(mrs_task(tok, n=4)) == 4
    with pytest.raises(ValueError, match=r"names: 'Mary' is not one token .* but 5: \["):
        mrs_task(tok, n=1, names=["Mary", "Bob", "Paul", "Adam"])


def test_no_shipped_name_fits():
    for tok in (llama([w for w in WORDS if w not in NAMES]), metaspace("never", [])):
        with pytest.raises(
            ValueError,
            match=(
                r"names: none of the 136 shipped names is one token .*\(.* is \d+: "
                r"\[.*give names that are, with names="
            ),
        ) as caught:
            mrs_task(tok, n=2)
        assert "lower n" not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["Llama 2 that adds BOS", "byte level", "byte level that adds BOS", "Metaspace, first"]
)
def test_a_prompt_that_begins_with_bos_is_refused(name):
    tok = MAKE[name]()
    calls = {
        "clean": lambda: Task.from_pairs(
            "<s>Mary went to the store. So", "<s>John went to the store. So", (" Mary", " John"), tok
        ),
        "corrupted": lambda: Task.from_pairs(
            "Mary went to the store. So", "<s> Mary went to the store. So", (" Mary", " John"), tok
        ),
        "template": lambda: Task.from_template(
            "<s>{A} met {B}. So", dict(A=NAMES, B=NAMES), ("A", "B"), ("A", "B"), tok, n=2
        ),
        "mrs": lambda: mrs_task(tok, n=2, templates="<s>{S1} met {S2}. So"),
        "ioi": lambda: ioi_task(tok, n=2, templates="<s>When {IO} and {S} met, {S} gave it to"),
        "align": lambda: align(tok, "<s>Mary went", "John went"),
    }
    for call in calls.values():
        with pytest.raises(
            ValueError, match=r"'<s>.* begins with the BOS token '<s>', which every prompt gets by itself; leave it out"
        ):
            call()


def test_a_token_is_shown_with_its_space():
    for tok in (llama(), metaspace("first"), byte_level()):
        (mary,), (late,) = word_ids(tok, ["Mary"])[0], word_ids(tok, ["late"])[0]
        assert token_as_text(tok, mary) == " Mary" and token_as_text(tok, np.int64(late)) == " late"
        assert list(token_table(mrs_task(tok, n=1))["clean"])[2] == "·is"


def test_gpt2s_shape_has_gpt2s_vocabulary_wherever_it_is_tried(monkeypatch, tmp_path):
    """Beside a repository without GPT-2's tokenizer the tests of its shape say what they take in its place."""
    plain = conftest.small_tokenizer()
    monkeypatch.setattr(conftest, "SHARED", tmp_path)
    with pytest.warns(UserWarning, match="is absent: .* filled up to 50257 tokens"):
        tokenizer = conftest.tokenizer_of_gpt2s_size()
    text = " ".join(NAMES[:50])
    assert len(tokenizer) == 50257 and tokenizer.encode(text) == plain.encode(text)
    folder = conftest.write_checkpoint(tmp_path / "model", tokenizer, n_layer=1, n_head=2, n_embd=8)
    model = load_model(folder, device="cpu")
    assert model.cfg.d_vocab == model.W_U.shape[1] == 50257
    assert (ioi_task(model.tokenizer, n=4).clean_tokens < len(plain)).all()
