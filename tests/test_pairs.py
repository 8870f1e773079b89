"""Pairs of runs: direction, grouping, and what is refused."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, strategies as st

from namemovers.pairs import METRICS, Pairs, Question, progress_bar


def pairs_of(clean, corrupted, end, direction="denoise"):
    answers = torch.zeros(len(clean), dtype=torch.long)
    return Pairs(torch.tensor(clean), torch.tensor(corrupted), torch.tensor(end), answers, answers + 1, direction)


def test_denoising_patches_into_the_corrupted_run():
    denoise = pairs_of([[1, 2]], [[1, 3]], [1])
    noise = pairs_of([[1, 2]], [[1, 3]], [1], "noise")
    assert denoise.base.tolist() == noise.donor.tolist() == [[1, 3]]
    assert denoise.donor.tolist() == noise.base.tolist() == [[1, 2]]
    assert denoise.clean_first(base="b", donor="d") == ("d", "b")
    assert noise.clean_first(base="b", donor="d") == ("b", "d")


def test_pairs_have_the_fields_of_a_task():
    task = SimpleNamespace(
        clean_tokens=torch.tensor([[1, 2]]),
        corrupted_tokens=torch.tensor([[1, 3]]),
        correct=torch.tensor([4]),
        wrong=torch.tensor([5]),
        positions={"END": torch.tensor([1])},
    )
    pairs = Pairs.of(task, "noise")
    found = {name: getattr(pairs, name).tolist() for name in ("clean", "corrupted", "end", "correct", "wrong")}
    assert found == {"clean": [[1, 2]], "corrupted": [[1, 3]], "end": [1], "correct": [4], "wrong": [5]}
    assert pairs.direction == "noise"


@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_base_first_is_the_order_of_base_and_donor(direction):
    pairs = pairs_of([[1, 2]], [[1, 3]], [1], direction)
    base, donor = pairs.base_first(pairs.clean, pairs.corrupted)
    assert base is pairs.base and donor is pairs.donor
    assert pairs.clean_first(base, donor) == (pairs.clean, pairs.corrupted)


@given(st.lists(st.tuples(st.lists(st.booleans(), min_size=5, max_size=5), st.integers(0, 4)), min_size=1, max_size=8))
def test_groups_are_a_partition_by_first_difference_and_end(prompts):
    clean = [[0] * 5 for _ in prompts]
    corrupted = [[int(differs) for differs in row] for row, _ in prompts]
    pairs = pairs_of(clean, corrupted, [end for _, end in prompts])
    seen = []
    for first, end, members in pairs.alike(pairs.prompts):
        for i in members.tolist():
            before_end = [p for p, differs in enumerate(prompts[i][0]) if differs and p <= prompts[i][1]]
            assert end == prompts[i][1]
            assert first == (before_end[0] if before_end else end + 1)
        seen += members.tolist()
    assert sorted(seen) == list(range(len(prompts)))


def test_prompts_are_as_long_as_the_last_end():
    assert pairs_of([[1, 2, 3, 4], [1, 2, 0, 0]], [[1, 5, 3, 4], [1, 5, 0, 0]], [2, 1]).length == 3


def test_groups_of_some_prompts_and_of_runs_that_share_nothing():
    pairs = pairs_of([[0, 0, 0]] * 3, [[0, 1, 0], [0, 0, 1], [0, 1, 1]], [2, 2, 2])
    assert [(f, m.tolist()) for f, _, m in pairs.alike(torch.tensor([2, 0]))] == [(1, [2, 0])]
    assert [(f, m.tolist()) for f, _, m in pairs.alike(pairs.prompts, differ_everywhere=True)] == [(0, [0, 1, 2])]
    assert pairs.length == 3 and len(pairs) == 3


@pytest.mark.parametrize(
    "bad, said",
    [
        (lambda: pairs_of([[0]], [[0]], [0], "up"), "direction='up'"),
        (lambda: pairs_of([[0, 1]], [[0]], [0]), "prompts of one shape"),
        (lambda: Question("loss"), "metric='loss'"),
        (
            lambda: Question(memory_budget=5).needs(6, "one patch"),
            "memory_budget=5 is too small for one patch: give at least 6",
        ),
    ],
)
def test_what_cannot_be_run_is_refused(bad, said):
    with pytest.raises(ValueError, match=said):
        bad()


def test_metrics_are_those_of_patching():
    from namemovers.activation_patching import METRICS as functions

    assert tuple(functions) == METRICS


def test_progress_is_shown_only_where_asked(capsys):
    with progress_bar(2, "runs", False) as bar:
        bar.update(2)
    assert capsys.readouterr().err == ""
    with progress_bar(2, "runs", True) as bar:
        bar.update(2)
    assert "runs" in capsys.readouterr().err
