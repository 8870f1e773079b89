"""What the study runs, and in which order: read from `study.toml` at the root of the repository, in this place alone.

The file names the notebooks that depend on the model, the tasks or the settings, each with the notebooks whose results
it reads (`needs`); and of the others those that wait for results, take long (`seconds`), or save what is committed
beside their outputs (`keeps`). A repository without the file has no order: every notebook is of its study, and none
waits for another.
"""

import asyncio
import tomllib
from collections.abc import Awaitable, Callable, Iterable
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

from .notebooks import notebooks

_SECONDS = 3.0  # what a notebook is taken to last where nobody says
_ENTRY: dict[str, Any] = {"needs": list, "seconds": (int, float), "keeps": list}


class Plan:
    """The notebooks of a repository, what each waits for, and which of them the study runs.

    Raises ValueError where `study.toml` cannot be read, names a notebook that is not there, or asks for a circle.
    """

    def __init__(self, root: str | Path = "."):
        self.root = Path(root)
        self.notebooks = notebooks(root)
        self.file = self.root / "study.toml"
        parts = self._read()
        entries = {**parts.get("others", {}), **parts.get("study", {})}
        path = {p.with_suffix("").as_posix(): p for p in self.notebooks}
        for name in (*entries, *(need for entry in entries.values() for need in entry.get("needs", ()))):
            if name not in path:
                wrong = f"{self.file} names {name!r}, but there is no such notebook"
                raise ValueError(f"{wrong}; mend its name or remove it.")
        self.study = [path[name] for name in parts["study"]] if "study" in parts else list(self.notebooks)
        self.needs = {p: frozenset[Path]() for p in self.notebooks}
        self.needs |= {path[n]: frozenset(path[need] for need in e.get("needs", ())) for n, e in entries.items()}
        self.seconds = {path[n]: float(e.get("seconds", _SECONDS)) for n, e in entries.items()}
        self.keeps = {path[n]: list(e["keeps"]) for n, e in entries.items() if "keeps" in e}
        self._check_order()

    def _read(self) -> dict[str, dict[str, dict]]:
        try:
            parts = tomllib.loads(self.file.read_text(encoding="utf-8")) if self.file.is_file() else {}
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
            raise ValueError(f"{self.file} cannot be read ({e}); restore it, e.g. with git checkout.") from None
        for part, entries in parts.items():
            if part not in ("study", "others") or not isinstance(entries, dict):
                raise ValueError(f"{self.file} has the unknown entry {part!r}; use [study] and [others].")
            for name, entry in entries.items():
                self._check_entry(name, entry)
        return parts

    def _check_entry(self, name: str, entry: object) -> None:
        if not isinstance(entry, dict):
            raise ValueError(f"{self.file}: {name!r} must be a table such as {{needs = [], seconds = 3}}.")
        for key, value in entry.items():
            if key not in _ENTRY or not isinstance(value, _ENTRY[key]):
                raise ValueError(
                    f"{self.file}: {name!r} says {key} = {value!r}; "
                    "use needs and keeps, which are lists of names, and seconds, a number."
                )

    def _check_order(self) -> None:
        try:
            TopologicalSorter(self.needs).prepare()
        except CycleError as e:
            circle = ", which needs ".join(p.with_suffix("").as_posix() for p in reversed(e.args[1]))
            raise ValueError(f"{self.file}: {circle}: nothing of this could ever start.") from None
        inside = {*self.study, *self.keeps}
        for path in self.study:
            if outside := sorted(self.needs[path] - inside):
                wrong = f"{self.file}: {path} needs {outside[0]}, which the study does not run"
                raise ValueError(f"{wrong}; name it in [study].")

    def before(self, path: Path) -> frozenset[Path]:
        """All that a notebook waits for, directly or by way of others."""
        found: set[Path] = set()
        rest = list(self.needs.get(path, ()))
        while rest:
            if (one := rest.pop()) not in found:
                found.add(one)
                rest += self.needs[one]
        return frozenset(found)

    def behind(self, paths: Iterable[Path], seconds: dict[Path, float] | None = None) -> dict[Path, float]:
        """How long it takes from the start of each notebook until the last of those that wait for it has ended."""
        paths = list(paths)
        took = {**self.seconds, **(seconds or {})}
        waiting: dict[Path, list[Path]] = {path: [] for path in paths}
        for path in paths:
            for need in self.before(path) & waiting.keys():
                waiting[need].append(path)
        found: dict[Path, float] = {}
        order = TopologicalSorter({path: self.before(path) & waiting.keys() for path in paths})
        for path in reversed(list(order.static_order())):
            found[path] = took.get(path, _SECONDS) + max((found[p] for p in waiting[path]), default=0.0)
        return found

    async def run(
        self,
        paths: Iterable[Path],
        one: Callable[[Path], Awaitable],  # runs a notebook
        workers: int,  # so many at once
        seconds: dict[Path, float] | None = None,  # how long they took the last time, where that is known
    ) -> None:
        """Run notebooks, each as soon as what it waits for has ended: of what is ready, the longest way first."""
        paths = list(paths)
        behind = self.behind(paths, seconds)
        order = TopologicalSorter({p: self.before(p) & behind.keys() for p in paths})
        order.prepare()
        ready: list[Path] = []
        running: dict[asyncio.Task, Path] = {}
        try:
            while order.is_active():
                ready += order.get_ready()
                ready.sort(key=lambda p: (-behind[p], p.as_posix()))
                while ready and len(running) < workers:
                    path = ready.pop(0)
                    running[asyncio.ensure_future(one(path))] = path
                ended, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for task in ended:
                    order.done(running.pop(task))
                    task.result()
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
