"""Train the shipped model: several seeds, keep the best, measure it, write its card: `python -m recipes.mini -h`."""

import argparse
import json
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch

from namemovers.model import load_model

from .card import GOALS, figures, quality, scorecard
from .network import save_model
from .tokenizer import train_tokenizer
from .training import STEPS, train


def _train_and_save(seed, steps, hints, folder):
    start, tokenizer, log = time.time(), train_tokenizer(), []

    def say(step, now):
        log.append(dict(step=step) | {k: round(v, 4) for k, v in now.items()})
        values = "  ".join(f"{k} {v:.2f}" for k, v in now.items())
        print(f"seed {seed}  step {step:5d}  {time.time() - start:4.0f} s  {values}", flush=True)

    save_model(train(tokenizer, seed, steps, hints, say), tokenizer, folder)
    (folder / "log.json").write_text(json.dumps(log))


def candidate(
    seed: int,  # of weights and text
    steps: int = STEPS,  # of training
    hints: bool = True,  # whether to hint heads to their parts
    work: str | Path = "build/mini",  # where candidates are kept
) -> tuple:  # folder, quality
    """Train one seed, save it, and say how good it is on prompts like the training text.

    A candidate that is there already is not trained again."""
    torch.set_num_threads(1)
    folder = Path(work, f"{'hinted' if hints else 'unhinted'}-{steps}-{seed}")
    if not (folder / "log.json").exists():
        _train_and_save(seed, steps, hints, folder)
    if not (folder / "quality.json").exists():
        found = figures(load_model(folder), held_out=False)
        about = dict(quality=quality(found), figures=found["figures"])
        (folder / "quality.json").write_text(json.dumps(about, indent=1))
    return folder, json.loads((folder / "quality.json").read_text())["quality"]


def _arguments(argv):
    p = argparse.ArgumentParser(prog="python -m recipes.mini", description=__doc__.split(" See")[0])
    p.add_argument("--out", type=Path, default=Path("namemovers/mini"), help="for the model (default: %(default)s)")
    p.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="seeds to train (default: 0 1)")
    p.add_argument("--steps", type=int, default=STEPS, help="training steps (default: %(default)s)")
    p.add_argument("--jobs", type=int, default=2, help="seeds to train at a time, one thread each (default: 2)")
    p.add_argument("--work", type=Path, default=Path("build/mini"), help="for the candidates (default: %(default)s)")
    p.add_argument("--unhinted", action="store_true", help="train without attention hints")
    a = p.parse_args(argv)
    if a.steps < 1 or a.jobs < 1:
        p.error("--steps and --jobs must be at least 1")
    return a


def main(
    argv: list | None = None,  # of the command line; by default the process's own
) -> int:  # the exit status
    "Train several seeds, keep the one that does best on prompts like the training text, measure it on held-out ones."
    a = _arguments(argv)
    # matrices this small gain nothing from a second thread, and one thread gives the same figures each time
    torch.set_num_threads(1)
    same = ([value] * len(a.seeds) for value in (a.steps, not a.unhinted, a.work))
    with ProcessPoolExecutor(min(a.jobs, len(a.seeds)), mp_context=get_context("spawn")) as pool:
        runs = dict(zip(a.seeds, pool.map(candidate, a.seeds, *same)))
    for seed, (_, q) in runs.items():
        print(f"seed {seed}: quality {q:.3f} on prompts like the training text")
    seed = max(runs, key=lambda s: runs[s][1])
    folder = runs[seed][0]
    a.out.mkdir(parents=True, exist_ok=True)
    for f in folder.iterdir():
        if f.name not in ("quality.json", "log.json"):
            (a.out / f.name).write_bytes(f.read_bytes())
    about = dict(seed=seed, seeds={s: q for s, (_, q) in runs.items()}, steps=a.steps, hints=not a.unhinted)
    card = scorecard(a.out, **about, log=json.loads((folder / "log.json").read_text()))
    print(f"seed {seed} -> {a.out}")
    for k, (bound, _) in GOALS.items():
        met = "ok " if card["figures"][k] >= bound else "LOW"
        print(f"{met} {k}: {card['figures'][k]:.3g} (at least {bound:g})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
