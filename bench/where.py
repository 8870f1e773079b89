"""Where the engine's time goes in a sweep over heads, by PyTorch's profiler: what bounds the share of the
multiplication rate.

    python bench/where.py

Prints a table and writes bench/results/where.json.
"""

import argparse
import json

import torch
from torch.profiler import ProfilerActivity, profile

import common
from common import SHAPES, cells, machine, matmul_rate, prompts, random_model, sweep_of

KINDS = {
    "multiplications": ("aten::mm", "aten::addmm", "mkl", "linear"),
    "attention": ("aten::bmm", "aten::baddbmm", "softmax", "scaled_dot", "masked_fill"),
    "GELU": ("gelu", "tanh", "pow"),
    "LayerNorm": ("layer_norm", "aten::mean", "aten::var", "rsqrt", "native_layer"),
    "copies": ("copy_", "index", "gather", "cat", "fill_", "zero_", "where"),
}


def kind(name):
    return next((k for k, parts in KINDS.items() if any(p in name for p in parts)), "other")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--n", type=int, default=50)
    parser.add_argument("--layers", type=int, nargs="*", default=[1, 5, 9], help="the layers whose heads are patched")
    parser.add_argument("--out", default=str(common.RESULTS / "where.json"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.set_grad_enabled(False)
    model, rows = random_model(), []
    for shape in SHAPES:
        todo = [c for c in cells(model, "head", args.n, SHAPES[shape][0]) if c.layer in args.layers]
        arguments = prompts(model, shape, args.n)
        sweep_of(model, arguments, "z", todo[:2])
        rate = matmul_rate()
        with profile(activities=[ProfilerActivity.CPU], with_flops=True) as seen:
            sweep_of(model, arguments, "z", todo)
        taken = {}
        for event in seen.key_averages():
            taken[kind(event.key)] = taken.get(kind(event.key), 0) + event.self_cpu_time_total
        whole = sum(taken.values())
        products = [e for e in seen.key_averages() if e.key in ("aten::addmm", "aten::mm") and e.flops]
        reached = sum(e.flops for e in products) / sum(e.self_cpu_time_total for e in products) * 1e6 / rate
        rows.append(
            {"shape": shape, "shares": {k: taken.get(k, 0) / whole for k in (*KINDS, "other")}, "reached": reached}
        )
        print(
            shape,
            ", ".join(f"{k} {v:.0%}" for k, v in rows[-1]["shares"].items()),
            f"multiplications at {reached:.0%} of the rate of a large one",
            flush=True,
        )
    with open(args.out, "w") as f:
        json.dump({"machine": machine(), "n": args.n, "layers": args.layers, "rows": rows}, f, indent=1)


if __name__ == "__main__":
    main()
