"""Executes the notebooks of the study, several at once, each with fresh state; keeps what has not changed."""

import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from namemovers.files import remove_leftovers, whole
from namemovers.settings import Settings, settings

from .kernels import NotebookError, can_fork, cores, execute, need, server
from .notebooks import chosen
from .plan import Plan
from .processes import aside, check_settings
from .records import (
    Record,
    fingerprints,
    give_kept,
    is_current,
    keep,
    read_record,
    replaced,
    set_aside,
    touched,
    write_copy,
)


def say(text: str) -> None:
    """A line of progress, at once."""
    print(text, flush=True)


# --- one study at a time --------------------------------------------------------------------------------------------


def writable(folder: Path) -> None:
    """Raise OSError, in a sentence, where nothing can be written: now, and not after an hour."""
    probe = folder / f".writable-{os.getpid()}"
    with whole(probe) as part:
        part.write_bytes(b"written")
    probe.unlink()


@contextmanager
def alone(path: Path, what: str) -> Iterator[None]:
    """Hold a lock while something is written that two processes must not write at once.

    The system frees the lock of a process that dies, however it dies. Raises ValueError where another process holds it.
    """
    from filelock import FileLock, Timeout

    writable(path.parent)
    owner = path.with_suffix(".owner")
    lock = FileLock(path, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        who = owner.read_text(encoding="utf-8").strip() if owner.is_file() else "another process"
        raise ValueError(f"{what} is being written by {who}; wait until it has ended, or stop it.") from None
    try:
        owner.write_text(f"process {os.getpid()}\n", encoding="utf-8")
        yield
    finally:
        owner.unlink(missing_ok=True)
        lock.release()


# --- all notebooks --------------------------------------------------------------------------------------------------


def _update(nb, path: Path) -> None:
    """Put the outputs of an executed notebook into its source, and clean it as nbdev does."""
    from nbdev.clean import nbdev_clean

    write_copy(nb, path)
    nbdev_clean(str(path))


class _Study:
    """A run of notebooks: what is to run, what has happened."""

    def __init__(self, s: Settings, plan: Plan, inputs: dict[Path, str], paths: list[Path], update: bool, force: bool):
        from tqdm import tqdm

        self.s, self.plan, self.inputs, self.paths = s, plan, inputs, paths
        self.update, self.force = update, force
        self.copies = s.results / "notebooks"
        self.failures: list[NotebookError] = []
        self.lost: dict[str, Path] = {}  # results that are not to be read, and the notebook that should have saved them
        self.running: list[str] = []
        self.done = 0
        self.write = tqdm.write
        form = "{n_fmt}/{total_fmt} |{bar:20}| {elapsed}  {postfix}"
        self.bar = tqdm(total=len(paths), disable=None, leave=False, bar_format=form)

    def current(self, path: Path) -> bool:
        return is_current(self.copies / path, self.inputs[path], self.s.results)

    def solid(self, path: Path) -> bool:
        """Whether all that a notebook waits for is up to date; of what is committed, it is."""
        committed = self.plan.keeps.keys() - set(self.paths)
        return all(self.current(need) for need in self.plan.before(path) - committed)

    def report(self, path: Path, text: str) -> None:
        self.done += 1
        self.bar.update()
        count = f"[{self.done:{len(str(len(self.paths)))}}/{len(self.paths)}]"
        self.write(f"{count} {path.with_suffix('')}  {text}", file=sys.stdout)
        sys.stdout.flush()

    def lose(self, path: Path, before: Record, written: dict) -> list[str]:
        """What a notebook had saved before it failed is older than its source: nothing may read it from now on."""
        older = [name for name in before.written if name not in written]
        for name in (*before.written, *written):
            self.lost[name] = path
        return set_aside(older, self.s.results)

    def fail(self, path: Path, error: NotebookError, before: Record, trace: Path, seconds: float) -> None:
        _, written = touched(trace, self.s.results)
        older = self.lose(path, before, written)
        # The copy shows how far it came and where it failed. Without a fingerprint it runs again; what it is known to
        # save says who must not run on it.
        write_copy(error.notebook, self.copies / path, Record("", before.read, {**before.written, **written}))
        told = type(error)(f"{path.parent / ''}{os.sep}{error}")
        self.failures.append(told)
        note = f"\nIts older results are in {self.s.results / 'set_aside'}: {', '.join(older)}" if older else ""
        self.report(path, f"FAILED after {seconds:.1f} s\n{_shortened(error)}{note}")

    def skip(self, path: Path, cause: str) -> None:
        before = read_record(self.copies / path)
        self.lose(path, before, {})
        if before.inputs:  # no longer current, and it says so
            _stamp(self.copies / path, before._replace(inputs=""))
        self.report(path, f"skipped: {cause}")
        self.failures.append(NotebookError(f"{path} was not run: {cause}"))

    def obstacle(self, path: Path) -> str:
        """Why a notebook cannot run: what it read when it last ran is lost."""
        for name in read_record(self.copies / path).read:
            if name in self.lost:
                return f"it reads {name}, which {self.lost[name]} did not save"
        return ""

    def unsaid(self) -> None:
        """Fail the notebooks that read what another saves without waiting for it: next time it may come too late."""
        if not self.plan.file.is_file():
            return
        records = {path: read_record(self.copies / path) for path in self.plan.notebooks}
        saves = {name: path for path, record in records.items() for name in record.written}
        for path in self.paths:
            for name in records[path].read:
                of = saves.get(name, path)
                if of == path or of in self.plan.before(path):
                    continue
                _stamp(self.copies / path, records[path]._replace(inputs=""))
                remedy = f"name {of.with_suffix('')} in its needs in {self.plan.file}"
                said = f"{path} reads {name}, which {of} saves; {remedy}"
                self.failures.append(NotebookError(said))

    async def run(self, path: Path) -> None:
        """Execute one notebook, and keep what came of it."""
        copy = self.copies / path
        before = read_record(copy)
        start = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="namemovers-") as folder:
            trace = Path(folder) / "trace"
            try:
                nb = await execute(self.s.root / path, env={"NAMEMOVERS_TRACE": str(trace)})
            except NotebookError as e:
                self.fail(path, e, before, trace, time.monotonic() - start)
                return
            read, written = touched(trace, self.s.results)
        solid, seconds = self.solid(path), time.monotonic() - start
        write_copy(nb, copy, Record(self.inputs[path] if solid else "", read, written, seconds))
        set_aside((name for name in before.written if name not in written), self.s.results)  # it saves them no more
        replaced(written, self.s.results)
        if self.update:
            _update(nb, self.s.root / path)
            keep(self.plan, path, self.s)
        note = "" if solid else "  (runs again when the notebooks before it are up to date)"
        self.report(path, f"{seconds:.1f} s{note}")

    async def one(self, path: Path) -> None:
        if not (self.force or self.update) and self.current(path):
            self.report(path, "unchanged")
            return
        if cause := self.obstacle(path):
            self.skip(path, cause)
            return
        self.running.append(path.stem)
        self.bar.set_postfix_str(", ".join(self.running))
        try:
            await self.run(path)
        finally:
            self.running.remove(path.stem)

    async def all(self, workers: int) -> list[NotebookError]:
        took = {path: read_record(self.copies / path).seconds for path in self.paths}
        try:
            await self.plan.run(self.paths, self.one, workers, {path: s for path, s in took.items() if s})
        finally:
            self.bar.close()
        self.unsaid()
        return self.failures


def _shortened(error: NotebookError) -> str:
    """The kernel's traceback; of what is no defect of a notebook, the sentence alone."""
    text = error.traceback.rstrip()
    last = text.splitlines()[-1] if text else ""
    return last if "cannot be written: " in last else text


def _stamp(copy: Path, record: Record) -> None:
    import nbformat

    write_copy(nbformat.read(copy, as_version=4), copy, record)


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    """Environment variables for what is started within.

    Notebooks run in their own folders, so a model that is given as a relative path must be made absolute for them.
    """
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def run(
    root: str | Path = ".",  # of the repository
    only: list[str] | None = None,  # notebooks to run, as paths below root; by default those of the study
    update: bool = False,  # write the outputs back into the notebooks; of all of them, where `only` names none
    force: bool = False,  # run also what has not changed
    workers: int | None = None,  # notebooks at once; as many as there are cores by default
) -> list[NotebookError]:  # the failures
    """Execute the notebooks of the study. Copies with outputs go to `results/<model>/notebooks/`.

    The others do not depend on the model, the tasks or the settings: what they show is committed. A failing notebook
    keeps from running only those that read what it saves; its older results are set aside.
    Raises ValueError when a setting is wrong or another study of this model is running, OSError where nothing can be
    written, and ImportError without nbclient.
    """
    need("Running notebooks", "nbclient", "nbformat", "ipykernel")
    if workers is not None and workers < 1:
        raise ValueError(f"workers must be at least 1, but it is {workers}.")
    s = settings(root)
    plan = Plan(s.root)
    paths = chosen(plan.notebooks, only) if only or update else plan.study
    with ExitStack() as held:
        if Path(s.model).is_dir():
            held.enter_context(_environment(MODEL=str(Path(s.model).resolve())))
            s = settings(s.root)
        held.enter_context(alone(s.results / ".lock", f"The study of {s.model} in {s.results}"))
        writable(s.results / "notebooks")
        if update:
            held.enter_context(alone(s.root / "results" / ".update.lock", f"The notebooks below {s.root}"))
        return _run(s, plan, paths, update, force, workers or cores())


def _run(s: Settings, plan: Plan, paths: list[Path], update: bool, force: bool, workers: int) -> list[NotebookError]:
    start = time.monotonic()
    for part in remove_leftovers(s.results):
        say(f"Removed {part.name}, which a process that was stopped had begun to write.")
    inputs = fingerprints(s, plan)
    give_kept(plan, s, inputs)
    stale = [path for path in paths if not is_current(s.results / "notebooks" / path, inputs[path], s.results)]
    if force or update:
        stale = paths
    if stale:
        say(
            f"{len(stale)} of {len(paths)} notebooks to run. "
            "Importing torch and TransformerLens, once for all of them ..."
        )
        if can_fork():
            server()
        from . import imports  # noqa: F401  # before nbclient, which imports nbformat
        import nbclient  # noqa: F401  # slow to import, so while the server imports too

        say(f"Loading {s.model} and making its prompts ...")
        if too_few := aside(check_settings, s.root):
            say(too_few)
        say(f"Ready after {time.monotonic() - start:.0f} s.")
    return asyncio.run(_Study(s, plan, inputs, paths, update, force).all(workers))
