"""The explorer: its state and figures without a browser, its widget without a notebook, its page in a real browser."""

import itertools
import json
import re
import subprocess
import sys
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from conftest import gpt2_tokenizer, small_tokenizer
from namemovers import explorer
from namemovers.activation_patching import patch
from namemovers.copy_scores import copy_scores
from namemovers.data import Task, mrs_task
from namemovers.explorer import BY_SITE, FORMAT, VIEWS, Cancelled, ExplorerState, Session
from namemovers.explorer import align, explore, heads, snapshot, token_texts, views, widget
from namemovers.head_attribution import attention
from namemovers.stats import summarise

TOKENIZER = small_tokenizer()
HOSTILE = 'Mary \u202e</script><script>window.hacked=1</script><img src=x onerror=window.hacked=1>\u200b said "é🦜" to'


@pytest.fixture(scope="module")
def session(mini):
    return Session(mini, study=False)


@pytest.fixture(scope="module")
def start(session):
    return session.state()


@pytest.mark.parametrize(
    "text, says",
    [
        ('"prompt": 1e400', "prompt: inf is no whole number; give one, such as 0."),
        ('"prompt": null', "prompt: None is no whole number; give one, such as 0."),
        ('"prompt": NaN', "prompt: nan is no whole number"),
        ('"prompt": true', "prompt: True is no whole number"),
        ('"clean": 3', "clean: 3 is no text"),
        ('"through_mlps": 1', "through_mlps: 1 is no True or False"),
        ('"head": [1e400, 0]', "head: .* is no head"),
        ('"view": "' + "x" * 10_000 + '"', "view: 'x.* is unknown; choose one of "),
    ],
    ids=lambda v: v[:20],
)
def test_a_number_that_is_none_is_refused_in_words(text, says):
    with pytest.raises(ValueError, match=f"^{says}") as caught:
        ExplorerState.parse(f'{{"{FORMAT}": 1, {text}}}')
    assert len(str(caught.value)) < 400


# --- text and alignment ---------------------------------------------------------------------------------------------


def unseen(text):
    return re.findall(
        r"[\x00-\x1f\x7f-\xa0\u00ad\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufffd\ud800-\udfff]", text
    )


@pytest.mark.parametrize(
    "tokenizer",
    [
        TOKENIZER,
        pytest.param(
            gpt2_tokenizer(),
            marks=pytest.mark.skipif(gpt2_tokenizer() is None, reason="GPT-2's tokenizer files are absent"),
        ),
    ],
    ids=["mini", "gpt2"],
)
def test_tokens_show_what_cannot_be_seen(tokenizer):
    ids = tokenizer.encode(HOSTILE + "\n\t\xa0" + "😀", add_special_tokens=False)
    labels = token_texts(tokenizer, ids)
    assert len(labels) == len(ids)
    assert not any(unseen(label) or label == "" or label.startswith(" ") for label in labels)
    assert "<" in "".join(labels) and "&lt;" not in "".join(labels), "the label is text, for what shows text"
    shown = "".join(labels).replace("·", " ").replace("⏎", "\n").replace("⇥", "\t")
    shown = re.sub(
        r"((?:\\x[0-9a-f]{2})+)", lambda m: bytes.fromhex(m[1].replace("\\x", "")).decode("utf-8", "replace"), shown
    )
    assert "window.hacked" in shown and ("\u202e" in shown or "\\u202e" in shown), (
        "bytes of a character that was split can be put together again"
    )


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=30), st.text(max_size=30), st.text(max_size=6), st.text(max_size=6))
def test_any_text_can_be_typed(clean, corrupted, correct, wrong):
    shown = align(TOKENIZER, clean, corrupted, correct, wrong)
    for k, text in enumerate((clean, corrupted)):
        own = TOKENIZER.encode(text, add_special_tokens=False)
        assert sum(c[k] is not None for c in shown["columns"]) == 1 + len(own)
    assert not unseen(json.dumps(shown, ensure_ascii=False))
    if shown["lines_up"]:
        assert all(a is not None and b is not None for a, b, _ in shown["columns"])
        assert len(Task.from_pairs(clean, corrupted, (" " + correct.strip(), " " + wrong.strip()), TOKENIZER)) == 1
    else:
        assert shown["problem"][0].isupper() and shown["problem"].endswith(".")


@pytest.mark.parametrize(
    "texts, said",
    [
        (("", "John is", "Mary", "John"), "Type the clean prompt"),
        (("Mary is", " ", "Mary", "John"), "Type the corrupted prompt"),
        (("Mary is", "Mary is", "Mary", "John"), "are the same"),
        (("Mary is ", "John is ", "Mary", "John"), "ends in a space"),
        (("Mary is", "Mary Ann is", "Mary", "John"), "3 tokens and the corrupted one 4"),
        (("Mary is", "John is", "", "John"), "Type the right answer"),
        (("Mary is", "John is", "Mary", " "), "Type the wrong answer"),
        (("Mary is", "John is", "Mary", "Mary "), "Both answers"),
        (("Mary is", "John is", "Qxz", "John"), "not one token but"),
        (("a " * 200 + "is", "John is", "Mary", "John"), "at most"),
    ],
)
def test_prompts_that_cannot_be_patched(session, start, texts, said):
    typed = replace(start, task="", **dict(zip(("clean", "corrupted", "correct", "wrong"), texts)))
    problem = session.aligned(typed)["problem"]
    assert said in problem
    for view in set(VIEWS) - {"predictions"}:
        assert session.figure(replace(typed, view=view))["problem"] == problem
    assert session.head(typed)["problem"] == problem
    # what is longer than the model reads cannot be run at all
    if texts[0].strip() and texts[1].strip() and said != "at most":
        assert "panels" in session.figure(replace(typed, view="predictions")), "predictions need no alignment"


def test_where_prompts_part():
    shown = align(TOKENIZER, "Mary is a teacher.", "Mary is a a teacher.", "Mary", "John")
    assert sum(c[0] is None for c in shown["columns"]) == 1 and sum(c[1] is None for c in shown["columns"]) == 0
    assert shown["columns"][-1] == [".", ".", False], "what comes behind stands beside its own"


# --- the state ------------------------------------------------------------------------------------------------------

choices = st.builds(
    ExplorerState,
    *[st.text(max_size=20)] * 7,
    st.integers(0, 9),
    st.sampled_from(list(VIEWS)),
    st.tuples(st.integers(0, 11), st.integers(0, 11)),
    st.sampled_from(list(BY_SITE)),
    st.sampled_from(["head", "position"]),
    st.sampled_from(["denoise", "noise"]),
    through_mlps=st.booleans(),
)


@settings(max_examples=100, deadline=None)
@given(choices)
def test_a_state_comes_back(state):
    assert (
        ExplorerState.parse(state.to_json())
        == state
        == ExplorerState.parse(state.to_link("https://example.org/a/explorer.html#old"))
    )
    assert state.by in BY_SITE[state.site] and state.to_json().isascii() and state.to_link().isascii()


def test_a_state_from_a_file(start, tmp_path):
    for name, text in (("state.json", start.to_json()), ("link.txt", start.to_link() + "\n")):
        (tmp_path / name).write_text(text)
        assert ExplorerState.parse(tmp_path / name) == ExplorerState.parse(str(tmp_path / name)) == start


@pytest.mark.parametrize(
    "bad",
    ["", "no such file", "{", "[1]", '{"view": "lens"}', "explorer.html#explorer=%%%", "explorer.html#explorer=e30"]
    + [
        json.dumps({FORMAT: 1, name: value})
        for name, value in (
            ("view", "secrets"),
            ("head", "L1H1"),
            ("head", [1]),
            ("head", [-1, 0]),
            ("head", [True, 0]),
            ("site", ["z"]),
            ("prompt", 1.5),
            ("clean", None),
            ("through_mlps", 1),
            ("surprise", 1),
            ("__class__", 1),
        )
    ],
)
def test_a_state_from_elsewhere_is_checked(bad):
    with pytest.raises(ValueError, match=r"^(state|view|head|site|prompt|clean|through_mlps): .{10,}"):
        ExplorerState.parse(bad)


def test_a_state_must_fit_the_model(session, start):
    with pytest.raises(ValueError, match="head: L9H9 is not in 'mini'"):
        session.state(replace(start, head=(9, 9)))
    typed = session.state(replace(start, clean="Mary is"))
    assert typed.task == "" and typed.clean == "Mary is", "another text is no prompt of the task"
    assert session.state(replace(start, task="nothing")).task == ""
    assert session.state({"view": "lens"}) == replace(start, view="lens"), "without prompts, the first one"
    with pytest.raises(ValueError, match="there is no prompt 99 of 'mrs'"):
        session.choose(start, "mrs", 99)


def test_tasks_of_ones_own(mini):
    one, two = mrs_task(mini.tokenizer, n=3, seed=5), mrs_task(mini.tokenizer, n=2, seed=6)
    own = Session(mini, [one, two])
    assert list(own.tasks) == ["mrs", "mrs 2"] and own.state().clean == one.clean[0]
    assert own.choose(own.state(), "mrs 2", 1).clean == two.clean[1]
    assert "Task.from_pairs" in own.code(own.state())


# --- figures --------------------------------------------------------------------------------------------------------


def array(panel):
    return np.array(panel["values"], dtype=float)


def close(ours, theirs, tolerance=2e-4):
    np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=1e-5)


def run_code(session, state, monkeypatch):
    "What the printed code computes, on the same loaded model."
    import plotly.graph_objects as go

    monkeypatch.setattr("namemovers.model.load_model", lambda name: session.model)
    monkeypatch.setattr(go.Figure, "show", lambda self: self.to_json() and None)
    names = {}
    exec(session.code(state), names)
    return names["result"]


@pytest.mark.parametrize("typed", [False, True])
@pytest.mark.parametrize(
    "change",
    [
        dict(view="predictions"),
        dict(view="lens"),
        dict(view="lens", run="corrupted"),
        dict(view="attribution"),
        dict(view="attention", head=(2, 1)),
        dict(view="attention", run="corrupted"),
        *[dict(view="patching", site=site, by=by) for site in BY_SITE for by in BY_SITE[site]],
        dict(view="patching", direction="noise"),
        *[dict(view="patching", metric=m) for m in ("logit", "prob", "rank", "kl")],
        *[dict(view="paths", paths=p, component=c, head=(2, 0)) for p in ("senders", "receivers") for c in "qkv"],
        dict(view="paths", paths="senders", head=(3, 0), through_mlps=True, direction="noise"),
        dict(view="paths", paths="strongest", component="v"),
    ],
    ids=lambda change: " ".join(map(str, change.values())),
)
def test_a_figure_is_what_its_code_gives(session, start, change, typed, monkeypatch):
    state = replace(start, **change)
    if typed:
        state = session.state(replace(state, task="", prompt=0))
    found = session.figure(state)
    assert "problem" not in found, found
    agree(state, found, run_code(session, state, monkeypatch))
    assert found["reading"].endswith(".")
    assert json.loads(json.dumps(found))
    assert not unseen(json.dumps(found, ensure_ascii=False))


def test_every_choice_is_what_its_code_gives(tiny, monkeypatch):
    """All options of all views, as the browser offers them."""
    own, tried = Session(tiny, prompts=2), 0
    options = widget.about_session(own, True)["options"]
    for view in VIEWS:
        for by in options["by"]["z"] if view == "patching" else ["head"]:
            names = [n for n in explorer.depends(replace(own.state(), view=view)) if n in options and n != "by"]
            for values in itertools.product(*(options[n] for n in names)):
                state = replace(own.state(), view=view, head=(1, 2), by=by, **dict(zip(names, values)))
                if view == "patching" and state.by != by and by != "head":
                    continue  # a stream's only way, met already
                found = own.figure(state)
                agree(state, found, run_code(own, state, monkeypatch))
                tried += 1
    offered = re.search(r"const OPTIONS = \{(.*?)\}\n", (explorer.ASSETS / "explorer.js").read_text())[1]
    for view, names in re.findall(r"(\w+): \[(.*?)\]", offered):
        assert set(re.findall(r"\w+", names)) == {
            n for n in explorer.depends(replace(own.state(), view=view)) if n in options
        }, "the browser offers what a figure depends on"
    assert tried == 1 + 2 + 1 + (5 * 2 + 5) * 2 * 5 + 3 * 3 * 2 * 2 + 2


def agree(state, found, result):
    "That a figure holds the numbers of a result of the library."
    panel, (l, h) = found["panels"][0], state.head
    if state.view == "predictions":
        for run, one in zip(("clean", "corrupted"), found["panels"]):
            close([r[2] for r in one["rows"]], result[result.prompt == getattr(state, run)].probability)
    elif state.view == "lens":
        close(panel["values"], result.logit_diff.isel(prompt=0))
        close(array(found["panels"][1]), result.top_probability.isel(prompt=0))
    elif state.view == "attribution":
        close(array(panel), result.attribution.isel(prompt=0))
        total = array(panel).sum() + sum(found["panels"][1]["values"])
        close(total, float(result.logit_diff[0]), 1e-3)
    elif state.view == "attention":
        for i, row in enumerate(panel["values"]):
            np.testing.assert_allclose(
                row, result.pattern.sel(layer=l, head=h).values[i, : i + 1], rtol=6e-3, atol=1e-5
            )
    elif state.view == "patching":
        expected = result.effect.isel(prompt=0)
        close(array(panel), expected.sel(layer=l) if state.by == "head_position" else expected)
    elif state.paths == "strongest":
        expected = result.effect.isel(prompt=0)
        for (sender, receiver), row in zip(panel["heads"], panel["rows"]):
            close(
                row[2],
                float(expected.sel(sender_layer=sender[0], sender_head=sender[1], layer=receiver[0], head=receiver[1])),
            )
        assert abs(panel["rows"][0][2]) == pytest.approx(float(abs(expected).max()), rel=1e-3)
    else:
        close(array(panel), result.effect.isel(prompt=0, **({"sender": 0} if state.paths == "receivers" else {})))


def test_the_full_sweep_holds_the_single_paths(mini):
    own = Session(mini)
    state = replace(own.state(), view="paths", head=(1, 2))
    alone = [array(own.figure(replace(state, paths=p))["panels"][0]) for p in ("senders", "receivers")]
    again = Session(mini)
    again.figure(replace(state, paths="strongest"))
    for paths, expected in zip(("senders", "receivers"), alone):
        close(array(again.figure(replace(state, paths=paths))["panels"][0]), expected)


def test_first_and_last_layer_say_what_they_lack(session, start):
    assert "no head comes before it" in session.figure(replace(start, view="paths", head=(0, 1)))["problem"]
    assert (
        "no head comes after it"
        in session.figure(replace(start, view="paths", paths="receivers", head=(3, 1)))["problem"]
    )


def test_a_model_that_the_fast_engine_cannot_run(tiny, monkeypatch):
    own, state = Session(tiny), None
    state = own.state()
    fast = own.figure(state)
    for where in ("engine.ready", "activation_patching"):
        monkeypatch.setattr(f"namemovers.{where}.why_not", lambda model, length=0: "it is a test")
    slow = Session(tiny).figure(state)
    slow, fast = array(slow["panels"][0]), array(fast["panels"][0])
    assert np.abs(slow - fast).max() < 1e-3 * np.abs(fast).max()  # the two runs are close here, so rounding counts
    assert "cannot run this model" in Session(tiny).figure(replace(state, view="paths", paths="strongest"))["problem"]


def test_runs_that_do_not_differ(tiny):
    with torch.no_grad():
        kept = tiny.W_U.clone()
        tiny.W_U.zero_()
    try:
        own = Session(tiny)  # a session refuses weights that were changed since it began
        assert "nothing to restore" in own.figure(own.state())["problem"]
    finally:
        with torch.no_grad():
            tiny.W_U.copy_(kept)


# --- one head -------------------------------------------------------------------------------------------------------


def fact(known, name):
    return next(f["value"] for f in known["facts"] if f["name"] == name)


def test_what_is_known_of_a_head(session, start):
    known, (l, h), n = session.head(start), start.head, explorer.INTERVAL_PROMPTS
    assert start.head == tuple(np.unravel_index(np.abs(array(session.figure(start)["panels"][0])).argmax(), (4, 4))), (
        "it opens with the largest"
    )
    one, task = session.task(start), session.tasks["mrs"]
    assert (
        fact(known, "effect, this prompt")
        == f"{float(patch(session.model, one, 'z', progress=False).effect.isel(prompt=0)[l, h]):.2f}"
    )
    whole = summarise(patch(session.model, task[:n], "z", progress=False).effect)
    value, low, high = map(float, re.findall(r"-?[\d.]+", fact(known, f"effect, {n} prompts").replace("−", "-")))
    assert value == pytest.approx(float(whole["mean"][l, h]), abs=0.006)
    assert low == pytest.approx(float(whole.low[l, h]), abs=0.03)
    assert high == pytest.approx(float(whole.high[l, h]), abs=0.03)
    np.testing.assert_allclose(
        known["attention"]["values"]["clean"],
        attention(session.model, one).pattern.values[l, h, -1],
        rtol=6e-3,
        atol=1e-5,
    )
    assert len(known["attention"]["tokens"]["corrupted"]) == one.clean_tokens.shape[1] and known["can_measure_roles"]


def test_one_prompt_has_no_interval(session, start):
    known = session.head(session.state(replace(start, task="", prompt=0)))
    assert fact(known, "interval") == "none"
    assert not known["can_measure_roles"]
    assert not any("[" in f["value"] for f in known["facts"] if f["name"].startswith("effect"))


def test_copy_scores_of_one_head_are_the_library_s(tiny):
    own, whole = Session(tiny), copy_scores(tiny)
    for head in ((0, 0), (2, 3)):
        for summary, name in zip(own.copies(*head), ("copy_score", "negative_copy_score")):
            assert float(summary["mean"]) == pytest.approx(float(whole[name].mean("name")[head]), abs=1e-12)


def test_a_tokenizer_without_names(tiny, monkeypatch):
    monkeypatch.setattr(heads, "shipped_names", lambda tokenizer: [])
    own = Session(tiny, [])
    assert own.state() == ExplorerState(model="tiny", weights=own.state().weights, view="predictions")
    typed = replace(own.state(), clean="Mary is", corrupted="John is", correct="Mary", wrong="John", view="attribution")
    assert fact(own.head(typed), "copy score") == "none" and "panels" in own.figure(typed)


def test_roles_are_told_once_measured(session, start):
    assert fact(session.head(start), "role") == "not measured yet"
    with pytest.raises(Cancelled):
        session.measure_roles("mrs", stop_at(2))
    assert fact(session.head(start), "role") == "not measured yet"
    found = session.measure_roles("mrs")
    known = session.head(start)
    assert fact(known, "role").startswith(str(found.role.sel(layer=start.head[0], head=start.head[1]).item()))
    assert not known["can_measure_roles"]


def test_the_study_s_roles_are_told(mini, monkeypatch, tmp_path):
    from types import SimpleNamespace

    from namemovers.results import save

    measured = Session(mini, prompts=3, study=False)
    found = measured.measure_roles("mrs")
    monkeypatch.setattr(heads, "settings", lambda: SimpleNamespace(root=tmp_path))
    save(found, "mrs_roles", tmp_path / "results" / "mini")
    save(found.assign_attrs(weights_hash="0"), "ioi_roles", tmp_path / "results" / "mini")
    own = Session(mini, prompts=3)
    state = own.state()
    known = own.head(state)
    role = next(f for f in known["facts"] if f["name"] == "role")
    assert role["value"] == fact(measured.head(state), "role")
    assert role["note"].startswith("by the study, on 3 prompts: ")
    assert not known["can_measure_roles"]
    assert fact(own.head(own.choose(state, "ioi", 0)), "role") == "not measured yet", "of other weights"


# --- progress -------------------------------------------------------------------------------------------------------


def stop_at(calls):
    seen = itertools.count(1)

    def progress(done, total):
        if next(seen) >= calls:
            raise Cancelled

    return progress


@pytest.mark.parametrize(
    "change",
    [
        dict(view="patching", site="mlp_out"),
        dict(view="paths", paths="strongest"),
        dict(view="patching", site="k", by="head_position"),
    ],
    ids=str,
)
def test_a_sweep_reports_and_stops(tiny, change):
    own = Session(tiny)
    state = replace(own.state(), **change)
    with pytest.raises(Cancelled):
        own.figure(state, progress=stop_at(1))
    told = []
    found = own.figure(state, progress=lambda done, total: told.append((done, total)))
    assert "panels" in found
    assert told
    assert [d for d, _ in told] == sorted(d for d, _ in told)
    assert told[-1][0] <= told[-1][1]
    again = []
    assert own.figure(state, progress=lambda *at: again.append(at))["panels"] == found["panels"] and not again, (
        "an answer is remembered"
    )


# --- the widget, without a notebook ---------------------------------------------------------------------------------


def change(app, **fields):
    app.state = {**app.state, **fields}


def settled(app):
    assert app.wait(60)
    return app


def test_the_widget_follows_its_state(mini):
    app = explore(mini)
    assert app.figure["panels"] and app.head["name"] == f"L{app.state['head'][0]}H{app.state['head'][1]}"
    change(app, view="lens", head=[1, 1])
    settled(app)
    assert app.figure["of"]["view"] == "lens" and app.head["name"] == "L1H1" and app.progress == {}
    change(app, view="patching", site="resid_pre")
    assert settled(app).state["by"] == "position" and app.figure["panels"][0]["col_name"] == "token", (
        "the way follows from the site"
    )
    before = app.figure
    change(app, head=[2, 2])
    assert settled(app).figure == before and app.head["name"] == "L2H2", "no figure of streams depends on a head"
    change(app, task="", clean="Mary is", corrupted="John is", correct="Mary", wrong="John")
    assert settled(app).aligned["lines_up"] and len(app.figure["panels"][0]["cols"]) == 3
    old = app.state
    change(app, head=[9, 9])
    assert app.state == old and "L9H9" in app.note, "what cannot be is refused in a sentence"


def test_a_head_comes_in_two_steps(mini):
    app, told = explore(mini), []
    assert (
        app.head["pending"] and fact(app.head, "copy score") == "…" and fact(app.head, "effect, this prompt") != "…"
    ), "the rest is asked for when it is shown"
    app._message(None, {"type": "again"}, [])
    assert not settled(app).head["pending"] and "…" not in [f["value"] for f in app.head["facts"]]
    app.observe(lambda change: told.append(change["new"]["pending"]), "head")
    change(app, head=[1, 0])
    settled(app)
    assert told == [True, False] and app.head == app.session.head(app.session.state(app.state))
    change(app, head=[0, 0])
    change(app, head=[1, 0])
    assert settled(app).head["name"] == "L1H0" and not app.head["pending"]


def test_the_widget_opens_what_was_saved(mini, tmp_path):
    first = explore(mini)
    change(first, view="paths", head=[2, 1])
    settled(first)
    saved = ExplorerState.from_dict(first.state)
    (tmp_path / "explorer.json").write_text(saved.to_json())
    for given_state in (saved, saved.to_link(), saved.to_json(), str(tmp_path / "explorer.json")):
        second = explore(mini, state=given_state)
        assert second.state == first.state and second.figure == first.figure and second.note == ""
    second._message(None, {"type": "open", "text": replace(saved, model="another", weights="0").to_link()}, [])
    assert "saved with another model (another" in settled(second).note
    second._message(None, {"type": "open", "text": "{}"}, [])
    assert "not from the explorer" in second.note


class Slow:
    "A session whose views wait until they are let go, and count."

    def __init__(self, session):
        self.session, self.go, self.asked, self.begun = session, threading.Event(), [], threading.Event()

    def __getattr__(self, name):
        return getattr(self.session, name)

    def figure(self, state, progress=None):
        if progress is None:
            return self.session.figure(state)
        self.asked.append(state.view)
        self.begun.set()
        for i in range(10_000):
            progress(i, 10_000)
            if self.go.wait(0.005):
                return self.session.figure(state, progress)
        raise AssertionError("never let go")


def slow_app(mini):
    slow = Slow(Session(mini))
    return widget.widget_class()(slow), slow


def test_cancel_is_heard_while_a_view_is_computed(mini):
    app, slow = slow_app(mini)
    change(app, view="lens")
    assert slow.begun.wait(30)
    app._message(None, {"type": "cancel"}, [])
    assert re.match(r"Cancelled after \d+ of 10000 runs\.", settled(app).figure["problem"])
    assert app.figure["cancelled"]
    assert app.progress == {}
    slow.go.set()
    app._message(None, {"type": "again"}, [])
    assert settled(app).figure["panels"] and app.figure["of"]["view"] == "lens"


def test_a_newer_question_takes_the_place_of_an_older(mini):
    app, slow = slow_app(mini)
    change(app, view="lens")
    assert slow.begun.wait(30)
    change(app, head=[3, 3])  # another head is no reason to begin again
    change(app, view="attribution")
    change(app, view="attention")
    slow.go.set()
    settled(app)
    assert slow.asked[0] == "lens"
    assert slow.asked.count("lens") == 1
    assert app.figure["of"]["view"] == "attention"
    assert app.head["name"] == "L3H3"
    change(app, view="patching")
    settled(app)
    slow.go.clear(), slow.begun.clear()
    change(app, view="predictions")
    assert slow.begun.wait(30)
    change(app, view="patching")  # back to what is shown
    assert settled(app).figure["of"]["view"] == "patching"


def seen(app, name, what):
    "An event that is set when a part of the widget is as asked."
    there = threading.Event()
    app.observe(lambda change: what(change["new"]) and there.set(), name)
    return there


def test_a_head_does_not_wait_for_a_sweep(mini):
    app, slow = slow_app(mini)
    change(app, view="lens")
    assert slow.begun.wait(30)
    there = seen(app, "head", lambda head: head["name"] == "L3H1")
    change(app, head=[3, 1])
    assert there.wait(30) and app.figure["of"]["view"] == "patching", (
        "the head is told while the view is still computed"
    )
    slow.go.set()
    settled(app)
    assert app.figure["of"]["view"] == "lens" and not app.head["pending"] and slow.asked == ["lens"]


def test_a_view_does_not_wait_for_the_rest_of_a_head(mini):
    begun, go = threading.Event(), threading.Event()

    class SlowCopies(Session):
        def copies(self, layer, head, progress=None):
            begun.set()
            for i in range(10_000):
                progress(i, 10_000)
                if go.wait(0.005):
                    return super().copies(layer, head, progress)

    app = widget.widget_class()(SlowCopies(mini))
    app._message(None, {"type": "again"}, [])
    assert begun.wait(30)
    there, first = seen(app, "figure", lambda figure: figure["of"]["view"] == "lens"), app.head
    change(app, view="lens")
    assert there.wait(30) and app.head is first and first["pending"]
    go.set()
    assert not settled(app).head["pending"] and app.head["name"] == first["name"]


def test_an_error_is_shown_and_leaves_the_widget_alive(mini, monkeypatch):
    app = explore(mini)
    monkeypatch.setitem(views.SHOWS, "lens", lambda *_: 1 / 0)
    change(app, view="lens")
    assert settled(app).figure["problem"].startswith("ZeroDivisionError")
    change(app, view="attribution")
    assert settled(app).figure["panels"]


def test_without_anywidget(monkeypatch, mini):
    monkeypatch.setitem(sys.modules, "anywidget", None)
    widget.widget_class.cache_clear()
    try:
        with pytest.raises(ImportError, match=r"pip install 'namemovers\[notebooks\]'"):
            explore(mini)
    finally:
        widget.widget_class.cache_clear()


def test_importing_the_package_stays_light():
    code = (
        "import sys, namemovers\n"
        "assert 'torch' not in sys.modules and 'anywidget' not in sys.modules\n"
        "assert 'explore' in namemovers.__all__\n"
        "assert callable(namemovers.explore)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# --- the page -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def page_file(tiny, tmp_path_factory):
    "A page of two prompts, one of them hostile."
    own = Session(tiny)
    bad = replace(
        own.state(),
        clean=HOSTILE,
        corrupted=HOSTILE.replace("Mary", "John"),
        correct="Mary",
        wrong="John",
        task="",
        prompt=0,
    )
    made = snapshot(own, [own.state(), bad], roles=False)
    path = tmp_path_factory.mktemp("page") / "explorer.html"
    path.write_text(
        f'<!doctype html><html><head><meta charset="utf-8"><title>x</title></head><body>{made.text}</body></html>',
        encoding="utf-8",
    )
    return path


def test_a_page_holds_its_answers_and_nothing_else(page_file):
    text = page_file.read_text(encoding="utf-8")
    assert text.count("<script") == 2 and text.count("</script>") == 2 and "http:" not in text and "https:" not in text
    assert not re.search(r"\bfetch\(|import\(|XMLHttpRequest|innerHTML|insertAdjacentHTML|document\.write", text)
    assert text.isascii() or not unseen(text.replace("\n", "").replace("\x00", ""))


def test_a_page_is_made_twice_the_same(tiny):
    own = Session(tiny)
    prompt = own.state()
    assert snapshot(own, [prompt], roles=False).text == snapshot(Session(tiny), [prompt], roles=False).text


def test_a_page_of_prompts_that_do_not_line_up(tiny):
    own = Session(tiny)
    with pytest.raises(ValueError, match="prompts: The clean prompt has"):
        snapshot(own, [replace(own.state(), task="", clean="Mary Ann is")], roles=False)


@pytest.fixture
def visit(browser, page_file):
    "Open the page; whatever goes wrong in it, or leaves it, fails the test."
    wrong, contexts = [], []

    def go(behind="", **options):
        context = browser.new_context(**{"viewport": {"width": 1100, "height": 900}, **options})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(30_000)
        page.on("console", lambda m: m.type in ("error", "warning") and wrong.append(m.text))
        page.on("pageerror", lambda e: wrong.append(str(e)))
        page.on("request", lambda r: r.url.startswith(("file:", "data:", "blob:")) or wrong.append(r.url))
        page.goto(page_file.as_uri() + behind)
        page.wait_for_selector(".nmx[data-shown]:not([data-shown=''])")
        return page

    yield go
    for context in contexts:
        context.close()
    assert not wrong


def test_every_choice_of_the_page_has_an_answer(visit):
    page = visit()
    assert page.locator(".nmx input[type=text], .nmx progress:visible").count() == 0
    tried = 0
    for view in VIEWS:
        page.locator(f"[data-view={view}]").click()
        for option in page.eval_on_selector_all("[data-option]", "all => all.map(e => e.dataset.option)"):
            for value in page.eval_on_selector_all(f"[data-option={option}] option", "all => all.map(e => e.value)"):
                page.locator(f"[data-option={option}]").select_option(value)
                assert page.locator(".nmx").get_attribute("data-shown") == view
                assert "holds no answer" not in page.locator(".nmx-view").inner_text()
                assert (
                    page.locator(".nmx-view td").count() or "layer" in page.locator(".nmx-problem:visible").inner_text()
                )
                tried += 1
    assert tried >= 2 * len(VIEWS)


def test_a_head_is_chosen_by_mouse_and_by_keyboard(visit):
    page = visit()
    page.locator("td[data-at='1,2']").click()
    page.mouse.move(0, 0)  # a pointer that rests on a cell reads that cell
    assert page.locator(".nmx-head").get_attribute("data-head") == "L1H2"
    assert page.locator("td[aria-selected=true]").get_attribute("data-at") == "1,2"
    assert page.evaluate("document.activeElement.dataset.at") == "1,2"
    keeps = page.evaluate("document.activeElement.hasAttribute('data-lm-suppress-shortcuts')")
    assert keeps, "Notebook 7 would take the keys"
    for key in ("ArrowDown", "ArrowRight", "Enter"):
        page.keyboard.press(key)
    assert page.locator(".nmx-head h3").inner_text() == "L2H3"
    assert page.evaluate("document.activeElement.dataset.at") == "2,3"
    assert "L2H3: effect" in page.locator(".nmx-readout").inner_text()
    page.get_by_label("Choose a head").select_option("0,1")
    assert page.locator(".nmx-head").get_attribute("data-head") == "L0H1"
    page.get_by_role("button", name="Its pattern").click()
    assert page.locator(".nmx-panel h4").inner_text().startswith("L0H1")
    page.locator("[data-view=paths]").click()
    page.locator("[data-option=paths]").select_option("strongest")
    row = page.locator(".nmx-list tbody tr").first
    name = row.locator("button").nth(1).inner_text()
    row.locator("button").nth(1).click()
    assert page.locator(".nmx-head").get_attribute("data-head") == name
    page.locator("[data-view=predictions]").focus()
    page.keyboard.press("ArrowRight")
    assert page.locator(".nmx").get_attribute("data-shown") == "lens"


def test_text_is_shown_and_never_obeyed(visit):
    page = visit()
    page.locator(".nmx-source select").select_option("1")
    for view in VIEWS:
        page.locator(f"[data-view={view}]").click()
    page.get_by_role("button", name="Show the code").click()
    page.wait_for_timeout(100)
    assert page.evaluate("window.hacked") is None and page.locator(".nmx img, .nmx script").count() == 0
    assert (
        "onerror" in page.locator(".nmx-align").inner_text().replace("\n", "")
        or page.locator(".nmx-align .nmx-token").count() > 20
    )
    shown = page.locator(".nmx").inner_text()
    assert not re.search(r"[\u202e\u200b]", shown)
    assert "</script>" in page.locator(".nmx-source option").nth(1).inner_text()


def test_a_link_and_a_file_bring_the_state_back(visit, tmp_path):
    page = visit()
    page.locator("[data-view=paths]").click()
    page.locator("[data-option=component]").select_option("v")
    page.get_by_label("Choose a head").select_option("2,1")
    page.locator("[data-action=link]").click()
    link = page.get_by_label("Link", exact=True).input_value()
    assert ExplorerState.parse(link).head == (2, 1) and ExplorerState.parse(link).component == "v"
    with page.expect_download() as download:
        page.locator("[data-action=save]").click()
    download.value.save_as(tmp_path / "explorer.json")
    assert ExplorerState.parse(tmp_path / "explorer.json") == ExplorerState.parse(link)

    def is_back(other):
        other.wait_for_selector(".nmx[data-shown=paths]")
        assert other.locator(".nmx-head").get_attribute("data-head") == "L2H1"
        assert other.locator("[data-option=component]").input_value() == "v"

    is_back(visit("#" + link.split("#")[1]))
    other = visit()
    other.locator("[data-action=open]").click()
    other.get_by_label("A saved file", exact=True).set_input_files(tmp_path / "explorer.json")
    is_back(other)
    other = visit()
    other.locator("[data-action=open]").click()
    other.get_by_placeholder("A link").fill(replace(ExplorerState.parse(link), clean="Another prompt").to_link())
    other.get_by_role("button", name="Open this").click()
    assert "no answers for the prompts" in other.locator(".nmx-foot").inner_text()
    assert "not from the explorer" in visit("#explorer=AAAA").locator(".nmx-foot").inner_text()
    other = visit()
    other.locator("[data-action=open]").click()
    other.get_by_placeholder("A link").fill(json.dumps({FORMAT: 1, "prompt": 0}).replace("0}", "1e400}"))
    other.get_by_role("button", name="Open this").click()
    assert "prompt: the number is too large" in other.locator(".nmx-foot").inner_text()


# what of the explorer does not fit its place
CUT = """() => {
    const parts = 'button, h3, h4, p:not([hidden]), select, .nmx-facts > div, .nmx-align > div';
    return [...document.querySelectorAll(`.nmx :is(${parts})`)].filter(e => {
        const b = e.getBoundingClientRect();
        const outside = b.left < -1 || b.right > innerWidth + 1;
        const clipped = e.scrollWidth > e.clientWidth + 2 && getComputedStyle(e).overflow !== 'visible';
        return b.width && (outside || clipped);
    }).map(e => e.className + e.textContent.slice(0, 40));
}"""


@pytest.mark.parametrize("width", [1100, 380])
def test_nothing_is_cut(visit, width):
    page = visit(viewport={"width": width, "height": 900}, color_scheme="dark")
    for view in VIEWS:
        page.locator(f"[data-view={view}]").click()
        assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0, view
        assert page.evaluate(CUT) == [], view
