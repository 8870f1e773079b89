"""All patching that the study does on mini, with either engine, alternating in one run.

    python bench/study.py

Prints the ratio and writes bench/results/study.json.
"""

import argparse
import json
import statistics

import torch

import common
from common import machine, seconds
from namemovers.activation_patching import BY, HEAD_SITES, STREAM_SITES, patch
from namemovers.data import ioi_task, mrs_task
from namemovers.model import load_model


def sweeps(task, engine, model):
    for site in STREAM_SITES:
        patch(model, task, site, by="named_position", engine=engine)
    for site in HEAD_SITES:
        patch(model, task, site, by="head", engine=engine)
    for site in ("resid_pre", "z"):
        patch(model, task, site, by=BY[site][0], engine=engine, direction="noise")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--n", type=int, default=50)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", default=str(common.RESULTS / "study.json"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = load_model("mini", device="cpu")
    tasks = [make(model.tokenizer, n=args.n) for make in (mrs_task, ioi_task)]
    for engine in ("fast", "hooks"):
        patch(model, tasks[1][:2], "z", engine=engine)  # the first runs are slower
    pairs = []
    for _ in range(args.repeats):
        taken = {engine: seconds(lambda: [sweeps(t, engine, model) for t in tasks])[0] for engine in ("hooks", "fast")}
        pairs.append((taken["fast"], taken["hooks"], taken["hooks"] / taken["fast"]))
    fast, hooks, ratio = (statistics.median(column) for column in zip(*pairs))
    print(
        f"{2 * (len(STREAM_SITES) + len(HEAD_SITES) + 2)} sweeps: "
        f"fast {fast:.1f} s, hooks {hooks:.1f} s, {ratio:.1f} times"
    )
    with open(args.out, "w") as f:
        json.dump(
            {
                "machine": machine(),
                "n": args.n,
                "sweeps": 2 * (len(STREAM_SITES) + len(HEAD_SITES) + 2),
                "ours_seconds": fast,
                "theirs_seconds": hooks,
                "ratio": ratio,
                "repeats": args.repeats,
            },
            f,
            indent=1,
        )


if __name__ == "__main__":
    main()
