"""Our sweeps against TransformerLens's, the same prompts and metric, alternating in one run.

    python bench/patching.py                     # of TransformerLens, as many cells as fit in 20 s, scaled: an hour
    python bench/patching.py --sample inf        # all of it: hours
    python bench/patching.py --model mini

Prints a table and writes bench/results/patching-<model>.json, adding to what is there.
"""

import argparse
import functools
import json
from pathlib import Path


from common import (
    SHAPES,
    begin,
    cells,
    machine,
    needed,
    needed_paths,
    options,
    pairs,
    prompts,
    random_model,
    seconds,
    sweep_of,
    timed,
)
from namemovers.pairs import Pairs
from namemovers.path_patching import Paths, run_paths

SWEEPS = {  # name -> (site, by)
    "z by head": ("z", "head"),
    "resid_pre by position": ("resid_pre", "position"),
    "attn_out by position": ("attn_out", "position"),
    "mlp_out by position": ("mlp_out", "position"),
    "q by head": ("q", "head"),
    "k by head": ("k", "head"),
    "v by head": ("v", "head"),
    "pattern by head": ("pattern", "head"),
    "z by head and position": ("z", "head_position"),
    "heads to logits": ("path", "logits"),
    "heads to later heads' q": ("path", "heads"),
}
# Of ours too a part is timed where N is large: every fourth head, scaled by their number; of the paths between heads,
# those from
# one head of every other layer, scaled by the operations that they need.
HEAVY = {"q by head", "k by head", "v by head", "pattern by head", "z by head and position", "heads to later heads' q"}
# what to reach, in multiples of TransformerLens: MRS, IOI and worst at N = 50, MRS at N = 1
GOALS = {
    "z by head": (7, 10, 4, 14),
    "resid_pre by position": (24, 40, 7, 35),
    "attn_out by position": (24, 40, 7, 35),
    "mlp_out by position": (24, 40, 7, 35),
    **{f"{s} by head": (6, 8, 3.5, 12) for s in ("q", "k", "v", "pattern")},
    "z by head and position": (25, 40, 7, 35),
    "heads to logits": (50, 50, 50, 100),
    "heads to later heads' q": (10, 14, 6, 20),
}


def logit_diff(out, correct, wrong):
    out = out[:, -1]
    return (out.gather(1, correct[:, None]) - out.gather(1, wrong[:, None]))[:, 0]


def lens(model, site, by, todo, clean, corrupted, read_at, correct, wrong, budget, whole=None):
    """TransformerLens's own patching of a spread-out sample of `todo` that takes about `budget` seconds, scaled to
    `whole` cells (all of `todo` if not given): (seconds, values, indices)."""
    import pandas as pd
    from transformer_lens import patching as tl
    from transformer_lens.utilities import get_act_name

    setter = {
        "position": tl.layer_pos_patch_setter,
        "head": tl.layer_head_pattern_patch_setter if site == "pattern" else tl.layer_head_vector_patch_setter,
        "head_position": tl.layer_pos_head_vector_patch_setter,
    }[by]
    metric = lambda out: logit_diff(out, correct, wrong).mean()
    run, _ = seconds(lambda: model(corrupted))
    m = max(2, int(min(len(todo), budget / run)))
    picked = [int(i * (len(todo) - 1) / max(1, m - 1)) for i in range(m)]
    columns = {"position": ("layer", "pos"), "head": ("layer", "head"), "head_position": ("layer", "pos", "head")}[by]
    index = pd.DataFrame(
        [
            {
                "layer": todo[i].layer,
                "head": todo[i].head,
                "pos": None if todo[i].position is None else int(todo[i].position[0]),
            }
            for i in picked
        ]
    )[list(columns)]
    before, (_, cache) = seconds(
        lambda: model.run_with_cache(clean, names_filter=lambda n: n.endswith(get_act_name(site, 0).split(".", 2)[-1]))
    )
    with common_quiet():
        taken, values = seconds(
            lambda: tl.generic_activation_patch(model, corrupted, cache, metric, setter, site, index_df=index)
        )
    return before + taken * (whole or len(todo)) / m, values, picked


def lens_paths(model, receivers, clean, corrupted, read_at, correct, wrong, budget):
    """Paths from heads with TransformerLens: into the logits by hooks (one frozen run a sender, then the
    unembedding), else its direct paths."""
    from transformer_lens.patching import get_act_patch_direct_path

    L, H = model.cfg.n_layers, model.cfg.n_heads
    before, ((_, a), (_, b)) = seconds(
        lambda: [
            model.run_with_cache(t, names_filter=lambda n: n.endswith(("hook_z", "hook_mlp_out")))
            for t in (clean, corrupted)
        ]
    )
    run, _ = seconds(lambda: model(corrupted))
    if receivers == "heads":  # all pairs from one head of the last layer but one: H of them in a call
        metric = lambda out: logit_diff(out, correct, wrong).mean()
        calls = max(1, int(min(H, budget / run / H)))
        with common_quiet():
            taken, values = seconds(
                lambda: [
                    get_act_patch_direct_path(model, corrupted, a, b, metric, L - 2, h, "q", verbose=False)[L - 1]
                    for h in range(calls)
                ]
            )
        return before + taken * (H * H * L * (L - 1) / 2) / (calls * H), values, calls * H
    m = max(2, int(min(L * H, budget / run)))
    picked, values = [int(i * (L * H - 1) / max(1, m - 1)) for i in range(m)], []

    def freeze(value, hook, layer, head):
        frozen = b[hook.name]
        if hook.layer() == layer and hook.name.endswith("hook_z"):
            frozen = frozen.clone()
            frozen[:, :, head] = a[hook.name][:, :, head]
        return frozen

    def one(sender):
        hook = functools.partial(freeze, layer=sender // H, head=sender % H)
        final = f"blocks.{L - 1}.hook_resid_post"
        kept = {}
        model.run_with_hooks(
            corrupted,
            fwd_hooks=[
                (lambda n: n.endswith(("attn.hook_z", "hook_mlp_out")), hook),
                (final, lambda t, hook: kept.__setitem__("x", t)),
            ],
        )
        return logit_diff(model.unembed(model.ln_final(kept["x"])), correct, wrong).mean()

    taken, values = seconds(lambda: [one(s) for s in picked])
    return before + taken * L * H / m, values, m


def common_quiet():
    """TransformerLens draws progress bars in a library; a table should not have them in it."""
    import contextlib
    import os

    return contextlib.redirect_stderr(open(os.devnull, "w"))


def sweep(name, args):
    "All sweeps asked for, on one model; the results are written as they come."
    from namemovers.model import load_model

    model = random_model() if name == "random" else load_model(name, device="cpu")
    args.out.mkdir(exist_ok=True)
    out = args.out / f"patching-{Path(name).name}.json"
    rows = json.loads(out.read_text())["rows"] if out.is_file() else []
    warm = prompts(model, "IOI", 4)
    # the first runs are slower, on both sides
    for _ in range(2):
        sweep_of(model, warm, "z", cells(model, "head", 4, 15)), model(warm[0])
    print(
        f"{'shape':6} {'N':>3} {'sweep':26} {'ours':>9} {'TransformerLens':>16} {'ratio':>7} {'goal':>5} "
        f"{'rate':>5}  largest difference"
    )
    for n in args.n:
        for shape in args.shapes:
            for sweep in args.sweeps:
                site, by = SWEEPS[sweep]
                arguments = prompts(model, shape, n)
                length, differ = SHAPES[shape]
                part = args.every if n > 1 and sweep in HEAVY else 1
                if site == "path":
                    flops = needed_paths(model.cfg, by, n, length, differ[0])
                    senders = (
                        "head" if part == 1 else [(l, l % model.cfg.n_heads) for l in range(0, model.cfg.n_layers, 2)]
                    )
                    whole = flops / needed_paths(model.cfg, by, n, length, differ[0], None if part == 1 else senders)

                    def ours():
                        s, kept["ours"] = seconds(lambda: run_paths(model, Pairs(*arguments), Paths(senders, by))[0])
                        return s * whole, None

                    def theirs():
                        t, values, kept["picked"] = lens_paths(model, by, *arguments, args.sample)
                        return t, None
                else:
                    whole = cells(model, by, n, length)
                    todo = [c for c in whole if part == 1 or c.head % part == 0]
                    flops = needed(model, shape, site, by, n)

                    def ours():
                        s, kept["ours"] = seconds(lambda: sweep_of(model, arguments, site, todo))
                        return s * len(whole) / len(todo), None

                    def theirs():
                        t, kept["theirs"], kept["picked"] = lens(
                            model, site, by, todo, *arguments, args.sample, len(whole)
                        )
                        return t, None

                kept = {}
                found = timed(pairs(ours, theirs, args.repeats, args.enough), flops, args.clock)
                gap = (
                    None
                    if site == "path"
                    else float((kept["ours"].mean(-1)[kept["picked"]] - kept["theirs"]).abs().max())
                )
                sample = kept["picked"] if isinstance(kept["picked"], int) else len(kept["picked"])
                column = {("MRS", True): 0, ("IOI", True): 1, ("worst", True): 2, ("MRS", False): 3}.get((shape, n > 1))
                goal = None if column is None or name != "random" else GOALS[sweep][column]
                rows = [r for r in rows if (r["shape"], r["n"], r["sweep"]) != (shape, n, sweep)]
                rows.append(
                    {
                        "shape": shape,
                        "n": n,
                        "sweep": sweep,
                        "goal": goal,
                        "theirs_sample": sample,
                        "needed_flops": flops,
                        "largest_difference": gap,
                        "ours_every": part,
                    }
                    | found
                )
                told = "" if gap is None else f"{gap:.1e}"
                times = f"{found['ours_seconds']:8.2f}s {found['theirs_seconds']:15.1f}s {found['ratio']:6.1f}x"
                times += f" {goal or '':>5} {found['share']:5.0%}"
                print(f"{shape:6} {n:3} {sweep:26} {times}  {told}", flush=True)
                out.write_text(json.dumps({"machine": machine(), "model": name, "rows": rows}, indent=1))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options(parser, sample=20)
    parser.add_argument("--n", type=int, nargs="*", default=[50, 1])
    parser.add_argument(
        "--enough", type=float, default=60, help="seconds after which no further pair of a row is begun"
    )
    parser.add_argument(
        "--every", type=int, default=4, help="of the heaviest sweeps time only every so many heads of ours, and scale"
    )
    parser.add_argument("--shapes", nargs="*", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--sweeps", nargs="*", default=list(SWEEPS), choices=list(SWEEPS))
    parser.add_argument(
        "--model",
        nargs="*",
        default=["random", "mini"],
        help="'random' for GPT-2 small's shape with random weights, or names as load_model takes them",
    )
    args = begin(parser)
    for name in args.model:
        sweep(name, args)


if __name__ == "__main__":
    main()
