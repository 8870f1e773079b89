"""What is done already: which executed copies of notebooks still hold.

An executed copy holds a record: a fingerprint of what the notebook depends on (its own source, the library, the
settings, the weights, the pinned versions, the notebooks that it waits for), and which results it read and wrote, with
what was in them. While all of that is the same the notebook need not run again. Nothing in it depends on where the
clone is.
"""

import hashlib
import json
import shutil
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import namemovers
from namemovers.files import whole
from namemovers.settings import Settings, slug

from .plan import Plan

_KEY = "namemovers"  # of the record in a notebook's metadata
_KEPT = Path("nbs", "results")  # what notebooks saved that depend on no model, committed beside their outputs
_ASIDE = "set_aside"  # below a model's results: what a failed notebook had saved before


def _digest(*parts) -> str:
    digest = hashlib.sha256()
    for part in parts:
        data = part.read_bytes() if isinstance(part, Path) else str(part).encode()
        digest.update(f"{len(data)}:".encode() + data)
    return digest.hexdigest()


def _files(folder: Path) -> list:
    """Name and content of every file below a folder; names do not say where the folder is."""
    files = [f for f in sorted(folder.rglob("*")) if f.is_file() and "__pycache__" not in f.parts]
    files = [f for f in files if f.name != "_modidx.py"]
    return [part for f in files for part in (f.relative_to(folder).as_posix(), f)]


def _ground(s: Settings) -> str:
    """The fingerprint of what all notebooks depend on."""
    library = _files(Path(namemovers.__file__).parent) + _files(s.root / "recipes")
    model = _files(Path(s.model)) if Path(s.model).is_dir() else []
    pins = s.root / "requirements.lock"
    lock = [pins] if pins.is_file() else []
    return _digest(sys.version, slug(s.model), s.n, s.seed, s.corruption, s.device, *library, *model, *lock)


def _source(path: Path) -> str:
    """The fingerprint of a notebook without its outputs."""
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        return _digest(*(f"{cell['cell_type']} {''.join(cell['source'])}" for cell in cells))
    except (ValueError, KeyError, TypeError):
        raise ValueError(
            f"{path} is not a notebook (its JSON is damaged); restore it, e.g. with git checkout."
        ) from None


def fingerprints(s: Settings, plan: Plan) -> dict[Path, str]:
    """What each notebook depends on, as one hash each."""
    ground = _ground(s)
    source = {path: _source(s.root / path) for path in plan.notebooks}
    earlier = {path: sorted(f"{need} {source[need]}" for need in plan.before(path)) for path in plan.notebooks}
    return {path: _digest(ground, source[path], *earlier[path]) for path in plan.notebooks}


class Record(NamedTuple):
    """What an executed copy says of itself."""

    inputs: str = ""  # its fingerprint; empty where it must run again
    read: dict[
        str, str | None
    ] = {}  # results it read, with a hash of what was in them; None for one that was not there
    written: dict[str, str | None] = {}  # results it saved
    seconds: float = 0.0  # how long it took


def result_hash(path: Path) -> str | None:
    """A hash of what is in a result; None where there is none."""
    try:
        return _digest(path)
    except OSError:
        return None


def touched(trace: Path, results: Path) -> tuple[dict[str, str | None], dict[str, str | None]]:
    """The results read and written, by name, of a list that `namemovers.results` wrote."""
    names: dict[str, list[str]] = {"read": [], "written": []}
    for line in trace.read_text(encoding="utf-8").splitlines() if trace.is_file() else []:
        what, path = json.loads(line)
        if Path(path).parent == results.resolve():
            names[what].append(Path(path).name)
    written = sorted(set(names["written"]))
    read = sorted(set(names["read"]) - set(written))
    now = lambda those: {name: result_hash(results / name) for name in those}
    return now(read), now(written)


def read_record(copy: Path) -> Record:
    """The record of an executed copy; an empty one where there is none, or where it is damaged."""
    with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        held = json.loads(copy.read_text(encoding="utf-8"))["metadata"].get(_KEY, {})
        told = dict(held.get("read", {})), dict(held.get("written", {})), float(held.get("seconds", 0))
        return Record(str(held.get("inputs", "")), *told)
    return Record()


def write_copy(nb: Any, path: Path, record: Record | None = None) -> None:
    """Write a notebook whole or not at all, with its record."""
    import nbformat

    nb.metadata.pop(_KEY, None)
    if record is not None:
        nb.metadata[_KEY] = record._asdict()
    with whole(path) as part:
        part.write_text(nbformat.writes(nb) + "\n", encoding="utf-8")


def is_current(copy: Path, fingerprint: str, results: Path) -> bool:
    """Whether an executed copy, and what it saved, still hold."""
    record = read_record(copy)
    if not record.inputs or record.inputs != fingerprint:
        return False
    held = {**record.read, **record.written}
    return all(result_hash(results / name) == was for name, was in held.items())


def set_aside(names: Iterable[str], results: Path) -> list[str]:
    """Move results out of the way, so that nothing reads them in place of newer ones; which there were."""
    moved = [name for name in names if (results / name).is_file()]
    for name in moved:
        (results / _ASIDE).mkdir(exist_ok=True)
        shutil.move(results / name, results / _ASIDE / name)
    return moved


def replaced(names: Iterable[str], results: Path) -> None:
    """Remove what had been set aside and has been saved again."""
    folder = results / _ASIDE
    for name in names:
        (folder / name).unlink(missing_ok=True)
    with suppress(OSError):
        folder.rmdir()  # where it is empty


def give_kept(plan: Plan, s: Settings, inputs: dict[Path, str]) -> None:
    """Put the committed results of notebooks that the study does not run among its own, unless they ran here."""
    for path, names in plan.keeps.items():
        if is_current(s.results / "notebooks" / path, inputs[path], s.results):
            continue
        for kept in (s.root / _KEPT / f"{name}.nc" for name in names):
            if kept.is_file():
                with whole(s.results / kept.name) as part:
                    shutil.copyfile(kept, part)


def keep(plan: Plan, path: Path, s: Settings) -> None:
    """Put what a notebook saved, where it is to be committed, beside the notebooks."""
    for name in plan.keeps.get(path, ()):
        with whole(s.root / _KEPT / f"{name}.nc") as part:
            shutil.copyfile(s.results / f"{name}.nc", part)
