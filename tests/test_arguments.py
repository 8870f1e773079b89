"""The checks of arguments: what they take, what they refuse, what they say."""

import re
import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr

from namemovers.arguments import (
    a_result,
    checked,
    listed,
    mapping,
    number,
    one_of,
    selected,
    short,
    whole,
    word,
    yes_or_no,
)

MASK = [True, False, False, True]


def named(value):
    "A test's name, the same in every process: without places in memory."
    return re.sub(r" at 0x[0-9a-f]+", "", str(value))


@pytest.mark.parametrize(
    "mask",
    [
        MASK,
        tuple(MASK),
        np.array(MASK),
        torch.tensor(MASK),
        pd.Series(MASK),
        pd.Series(MASK, dtype="boolean"),
        xr.DataArray(MASK, dims="prompt"),
        xr.DataArray(MASK, dims="prompt", coords={"prompt": range(4)}),
        (v for v in MASK),
        np.array(MASK, dtype=object),
    ],
    ids=lambda m: f"{type(m).__module__}.{type(m).__name__}",
)
def test_a_mask_selects(mask):
    assert selected("index", mask, 4) == [0, 3]


@pytest.mark.parametrize(
    "index, expected",
    [
        (0, [0]),
        (-1, [3]),
        (np.int64(2), [2]),
        (torch.tensor(1), [1]),
        (np.array(3), [3]),
        (slice(1, 3), [1, 2]),
        (slice(None, None, -1), [3, 2, 1, 0]),
        ([3, 0], [3, 0]),
        (range(2), [0, 1]),
        (np.array([1, -1]), [1, 3]),
        (torch.tensor([2]), [2]),
        (pd.Series([1, 2]), [1, 2]),
        ((i for i in (1, 2)), [1, 2]),
        (xr.DataArray([1, 0], dims="prompt"), [1, 0]),
        (pd.Index([2]), [2]),
    ],
    ids=named,
)
def test_an_index_selects(index, expected):
    assert selected("index", index, 4) == expected


@pytest.mark.parametrize(
    "wrong, says",
    [
        ([True, 2], "selects nothing"),
        ([2, True], "selects nothing"),
        ([0.0, 1.0], "selects nothing"),
        (1.0, "selects nothing"),
        (np.array([0.5]), "selects nothing"),
        ("01", "selects nothing"),
        ("END", "selects nothing"),
        ({0, 1}, "selects nothing"),
        ({0: 1}, "selects nothing"),
        (None, "selects nothing"),
        (True, "selects nothing"),
        (np.bool_(True), "selects nothing"),
        ([[0, 1]], "selects nothing"),
        ([None], "selects nothing"),
        (object(), "selects nothing"),
        (np.eye(4) > 0, "selects nothing"),
        (pd.DataFrame({"a": MASK}), "selects nothing"),
        ([0, [1]], "selects nothing"),
        (pd.Series([True, None, True, True], dtype="boolean"), "selects nothing"),
        (MASK[:3], "mask of 3 for 4"),
        (torch.tensor([True] * 5), "mask of 5 for 4"),
        ([], "leaves no prompt"),
        ([False] * 4, "leaves no prompt"),
        (slice(2, 2), "leaves no prompt"),
        (slice("a", None), "no slice"),
        (slice(0.5, None), "no slice"),
        (pd.Series(MASK, index=[3, 2, 1, 0]), "other prompts"),
        (xr.DataArray(MASK, dims="layer"), "other prompts"),
        (xr.DataArray(MASK, dims="prompt", coords={"prompt": [1, 0, 2, 3]}), "other prompts"),
    ],
    ids=named,
)
def test_what_is_no_index_is_refused(wrong, says):
    with pytest.raises(ValueError, match=rf"^index: .*{says}") as caught:
        selected("index", wrong, 4)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("outside", [4, -5, [0, 4], np.array([-5]), torch.tensor([9])], ids=str)
def test_an_index_that_is_not_there(outside):
    with pytest.raises(IndexError, match="^index: .* outside of 4"):
        selected("index", outside, 4)


@pytest.mark.parametrize(
    "check",
    [
        lambda v: whole("x", v, least=1),
        lambda v: number("x", v, above=0),
        lambda v: one_of("x", v, ("a", "b")),
        lambda v: word("x", v),
        lambda v: yes_or_no("x", v),
        lambda v: listed("x", v),
        lambda v: mapping("x", v),
    ],
    ids=["whole", "number", "one_of", "word", "yes_or_no", "listed", "mapping"],
)
def test_every_check_names_the_argument_and_the_remedy(check):
    refused = 0
    for value in (
        None,
        0,
        -1,
        2.5,
        float("nan"),
        float("inf"),
        True,
        "",
        "c" * 10_000,
        [],
        {},
        object(),
        np.zeros((3, 3)),
        torch.tensor([1.0, 2.0]),
        (v for v in "ab"),
        lambda: 0,
        1e400,
    ):
        try:
            check(value)
        except ValueError as e:
            refused += 1
            assert str(e).startswith("x: ")
            assert "give" in str(e) or "choose" in str(e)
            assert "\n" not in str(e)
            assert len(str(e)) < 300
    assert refused > 8


def test_what_fits_comes_back():
    assert whole("x", np.int32(3), least=3, most=3) == 3 and type(whole("x", np.int64(3))) is int
    assert number("x", np.float32(0.5), above=0, below=1) == 0.5
    assert number("x", torch.tensor(0.5)) == 0.5
    assert number("x", 0, least=0, most=0) == 0
    assert number("x", float("inf")) == float("inf")
    assert listed("x", (1, 2)) == [1, 2]
    assert listed("x", (v for v in "ab")) == ["a", "b"]
    assert listed("x", np.arange(2)) == [0, 1]
    assert mapping("x", {"a": 1}) == {"a": 1}
    assert yes_or_no("x", np.bool_(False)) is False
    assert word("x", "") == ""
    assert one_of("x", None, (None, "a")) is None
    for low, high in ((0, 1), (1, 2)):
        with pytest.raises(ValueError):
            number("x", 0.0 if low == 0 else 1.0, above=low)
        with pytest.raises(ValueError):
            number("x", high, below=high)
    with pytest.raises(ValueError):
        whole("x", 4, most=3)
    with pytest.raises(ValueError):
        number("x", 1.5, most=1)


def test_values_are_quoted_in_short():
    class Loud:
        def __repr__(self):
            raise RuntimeError

    class Long:
        def __repr__(self):
            return "line\n" * 1000

    for value in (
        "a" * 10_000,
        b"b" * 10_000,
        list(range(10_000)),
        {i: i for i in range(1000)},
        torch.zeros(3, 4),
        pd.DataFrame({"a": [1]}),
        Loud(),
        Long(),
        object(),
    ):
        assert len(short(value)) <= 175 and "\n" not in short(value)
    assert short("Bob") == "'Bob'"
    assert short(2.5) == "2.5"
    assert short(torch.zeros(3, 4)) == "Tensor of shape (3, 4)"
    assert short(Loud()) == "<Loud>"
    assert short("x" * 10_000).startswith("'xxx")
    assert short("x" * 10_000).endswith("xxx'")
    assert " ... " in short("x" * 10_000)
    assert "\n" not in short("a\nb")


def test_a_list_or_a_dict_that_is_written_to_stays_the_callers_own():
    @checked
    def keep(kept: list, words: dict):
        kept.append(1)
        words["a"] = 1

    mine, table = [], {}
    keep(mine, table)
    assert mine == [1] and table == {"a": 1}


def test_a_result_has_one_of_some_dimensions():
    check = a_result(dims=("layer", ("head", "kv_head")))
    for dim in ("head", "kv_head"):
        check("x", xr.DataArray(np.zeros((2, 2)), dims=("layer", dim)))
    with pytest.raises(ValueError, match="^x: this result has no 'head' or 'kv_head'; give "):
        check("x", xr.DataArray(np.zeros((2, 2)), dims=("layer", "position")))
