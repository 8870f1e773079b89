"""The fast engine against TransformerLens hooks, against TransformerLens's own functions, and against itself."""

import contextlib
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from conftest import small_tokenizer, told_apart
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformer_lens.patching import get_act_patch_direct_path

from calls import run_attribution, run_fast, run_hooks, run_paths, run_sets
from namemovers.activation_patching import patch
from namemovers.attribution_patching import attribute, patch_screened
from namemovers.data import Task, ioi_task, mrs_task
from namemovers.engine import ready as readiness
from namemovers.engine.architectures import cast, weights_of
from namemovers.engine.forward import embed, forward, logits
from namemovers.engine.ready import ready, why_not
from namemovers.engine.sweep import two_runs
from namemovers.model import load_model
from namemovers.path_patching import path_patch
from namemovers.sets import patch_sets
from namemovers.sites import HEAD_SITES, STREAM_SITES, Cell, cells

SITES = (*STREAM_SITES, *HEAD_SITES)


def write_neox(folder, n_layers=3, n_heads=4, width=32, seed=0, rotary=0.5):
    """A Pythia-like checkpoint with random weights that are not small."""
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    tokenizer = small_tokenizer()
    rng = torch.random.get_rng_state()
    torch.manual_seed(seed)
    model = GPTNeoXForCausalLM(
        GPTNeoXConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            num_hidden_layers=n_layers,
            num_attention_heads=n_heads,
            intermediate_size=4 * width,
            max_position_embeddings=64,
            rotary_pct=rotary,
            bos_token_id=0,
            eos_token_id=0,
        )
    )
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(0, 0.15) if p.dim() > 1 else p.add_(0.1 * torch.randn_like(p))
    torch.random.set_rng_state(rng)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def neox(tmp_path_factory):
    return load_model(write_neox(tmp_path_factory.mktemp("models") / "neox"), device="cpu")


@pytest.fixture(params=["gpt2", "neox"])
def model(request):
    return request.getfixturevalue({"gpt2": "tiny", "neox": "neox"}[request.param])


def prompts(model, seed=0, n=6, length=9):
    """Random prompts of several lengths; the first pair differs from position 4 on, one pair at every position after
    BOS, one nowhere."""
    g = torch.Generator().manual_seed(seed)
    new = lambda *shape: torch.randint(5, model.cfg.d_vocab, shape, generator=g)
    clean = new(n, length)
    corrupted = clean.clone()
    corrupted[:, length // 2] = new(n)
    corrupted[n // 2 :, min(length // 2 + 2, length - 1)] = new(n - n // 2)
    if n > 3:
        corrupted[1, 1:] = new(length - 1)
        corrupted[2] = clean[2]
    read_at = torch.full((n,), length - 1)
    if n > 4:
        read_at[3], read_at[4] = length - 2, length // 2
    return clean, corrupted, read_at, new(n), new(n)


def every(model, site, by, n, length):
    tokens, nothing = torch.zeros(n, length, dtype=torch.long), torch.zeros(n, dtype=torch.long)
    positions = {"a": torch.arange(n) % length, "b": torch.full((n,), length - 2)}
    text, lengths = ["?"] * n, torch.full((n,), length)
    task = Task("any", text, text, tokens, tokens, lengths, nothing, nothing, positions, "none", 0, text, [{}] * n)
    return cells(model, task, site, by)[0]


def sites(model):
    return [s for s in SITES if s != "resid_mid" or not model.cfg.parallel_attn_mlp]


@pytest.mark.parametrize("direction", ["denoise", "noise"])
@pytest.mark.parametrize("site", SITES)
def test_fast_agrees_with_hooks(model, site, direction):
    if site not in sites(model):
        pytest.skip("NeoX has no resid_mid")
    arguments = prompts(model)
    for by in ("position", "named_position") if site in STREAM_SITES else ("head", "head_position"):
        todo = every(model, site, by, *arguments[0].shape)
        fast, hooks = (run(model, *arguments, site, todo, direction) for run in (run_fast, run_hooks))
        assert (fast - hooks).abs().max() < 1e-5, by
        assert hooks.std() > 0.05  # the comparison is of something


@pytest.mark.parametrize("metric", ["logit", "prob", "rank", "kl"])
def test_metrics_agree_with_hooks(model, metric):
    arguments = prompts(model)
    todo = every(model, "z", "head", *arguments[0].shape)
    fast, hooks = (run(model, *arguments, "z", todo, "noise", metric) for run in (run_fast, run_hooks))
    assert (fast - hooks).abs().max() < 1e-5


@pytest.mark.parametrize("order", ["ABBA", "BABA", "mixed"])
@pytest.mark.parametrize(
    "site, by", [("z", "head"), ("k", "head"), ("resid_pre", "named_position"), ("mlp_out", "position")]
)
def test_patch_gives_the_same_with_either_engine(tiny, order, site, by):
    task = ioi_task(tiny.tokenizer, n=4, order=order)
    fast, hooks = (patch(tiny, task, site, by=by, engine=engine) for engine in ("fast", "hooks"))
    assert fast.attrs["engine"] == "fast" and hooks.attrs["engine"] == "hooks"
    assert float(abs(fast.logit_diff - hooks.logit_diff).max()) < 1e-5
    assert (fast.logit_diff.isnull() == hooks.logit_diff.isnull()).all()
    assert patch(tiny, task, site, by=by).identical(fast)  # auto takes fast


def test_one_prompt_and_a_common_prefix(tiny):
    for corruption in ("switch_subjects",):
        task = mrs_task(tiny.tokenizer, n=1, corruption=corruption)
        fast, hooks = (patch(tiny, task, "resid_pre", engine=engine) for engine in ("fast", "hooks"))
        assert float(abs(fast.logit_diff - hooks.logit_diff).max()) < 1e-5
        agree = (task.clean_tokens == task.corrupted_tokens)[0].cumprod(0).bool().numpy()
        before = fast.logit_diff.isel(prompt=0, position=agree)
        assert agree.sum() > 3 and (before == before.isel(layer=0, position=0)).all()  # filled in, not run


@pytest.mark.parametrize("site", SITES)
def test_at_the_shape_of_gpt2(gpt2_shape, site):
    arguments = prompts(gpt2_shape, n=2, length=8)
    n, length = arguments[0].shape
    some = [0, 5, 10, 11]
    if site in STREAM_SITES:
        todo = [Cell(l, None, torch.full((n,), p)) for l in some for p in (3, 4, 6, 7)]
    else:
        todo = [Cell(l, h) for l in some for h in (0, 7)]
    fast, hooks = (run(gpt2_shape, *arguments, site, todo) for run in (run_fast, run_hooks))
    assert (fast - hooks).abs().max() < 1e-4
    assert hooks.std() > 0.01


def in_double(w):
    """The same weights in float64: what both engines are measured against."""
    return cast(w, torch.float64)


@pytest.mark.parametrize("site", SITES)
def test_on_mini(mini, site, monkeypatch):
    """mini's logits are as large as 20, so rounding shows: TransformerLens itself is about 1.5e-5 away from float64.
    Ours may not be much further."""
    for task in (mrs_task(mini.tokenizer, n=3), ioi_task(mini.tokenizer, n=3)):
        todo = cells(mini, task, site, "named_position" if site in STREAM_SITES else "head")[0]
        arguments = (
            mini,
            task.clean_tokens,
            task.corrupted_tokens,
            task.positions["END"],
            task.correct,
            task.wrong,
            site,
            todo,
        )
        fast, hooks = run_fast(*arguments), run_hooks(*arguments)
        with monkeypatch.context() as m:
            m.setitem(readiness._known, mini, replace(readiness._known[mini], weights=in_double(ready(mini))))
            exact = run_fast(*arguments)
        assert (fast - hooks).abs().max() < 3e-5
        assert (fast - exact).abs().max() < 2 * (hooks - exact).abs().max()


def test_raw_weights_too(tiny_folder):
    """Without compatibility mode the LayerNorms have weights of their own, which the engine folds in."""
    from transformer_lens.model_bridge import TransformerBridge

    raw = TransformerBridge.boot_transformers(str(tiny_folder), device="cpu")
    raw.eval()
    tokens = prompts(raw)[0]
    with torch.no_grad():
        w = weights_of(raw)
        assert (logits(w, forward(w, embed(w, tokens)).final) - raw(tokens)).abs().max() < 1e-5
    assert why_not(raw) is None


def test_forward_starts_anywhere(model):
    w, tokens = ready(model), prompts(model)[0]
    with torch.no_grad():
        _, cache = model.run_with_cache(tokens)
        whole = forward(w, embed(w, tokens), keep=("resid_pre", "k", "v"))
        for layer in range(w.n_layers):
            x = cache[f"blocks.{layer}.hook_resid_pre"]
            assert (forward(w, x, layer).final - whole.final).abs().max() < 1e-5
            part = forward(w, x[:, 5:], layer, before=whole, start=5)
            assert (part.final - whole.final[:, 5:]).abs().max() < 1e-5


# Properties


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(
    seed=st.integers(0, 10**6),
    n=st.integers(1, 7),
    length=st.integers(2, 12),
    site=st.sampled_from([*SITES, "resid_pre"]),
    denoise=st.booleans(),
    data=st.data(),
)
def test_any_cells_in_any_prompts(tiny, neox, seed, n, length, site, denoise, data):
    model = {"gpt2": tiny, "neox": neox}[
        data.draw(st.sampled_from(["gpt2", "neox"] if site != "resid_mid" else ["gpt2"]))
    ]
    arguments = prompts(model, seed, n, length)
    layer = st.integers(0, 2)
    head = st.integers(0, 3)
    position = st.lists(st.integers(0, length - 1), min_size=n, max_size=n)
    todo = [
        Cell(
            data.draw(layer),
            data.draw(head) if site in HEAD_SITES else None,
            torch.tensor(data.draw(position)) if data.draw(st.booleans()) else None,
        )
        for _ in range(data.draw(st.integers(1, 5)))
    ]
    direction = "denoise" if denoise else "noise"
    fast, hooks = (run(model, *arguments, site, todo, direction) for run in (run_fast, run_hooks))
    assert (fast - hooks).abs().max() < 2e-5


@settings(
    max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(
    layers=st.integers(1, 4),
    heads=st.sampled_from([1, 2, 3]),
    d_head=st.sampled_from([4, 8]),
    family=st.sampled_from(["gpt2", "neox"]),
    seed=st.integers(0, 99),
)
def test_any_small_model(tmp_path_factory, layers, heads, d_head, family, seed):
    from conftest import write_checkpoint

    folder = tmp_path_factory.mktemp("any")
    if family == "gpt2":
        write_checkpoint(folder, small_tokenizer(), n_layer=layers, n_head=heads, n_embd=heads * d_head, seed=seed)
    else:
        write_neox(folder, layers, heads, heads * d_head, seed)
    model = load_model(folder, device="cpu")
    arguments = prompts(model, seed)
    for site in sites(model):
        todo = every(model, site, "position" if site in STREAM_SITES else "head_position", *arguments[0].shape)
        fast, hooks = (run(model, *arguments, site, todo) for run in (run_fast, run_hooks))
        assert (fast - hooks).abs().max() < 2e-5, site


@pytest.mark.parametrize(
    "site, by", [("z", "head"), ("resid_pre", "position"), ("k", "head_position"), ("neurons", None)]
)
def test_budget_order_and_threads_do_not_matter(model, site, by):
    arguments = prompts(model, n=8)
    todo = (
        every(model, site, by, *arguments[0].shape)
        if by
        else [Cell(l, neuron) for l in range(3) for neuron in (3, 17, 100)]
    )
    usual = run_fast(model, *arguments, site, todo)
    message = None
    try:
        run_fast(model, *arguments, site, todo, memory_budget=1)
    except ValueError as e:
        message = str(e)
    least = int(message.split("at least ")[1].split()[0])
    # one prompt, few rows at a time
    assert (run_fast(model, *arguments, site, todo, memory_budget=least) - usual).abs().max() < 1e-5
    order = torch.randperm(8, generator=torch.Generator().manual_seed(1))
    assert (run_fast(model, *(t[order] for t in arguments), site, todo) - usual[:, order]).abs().max() < 1e-5
    assert torch.equal(run_fast(model, *arguments, site, todo[::-1]).flip(0).isnan(), usual.isnan())
    assert (run_fast(model, *arguments, site, todo[::-1]).flip(0) - usual).abs().max() < 1e-5
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert (run_fast(model, *arguments, site, todo) - usual).abs().max() < 1e-5
    finally:
        torch.set_num_threads(threads)


def test_progress_adds_up(model):
    arguments = prompts(model)
    for site, by in (("z", "head"), ("attn_out", "position"), ("v", "head_position")):
        todo, counted = every(model, site, by, *arguments[0].shape), []
        run_fast(model, *arguments, site, todo, progress=counted.append)
        assert sum(counted) == len(todo) * len(arguments[0])


# Identities


def baselines(model, arguments):
    return run_sets(model, *arguments, [[("resid_pre", Cell(0))], []])


def test_patching_everything_or_nothing(model):
    arguments = prompts(model)
    clean, corrupted = baselines(model, arguments)
    with torch.no_grad():
        for tokens, value in zip(arguments, (clean, corrupted)):
            at = model(tokens)[torch.arange(6), arguments[2]]
            theirs = at.gather(1, arguments[3][:, None]) - at.gather(1, arguments[4][:, None])
            assert (value - theirs[:, 0]).abs().max() < 1e-5
    same = (arguments[0], arguments[0], *arguments[2:])
    for site in sites(model):
        todo = every(model, site, "position" if site in STREAM_SITES else "head", *arguments[0].shape)
        assert (run_fast(model, *same, site, todo) - clean).abs().max() < 1e-5  # nothing to patch
    for layer in range(3):
        assert (run_fast(model, *arguments, "resid_pre", [Cell(layer)])[0] - clean).abs().max() < 1e-5
        assert (run_fast(model, *arguments, "resid_pre", [Cell(layer)], "noise")[0] - corrupted).abs().max() < 1e-5


def test_sets_agree_with_single_patches_and_with_hooks(model):
    arguments = prompts(model)
    for site in sites(model):
        todo = every(model, site, "position" if site in STREAM_SITES else "head_position", *arguments[0].shape)[::7]
        single = run_fast(model, *arguments, site, todo)
        assert (run_sets(model, *arguments, [[(site, cell)] for cell in todo]) - single).abs().max() < 1e-5, site
    all_heads = [
        [("z", Cell(l, h)) for l in range(3) for h in range(4)]
        + [("mlp_out", Cell(l)) for l in range(3)]
        + [("resid_pre", Cell(0))]
    ]
    # all of the clean run
    assert (run_sets(model, *arguments, all_heads)[0] - baselines(model, arguments)[0]).abs().max() < 1e-5


def test_neurons(model):
    """All neurons of a layer together are its `mlp_out`; one alone is a step along its output weights."""
    arguments = prompts(model)
    todo = [Cell(l, neuron, at) for l in range(3) for neuron in (0, 5) for at in (None, torch.full((6,), 5))]
    assert (
        run_fast(model, *arguments, "neurons", todo)
        - run_sets(model, *arguments, [[("neurons", cell)] for cell in todo])
    ).abs().max() < 1e-5
    everything = [("neurons", Cell(1, i)) for i in range(128)]
    together = run_sets(model, *arguments, [everything])[0]
    assert (together - run_fast(model, *arguments, "mlp_out", [Cell(1)])[0]).abs().max() < 1e-5


@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_neurons_are_a_site_of_patch(model, direction):
    arguments, chosen = prompts(model), [Cell(1, 5), Cell(2, 7), Cell(0, 31)]
    fast, hooks = (run(model, *arguments, "neurons", chosen, direction) for run in (run_fast, run_hooks))
    assert (fast - hooks).abs().max() < 1e-5


def test_chosen_neurons_are_labelled_and_checked(tiny, tmp_path):
    task = ioi_task(tiny.tokenizer, n=3)
    chosen = [(2, 7), (1, 5), (1, 2)]
    ds = patch(tiny, task, "neurons", neurons=chosen, store=tmp_path / "neurons")
    assert list(ds.neuron.values) == ["L1N2", "L1N5", "L2N7"] and ds.effect.dims == ("neuron", "prompt")
    assert abs(ds.logit_diff - patch(tiny, task, "neurons", neurons=chosen, engine="hooks").logit_diff).max() < 1e-5
    screened = patch_screened(tiny, task, "neurons", neurons=chosen, screen=1)
    assert int(screened.exact.sum()) == 1
    assert bool(((abs(screened.logit_diff - ds.logit_diff) < 1e-5).all("prompt") | ~screened.exact).all())
    for bad in (None, [], [(1, 999)], [(3, 0)], [(1, 5), (1, 5)]):
        with pytest.raises(ValueError, match="neuron"):
            patch(tiny, task, "neurons", neurons=bad)
    with pytest.raises(ValueError, match="site='neurons'"):
        patch(tiny, task, "z", neurons=chosen)


def rounded(t, hook=None):
    return t.bfloat16().float()


@contextlib.contextmanager
def rounded_weights(model):
    "The model with every weight as bfloat16 has it."
    kept = {name: p.detach().clone() for name, p in model.named_parameters()}
    try:
        for p in model.parameters():
            p.data.copy_(rounded(p.data))
        yield
    finally:
        for name, p in model.named_parameters():
            p.data.copy_(kept[name])


def rms(x):
    return float(x.pow(2).mean().sqrt())


def what_rounding_does(model, arguments):
    """How far bfloat16 moves the answers of the runs left alone: TransformerLens in float32, with every weight and
    every activation at a hook point rounded."""
    clean, corrupted, read_at, correct, wrong = arguments
    rows = torch.arange(len(clean))
    rounds = [(lambda name: name.startswith("blocks.") and ".hook_" in name and "scale" not in name, rounded)]

    def answers(hooks):
        ends = [model.run_with_hooks(tokens, fwd_hooks=hooks)[rows, read_at] for tokens in (clean, corrupted)]
        return torch.stack([end[rows, correct] - end[rows, wrong] for end in ends])

    usual = answers([])
    with rounded_weights(model):
        coarse = answers(rounds)
    return rms(coarse - usual) / rms(usual)


def test_bfloat16_is_as_far_off_as_its_rounding_and_labelled(model):
    """Two digits and a half: what rounding does to the runs left alone, twice at most; two hundredths are more."""
    arguments = prompts(model, n=16)
    share = what_rounding_does(model, arguments)
    unit = torch.finfo(torch.bfloat16).eps / 2
    assert unit / 2 < share < 2.5 * unit
    for site in sites(model):
        todo = every(model, site, "position" if site in STREAM_SITES else "head", *arguments[0].shape)
        exact = run_fast(model, *arguments, site, todo)
        coarse = run_fast(model, *arguments, site, todo, dtype="bfloat16")
        assert coarse.dtype == torch.float32
        gap, bound = rms(coarse - exact), 2 * share * rms(exact)
        assert bound / 8 < gap < bound, site
        assert rms(1.02 * coarse - exact) > bound and rms(0.98 * coarse - exact) > bound, site


def test_what_bfloat16_does_not_go_with(tiny):
    task = ioi_task(tiny.tokenizer, n=3)
    assert patch(tiny, task, "z").attrs["dtype"] == "float32"
    assert patch(tiny, task, "z", dtype="bfloat16").attrs["dtype"] == "bfloat16"
    with pytest.raises(ValueError, match="dtype='half'"):
        patch(tiny, task, "z", dtype="half")
    with pytest.raises(ValueError, match="engine='hooks'"):
        patch(tiny, task, "z", dtype="bfloat16", engine="hooks")


def test_float32_stays_float32_whatever_the_session_allows(tiny):
    """A session may allow TF32 or bfloat16 in place of float32; the engine does not, and leaves the setting as it
    was."""
    arguments = prompts(tiny)
    todo = every(tiny, "z", "head", *arguments[0].shape)
    usual, seen = run_fast(tiny, *arguments, "z", todo), []
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        loose = run_fast(
            tiny, *arguments, "z", todo, progress=lambda n: seen.append(torch.get_float32_matmul_precision())
        )
        assert torch.get_float32_matmul_precision() == "medium" and set(seen) == {"highest"}
        with pytest.raises(ValueError):
            run_fast(tiny, *arguments, "zz", todo)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    assert (loose - usual).abs().max() < 1e-6


# Path patching


def difference(arguments):
    return lambda out: (out.gather(1, arguments[3][:, None]) - out.gather(1, arguments[4][:, None]))[:, 0]


@pytest.mark.parametrize("component", ["q", "k", "v"])
def test_paths_between_heads_agree_with_transformer_lens(model, component):
    arguments = prompts(model, n=3)
    ours, clean, corrupted = run_paths(model, *arguments, receivers="heads", component=component)
    (_, a), (_, b), read = model.run_with_cache(arguments[0]), model.run_with_cache(arguments[1]), difference(arguments)
    for sender in (0, 2, 5):
        theirs = get_act_patch_direct_path(
            model,
            arguments[1],
            a,
            b,
            lambda out: read(out[:, -1]).mean(),
            sender // 4,
            sender % 4,
            component,
            verbose=False,
        )
        later = sender // 4 + 1
        assert (ours[sender, later:].mean(-1) - theirs[later:]).abs().max() < 1e-5
        assert ours[sender, :later].isnan().all()
    together = run_paths(model, *arguments, receivers=[(2, 1)], component=component)[0]
    assert (together[:8] - ours[:8, 2, 1]).abs().max() < 1e-5 and together[8:].isnan().all()


@pytest.mark.parametrize("through", [False, True])
def test_paths_into_the_logits_agree_with_frozen_hooks(model, through):
    arguments = prompts(model, n=3)
    ours, clean, corrupted = run_paths(model, *arguments, through_mlps=through)
    (_, a), (_, b), read = model.run_with_cache(arguments[0]), model.run_with_cache(arguments[1]), difference(arguments)
    for sender in range(12):

        def freeze(z, hook):
            z = b[hook.name].clone()
            if hook.layer() == sender // 4:
                z[:, :, sender % 4] = a[hook.name][:, :, sender % 4]
            return z

        hooks = [(f"blocks.{l}.attn.hook_z", freeze) for l in range(3)]
        if not through:
            hooks += [(f"blocks.{l}.hook_mlp_out", lambda t, hook: b[hook.name]) for l in range(3)]
        theirs = read(model.run_with_hooks(arguments[1], fwd_hooks=hooks)[:, -1])
        assert (ours[sender] - theirs).abs().max() < 1e-5


def test_receivers_in_several_layers_agree_with_hooks(tiny):
    """Two passes: one records the queries that the receivers would have, one puts them into an ordinary run."""
    arguments, receivers = prompts(tiny, n=3), [(1, 1), (2, 0), (2, 3)]
    ours = run_paths(tiny, *arguments, receivers=receivers, through_mlps=True)[0]
    (_, a), (_, b), read = tiny.run_with_cache(arguments[0]), tiny.run_with_cache(arguments[1]), difference(arguments)
    for sender in (1, 6):

        def freeze(z, hook):
            z = b[hook.name].clone()
            if hook.layer() == sender // 4:
                z[:, :, sender % 4] = a[hook.name][:, :, sender % 4]
            return z

        seen = {}
        record = lambda q, hook: seen.__setitem__(hook.name, q.clone())
        tiny.run_with_hooks(
            arguments[1],
            fwd_hooks=[(f"blocks.{l}.attn.hook_z", freeze) for l in range(3)]
            + [(f"blocks.{l}.attn.hook_q", record) for l in (1, 2)],
        )

        def put(q, hook):
            q = q.clone()
            for l, h in receivers:
                if l == hook.layer():
                    q[:, :, h] = seen[hook.name][:, :, h]
            return q

        theirs = read(
            tiny.run_with_hooks(arguments[1], fwd_hooks=[(f"blocks.{l}.attn.hook_q", put) for l in (1, 2)])[:, -1]
        )
        assert (ours[sender] - theirs).abs().max() < 1e-5


def test_direct_effects_sum_to_the_total(model):
    """With the final LayerNorm frozen, what all senders change in the final stream is the whole change."""
    w, arguments = ready(model), prompts(model, n=3)
    from namemovers.path_patching import _changes

    with torch.no_grad():
        keep = ("resid_pre", "k", "v", "z", "mlp_out")
        block = two_runs(w, arguments[1], arguments[0], 1, torch.arange(3), keep, keep)
        total = _changes(w, block, "embed", 0, [0], slice(0, 3)).sum(1)
        for layer in range(3):
            total = (
                total
                + _changes(w, block, "head", layer, range(4), slice(0, 3)).sum(1)
                + _changes(w, block, "mlp", layer, [0], slice(0, 3)).sum(1)
            )
    assert (block.base.final[:, 1:] + total - block.donor.final).abs().max() < 1e-5


def test_paths_do_not_depend_on_the_budget(tiny):
    arguments = prompts(tiny, n=5)
    for receivers in ("logits", "heads", [(1, 1), (2, 2)]):
        usual = run_paths(tiny, *arguments, receivers=receivers)[0]
        with pytest.raises(ValueError, match="too small for one path") as e:
            run_paths(tiny, *arguments, receivers=receivers, memory_budget=1)
        least = int(str(e.value).split("at least ")[1].split()[0])
        small = run_paths(tiny, *arguments, receivers=receivers, memory_budget=least)[0]
        assert (small.isnan() == usual.isnan()).all() and (small - usual).nan_to_num().abs().max() < 1e-5


def test_path_patch_is_labelled(tiny, tmp_path):
    task = ioi_task(tiny.tokenizer, n=3)
    pairs = path_patch(tiny, task, receivers="heads", component="v")
    assert pairs.logit_diff.dims == ("sender_layer", "sender_head", "layer", "head", "prompt")
    assert pairs.logit_diff.sel(sender_layer=1, layer=1).isnull().all()
    assert pairs.logit_diff.sel(sender_layer=1, layer=2).notnull().all()
    assert path_patch(tiny, task, "mlp").effect.dims == ("layer", "prompt")
    assert path_patch(tiny, task, "embed").effect.dims == ("prompt",)
    assert pairs.attrs["component"] == "v" and "component" not in path_patch(tiny, task).attrs


# Attribution patching


def test_gradients_are_those_of_transformer_lens(model):
    arguments = prompts(model, n=3)
    site, name = "z", "attn.hook_z"
    estimate = run_attribution(model, *arguments, site, [Cell(l, h) for l in range(3) for h in range(4)])
    (_, a), (_, b), read = model.run_with_cache(arguments[0]), model.run_with_cache(arguments[1]), difference(arguments)
    gradients = {}

    def keep(t, hook):
        t = t.detach().requires_grad_()
        gradients[hook.layer()] = t
        return t

    with torch.enable_grad():
        for layer in range(3):
            out = read(model.run_with_hooks(arguments[1], fwd_hooks=[(f"blocks.{layer}.{name}", keep)])[:, -1])
            (g,) = torch.autograd.grad(out.sum(), gradients[layer])
            theirs = out.detach() + ((a[f"blocks.{layer}.{name}"] - b[f"blocks.{layer}.{name}"]) * g).sum((1, 3)).T
            assert (estimate[layer * 4 : layer * 4 + 4] - theirs).abs().max() < 1e-5


def test_estimates_are_good_where_little_changes(tiny):
    """In the last layer only the final LayerNorm bends the way from a head to the answer."""
    task = ioi_task(tiny.tokenizer, n=4)
    exact, estimate = patch(tiny, task, "z"), attribute(tiny, task, "z")
    corrupted = exact.corrupted
    gap = abs((exact - estimate).logit_diff.sel(layer=2)).mean()
    assert gap < 0.3 * abs(exact.logit_diff.sel(layer=2) - corrupted).mean()
    assert estimate.attrs["approximation"] == "first order"
    assert "5 steps" in attribute(tiny, task, "resid_pre", steps=5).attrs["approximation"]
    assert abs(estimate.clean - exact.clean).max() < 1e-5 and abs(estimate.corrupted - exact.corrupted).max() < 1e-5


def test_integrated_gradients_of_the_embedding_are_complete(tiny):
    """Over all positions of layer 0 they sum to the difference between the runs."""
    task = ioi_task(tiny.tokenizer, n=4)
    found = attribute(tiny, task, "resid_pre", steps=40)
    moved = (found.logit_diff - found.corrupted).sel(layer=0).sum("position")
    assert abs(moved - (found.clean - found.corrupted)).max() < 0.02 * abs(found.clean - found.corrupted).max() + 1e-3


# Bad input


def test_models_it_is_not_right_about(tiny_folder, tiny, monkeypatch):
    other = load_model(tiny_folder, device="cpu")
    assert why_not(other) is None
    other.train()
    assert "training mode" in why_not(other)
    other.eval()
    other.blocks[1].attn.hook_z.add_hook(lambda z, hook: z * 0)
    assert "hook" in why_not(other)
    other.reset_hooks()
    assert why_not(other) is None
    monkeypatch.setattr(other.blocks[1].mlp.original_component, "act", torch.nn.Tanhshrink().eval())
    with pytest.raises(
        ValueError, match="the fast engine cannot run this model: its activation function Tanhshrink is none of"
    ):
        ready(other)
    task = ioi_task(tiny.tokenizer, n=2)
    with pytest.raises(ValueError, match="cannot run this model"):
        patch(other, task, "z", engine="fast")
    assert patch(other, task, "z").attrs["engine"] == "hooks"


def test_a_model_that_only_looks_right(tiny_folder):
    other = load_model(tiny_folder, device="cpu")
    arguments, todo = prompts(other), [Cell(1, 2)]
    assert why_not(other) is None
    before = run_fast(other, *arguments, "z", todo)
    for norm in (other.blocks[1].ln2, other.blocks[0].ln1):
        norm.original_component.eps = 0.5  # after the comparison: modules and configuration say two things
        assert "neither LayerNorm nor RMSNorm" in why_not(other)
        norm.original_component.eps = other.cfg.eps
    other.cfg.eps = 0.5
    assert "neither LayerNorm nor RMSNorm" in why_not(other)
    other.cfg.eps = 1e-5
    assert torch.equal(run_fast(other, *arguments, "z", todo), before)


def test_weights_changed_later_are_seen(tiny_folder):
    from transformer_lens.model_bridge import TransformerBridge

    raw = TransformerBridge.boot_transformers(str(tiny_folder), device="cpu")  # its LayerNorms are folded into copies
    raw.eval()
    arguments = prompts(raw, n=2)
    before = run_sets(raw, *arguments, [[]])
    with torch.no_grad():
        for p in raw.blocks[1].mlp.parameters():
            p.mul_(0.5)
        theirs = difference(arguments)(raw(arguments[1])[:, -1])
    after = run_sets(raw, *arguments, [[]])
    assert (after[0] - theirs).abs().max() < 1e-5 and (after - before).abs().max() > 1e-3


def test_memory_is_bounded(tiny_folder):
    """Ten times the prompts, the same budget: the peak stays where it is."""
    script = """
import resource, sys, torch
torch.set_num_threads(1)
from namemovers.engine import sweep as engine
from namemovers.model import load_model
from namemovers.pairs import Pairs, Question
from namemovers.sites import Cell
model = load_model(sys.argv[1], device="cpu")
g = torch.Generator().manual_seed(0)
def sweep(n):
    clean, corrupted = (torch.randint(5, 500, (n, 60), generator=g) for _ in range(2))
    pairs = Pairs(clean, corrupted, torch.full((n,), 59), clean[:, 0], clean[:, 1])
    heads = [Cell(l, h) for l in range(3) for h in range(4)]
    engine.sweep(model, pairs, "z", heads, Question(memory_budget=2**24))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
sweep(2)
print(sweep(40), sweep(400))
"""
    out = subprocess.run(
        [sys.executable, "-c", script, str(tiny_folder)], capture_output=True, text=True, check=True
    ).stdout.split()
    few, many = (int(x) / 1024 for x in out[-2:])
    assert many - few < 24, f"{few:.0f} MiB with 40 prompts, {many:.0f} MiB with 400"


def test_weights_that_are_not_numbers(tiny_folder):
    other = load_model(tiny_folder, device="cpu")
    with torch.no_grad():
        other.blocks[1].attn.b_O[0] = torch.nan
    assert "NaN" in why_not(other)
    with pytest.raises(ValueError, match="NaN"):
        patch(other, ioi_task(other.tokenizer, n=2), "z", engine="fast")


@pytest.mark.parametrize(
    "bad, message",
    [
        (dict(layer=3), "layer"),
        (dict(layer=-1), "layer"),
        (dict(layer=0, head=4), "head"),
        (dict(layer=0, head=0, position=torch.tensor([0, 99])), "position"),
    ],
)
def test_cells_that_do_not_exist(tiny, bad, message):
    with pytest.raises(ValueError, match=message):
        run_fast(tiny, *prompts(tiny, n=2), "z", [Cell(**bad)])


def test_bad_arguments(tiny):
    arguments = prompts(tiny, n=2)
    with pytest.raises(ValueError, match="site='zz'"):
        run_fast(tiny, *arguments, "zz", [Cell(0, 0)])
    with pytest.raises(ValueError, match="shape"):
        run_fast(tiny, arguments[0], arguments[1][:, :-1], *arguments[2:], "z", [Cell(0, 0)])
    with pytest.raises(ValueError, match="too small for one patch"):
        run_fast(tiny, *arguments, "z", [Cell(0, 0)], memory_budget=1000)
    with pytest.raises(ValueError, match="direction='up'"):
        run_fast(tiny, *arguments, "z", [Cell(0, 0)], "up")
    with pytest.raises(ValueError, match="metric='loss'"):
        run_fast(tiny, *arguments, "z", [Cell(0, 0)], metric="loss")
    task = ioi_task(tiny.tokenizer, n=2)
    with pytest.raises(ValueError, match="senders='neuron'"):
        path_patch(tiny, task, "neuron")
    with pytest.raises(ValueError, match="no head"):
        path_patch(tiny, task, receivers=[(0, 9)])
    with pytest.raises(ValueError, match="rank"):
        attribute(tiny, task, "z", metric="rank")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("site", SITES)
def test_on_a_gpu(tiny_folder, site):
    gpu = load_model(tiny_folder, device="cuda")
    arguments = prompts(gpu)
    todo = every(gpu, site, "position" if site in STREAM_SITES else "head", *arguments[0].shape)
    fast, hooks = (run(gpu, *arguments, site, todo) for run in (run_fast, run_hooks))
    assert (fast - hooks).abs().max() < 1e-4


def test_sets_are_labelled(tiny):
    task = told_apart(tiny, ioi_task(tiny.tokenizer, n=6))
    ds = patch_sets(tiny, task, {"nothing": [], "everything": [("resid_pre", Cell(0))]}, direction="noise")
    assert abs(ds.logit_diff.sel(set="nothing") - ds.clean).max() < 1e-5
    assert abs(ds.logit_diff.sel(set="everything") - ds.corrupted).max() < 1e-5
    assert abs(float(ds.effect.sel(set="everything").mean()) - 1) < 1e-3
