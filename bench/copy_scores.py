"""Copy scores at GPT-2 small's shape: through the heads' own width, and through the residual stream's, in one run.

    python bench/copy_scores.py --clock cpu

Ranks of one name in what a head writes and in its negation, over all 50,257 tokens, some heads, 1,000 samples; weights
and samples are random, the work is the trained model's. Prints the ratio and writes bench/results/copy_scores.json.
"""

import argparse
import json
import statistics

import common
import numpy as np
import torch
from common import machine, random_model, seconds

from namemovers.copy_scores import head_ranks


def through_the_stream(v, W_O, ids, model, size):
    """Every sample's logits from the residual stream, all samples of a chunk against the name at once."""
    parts = []
    for s in torch.arange(len(v)).split(size):
        y, own = model.ln_final((v[s] @ W_O)[None])[0] @ model.W_U, ids[s]
        signs = [y + model.b_U, model.b_U - y]
        parts.append([(x >= x.gather(-1, own)).sum(-1, keepdim=True, dtype=torch.int32).numpy() - 1 for x in signs])
    return [np.concatenate(of_sign) for of_sign in zip(*parts)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--clock", default="wall", choices=["wall", "cpu"], help="cpu: processor time of one thread, for a busy machine"
    )
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--out", default=str(common.RESULTS / "copy_scores.json"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    common.use_clock(args.clock)
    torch.set_grad_enabled(False)
    model = random_model(n_layers=1)
    cfg, memory = model.cfg, 2**28
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, cfg.d_vocab, (args.samples, 1), generator=generator)
    rows, apart = [], 0
    for h in range(args.heads):
        v = torch.randn(args.samples, cfg.d_head, generator=generator)
        at_once = memory // (16 * cfg.n_heads * cfg.d_vocab)  # as a layer's heads together fill the memory
        there, wide = seconds(lambda: through_the_stream(v, model.W_O[0, h], ids, model, at_once))
        here, narrow = seconds(lambda: head_ranks(v, model.W_O[0, h], ids, model, memory))
        rows.append((here, there))
        apart = max(apart, *(int(abs(a - b).max()) for a, b in zip(wide, narrow)))
    ours, theirs = (statistics.median(column) for column in zip(*rows))
    ratio = statistics.median(b / a for a, b in rows)
    print(f"a head: own width {ours:.2f} s, stream's width {theirs:.2f} s, {ratio:.1f} times; ranks differ by {apart}")
    about = {"machine": machine(), "samples": args.samples, "heads": args.heads, "clock": args.clock}
    found = {"ours_seconds": ours, "theirs_seconds": theirs, "ratio": ratio, "ranks_apart": apart}
    with open(args.out, "w") as f:
        json.dump(about | found, f, indent=1)


if __name__ == "__main__":
    main()
