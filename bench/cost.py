"""What `cost` predicts of sweeps, from shapes and the rate of a layer, against what they take.

    python bench/cost.py

Prints a table and writes bench/results/cost.json. Wall time: for a machine that nobody else uses.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch

import common
from common import SHAPES, cells, machine, prompts, random_model, sweep_of
from decoders import llama
from namemovers.cost import Prompts, cost, layer_rate, shape_of
from namemovers.sites import Cell, n_kv_heads

SWEEPS = [("z", "head"), ("q", "head"), ("v", "head"), ("resid_pre", "position"), ("mlp_out", "position")]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--n", type=int, default=20)
    parser.add_argument("--out", type=Path, default=common.RESULTS, help="the folder where the results go")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.set_grad_enabled(False)
    rows = []
    print(f"{'model':10} {'prompts':8} {'sweep':24} {'predicted':>10} {'measured':>10} {'ratio':>6}")
    for name, model in (("GPT-2 small", random_model()), ("Llama", llama())):
        for shape in ("IOI", "MRS"):
            length, differ = SHAPES[shape]
            asked = Prompts(args.n, length, differ[0], differ=tuple(differ))
            arguments = prompts(model, shape, args.n)
            for site, by in SWEEPS:
                todo = cells(model, by, args.n, length)
                if site == "v":
                    todo = [Cell(l, h) for l in range(model.cfg.n_layers) for h in range(n_kv_heads(model))]
                times = []
                for _ in range(2):
                    layer_rate.cache_clear()
                    predicted = cost(model, asked, site, by)
                    start = time.perf_counter()
                    sweep_of(model, arguments, site, todo)
                    times.append((predicted.seconds, time.perf_counter() - start))
                expected, taken = (statistics.mean(column) for column in zip(*times))
                print(
                    f"{name:10} {shape:8} {f'{site} by {by}':24} {expected:9.2f}s {taken:9.2f}s {expected / taken:6.2f}"
                )
                row = {"model": name, "prompts": shape, "n": args.n, "sweep": f"{site} by {by}"}
                rows.append(
                    row | {"predicted_seconds": expected, "seconds": taken, "rate": layer_rate(shape_of(model))}
                )
    args.out.mkdir(exist_ok=True)
    (args.out / "cost.json").write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
