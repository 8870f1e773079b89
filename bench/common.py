"""What the benchmarks share: a random model of GPT-2 small's shape, prompts of three shapes, operations counted,
times taken."""

import os
import platform
import statistics
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

from namemovers.cost import Prompts, multiplications, shape_of
from namemovers.engine import sweep as engine
from namemovers.pairs import Pairs
from namemovers.sites import Cell

RESULTS = Path(__file__).parent / "results"

# name -> tokens a prompt, and where clean and corrupted tokens differ
SHAPES = {
    "MRS": (29, [16, 22]),  # as the study runs it: two names differ
    "IOI": (15, [10]),  # S2 replaced
    "worst": (17, list(range(1, 17))),  # everything after BOS differs
}


def random_checkpoint(folder, n_layers=12, n_heads=12, width=768, vocabulary=50257, positions=1024):
    """GPT-2's architecture with random weights: the work is that of the trained model. Its tokenizer is only there
    to load."""
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    torch.manual_seed(0)
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=vocabulary,
            n_positions=positions,
            n_embd=width,
            n_layer=n_layers,
            n_head=n_heads,
            bos_token_id=0,
            eos_token_id=0,
        )
    )
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() > 1:
                p.mul_(2)  # as drawn, the logit differences would be tiny
    model.save_pretrained(folder)
    shipped = Path(__file__).parents[1] / "namemovers" / "mini" / "tokenizer.json"
    PreTrainedTokenizerFast(
        tokenizer_file=str(shipped), bos_token="<|endoftext|>", eos_token="<|endoftext|>"
    ).save_pretrained(folder)
    return folder


def random_model(**shape):
    from namemovers.model import load_model

    with tempfile.TemporaryDirectory() as folder:
        return load_model(random_checkpoint(Path(folder) / "random", **shape), device="cpu")


def prompts(model, shape, n, seed=0):
    """Random prompts: clean, corrupted, where to read, two answers."""
    length, differ = SHAPES[shape] if isinstance(shape, str) else shape
    g = torch.Generator().manual_seed(seed)
    new = lambda *size: torch.randint(5, model.cfg.d_vocab, size, generator=g)
    clean = new(n, length)
    corrupted = clean.clone()
    corrupted[:, differ] = new(n, len(differ))
    return clean, corrupted, torch.full((n,), length - 1), new(n), new(n)


def sweep_of(model, arguments, site, todo):
    """The patched runs [cell, prompt] of our engine, for what `prompts` returns."""
    return engine.sweep(model, Pairs(*arguments), site, todo)[0]


def cells(model, by, n, length):
    at = [torch.full((n,), p) for p in range(length)]
    layers, heads = range(model.cfg.n_layers), range(model.cfg.n_heads)
    if by == "position":
        return [Cell(l, None, p) for l in layers for p in at]
    if by == "head":
        return [Cell(l, h) for l in layers for h in heads]
    return [Cell(l, h, p) for l in layers for h in heads for p in at]


def needed(model, shape, site, by, n):
    """Floating-point operations of a sweep at the least: a multiplication and an addition count as two."""
    length, differ = SHAPES[shape]
    asked = Prompts(n, length, differ[0], differ=tuple(differ))
    return 2 * multiplications(shape_of(model), asked, site, by)[0]


def needed_paths(cfg, receivers, n, length, first, senders=None):
    """Floating-point operations of paths from every head, or from `senders` heads (layer, head) alone: into the logits
    one vector each, into later heads' queries everything after the receiver."""
    d, wide, layers, heads = cfg.d_model, cfg.d_mlp, cfg.n_layers, cfg.n_heads
    rows = length - first
    kv, q, o, mlp = 4 * d * d, 2 * d * d, 2 * d * d, 4 * d * wide
    attention = lambda start, r: sum(4 * d * (start + i + 1) for i in range(r))
    whole = lambda layer, start: sum(
        (length - start) * (kv + q + o + mlp) + attention(start, length - start)
        if l < layers - 1
        else (length - start) * kv + q + o + mlp + attention(length - 1, 1)
        for l in range(layer, layers)
    )
    total = whole(0, 0) + whole(0, first)
    write = 2 * d * d // heads
    if receivers == "logits":
        return n * (total + layers * heads * write)
    senders = [(l, h) for l in range(layers) for h in range(heads)] if senders is None else senders
    for m in range(1, layers):
        r = 1 if m == layers - 1 else rows
        total += sum(l < m for l, _ in senders) * (
            r * (write + q) + attention(length - r, r) + heads * (r * (write + mlp) + whole(m + 1, first))
        )
    return n * total


def matmul_rate(width=768, rows=2048, repeats=5):
    """Operations a second of one large float32 matrix multiplication, the best of a few."""
    x, w, out = torch.randn(rows, width), torch.randn(width, 4 * width), torch.empty(rows, 4 * width)
    times = []
    for _ in range(repeats):
        times.append(seconds(lambda: torch.mm(x, w, out=out))[0])
    return 2 * rows * width * 4 * width / min(times)


clock = time.perf_counter  # `use_clock("cpu")` for a machine that others use too


def use_clock(name):
    """Wall time, or the processor time of this process: fair to both sides on a busy machine, if they use one
    thread."""
    global clock
    clock = {"wall": time.perf_counter, "cpu": time.process_time}[name]
    if name == "cpu":
        torch.set_num_threads(1)


def seconds(f):
    start = clock()
    value = f()
    return clock() - start, value


def pairs(ours, theirs, repeats, enough=60):
    """Run both in turn, `repeats` times or until `enough` seconds have gone by.

    Each returns (seconds of its sample scaled to the whole, values).
    Medians over the pairs: seconds of ours, of theirs, their ratio, the multiplication rate; the number of pairs."""
    rows, start = [], time.perf_counter()
    while not rows or (len(rows) < repeats and time.perf_counter() - start < enough):
        peak = matmul_rate()
        t, _ = theirs()
        s, _ = ours()
        rows.append((s, t, t / s, max(peak, matmul_rate())))
    return [statistics.median(column) for column in zip(*rows)] + [len(rows)]


def options(parser, sample, out=RESULTS):
    """The options that all comparisons with TransformerLens have; `begin` reads them and sets what they say."""
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--clock", default="wall", choices=["wall", "cpu"], help="cpu: processor time of one thread, for a busy machine"
    )
    parser.add_argument(
        "--sample", type=float, default=sample, help="seconds of TransformerLens a measurement; inf for whole sweeps"
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=out, help="where the results go")


def begin(parser):
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    use_clock(args.clock)
    torch.set_grad_enabled(False)
    return args


def timed(measured, flops, clock):
    """A row of what `pairs` measured, with the share of the multiplication rate that `flops` are."""
    ours, theirs, ratio, rate, repeats = measured
    return {
        "ours_seconds": ours,
        "theirs_seconds": theirs,
        "ratio": ratio,
        "matmul_rate": rate,
        "share": flops / ours / rate,
        "repeats": int(repeats),
        "threads": torch.get_num_threads(),
        "clock": clock,
    }


def machine():
    model = (
        next(
            (
                line.split(":")[1].strip()
                for line in Path("/proc/cpuinfo").read_text().splitlines()
                if line.startswith("model name")
            ),
            platform.processor(),
        )
        if Path("/proc/cpuinfo").exists()
        else platform.processor()
    )
    return {
        "cpu": model,
        "threads": torch.get_num_threads(),
        "clock": "wall" if clock is time.perf_counter else "cpu",
        "torch": torch.__version__,
        "transformer_lens": version("transformer_lens"),
        "platform": platform.platform(),
    }
