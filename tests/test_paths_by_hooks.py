"""Path patching against two passes by plain forward hooks on transformers' own modules."""

import pytest
import torch

from decoders import catch, loaded, places
from namemovers.path_patching import Paths, run_paths
from test_engine_families import answers, pairs

NAMES = ("llama", "llama3", "mistral", "qwen3", "gemma2", "gemma3", "olmo2")
SENDERS = [(0, 1), (1, 2)]


@pytest.fixture(scope="module", params=NAMES)
def shape(request, tmp_path_factory):
    "(name, transformers' model, the same as a TransformerBridge)"
    return loaded(request.param, tmp_path_factory.mktemp(request.param))


class Hooks:
    "Forward hooks on modules, gone when it is over."

    def __init__(self):
        self.handles = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        [handle.remove() for handle in self.handles]

    def add(self, module, before, change):
        self.handles.append(catch(module, before, change))


@torch.no_grad()
def recorded(plain, tokens):
    "What enters the output map of attention (heads side by side), and what MLPs write, a layer."
    z, mlps = {}, {}
    with Hooks() as hooks:
        for l, p in enumerate(places(plain)):
            hooks.add(p.o, True, lambda t, l=l: z.setdefault(l, t.clone()))
            hooks.add(p.mlp_out, False, lambda t, l=l: mlps.setdefault(l, t.clone()))
        plain(tokens, use_cache=False)
    return z, mlps


def part_of(head, d):
    return slice(head * d, (head + 1) * d)


@torch.no_grad()
def first_pass(plain, asked, sender, d, through_mlps, listen=()):
    """The base run with all heads but the sender frozen, and the MLPs too unless the path goes `through_mlps`: its
    logits, and what comes out of the modules (layer, name) of `listen`."""
    base, mlps = recorded(plain, asked.base)
    donor, _ = recorded(plain, asked.donor)
    heard = {}

    def frozen(l):
        z = base[l].clone()
        if l == sender[0]:
            z[..., part_of(sender[1], d)] = donor[l][..., part_of(sender[1], d)]
        return lambda t: z

    with Hooks() as hooks:
        for l, p in enumerate(places(plain)):
            hooks.add(p.o, True, frozen(l))
            if not through_mlps:
                hooks.add(p.mlp_out, False, lambda t, l=l: mlps[l])
            for layer, name in listen:
                if layer == l:
                    hooks.add(getattr(p, name), False, lambda t, key=(layer, name): heard.setdefault(key, t.clone()))
        y = plain(asked.base, use_cache=False).logits
    return y, heard


@torch.no_grad()
def second_pass(plain, asked, name, heads, heard, d):
    "The base run in which `heads` {layer: numbers} have the inputs that were heard."
    with Hooks() as hooks:
        for l, numbers in heads.items():

            def put(t, l=l, numbers=numbers):
                t = t.clone()
                for n in numbers:
                    t[..., part_of(n, d)] = heard[l, name][..., part_of(n, d)]
                return t

            hooks.add(getattr(places(plain)[l], name), False, put)
        return plain(asked.base, use_cache=False).logits


@pytest.mark.parametrize("through_mlps", [False, True])
@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_a_head_into_the_logits(shape, direction, through_mlps):
    name, plain, model = shape
    asked = pairs(direction)
    ours = run_paths(model, asked, Paths(SENDERS, "logits", through_mlps=through_mlps))[0]
    for i, sender in enumerate(SENDERS):
        y, _ = first_pass(plain, asked, sender, model.cfg.d_head, through_mlps)
        assert (ours.reshape(len(SENDERS), -1)[i] - answers(y)).abs().max() < 1e-4
    assert (ours.reshape(len(SENDERS), -1) - answers(plain(asked.base, use_cache=False).logits)).abs().max() > 1e-3


@pytest.mark.parametrize("component", ["q", "k", "v"])
@pytest.mark.parametrize("through_mlps", [False, True])
def test_a_head_into_a_later_heads_inputs(shape, component, through_mlps):
    "Keys and values are those of the head's group: whoever shares them is reached with it."
    name, plain, model = shape
    asked, d = pairs(), model.cfg.d_head
    group = model.cfg.n_heads // model.blocks[0].attn.W_K.shape[0] if component != "q" else 1
    receivers = [(2, 0), (2, 3)]
    for together in (True, False):
        ours = run_paths(model, asked, Paths(SENDERS, receivers, component, through_mlps, together))[0]
        ours = ours.reshape(len(SENDERS), -1, len(asked))
        for i, sender in enumerate(SENDERS):
            _, heard = first_pass(plain, asked, sender, d, through_mlps, [(2, component)])
            for j, reached in enumerate([receivers] if together else [[r] for r in receivers]):
                heads = {2: {h // group for _, h in reached}}
                y = second_pass(plain, asked, component, heads, heard, d)
                assert (ours[i, j] - answers(y)).abs().max() < 1e-4
    assert (ours[0] - answers(plain(asked.base, use_cache=False).logits)).abs().max() > 1e-5


def test_a_head_into_heads_of_two_layers_at_once(shape):
    name, plain, model = shape
    asked, d = pairs("noise"), model.cfg.d_head
    receivers = [(1, 0), (2, 3)]
    group = model.cfg.n_heads // model.blocks[0].attn.W_K.shape[0]
    for component in ("q", "v"):
        ours = run_paths(model, asked, Paths([(0, 1)], receivers, component))[0].reshape(-1)
        _, heard = first_pass(plain, asked, (0, 1), d, False, [(1, component), (2, component)])
        heads = {layer: {head // (1 if component == "q" else group)} for layer, head in receivers}
        assert (ours - answers(second_pass(plain, asked, component, heads, heard, d))).abs().max() < 1e-4
