"""Runs every notebook of a copy of the repository, and compares what it shows with what is committed.

The copy starts without results, so nothing is read that the notebooks of today do not save, and `results/` stays as it
is. Cells that nbdev's tests leave out (`#| eval: false`, and the flags of `tst_flags`) are left out here.
"""

import asyncio
import json
import os
import shutil
import tempfile
import time
from pathlib import Path

from namemovers.settings import settings

from .kernels import NotebookError, can_fork, cores, execute, need, server
from .notebooks import FOLDERS, chosen
from .outputs import differences
from .plan import Plan
from .records import give_kept

_NOT_COPIED = ("results", "_site", "_proc", ".git")


def _copy(root: Path, folder: Path) -> None:
    """The notebooks as files of their own, and links to all else."""
    for entry in root.iterdir():
        if entry.name in FOLDERS:
            shutil.copytree(entry, folder / entry.name)
        elif entry.name not in _NOT_COPIED:
            (folder / entry.name).symlink_to(entry.resolve())


async def _one(base: Path, path: Path, flags: tuple[str, ...]) -> str:
    """What is wrong with a notebook; empty if nothing."""
    start = time.monotonic()
    committed = json.loads((base / path).read_text(encoding="utf-8"))
    try:
        now = await execute(base / path, flags=flags)
        wrong = "\n".join(f"{path}, {told}" for told in differences(committed, now))
    except NotebookError as e:
        wrong = f"{path.parent}{os.sep}{e}\n{e.traceback.rstrip()}"
    word = "FAILED" if wrong else "passed"
    print(f"{word}  {path.with_suffix('')}  {time.monotonic() - start:.1f} s", flush=True)
    if wrong:
        print(wrong, flush=True)
    return wrong


async def _all(base: Path, plan: Plan, paths: list[Path], flags: tuple[str, ...], workers: int) -> dict[Path, str]:
    found = {}

    async def one(path: Path) -> None:
        found[path] = await _one(base, path, flags)

    await plan.run(paths, one, workers)
    return found


def rerun(
    root: str | Path = ".",  # of the repository
    only: list[str] | None = None,  # notebooks, as paths below root; all of them by default
    workers: int | None = None,  # notebooks at once; as many as there are cores by default
) -> list[Path]:  # the notebooks that failed, or show something else than what is committed
    """Run the notebooks in a copy and print a line for each, with what failed or differs.

    Raises ImportError without nbclient and nbdev.
    """
    need("Testing notebooks", "nbclient", "nbformat", "nbdev", "ipykernel")
    from nbdev.config import get_config

    s = settings(root)
    plan = Plan(s.root)
    paths = chosen(plan.notebooks, only)
    flags = tuple(get_config(s.root).tst_flags.split())
    if can_fork():
        server()
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder).resolve()
        _copy(s.root, base)
        give_kept(plan, settings(base), dict.fromkeys(plan.notebooks, ""))
        found = asyncio.run(_all(base, plan, paths, flags, workers or cores()))
    failed = [path for path in paths if found[path]]
    print(f"{len(paths) - len(failed)} notebooks passed, {len(failed)} failed", flush=True)
    return failed


if __name__ == "__main__":
    import sys

    sys.exit(bool(rerun(only=sys.argv[1:])))
