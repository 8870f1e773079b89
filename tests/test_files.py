"""Files appear whole or not at all, and say why they could not be written."""

import errno
import os
import subprocess
import sys

import pytest

from namemovers.files import remove_leftovers, whole


def test_a_file_appears_whole(tmp_path):
    path = tmp_path / "new" / "note.txt"
    with whole(path) as part:
        part.write_text("half")
        assert not path.exists() and part.parent == path.parent and part.name.startswith(".")
    assert path.read_text() == "half" and os.listdir(path.parent) == ["note.txt"]
    assert path.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("error", [RuntimeError("a defect"), KeyboardInterrupt(), OSError(errno.EIO, "broken")])
def test_the_older_file_stays_where_writing_fails(tmp_path, error):
    path = tmp_path / "note.txt"
    path.write_text("older")
    with pytest.raises(type(error)) as e, whole(path) as part:
        part.write_text("half")
        raise error
    assert e.value is error and path.read_text() == "older" and os.listdir(tmp_path) == ["note.txt"]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        OSError("[Errno 28] Can't synchronously write data (errno = 28, error message = 'No space left on device')"),
        RuntimeError("Problems closing file (file write failed, error message = 'No space left on device')"),
    ],
)
def test_a_full_disk(tmp_path, error):
    path = tmp_path / "note.txt"
    with pytest.raises(OSError) as e, whole(path):
        raise error
    told = str(e.value)
    assert told == f"{path} cannot be written: the disk is full; free some space and run it again."
    assert e.value.errno in (errno.ENOSPC, errno.EDQUOT) and os.listdir(tmp_path) == []


def test_a_file_in_place_of_the_folder(tmp_path):
    (tmp_path / "folder").write_text("a file")
    with (
        pytest.raises(OSError, match="cannot be written: a file stands where a folder should be"),
        whole(tmp_path / "folder" / "note.txt"),
    ):
        pass
    (tmp_path / "note.txt").mkdir()
    (tmp_path / "note.txt" / "inside").touch()
    with pytest.raises(OSError, match="a folder where the file should be"), whole(tmp_path / "note.txt") as part:
        part.write_text("x")
    assert sorted(os.listdir(tmp_path)) == ["folder", "note.txt"]


def test_leftovers_of_the_dead_and_of_nobody_else(tmp_path):
    code = (
        "import os, sys, signal\nfrom namemovers.files import whole\n"
        "with whole(sys.argv[1]) as part:\n    part.write_text('half')\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    below = tmp_path / "below"
    subprocess.run([sys.executable, "-c", code, str(below / "note.txt")], check=False, cwd=os.getcwd())
    (left,) = below.iterdir()
    assert left.name.startswith(".note-") and left.suffix == ".part"
    (tmp_path / ".hidden").touch()
    (tmp_path / "mine.part").touch()
    with whole(tmp_path / "alive.txt") as part:
        part.write_text("half")
        assert remove_leftovers(tmp_path) == [left]
    assert sorted(os.listdir(tmp_path)) == [".hidden", "alive.txt", "below", "mine.part"] and not list(below.iterdir())
