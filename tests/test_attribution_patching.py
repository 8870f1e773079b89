"""Attribution patching against PyTorch's own gradients in transformers' plain modules, and what a screen computes
exactly."""

import warnings

import numpy as np
import pytest
import torch
from conftest import small_tokenizer
from decoders import VOCABULARY, places, random_model

from namemovers import attribution_patching
from namemovers.activation_patching import patch
from namemovers.attribution_patching import PILOT, attribute, patch_screened
from namemovers.data import Task
from namemovers.model import load_model
from namemovers.sites import BY, HEAD_SITES, STREAM_SITES

pytestmark = pytest.mark.filterwarnings("ignore:No effect can be given")
N, LENGTHS = 4, [12, 12, 11, 10]
NEURONS = [(0, 5), (1, 0), (2, 63)]


def a_task(tokenizer=None):
    "Prompts of random tokens and three lengths, whose runs differ at one place or two, and once everywhere."
    clean = torch.randint(3, VOCABULARY, (N, max(LENGTHS)), generator=torch.Generator().manual_seed(0))
    clean[:, 0] = 1
    corrupted = clean.clone()
    corrupted[0, 3], corrupted[1, 5], corrupted[1, 8], corrupted[2, 1:] = 7, 9, 10, clean[3, 1:]
    corrupted[3, 2] = 11
    lengths = torch.tensor(LENGTHS)
    text = ["?"] * N
    positions = {"early": torch.tensor([3, 5, 2, 2]), "END": lengths - 1}
    return Task(
        "made",
        text,
        text,
        clean,
        corrupted,
        lengths,
        torch.tensor([5, 6, 7, 8]),
        torch.tensor([15, 16, 17, 18]),
        positions,
        "random",
        0,
        text,
        [{}] * N,
    )


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def both(request, tmp_path_factory):
    "transformers' model, and the same as a TransformerBridge. Llama's kind has RMS norms and two heads a key."
    plain = random_model(request.param)
    folder = tmp_path_factory.mktemp(request.param)
    plain.save_pretrained(folder)
    small_tokenizer().save_pretrained(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return plain, load_model(folder, device="cpu")


class Watched:
    "One run of transformers' model from input embeddings, with every layer's activation at a site kept in the graph."

    def __init__(self, plain, embedded, site):
        self.kept = []
        handles = self.watch_attention() if site == "pattern" else [self.watch(p, site) for p in places(plain)]
        try:
            self.logits = plain(inputs_embeds=embedded, use_cache=False).logits
        finally:
            for handle in handles:
                handle.remove()

    def keep(self, value):
        self.kept.append(value)

    def watch(self, layer, site):
        block = layer.layer
        attention = getattr(block, "attn", None) or block.self_attn
        before = {
            "resid_pre": block,
            "resid_mid": getattr(block, "ln_2", None) or getattr(block, "post_attention_layernorm", None),
            "z": layer.o,
            "neurons": layer.down,
        }
        after = {"resid_post": block, "attn_out": layer.o, "mlp_out": layer.down}
        if site in before:
            return before[site].register_forward_pre_hook(lambda m, given: self.keep(given[0]))
        if site in after:
            return after[site].register_forward_hook(
                lambda m, given, out: self.keep(out[0] if isinstance(out, tuple) else out)
            )
        if hasattr(attention, "c_attn"):  # queries, keys and values of all heads side by side
            return attention.c_attn.register_forward_hook(lambda m, given, out: self.split(out, site))
        return getattr(attention, f"{site}_proj").register_forward_hook(lambda m, given, out: self.keep(out))

    def split(self, out, site):
        "The part that is a site's, in the graph: what goes on is put together again."
        parts = list(out.chunk(3, -1))
        self.keep(parts["qkv".index(site)])
        return torch.cat(parts, -1)

    def watch_attention(self):
        "What every softmax returns: there is one a layer."
        plainly = torch.nn.functional.softmax

        def softmax(*given, **more):
            out = plainly(*given, **more)
            self.keep(out)
            return out

        class Handle:
            def remove(self):
                torch.nn.functional.softmax = plainly

        torch.nn.functional.softmax = softmax
        return [Handle()]


def metrics(task, logits, clean):
    "Every metric that has a gradient [prompt], from logits of the run and of the clean run [prompt, position, token]."
    rows = torch.arange(N)
    end, sure = (x[rows, task.positions["END"]] for x in (logits, clean.detach()))
    log, clean_log = end.log_softmax(-1), sure.log_softmax(-1)
    return {
        "logit_diff": end[rows, task.correct] - end[rows, task.wrong],
        "logit": end[rows, task.correct],
        "prob": log[rows, task.correct].exp(),
        "kl": (clean_log.exp() * (clean_log - log)).sum(-1),
    }


def by_autograd(plain, task, site, direction, metric="logit_diff", steps=1):
    """The metric of the base run [prompt], and difference times gradient of every layer [prompt, position, number]
    or [prompt, head, query, key]."""
    embedding = plain.get_input_embeddings()
    clean, corrupted = (embedding(t) for t in (task.clean_tokens, task.corrupted_tokens))
    base, donor = (corrupted, clean) if direction == "denoise" else (clean, corrupted)
    with torch.enable_grad():
        answer = Watched(plain, clean, "resid_pre").logits
        here = Watched(plain, base, site)
        alone = metrics(task, here.logits, answer)[metric]
        differences = [there - mine for mine, there in zip(here.kept, Watched(plain, donor, site).kept)]
        total = [0.0] * len(differences)
        for i in range(steps):
            way = 0 if steps == 1 else (i + 0.5) / steps
            x = (base + way * (donor - base)).detach().requires_grad_()
            run = Watched(plain, x, site)
            gradients = torch.autograd.grad(metrics(task, run.logits, answer)[metric].sum(), run.kept)
            total = [a + g / steps for a, g in zip(total, gradients)]
    return alone.detach(), [(d * g).detach() for d, g in zip(differences, total)]


def expected(plain, task, site, by, direction, n_heads, **more):
    "What `attribute` has to give, [layer, (head, position,) prompt], by hand."
    alone, products = by_autograd(plain, task, site, direction, **more)
    if site == "neurons":
        return torch.stack([alone + products[layer][..., neuron].sum(1) for layer, neuron in NEURONS])
    inside = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]
    nowhere = torch.where(inside, 0.0, np.nan)  # [prompt, position]
    found = []
    for product in products:
        if site == "pattern":
            cells = product.sum(-1)  # [prompt, head, query]
        elif site in STREAM_SITES:
            cells = product.sum(-1)[:, None]
        else:
            cells = product.unflatten(-1, (n_heads, -1)).sum(-1).transpose(1, 2)
        if by in ("position", "head_position"):
            cells = (cells + nowhere[:, None]).transpose(1, 2).transpose(0, 2)  # [head, position, prompt]
        elif by == "named_position":
            rows = torch.arange(N)
            cells = torch.stack([cells[rows, :, at] for at in task.positions.values()]).transpose(1, 2).transpose(0, 1)
        else:
            cells = cells.sum(-1).T[:, None]
        if site in STREAM_SITES:
            cells = cells[0]
        elif by == "head":
            cells = cells[:, 0]
        found.append(alone + cells)
    return torch.stack(found)


def heads_at(model, site):
    return (
        getattr(model.cfg, "n_key_value_heads", None) or model.cfg.n_heads if site in ("k", "v") else model.cfg.n_heads
    )


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("direction", ["denoise", "noise"])
@pytest.mark.parametrize("site, by", [(site, by) for site in BY for by in BY[site]])
def test_an_estimate_is_difference_times_gradient(both, site, by, direction, steps):
    plain, model = both
    task = a_task()
    neurons = NEURONS if site == "neurons" else None
    ds = attribute(model, task, site, by, direction, steps=steps, neurons=neurons)
    wanted = expected(plain, task, site, by, direction, heads_at(model, site), steps=steps).numpy()
    assert ds.logit_diff.shape == wanted.shape
    own = ds.corrupted if direction == "denoise" else ds.clean
    spread = np.nanmax(abs(wanted - own.values))
    assert spread > 0.01
    np.testing.assert_allclose(ds.logit_diff.values, wanted, atol=1e-4 + 1e-4 * spread)
    assert ds.attrs["steps"] == steps


@pytest.mark.parametrize("metric, direction", [("logit", "denoise"), ("prob", "noise"), ("kl", "denoise")])
def test_every_metric_that_has_a_gradient(both, metric, direction):
    plain, model = both
    task = a_task()
    ds = attribute(model, task, "z", direction=direction, metric=metric)
    wanted = expected(plain, task, "z", "head", direction, model.cfg.n_heads, metric=metric).numpy()
    np.testing.assert_allclose(ds[metric].values, wanted, atol=1e-4)


@pytest.mark.parametrize("direction, base, donor", [("denoise", "corrupted", "clean"), ("noise", "clean", "corrupted")])
def test_the_effect_is_the_change_as_a_share_of_the_way(both, direction, base, donor):
    task = a_task()
    ds = attribute(both[1], task, "z", direction=direction)
    way = (ds[donor] - ds[base]).mean()
    moved = (ds.logit_diff - ds[base]) / way
    known = ds.effect.notnull().values
    assert known.all() or not known.any()  # where the way may be none, there is no share of it
    if known.all():
        np.testing.assert_allclose(ds.effect.values, moved.values, atol=1e-4)


# A screen


def pilots(n):
    "The prompts that a screen patches in every cell: the first, the last, and one between."
    return sorted({0, round((n - 1) / 2), n - 1})


@pytest.mark.parametrize("direction", ["denoise", "noise"])
@pytest.mark.parametrize(
    "site, by, screen",
    [
        ("z", "head", 1),
        ("z", "head", 4),
        ("k", "head", 2),
        ("resid_pre", "position", 5),
        ("mlp_out", "named_position", 2),
        ("v", "head_position", 9),
        ("q", "head", 1000),
    ],
)
def test_a_screen_computes_the_largest_and_no_others(both, site, by, direction, screen):
    "Ranked by hand, by the larger of the estimate over all prompts and the exact effect in three of them."
    model, task = both[1], a_task()
    full, first = (f(model, task, site, by, direction) for f in (patch, attribute))
    screened = patch_screened(model, task, site, by, direction, screen=screen)
    own = (full.corrupted if direction == "denoise" else full.clean).values
    flat = lambda ds: ds.logit_diff.values.reshape(-1, N) - own  # [cell, prompt]
    assert len(pilots(N)) == PILOT
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # means of what no prompt has
        estimated, patched = (abs(np.nanmean(v, axis=1)) for v in (flat(first), flat(full)[:, pilots(N)]))
    size = np.fmax(estimated, patched)
    wanted = np.zeros(len(size), bool)
    wanted[np.argsort(-size)[:screen]] = True
    exact = screened.exact.values.reshape(-1)
    assert (exact == wanted).all()
    if screen < len(size):
        assert np.nanmax(size[~exact]) < size[exact].min()
    found = screened.logit_diff.values.reshape(-1, N)
    np.testing.assert_allclose(found[exact], flat(full)[exact] + own, atol=1e-5)
    np.testing.assert_allclose(found[~exact], flat(first)[~exact] + own, atol=1e-5)
    assert np.nanmax(abs(flat(full)[exact] - flat(first)[exact])) > 1e-3  # so that exact and estimate are two things


def test_what_a_screen_looks_at_is_not_all_prompts(both, monkeypatch):
    "A cell whose exact effect in three prompts is large counts, whatever its estimate says."
    model, task = both[1], a_task()
    real = attribution_patching._pilot

    def one_is_large(*given):
        size = real(*given)
        size[7] = 1e3
        return size

    monkeypatch.setattr(attribution_patching, "_pilot", one_is_large)
    screened = patch_screened(model, task, "z", screen=1)
    assert np.flatnonzero(screened.exact.values.reshape(-1)).tolist() == [7]


def test_all_sites_are_tried_here():
    assert {*STREAM_SITES, *HEAD_SITES, "neurons"} == set(BY)
