"""Our sweeps against TransformerLens's on two models of today's architectures: Gemma 3 270M (needs the extra `real`),
whose vocabulary has 262,144 tokens, and Llama's architecture at 126 million random parameters.

    python bench/decoders.py                  # both; --model gemma or --model llama for one
    python bench/decoders.py --clock cpu      # processor time of one thread, for a busy machine

Prints a table and writes bench/results/decoders.json, adding to what is there.
"""

import argparse
import json
import tempfile
from pathlib import Path

import torch

from common import begin, machine, options, pairs, prompts, seconds, sweep_of, timed
from namemovers.cost import Counted
from namemovers.data import IOI_TEMPLATES, Task, ioi_task
from namemovers.logit_lens import logit_lens
from namemovers.pairs import Pairs
from namemovers.path_patching import Paths, run_paths
from namemovers.sites import Cell
from patching import lens, lens_paths, logit_diff

GOALS = {  # in multiples of TransformerLens
    "z by head": (40, 10),
    "resid_pre by position": (60, 35),
    "v by kv_head": (40, 8),
    "heads to logits": (100, 50),
    "logit lens": (20, 5),
    "logit lens with ranks": (None, None),
    "logit lens, theirs of the answers at END": (None, None),
}
NAMES = {"gemma": "Gemma 3 270M", "llama": "Llama's shape, 126 M parameters"}


def llama():
    """Llama's architecture with random weights: grouped queries, a gate, tied embeddings; mini's tokenizer is only
    there to load."""
    import transformers as hf

    from namemovers.model import load_model

    torch.manual_seed(0)
    shipped = Path(__file__).parents[1] / "namemovers" / "mini" / "tokenizer.json"
    tokenizer = hf.PreTrainedTokenizerFast(
        tokenizer_file=str(shipped), bos_token="<|endoftext|>", eos_token="<|endoftext|>"
    )
    config = hf.LlamaConfig(
        vocab_size=49152,
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=14,
        num_attention_heads=12,
        num_key_value_heads=4,
        tie_word_embeddings=True,
        max_position_embeddings=256,
        bos_token_id=0,
        eos_token_id=0,
        initializer_range=0.04,
    )
    with tempfile.TemporaryDirectory() as folder:
        hf.LlamaForCausalLM(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return load_model(folder, device="cpu")


def gemma_task(model, n):
    """IOI prompts of one template and order, all read at one place, as TransformerLens's patching does."""
    return ioi_task(model.tokenizer, n=n, templates=next(iter(IOI_TEMPLATES)), order="ABBA")


def random_task(model, n):
    """Random tokens in IOI's shape."""
    clean, corrupted, end, correct, wrong = prompts(model, "IOI", n)
    words = [""] * n
    return Task(
        name="random",
        clean=words,
        corrupted=words,
        clean_tokens=clean,
        corrupted_tokens=corrupted,
        lengths=end + 1,
        correct=correct,
        wrong=wrong,
        positions={"END": end},
        corruption="random",
        seed=0,
        templates=words,
        names=[{}] * n,
        tokenizer=model.tokenizer,
    )


def cells(model, sweep, length, n):
    cfg = model.cfg
    if sweep == "resid_pre by position":
        return [Cell(l, None, torch.full((n,), p)) for l in range(cfg.n_layers) for p in range(length)]
    keys = getattr(cfg, "n_key_value_heads", None) or cfg.n_heads
    return [Cell(l, h) for l in range(cfg.n_layers) for h in range(keys if "kv" in sweep else cfg.n_heads)]


def their_lens(model, arguments, answers):
    """TransformerLens's own reading of the stages: a run with its cache, the accumulated stream through the last norm,
    and the unembedding at every position; or, for `answers`, the direction between the two at END alone."""
    clean, _, _, correct, wrong = arguments
    _, cache = model.run_with_cache(clean)
    where = -1 if answers else None
    stack = cache.accumulated_resid(layer=-1, incl_mid=True, pos_slice=where)  # [stage, prompt, (position,) d_model]
    scaled = cache.apply_ln_to_stack(stack, layer=-1, pos_slice=where)
    if answers:
        direction = model.W_U.T[correct] - model.W_U.T[wrong]  # [prompt, d_model]
        return [(x * direction).sum(-1) for x in scaled]
    return [logit_diff(x @ model.W_U + model.b_U, correct, wrong) for x in scaled]


def row(model, task, sweep, args):
    """What is run on both sides: (ours, theirs, the cells of ours)."""
    length = int(task.positions["END"][0]) + 1
    cut = slice(None, length)
    arguments = (
        task.clean_tokens[:, cut],
        task.corrupted_tokens[:, cut],
        task.positions["END"],
        task.correct,
        task.wrong,
    )
    if sweep.startswith("logit lens"):
        top = 5 if "ranks" in sweep else 0
        return lambda: logit_lens(model, task, top=top), lambda: their_lens(model, arguments, "answers" in sweep)
    if sweep == "heads to logits":
        ours = lambda: run_paths(model, Pairs(*arguments), Paths("head", "logits"))[0]
        return ours, lambda: lens_paths(model, "logits", *arguments, args.sample)[0]
    todo = cells(model, sweep, length, len(task))
    site = sweep.split()[0]
    by = "position" if "position" in sweep else "head"
    return (
        lambda: sweep_of(model, arguments, site, todo),
        lambda: lens(model, site, by, todo, *arguments, args.sample)[0],
    )


def counted(function):
    """Floating-point operations of the matrix multiplications that a call does."""
    with Counted() as counter:
        function()
    return 2 * counter.total


def measure(name, args, rows):
    from namemovers.model import load_model

    model = llama() if name == "llama" else load_model("gemma-3-270m-q4", device="cpu")
    n = 50 if name == "llama" else 20
    task = random_task(model, n) if name == "llama" else gemma_task(model, n)
    for sweep in args.sweeps:
        ours, theirs = row(model, task, sweep, args)
        done = counted(ours)  # and the first run, which is slower
        alternate = (
            (lambda: (seconds(theirs)[0], None)) if sweep.startswith("logit lens") else (lambda: (theirs(), None))
        )
        measured = pairs(lambda: (seconds(ours)[0], None), alternate, args.repeats, args.enough)
        found = timed(measured, done, args.clock)
        goal = GOALS[sweep][name == "llama"]
        rows = [r for r in rows if (r["model"], r["sweep"]) != (NAMES[name], sweep)]
        rows.append(
            {
                "model": NAMES[name],
                "n": n,
                "sweep": sweep,
                "goal": goal,
                "flops": done,
            }
            | found
        )
        print(
            f"{NAMES[name]:32} {sweep:28} {found['ours_seconds']:8.2f}s {found['theirs_seconds']:8.1f}s "
            f"{found['ratio']:6.1f}x of {goal or '-'} {found['share']:5.0%}",
            flush=True,
        )
        args.out.mkdir(exist_ok=True)
        (args.out / "decoders.json").write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1))
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options(parser, sample=20)
    parser.add_argument("--model", nargs="*", default=list(NAMES), choices=list(NAMES))
    parser.add_argument("--sweeps", nargs="*", default=list(GOALS), choices=list(GOALS))
    parser.add_argument("--enough", type=float, default=60, help="seconds after which no further pair is begun")
    args = begin(parser)
    file = args.out / "decoders.json"
    rows = json.loads(file.read_text())["rows"] if file.is_file() else []
    for name in args.model:
        rows = measure(name, args, rows)


if __name__ == "__main__":
    main()
