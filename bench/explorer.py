"""How long the explorer's views take to answer: on mini, and at GPT-2 small's shape with random weights.

    python bench/explorer.py

Each answer is of a prompt of which nothing is remembered, in a session that has answered before; the median of a few
prompts. The limits: 0.2 s on mini, 3 s at GPT-2 small's shape, the sweep of all paths excepted. Prints a table, and
writes bench/results/explorer.json with the operations of each answer and the time they take at this machine's rate of
multiplication.
"""

import argparse
import json
import statistics
from dataclasses import replace

import torch
from torch.utils.flop_counter import FlopCounterMode

import common
from common import machine, matmul_rate, random_model, seconds
from namemovers.explorer import BY_SITE, COMPONENTS, VIEWS, explore
from namemovers.model import load_model

LIMITS = {"mini": 0.2, "gpt2-shape": 3.0}


def questions(layers):
    "(what is shown, fields of the state, whether the limit holds)"
    for view in ("predictions", "lens", "attribution", "attention"):
        yield VIEWS[view].lower(), dict(view=view), True
    for site, ways in BY_SITE.items():
        for by in ways:
            yield (
                f"patching, {site} by {by.replace('_', ' and ')}",
                dict(view="patching", site=site, by=by, head=(layers // 2, 0)),
                True,
            )
    for metric in ("prob", "rank", "kl"):
        yield f"patching, z by head, {metric}", dict(view="patching", metric=metric), True
    for mlps in (False, True):
        for part in COMPONENTS if not mlps else "q":
            how = f"{part}{', through MLPs' if mlps else ''}"
            for l in sorted({layers // 4, layers // 2, layers - 1}):
                yield (
                    f"paths, who feeds L{l}H0, {how}",
                    dict(view="paths", paths="senders", component=part, through_mlps=mlps, head=(l, 0)),
                    True,
                )
            yield (
                f"paths, whom L0H0 feeds, {how}",
                dict(view="paths", paths="receivers", component=part, through_mlps=mlps, head=(0, 0)),
                True,
            )
    yield "paths, all", dict(view="paths", paths="strongest"), False


def measure(model, name, repeats):
    opening, app = seconds(lambda: explore(model))
    session, rows = app.session, []
    session.head(session.state())  # the names in context are made once
    start = session.state()  # which head it opens with is found over all prompts, once
    prompt = lambda i: session.choose(start, "mrs", 1 + i)

    def note(what, ask, limited, times=repeats):
        taken = []
        for i in range(times - 1):
            forget(session)
            taken.append(seconds(lambda: ask(i + 1))[0])
        forget(session)
        # counting takes a little time itself
        with FlopCounterMode(display=False) as counter:
            took, answer = seconds(lambda: ask(0))
        assert "problem" not in answer, answer
        if times == 1:
            taken = [took]
        took, work = statistics.median(taken), counter.get_total_flops()
        rows.append(
            dict(
                view=what,
                seconds=took,
                limit=LIMITS[name] if limited else None,
                share=took / LIMITS[name] if limited else None,
                operations=work,
                at_full_rate=work / matmul_rate(),
                bytes=len(json.dumps(answer)),
            )
        )
        share = f"{took / LIMITS[name]:6.0%} of the limit" if limited else ""
        size = rows[-1]["bytes"] / 1e3
        print(f"{name:11} {what:45} {took:8.3f} s {share:20} {work / 1e9:9.2f} GFLOP {size:7.1f} kB", flush=True)

    for what, fields, limited in questions(model.cfg.n_layers):
        note(
            what,
            lambda i: session.figure(replace(prompt(i), **fields)),
            limited,
            repeats if what != "paths, all" else 1,
        )
    L, H = model.cfg.n_layers, model.cfg.n_heads
    heads = [(L - 1, H - 1 - i) for i in range(repeats)]
    note("a head, at once", lambda i: session.head(replace(prompt(i), head=heads[i]), quick=True), True)
    note("a head, all of it", lambda i: session.head(replace(prompt(i), head=heads[i])), False)
    state = {k: v for k, v in app.get_state().items() if not k.startswith("_") or k in ("_esm", "_css")}
    return dict(
        model=name,
        layers=L,
        heads=H,
        width=model.cfg.d_model,
        vocabulary=model.cfg.d_vocab,
        tokens=int(session.task(prompt(0)).clean_tokens.shape[1]),
        opening=opening,
        state_bytes=len(json.dumps(state)),
        rows=rows,
    )


def forget(session):
    "All answers, but not what every prompt shares."
    for key in [k for k in session.answers if k[0] != "names"]:
        session.answers.pop(key)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--clock", default="wall", choices=["wall", "cpu"], help="cpu: processor time of one thread, for a busy machine"
    )
    parser.add_argument("--repeats", type=int, default=4, help="one of them counts operations; with 1 it is timed too")
    parser.add_argument("--model", choices=list(LIMITS), action="append", help="both by default")
    parser.add_argument("--out", default=str(common.RESULTS / "explorer.json"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    common.use_clock(args.clock)
    torch.set_grad_enabled(False)
    found, rate = [], matmul_rate()
    for name in args.model or LIMITS:
        found.append(
            measure(
                load_model("mini", device="cpu") if name == "mini" else random_model(),
                name,
                args.repeats if name == "mini" else min(args.repeats, 2),
            )
        )
    for one in found:
        opened = f"opened in {one['opening']:.1f} s with {one['state_bytes'] / 1e3:.0f} kB"
        slowest = max(r["share"] for r in one["rows"] if r["limit"])
        print(f"{one['model']}: {opened}; slowest {slowest:.0%} of the limit")
    with open(args.out, "w") as f:
        json.dump({"machine": machine(), "rate": rate, "repeats": args.repeats, "models": found}, f, indent=1)


if __name__ == "__main__":
    main()
