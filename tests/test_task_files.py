"""Tasks from tables and in files: what comes in is what is measured, what goes out comes back."""

import dataclasses
import json
import re

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import small_tokenizer

from namemovers import ioi_task, mrs_task
from namemovers.data import Task

TABLE = pd.DataFrame(
    {
        "good": ["When Mary and John went to the store, John gave a drink to"] * 2,
        "bad": ["When Mary and John went to the store, Mary gave a drink to"] * 2,
        "yes": [" Mary", " Mary"],
        "no": [" John", " John"],
        "giver": [10, 10],
        "IO": ["Mary", "Mary"],
    }
)
TABLE.loc[1, ["good", "bad"]] = [text.replace("store", "park") for text in TABLE.loc[1, ["good", "bad"]]]
COLUMNS = dict(clean="good", corrupted="bad", right="yes", wrong="no")


@pytest.fixture(scope="module")
def tokenizer():
    return small_tokenizer()


def same(a, b):
    for field in (f.name for f in dataclasses.fields(a)):
        one, two = getattr(a, field), getattr(b, field)
        if isinstance(one, torch.Tensor):
            assert torch.equal(one, two) and one.dtype == two.dtype, field
        elif field == "positions":
            assert list(one) == list(two) and all(torch.equal(one[k], two[k]) for k in one)
        elif field != "tokenizer":
            assert one == two, field


def written(table, folder, ending):
    path = folder / f"prompts{ending}"
    if ending == ".parquet":
        table.to_parquet(path)
    elif ending == ".jsonl":
        table.to_json(path, orient="records", lines=True)
    else:
        table.to_csv(path, index=False, sep="\t" if ending == ".tsv" else ",")
    return path


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_a_file_gives_the_task_of_its_texts(tokenizer, tmp_path, ending):
    """The leading spaces of the answers survive, and nothing is taken for a missing value."""
    table = TABLE.assign(note=["NA", "null"])
    path = written(table, tmp_path, ending)
    task = Task.from_frame(path, tokenizer, **COLUMNS, positions={"S2": "giver", "IO": "IO"})
    answers = list(zip(TABLE.yes, TABLE.no))
    other = Task.from_pairs(
        list(TABLE.good), list(TABLE.bad), answers, tokenizer, positions={"S2": [10, 10], "IO": ["Mary", "Mary"]}
    )
    assert task.corruption == "table" and task.name == "own"
    for field in ("clean_tokens", "corrupted_tokens", "correct", "wrong"):
        assert torch.equal(getattr(task, field), getattr(other, field))
    assert {k: v.tolist() for k, v in task.positions.items()} == {k: v.tolist() for k, v in other.positions.items()}
    (s2,) = set(task.positions["S2"].tolist())
    assert [tokenizer.decode([int(row[s2])]) for row in task.clean_tokens] == [" John", " John"] and s2 == 10
    names = Task.from_frame(path, tokenizer, **COLUMNS, positions=["IO"])
    assert list(names.positions) == ["IO", "END"]


def test_a_list_of_dicts_and_token_ids(tokenizer):
    mary, john = (tokenizer.encode(f" {n}", add_special_tokens=False)[0] for n in ("Mary", "John"))
    rows = TABLE.assign(yes=mary, no=john).to_dict("records")
    task = Task.from_frame(rows, tokenizer, **COLUMNS)
    assert task.correct.tolist() == [mary] * 2 and "change" in task.positions


def no_column(t):
    return t.drop(columns="no")


def empty_cell(t):
    return t.assign(no=[" John", None])


def nan_cell(t):
    return t.assign(giver=[10, np.nan])


@pytest.mark.parametrize(
    "change, said",
    [
        (no_column, r"^wrong: the table has no column 'no'; it has \['good', 'bad', 'yes', 'giver', 'IO'\]"),
        (empty_cell, r"^wrong: row 1 of column 'no' is empty \(1 are\); fill it, or leave the row out"),
        (nan_cell, r"^positions\['S2'\]: row 1 of column 'giver' is empty"),
        (lambda t: t.iloc[:0], "^table: it has no rows"),
        (lambda t: t.assign(giver=99), r"^positions\['S2'\]: prompt 0 has the tokens 0 \(BOS\) to \d+, and no 99"),
        (lambda t: t.assign(giver=-1), r"^positions\['S2'\]: prompt 0 has the tokens 0 \(BOS\) to \d+, and no -1"),
        (lambda t: t.assign(giver=1.5), r"^positions\['S2'\]: 1.5 is no piece of prompt 0"),
        (lambda t: pd.concat([t, t]), "^clean: prompts 0 and 2 are the same"),
        (lambda t: t.assign(bad="Mary left"), "(?s)^.*prompt 0.*"),
        (lambda t: 3, "^table: 3 is no table; give a DataFrame"),
        (lambda t: [], r"^table: \[\] is no table"),
        (lambda t: "prompts.xlsx", r"^table: 'prompts.xlsx' ends in '.xlsx'; give a file that ends in one of .csv"),
        (lambda t: "no/where.csv", "^table: there is no file 'no/where.csv'"),
    ],
)
def test_a_table_that_is_none_is_refused_in_one_sentence(tokenizer, change, said):
    with pytest.raises(ValueError, match=said) as caught:
        Task.from_frame(change(TABLE), tokenizer, **COLUMNS, positions={"S2": "giver"})
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


@pytest.mark.parametrize("ending", [".jsonl", ".parquet"])
def test_a_file_that_cannot_be_read(tokenizer, tmp_path, ending):
    path = tmp_path / f"prompts{ending}"
    path.write_text("{ no table")
    with pytest.raises(ValueError, match=f"^table: .*prompts{ending}' cannot be read as {ending[1:]}.*; mend the file"):
        Task.from_frame(path, tokenizer)


@pytest.mark.parametrize("make", [ioi_task, mrs_task])
def test_what_is_saved_comes_back(tokenizer, tmp_path, make):
    """Of several lengths, padded, with names that are not ASCII in the path."""
    task = make(tokenizer, n=12, seed=3)
    path = task.save(tmp_path / "neu" / "Übung.json")
    same(Task.load(path, tokenizer), task)
    same(Task.load(str(path), tokenizer)[2:4], task[2:4])


def test_a_task_of_ones_own_comes_back(tokenizer, tmp_path):
    task = Task.from_frame(TABLE, tokenizer, **COLUMNS, positions=["IO"], name="gifts")
    same(Task.load(task.save(tmp_path / "gifts.json"), tokenizer), task)


def other_text(held):
    held["clean"][0] = f"Then {held['clean'][0]}"


@pytest.mark.parametrize(
    "harm, said",
    [
        (lambda held: held.pop("positions"), "has no 'positions'; give a file that Task.save wrote"),
        (lambda held: held.update(format="other"), "holds no task"),
        (lambda held: held.update(version=7), "has version 7, and this namemovers reads version 1"),
        (other_text, "the clean prompt 0 of .* is other tokens"),
    ],
)
def test_a_file_that_is_another_is_refused(tokenizer, tmp_path, harm, said):
    path = ioi_task(tokenizer, n=3).save(tmp_path / "task.json")
    held = json.loads(path.read_text())
    harm(held)
    path.write_text(json.dumps(held))
    with pytest.raises(ValueError, match=said):
        Task.load(path, tokenizer)


@pytest.mark.parametrize("text", ["", "[1]", '{"format": "namemovers ta'])
def test_a_damaged_file(tokenizer, tmp_path, text):
    (tmp_path / "task.json").write_text(text)
    with pytest.raises(ValueError, match=re.escape("task.json'") + " (is damaged|holds no task)"):
        Task.load(tmp_path / "task.json", tokenizer)


def test_another_tokenizer_is_noticed(tokenizer, tmp_path):
    from transformers import PreTrainedTokenizerFast

    path = ioi_task(tokenizer, n=3).save(tmp_path / "task.json")
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary = state["model"]["vocab"]
    vocabulary["Ġthe"], vocabulary["Ġand"] = vocabulary["Ġand"], vocabulary["Ġthe"]
    from tokenizers import Tokenizer

    swapped = Tokenizer.from_str(json.dumps(state))
    other = PreTrainedTokenizerFast(tokenizer_object=swapped, bos_token="<|endoftext|>", eos_token="<|endoftext|>")
    with pytest.raises(ValueError, match="^tokenizer: to this one the clean prompt 0 .* give the tokenizer that"):
        Task.load(path, other)


def test_a_full_disk_leaves_what_was_there(tokenizer, tmp_path, monkeypatch):
    path = ioi_task(tokenizer, n=3).save(tmp_path / "task.json")
    before = path.read_bytes()

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="task.json cannot be written: the disk is full"):
        ioi_task(tokenizer, n=4).save(path)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["task.json"]
