"""The residual stream by position: ours against nnsight's batched patching, as its documentation shows it (an invoke a
patch, one trace a layer).

    pip install nnsight        # in an environment of its own; the package does not need it
    python bench/nnsight_peer.py

nnsight patches what a layer puts out; that is `resid_pre` of the next layer, so both sweep layers 1 to the last.
Prints a table and writes bench/results/nnsight.json.
"""

import argparse
import json
import tempfile
import warnings
from pathlib import Path

import torch

import common
from common import SHAPES, cells, machine, pairs, prompts, random_checkpoint, seconds, sweep_of


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--clock", default="wall", choices=["wall", "cpu"], help="cpu: processor time of one thread, for a busy machine"
    )
    parser.add_argument("--n", type=int, nargs="*", default=[50, 1])
    parser.add_argument("--shapes", nargs="*", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--layers", type=int, default=1, help="how many layers nnsight sweeps, scaled to all")
    parser.add_argument(
        "--positions",
        type=int,
        default=4,
        help="how many positions of each, scaled to all; the batch is as many times N",
    )
    parser.add_argument("--out", default=str(common.RESULTS / "nnsight.json"))
    args = parser.parse_args()
    try:
        import nnsight
    except ImportError:
        return print(
            "nnsight is not installed here, so it is not measured: pip install nnsight, in an environment of its own"
        )
    warnings.filterwarnings("ignore")
    torch.set_num_threads(args.threads)
    common.use_clock(args.clock)
    torch.set_grad_enabled(False)
    from transformers import AutoTokenizer, GPT2LMHeadModel

    from namemovers.model import load_model

    with tempfile.TemporaryDirectory() as folder:
        folder = random_checkpoint(Path(folder) / "random")
        model = load_model(folder, device="cpu")
        peer = nnsight.LanguageModel(
            GPT2LMHeadModel.from_pretrained(folder).eval(), tokenizer=AutoTokenizer.from_pretrained(folder)
        )
    rows = []
    for n in args.n:
        for shape in args.shapes:
            clean, corrupted, read_at, correct, wrong = arguments = prompts(model, shape, n)
            length, L = SHAPES[shape][0], model.cfg.n_layers
            todo = [c for c in cells(model, "position", n, length) if c.layer > 0]
            layers = list(range(0, L - 1))[:: max(1, (L - 1) // args.layers)][: args.layers]
            at = list(range(length))[-args.positions :]
            kept = {}

            def sample():
                with peer.trace({"input_ids": clean}):
                    hidden = nnsight.save([b.output for b in peer.transformer.h])
                values = {}
                for layer in layers:
                    with peer.trace() as tracer:
                        out = nnsight.save([])
                        for p in at:
                            with tracer.invoke({"input_ids": corrupted}):
                                peer.transformer.h[layer].output[:, p] = hidden[layer][:, p]
                                out.append(peer.lm_head.output[:, -1])
                    for p, y in zip(at, out):
                        values[layer + 1, p] = (y.gather(1, correct[:, None]) - y.gather(1, wrong[:, None]))[:, 0]
                kept["theirs"] = values

            def theirs():
                taken, _ = seconds(sample)
                return taken * (L - 1) * length / (len(layers) * len(at)), None

            def ours():
                taken, kept["ours"] = seconds(lambda: sweep_of(model, arguments, "resid_pre", todo))
                return taken, None

            s, t, ratio, *_ = pairs(ours, theirs, args.repeats)
            ours_at = {(c.layer, int(c.position[0])): v for c, v in zip(todo, kept["ours"])}
            gap = max(float((ours_at[k] - v).abs().max()) for k, v in kept["theirs"].items())
            rows.append(
                {
                    "shape": shape,
                    "n": n,
                    "sweep": "resid_pre by position, layers 1 on",
                    "ours_seconds": s,
                    "theirs_seconds": t,
                    "ratio": ratio,
                    "theirs_sample": len(layers) * len(at),
                    "cells": len(todo),
                    "largest_difference": gap,
                }
            )
            print(f"{shape:6} {n:3} {s:8.2f}s {t:9.1f}s {ratio:6.1f}x  {gap:.1e}", flush=True)
            with open(args.out, "w") as f:
                json.dump(
                    {
                        "machine": machine() | {"nnsight": nnsight.__version__},
                        "arguments": {k: v for k, v in vars(args).items() if k != "out"},
                        "rows": rows,
                    },
                    f,
                    indent=1,
                )


if __name__ == "__main__":
    main()
