"""What cannot be measured says so in one sentence, before anything runs: when it is loaded, or a study begins."""

import json
import shutil

import pytest
import torch
import transformers as hf
from conftest import small_tokenizer, warned

from namemovers.data import Task, ioi_task, mrs_task
from namemovers.model import load_model

SMALL = dict(
    vocab_size=1663,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    bos_token_id=0,
    eos_token_id=0,
    pad_token_id=0,
)
GROUPED = SMALL | dict(num_key_value_heads=2)


def bart():
    own = dict(vocab_size=1663, d_model=32, encoder_layers=2, decoder_layers=2, encoder_ffn_dim=64, decoder_ffn_dim=64)
    heads = dict(encoder_attention_heads=4, decoder_attention_heads=4)
    return hf.BartForConditionalGeneration(hf.BartConfig(**own, **heads))


def t5():
    own = dict(vocab_size=1663, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, decoder_start_token_id=0)
    return hf.T5ForConditionalGeneration(hf.T5Config(**own))


def mamba():
    return hf.MambaForCausalLM(hf.MambaConfig(vocab_size=1663, hidden_size=32, num_hidden_layers=2, state_size=4))


# a kind of model -> (how a small one is made, words of the sentence)
KINDS = {
    "bert": (lambda: hf.BertForMaskedLM(hf.BertConfig(**SMALL)), "it is an encoder"),
    "bart": (bart, "it is an encoder-decoder"),
    "t5": (t5, "it is an encoder-decoder"),
    "mamba": (mamba, "no attention heads"),
}


def saved(model, folder):
    torch.manual_seed(0)
    for p in model.parameters():
        if p.dim() > 1:
            torch.nn.init.normal_(p, 0, 0.2)
    model.save_pretrained(folder)
    small_tokenizer().save_pretrained(folder)
    return folder


def sentence(error):
    "The text of an error, which is one sentence that ends in a remedy."
    text = str(error.value)
    assert "\n" not in text and text.endswith(".") and "; " in text and len(text) < 500, text
    return text


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_decoder_is_refused_at_loading(kind, tmp_path):
    make, words = KINDS[kind]
    folder = saved(make(), tmp_path / kind)
    with pytest.raises(ValueError) as e:
        load_model(folder, device="cpu")
    assert words in sentence(e) and "load a decoder" in str(e.value)


@pytest.mark.parametrize("method", ["bitsandbytes", "gptq", "awq", "fp8"])
def test_weights_that_are_quantised_are_refused_before_they_are_read(tiny_folder, tmp_path, method):
    shutil.copytree(tiny_folder, folder := tmp_path / "quantised")
    config = json.loads((folder / "config.json").read_text())
    quantised = {"quant_method": method, "bits": 4, "group_size": 128, "load_in_4bit": True}
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": quantised}))
    with pytest.raises(ValueError) as e:
        load_model(folder, device="cpu")
    assert "quantised" in sentence(e) and method in str(e.value) and "GGUF" in str(e.value)


@pytest.fixture(scope="module")
def experts(tmp_path_factory):
    return saved(
        hf.MixtralForCausalLM(hf.MixtralConfig(**GROUPED, num_local_experts=2)), tmp_path_factory.mktemp("moe")
    )


def test_a_mixture_of_experts_says_what_cannot_be_done(experts):
    from namemovers.activation_patching import patch
    from namemovers.head_attribution import head_attribution
    from namemovers.path_patching import path_patch

    model = load_model(experts, device="cpu")
    task = ioi_task(model.tokenizer, n=2)
    with warned("slower hooks engine, because for the fast one its MLP is a Mixtral"):
        assert patch(model, task, "z").attrs["engine"] == "hooks"
    for measure in (head_attribution, path_patch):
        with pytest.raises(ValueError, match="its MLP is a MixtralSparseMoeBlock") as e:
            measure(model, task)
        assert "\n" not in str(e.value)


STUDIES = {**{kind: words for kind, (_, words) in KINDS.items()}, "experts": "its MLP is a MixtralSparseMoeBlock"}


@pytest.mark.parametrize("kind", STUDIES)
def test_a_study_of_it_ends_before_the_first_notebook(kind, experts, tmp_path, monkeypatch):
    from press.processes import check_settings

    folder = experts if kind == "experts" else saved(KINDS[kind][0](), tmp_path / kind)
    (tmp_path / "settings.ini").write_text("[DEFAULT]\n")
    monkeypatch.setenv("MODEL", str(folder))
    monkeypatch.setenv("N", "2")
    with pytest.raises(ValueError) as e:
        check_settings(tmp_path)
    assert STUDIES[kind] in str(e.value) and "\n" not in str(e.value)


# --- tokenizers -----------------------------------------------------------------------------------------------------


def test_a_tokenizer_without_bos():
    tokenizer = small_tokenizer()
    tokenizer.bos_token = None
    for make in (mrs_task, ioi_task):
        with pytest.raises(ValueError, match="no BOS token.*set tokenizer.bos_token"):
            make(tokenizer, n=2)


def with_bos_by_itself(times):
    "A tokenizer whose post-processor puts BOS in front, once or twice, whatever it is asked."
    from tokenizers.processors import TemplateProcessing

    tokenizer = small_tokenizer()
    bos = tokenizer.bos_token
    single = " ".join([bos] * times + ["$A"])
    template = TemplateProcessing(single=single, special_tokens=[(bos, tokenizer.bos_token_id)])
    tokenizer.backend_tokenizer.post_processor = template
    return tokenizer


@pytest.mark.parametrize("times", [1, 2])
def test_a_tokenizer_that_adds_bos_gives_it_once(times):
    usual, adds = (ioi_task(t, n=3, seed=0) for t in (small_tokenizer(), with_bos_by_itself(times)))
    assert with_bos_by_itself(times)("the")["input_ids"][:times] == [usual.tokenizer.bos_token_id] * times
    assert (usual.clean_tokens == adds.clean_tokens).all() and (
        adds.clean_tokens[:, 1] != usual.clean_tokens[0, 0]
    ).all()


def test_a_tokenizer_that_pads_on_the_left_changes_nothing(tiny):
    left = small_tokenizer()
    left.padding_side, left.pad_token = "left", left.eos_token
    usual, task = (mrs_task(t, n=4, seed=0) for t in (tiny.tokenizer, left))
    assert (usual.clean_tokens == task.clean_tokens).all() and (usual.positions["END"] == task.positions["END"]).all()


def test_prompts_that_are_padded_on_the_left_are_refused(tiny):
    import dataclasses

    from namemovers.head_attribution import head_attribution

    task = mrs_task(tiny.tokenizer, n=2, seed=0)
    rows = {}
    for name in ("clean_tokens", "corrupted_tokens"):
        tokens = getattr(task, name)
        rows[name] = torch.cat([torch.full_like(tokens[:, :2], tiny.tokenizer.bos_token_id), tokens], 1)
    moved: Task = dataclasses.replace(
        task, lengths=task.lengths + 2, positions={k: v + 2 for k, v in task.positions.items()}, **rows
    )
    with pytest.raises(ValueError, match="begins with .* twice.*left"):
        head_attribution(tiny, moved)
