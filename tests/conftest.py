"""Models for the tests: random weights of GPT-2's architecture, saved to a folder and loaded as any other model."""

import json
import os
import re
import shutil
import sys
import warnings
from contextlib import contextmanager
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test asks the hub

import pytest
import torch

torch.set_num_threads(1)

ROOT = Path(__file__).parents[1]
SHARED = Path(__file__).parents[2] / "shared"


def small_tokenizer():
    """mini's tokenizer, or one trained on the words of the data where mini is absent."""
    from transformers import PreTrainedTokenizerFast

    shipped = ROOT / "namemovers" / "mini" / "tokenizer.json"
    if shipped.is_file():
        return PreTrainedTokenizerFast(
            tokenizer_file=str(shipped), bos_token="<|endoftext|>", eos_token="<|endoftext|>"
        )
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    from namemovers import data

    words = set()
    for name in vars(data):
        value = getattr(data, name)
        if name.isupper():
            values = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else []
            words |= {w for v in values if isinstance(v, str) for w in v.replace("{", " ").replace("}", " ").split()}
    # as at the start of a prompt, and within
    text = [space + w.strip(".,") for w in sorted(words) for space in ("", " ")]
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tok.train_from_iterator(
        text * 3,
        trainers.BpeTrainer(
            vocab_size=8000,
            min_frequency=2,
            special_tokens=["<|endoftext|>"],
            initial_alphabet=alphabet,
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(tokenizer_object=tok, bos_token="<|endoftext|>", eos_token="<|endoftext|>")


def gpt2_tokenizer():
    """GPT-2's own tokenizer, or None where its files are absent."""
    files = [SHARED / "gpt2_tokenizer" / f for f in ("vocab.json", "merges.txt")]
    if not all(f.is_file() for f in files):
        return None
    from transformers import GPT2Tokenizer

    return GPT2Tokenizer(vocab=str(files[0]), merges=str(files[1]))


GPT2_VOCABULARY = 50257


def filled_up(tokenizer, size=GPT2_VOCABULARY):
    """The same tokenizer with so many tokens: what is added stands for no text, but is a row of the unembedding."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    told = json.loads(tokenizer.backend_tokenizer.to_str())
    taken = len(tokenizer)
    told["model"]["vocab"] |= {f"<|filler {i}|>": i for i in range(taken, size)}
    special = dict(bos_token=tokenizer.bos_token, eos_token=tokenizer.eos_token)
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(told)), **special)


def tokenizer_of_gpt2s_size():
    """GPT-2's own, or where its files are absent one with as many tokens, which says so."""
    found = gpt2_tokenizer()
    if found is None:
        warnings.warn(
            f"{SHARED / 'gpt2_tokenizer'} is absent: GPT-2's shape is tried with mini's tokenizer, filled up to "
            f"{GPT2_VOCABULARY} tokens",
            stacklevel=2,
        )
        found = filled_up(small_tokenizer())
    assert len(found) == GPT2_VOCABULARY
    return found


def write_checkpoint(folder, tokenizer, n_layer, n_head, n_embd, n_ctx=128, seed=0, scale=0.08):
    """A GPT-2 checkpoint with random weights, in Hugging Face format.

    Larger than GPT-2's initial weights, and with biases and LayerNorm weights that are not trivial, so that attention
    is not flat and what folding does can be seen."""
    from transformers import GPT2Config, GPT2LMHeadModel

    rng = torch.random.get_rng_state()
    torch.manual_seed(seed)
    bos = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    vocab = len(tokenizer)
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=vocab,
            n_positions=n_ctx,
            n_embd=n_embd,
            n_layer=n_layer,
            n_head=n_head,
            bos_token_id=bos,
            eos_token_id=bos,
        )
    )
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "ln" in name and name.endswith("weight"):
                p.copy_(1 + 0.2 * torch.randn_like(p))
            elif name.endswith("bias"):
                p.copy_(0.1 * torch.randn_like(p))
            else:
                p.mul_(scale / 0.02 if n_embd < 300 else 2.0)
    torch.random.set_rng_state(rng)
    model.save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)
    return Path(folder)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """A checkpoint of 3 layers, 4 heads, width 32."""
    return write_checkpoint(
        tmp_path_factory.mktemp("models") / "tiny", small_tokenizer(), n_layer=3, n_head=4, n_embd=32
    )


@pytest.fixture(scope="session")
def tiny(tiny_folder):
    """The tiny checkpoint, loaded."""
    from namemovers.model import load_model

    return load_model(tiny_folder, device="cpu")


@pytest.fixture(scope="session")
def gpt2_shape(tmp_path_factory):
    """Random weights in GPT-2 small's shape: 12 layers, 12 heads, width 768, 50257 tokens; about 600 MB."""
    tokenizer = tokenizer_of_gpt2s_size()
    from namemovers.model import load_model

    folder = tmp_path_factory.mktemp("models") / "gpt2_shape"
    write_checkpoint(folder, tokenizer, n_layer=12, n_head=12, n_embd=768, n_ctx=1024)
    model = load_model(folder, device="cpu")
    assert model.cfg.d_vocab == GPT2_VOCABULARY
    shutil.rmtree(folder)  # half a gigabyte that nobody reads again
    return model


@pytest.fixture(scope="session")
def mini():
    """The shipped model."""
    from namemovers.model import load_model, shipped_models

    assert "mini" in shipped_models(), (
        "mini is not in the package, which ships it: restore namemovers/mini or run make mini"
    )
    return load_model("mini", device="cpu")


# --- a browser ------------------------------------------------------------------------------------------------------

QUIET = """
    --no-sandbox --disable-gpu --disable-quic --no-first-run
    --disable-background-networking --disable-component-update --disable-sync
""".split()


@pytest.fixture(scope="module")  # not longer: while it is open, nothing else may run an event loop
def browser():
    """Chromium; without one the tests that look at pages are skipped, but in CI, which must look, they fail."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        if os.environ.get("CI"):
            pytest.fail("Chromium is not on the PATH, and CI must look at the pages.")
        pytest.skip("Chromium is not on the PATH")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=chromium, args=QUIET)
        yield opened
        opened.close()


def with_mean(model, logits):
    """A folded model's logits [..., token] with the mean over the vocabulary that folding took away: the model's
    own."""
    from namemovers.model import taken_from_logits

    direction, constant = (t.double() for t in taken_from_logits(model))
    stream = (logits - model.b_U).double() @ torch.linalg.pinv(model.W_U.double(), rtol=1e-5)  # [..., d_model]
    return logits + (stream @ direction + constant)[..., None].float()


def told_apart(model, task):
    """The task with other answers: the two tokens of each prompt whose logits differ most between the runs, so that
    random weights have effects."""
    import dataclasses

    from namemovers.model import run_at_end

    runs = [
        run_at_end(model, tokens, task.positions["END"])[0] for tokens in (task.clean_tokens, task.corrupted_tokens)
    ]
    moved = (runs[0] - runs[1]).cpu()
    return dataclasses.replace(task, correct=moved.argmax(1), wrong=moved.argmin(1))


@contextmanager
def warned(match=""):
    """A warning that says what it should, and names the line of the test: whatever lies between it and the library."""
    with pytest.warns(UserWarning, match=match) as caught:
        yield caught
    caller = sys._getframe(2).f_code.co_filename  # past contextlib
    said = [w for w in caught if re.search(match, str(w.message))]
    assert {w.filename for w in said} == {caller}
