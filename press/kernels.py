"""Kernels with the imports behind them, and one notebook executed in one of them.

Importing torch and TransformerLens takes longer than most notebooks do, so one server process imports them once, and
every kernel is forked from it. That server has to be single-threaded when it forks: a lock that another thread holds
at that moment stays locked in the child for ever. So it imports and never computes, with `OMP_NUM_THREADS=1`, which
also keeps several kernels from fighting over the cores. (Plotly looks for a notebook when its renderers are imported,
so they are left to the kernel.)
"""

import asyncio
import multiprocessing
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .notebooks import left_out

_WARM = (
    "press.imports",
    "torch",
    "transformer_lens",
    "transformer_lens.model_bridge",
    "transformers.models.gpt2.modeling_gpt2",
    "xarray",
    "h5netcdf",
    "scipy.stats",
    "pandas",
    "plotly.express",
    "nbformat",
    "ipywidgets",
    "ipykernel.kernelapp",
    "press.kernels",
)


def need(what: str, *names: str) -> None:
    """Raise ImportError, with the remedy, where packages are missing that the library itself does not need."""
    missing = [name for name in names if find_spec(name) is None]
    if missing:
        raise ImportError(f"{what} needs {' and '.join(missing)}: pip install 'namemovers[notebooks]'.")


def can_fork() -> bool:
    """Whether kernels can be forked here. macOS has fork, but its system libraries do not survive it."""
    return "forkserver" in multiprocessing.get_all_start_methods() and sys.platform != "darwin"


def cores() -> int:
    """How many processes can run at once."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _deaf() -> Iterator[None]:
    """Processes started within do not hear Ctrl-C: it is for the runner, which then ends them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heard = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, heard)


def server():
    """The process that imports once, started if need be; does not wait for its imports."""
    from multiprocessing import forkserver  # not on Windows

    os.environ.setdefault("OMP_NUM_THREADS", "1")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(_WARM))
    with _deaf():
        forkserver.ensure_running()
    return context


def may_have_children() -> None:
    """Let a process start others, which multiprocessing denies to its daemons.

    That it dies with its parent is seen to otherwise.
    """
    multiprocessing.current_process()._config["daemon"] = False  # type: ignore[attr-defined]


def _end_with_the_runner() -> None:
    """Let the server end when the runner does, however that ends, and this kernel with it.

    Every process that the server forks is given what keeps the server alive; kept, a kernel would outlive a runner that
    was killed, and go on saving results.
    """
    from multiprocessing import forkserver

    held: Any = forkserver._forkserver
    if held._forkserver_alive_fd is not None:
        os.close(held._forkserver_alive_fd)
    held._forkserver_alive_fd = held._forkserver_address = held._forkserver_pid = None


def _become_kernel(connection_file: str, folder: str, env: dict):
    """What `python -m ipykernel_launcher` does, in a process that has the imports behind it."""
    from ipykernel.kernelapp import IPKernelApp

    os.setsid()  # Ctrl-C is for the runner, which then ends its kernels
    signal.signal(signal.SIGINT, signal.default_int_handler)
    may_have_children()
    _end_with_the_runner()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(folder)
    app = IPKernelApp.instance(parent_handle=os.getppid(), log_level=40)  # ends itself when the server is gone
    app.initialize(["-f", connection_file, "--HistoryManager.enabled=False"])
    app.start()


class _Forked:
    """A forked process, with the part of `subprocess.Popen` that jupyter_client uses."""

    stdin = stdout = stderr = None

    def __init__(self, *args):
        self._process = server().Process(target=_become_kernel, args=args, daemon=True)
        self._process.start()
        self.pid = self._process.pid

    def poll(self):
        return self._process.exitcode

    def send_signal(self, number):
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def kill(self):
        self._process.kill()

    def terminate(self):
        self._process.terminate()

    def wait(self, timeout=None):
        self._process.join(timeout)
        return self.poll()


def _manager():
    """The class of kernel manager to use: jupyter_client's own, or one whose kernels are forked."""
    from jupyter_client.manager import AsyncKernelManager

    class ForkingKernelManager(AsyncKernelManager):
        async def _async_launch_kernel(self, kernel_cmd, **kw):
            folder, env = str(kw.get("cwd") or Path.cwd()), dict(kw.get("env") or os.environ)
            forked = _Forked(self.connection_file, folder, env)
            provisioner: Any = self.provisioner
            provisioner.process = forked
            provisioner.pid = provisioner.pgid = forked.pid
            self._reconcile_connection_info(provisioner.connection_info)

    return ForkingKernelManager if can_fork() else AsyncKernelManager


class NotebookError(Exception):
    """A cell failed. The message names notebook, cell and exception; `traceback` is the kernel's."""

    traceback = ""
    notebook: Any = None


def _joined(outputs):
    """Text that was printed in pieces, in one piece."""
    found: list = []
    for output in outputs:
        last = found[-1] if found else None
        if last is not None and output.output_type == "stream" == last.output_type and output.name == last.name:
            last.text += output.text
        else:
            found.append(output)
    return found


def _cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _client(path: Path, nb):
    from nbclient import NotebookClient

    client = NotebookClient(
        nb,
        timeout=None,
        kernel_manager_class=_manager(),
        kernel_name="python3",
        record_timing=False,
        resources={"metadata": {"path": str(path.parent)}},
    )
    client.create_kernel_manager()
    return client


def _failure(path: Path, nb, at: int | None, error: Exception) -> NotebookError:
    """What a failing cell, or a kernel that died, is told as."""
    from nbclient.exceptions import CellExecutionError, DeadKernelError

    if isinstance(error, CellExecutionError):
        what = f"{error.ename}: {error.evalue}"
    elif isinstance(error, DeadKernelError):
        what = "the kernel died (out of memory?)"
    else:
        what = str(error)
    where = f", cell {at + 1} of {len(nb.cells)}" if at is not None else ""
    told = NotebookError(f"{path.name}{where}: {what.strip() or 'failed'}")
    told.notebook = nb
    if isinstance(error, CellExecutionError):
        told.traceback = re.sub(r"\x1b\[[0-9;]*m", "", error.traceback)
    return told


async def execute(
    path: str | Path,  # of the notebook
    env: dict[str, str] | None = None,  # added to the kernel's environment
    flags: tuple[str, ...] = (),  # cells marked with one of these are left out
) -> Any:  # the executed notebook, as nbformat reads it
    """Execute one notebook in a fresh kernel, in its own folder, and return it, outputs and all.

    The file stays as it is. Raises NotebookError, which holds the notebook up to the failing cell as `.notebook`, and
    ImportError without nbclient.
    """
    need("Running a notebook", "nbclient", "nbformat", "ipykernel")
    from . import imports  # noqa: F401  # before nbformat
    import nbformat
    from nbclient.exceptions import CellExecutionError, DeadKernelError

    path = Path(path).resolve()
    nb = nbformat.read(path, as_version=4)
    for cell in nb.cells:
        if cell.cell_type == "code":
            cell.update(execution_count=None)
        else:
            cell.pop("execution_count", None)
    out = left_out(path, flags)
    client = _client(path, nb)
    at = None
    try:
        # Not `client.async_execute`: it takes over Ctrl-C, for one notebook.
        await client.async_start_new_kernel(env={**os.environ, **(env or {})})
        await client.async_start_new_kernel_client()
        for at, cell in enumerate(nb.cells):
            if at not in out:
                await client.async_execute_cell(cell, at)
        for cell in nb.cells:
            if cell.cell_type == "code":
                cell.outputs = _joined(cell.outputs)
        client.set_widgets_metadata()
    except (CellExecutionError, DeadKernelError, RuntimeError) as e:
        if _cancelled():
            raise asyncio.CancelledError from None
        raise _failure(path, nb, at, e) from None
    finally:
        if client.kc is not None:
            client.kc.stop_channels()
        # In peace, so that the kernel can clean up, unless the whole run is being stopped.
        if client.km is not None and client.km.has_kernel:
            await client.km.shutdown_kernel(now=_cancelled())
    return nb
