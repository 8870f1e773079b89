"""What needs torch besides the notebooks, in processes that have it imported already."""

import multiprocessing
import os
from contextlib import suppress
from pathlib import Path

from .kernels import can_fork, server


def _answer(pipe, env, task, args):
    os.environ.update(env)
    try:
        answer = task(*args), None
    except (ValueError, OSError, ImportError) as e:
        answer = None, str(e)
    with suppress(BrokenPipeError):  # who asked may have been interrupted
        pipe.send(answer)


def aside(task, *args):
    """Call a function, importable by name, in another process that has imported torch, and return what it returns.

    Passes on what the function says is wrong, as ValueError. Raises RuntimeError where the process dies.
    """
    context = server() if can_fork() else multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(there, dict(os.environ), task, args))
    process.start()
    there.close()
    try:
        value, wrong = here.recv()
    except EOFError:
        raise RuntimeError(f"{task.__name__} failed; its error is above.") from None
    except BaseException:
        process.terminate()
        raise
    finally:
        process.join()
    if wrong:
        raise ValueError(wrong)
    return value


def check_settings(root: str | Path) -> str:
    """Load the model and make both tasks: ValueError if the study of a repository cannot run with its settings.

    An unknown model is then one clear error and not one in every notebook, and one that has to be downloaded is
    downloaded once. Returns a sentence where N is too small for any head to be significant, else "".
    """
    from namemovers.data import ioi_task, mrs_task
    from namemovers.model import load_model
    from namemovers.settings import settings
    from namemovers.stats import prompts_needed

    s = settings(root)
    model = load_model(s.model, device=s.device)
    mrs_task(model.tokenizer, n=s.n, seed=s.seed, corruption=s.corruption)
    ioi_task(model.tokenizer, n=s.n, seed=s.seed)
    heads = model.cfg.n_layers * model.cfg.n_heads
    needed = prompts_needed(heads)
    if s.n >= needed:
        return ""
    few = f"N = {s.n} is too few for any of {heads} heads to be significant"
    return f"{few}: they stay untested. The least is N = {needed}."


def build_site(root: str | Path, out: str | Path = "_site") -> Path:
    """Build the site of a repository into `out` (below `root`) and return the home page.

    From the notebooks as they were last executed with this model, or else as they are in the repository.
    """
    from namemovers.settings import settings

    from .website import build

    s = settings(root)
    copies = s.results / "notebooks"
    return build(copies if copies.is_dir() else s.root, s.root / out, s.root)
