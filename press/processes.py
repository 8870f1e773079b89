"""What needs torch besides the notebooks, in processes that have it imported already."""

import multiprocessing
import os
import tempfile
from contextlib import suppress
from pathlib import Path

from namemovers.settings import Settings

from .kernels import can_fork, server
from .plan import Plan
from .records import fingerprints, is_current


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
    from namemovers.engine.ready import why_not
    from namemovers.model import load_model
    from namemovers.settings import settings
    from namemovers.stats import prompts_needed

    s = settings(root)
    model = load_model(s.model, device=s.device)
    mrs_task(model.tokenizer, n=s.n, seed=s.seed, corruption=s.corruption)
    ioi_task(model.tokenizer, n=s.n, seed=s.seed)
    if reason := why_not(model):
        raise ValueError(
            f"MODEL={s.model} cannot be studied, for {reason}: paths, circuits and attribution need a decoder whose "
            "parts the exact engine understands; choose another model."
        )
    heads = model.cfg.n_layers * model.cfg.n_heads
    needed = prompts_needed(heads)
    if s.n >= needed:
        return ""
    few = f"N = {s.n} is too few for any of {heads} heads to be significant"
    return f"{few}: they stay untested. The least is N = {needed}."


def build_site(root: str | Path, out: str | Path = "_site") -> Path:
    """Build the site of a repository into `out` (below `root`) and return the home page.

    The pages of the study are as they were last executed with this model, if it was; those that it does not run are as
    they are in the repository, unless they ran here and still hold.
    """
    from namemovers.settings import settings

    from .website import build

    s = settings(root)
    with tempfile.TemporaryDirectory() as folder:
        return build(_executed(s, Path(folder)), s.root / out, s.root)


def _executed(s: Settings, folder: Path) -> Path:
    """The notebooks as pages show them: links to the copies of the study, and to what is committed."""
    plan = Plan(s.root)
    inputs, copies = fingerprints(s, plan), s.results / "notebooks"
    own = any((copies / path).is_file() for path in plan.study)
    for path in plan.notebooks:
        copy = copies / path
        here = own if path in plan.study else is_current(copy, inputs[path], s.results)
        source = copy if here else s.root / path
        if source.is_file():  # a step that has not run is missing, and has no page of another model in its place
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).symlink_to(source.resolve())
    return folder
