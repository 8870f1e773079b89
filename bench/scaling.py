"""How a sweep's time grows with the number of prompts, their length, and the number of layers: ours, and
TransformerLens's from a sample.

    python bench/scaling.py

A model of a third of GPT-2 small's width (256, 4 heads, 6 layers unless layers vary), the first difference two thirds
into the prompt.
Prints a table and writes bench/results/scaling.json.
"""

import argparse
import json


from common import RESULTS, begin, cells, machine, options, prompts, random_model, seconds, sweep_of
from patching import SWEEPS, lens


def measure(model, n, length, sample, repeats, sweeps=("z by head", "resid_pre by position")):
    shape = (length, [2 * length // 3, length - 3])
    arguments, rows = prompts(model, shape, n), {}
    for sweep in sweeps:
        site, by = SWEEPS[sweep]
        todo = cells(model, by, n, length)
        taken = sorted(
            (
                seconds(lambda: sweep_of(model, arguments, site, todo))[0],
                lens(model, site, by, todo, *arguments, sample)[0],
            )
            for _ in range(repeats)
        )
        rows[sweep] = taken[len(taken) // 2]
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options(parser, sample=1.0, out=RESULTS / "scaling.json")
    args = begin(parser)
    usual = dict(width=256, n_heads=4, vocabulary=8000)
    model, rows = random_model(n_layers=6, **usual), []

    def note(axis, value, found):
        for sweep, (ours, theirs) in found.items():
            rows.append({"axis": axis, "value": value, "sweep": sweep, "ours_seconds": ours, "theirs_seconds": theirs})
            print(f"{axis:8} {value:4} {sweep:24} {ours:8.2f}s {theirs:9.1f}s {theirs / ours:6.1f}x", flush=True)
        with open(args.out, "w") as f:
            json.dump(
                {"machine": machine(), "arguments": {k: v for k, v in vars(args).items() if k != "out"}, "rows": rows},
                f,
                indent=1,
            )

    measure(model, 1, 16, 0.1, 1)  # the first run is slower
    for n in (1, 5, 20, 50, 200):
        note("prompts", n, measure(model, n, 24, args.sample, args.repeats))
    for length in (16, 32, 64, 128, 256):
        note("tokens", length, measure(model, 2, length, args.sample, args.repeats))
    for layers in (2, 4, 8, 16, 24):
        note("layers", layers, measure(random_model(n_layers=layers, **usual), 5, 24, args.sample, args.repeats))


if __name__ == "__main__":
    main()
