"""Loading policy, reference and tokenizer: what is decided is said, what is wrong is one line, before long work."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, LlamaForCausalLM

from dpo_diag.config import ModelConfig, PeftConfig
from dpo_diag.errors import DiagError
from dpo_diag.models import hub
from dpo_diag.models.adapters import check_adapter, lora_config, quantization_config
from dpo_diag.models.loading import check_device, choose_dtype, frozen_copy, load_model, model_fingerprint
from dpo_diag.models.policy import load_policy
from dpo_diag.models.tokenizers import (
    describe_tokenizer,
    load_tokenizer,
    prepare_tokenizer,
    require_chat_template,
    tokenizer_fingerprint,
)  # fmt: skip
from tests.data.conftest import CHAT, byte_tokenizer


def _one_line(config: ModelConfig, peft: PeftConfig | None = None) -> str:
    with pytest.raises(DiagError) as caught:
        load_policy(config, peft)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def _hub(path: object, **changes: object) -> ModelConfig:
    return ModelConfig(kind="hub", name=str(path), **changes)  # type: ignore[arg-type]


def test_a_folder_becomes_a_policy_with_a_frozen_reference(tiny_model: Path) -> None:
    policy = load_policy(_hub(tiny_model))
    assert policy.reference is not None and policy.peft_config is None
    assert policy.reference is not policy.model and not policy.reference.training
    assert not any(p.requires_grad for p in policy.reference.parameters())
    assert all(p.requires_grad for p in policy.model.parameters())
    assert policy.tokenizer.pad_token == "<|end|>" and policy.tokenizer.padding_side == "right"
    assert policy.notes == ["no pad token: the end token <|end|> (id 256) pads; masks, not ids, tell padding from ends"]
    assert policy.meta["model"]["architecture"] == "LlamaForCausalLM"
    assert policy.meta["model"]["n_parameters"] == sum(p.numel() for p in policy.model.parameters())
    assert policy.meta["model"]["dtype"] == "float32"
    assert policy.meta["reference"] == {"kind": "frozen copy", "name": str(tiny_model)}


def test_the_reference_is_the_policy_in_memory_not_the_folder_s(tiny_model: Path) -> None:
    """TRL's own `ref_model=None` would load `config._name_or_path` again; a copy keeps weights changed in memory."""
    model = load_model(str(tiny_model))
    with torch.no_grad():
        model.lm_head.weight.add_(1.0)
    reference = frozen_copy(model)
    assert torch.equal(reference.lm_head.weight, model.lm_head.weight)
    with torch.no_grad():
        model.lm_head.weight.add_(1.0)
    difference = (model.lm_head.weight - reference.lm_head.weight).detach()
    assert float(difference.min()) == pytest.approx(1.0)


def test_an_adapter_needs_no_reference_copy_unless_one_is_named(tiny_model: Path) -> None:
    peft = PeftConfig(kind="lora", r=64, alpha=256, dropout=0.05)
    policy = load_policy(_hub(tiny_model), peft)
    assert policy.reference is None and policy.peft_config is not None
    assert (policy.peft_config.r, policy.peft_config.lora_alpha, policy.peft_config.lora_dropout) == (64, 256, 0.05)
    assert policy.meta["reference"]["kind"] == "adapter switched off"
    named = load_policy(_hub(tiny_model, reference=str(tiny_model)), peft)
    assert named.reference is not None and not named.reference.training
    assert load_policy(_hub(tiny_model), with_reference=False).reference is None


def test_fingerprints_follow_content(tiny_model: Path, tmp_path: Path) -> None:
    model = load_model(str(tiny_model))
    first = model_fingerprint(model)
    assert first == model_fingerprint(load_model(str(tiny_model)))
    assert len(first) == 64
    assert first != model_fingerprint(load_model(str(tiny_model), dtype=torch.bfloat16))
    with torch.no_grad():
        model.lm_head.weight[3, 5] += 1e-6
    assert first != model_fingerprint(model)
    plain, chat = byte_tokenizer(), byte_tokenizer()
    chat.chat_template = CHAT
    padded = byte_tokenizer()
    padded("x", padding="max_length", max_length=4) if padded.pad_token else padded("x", truncation=True, max_length=4)
    assert tokenizer_fingerprint(plain) == tokenizer_fingerprint(padded) != tokenizer_fingerprint(chat)
    assert tokenizer_fingerprint(byte_tokenizer(extra=("<|x|>",))) != tokenizer_fingerprint(plain)
    chat.save_pretrained(tmp_path)
    loaded, _ = load_tokenizer(str(tmp_path))
    assert describe_tokenizer(loaded, "mine") == {
        "name": "mine", "vocab_size": 261, "pad_token": "<|end|>", "eos_token": "<|end|>", "chat_template": True,
        "eos_token_id": chat.eos_token_id, "fingerprint": tokenizer_fingerprint(chat),
    }  # fmt: skip


def test_a_missing_pad_token_is_an_existing_one_and_the_vocabulary_never_grows() -> None:
    distinct = byte_tokenizer(extra=("<|endoftext|>",))
    notes = prepare_tokenizer(distinct)
    assert (distinct.pad_token, len(distinct)) == ("<|endoftext|>", 262)
    assert notes == ["no pad token: <|endoftext|> (id 261), already in the vocabulary, pads"]
    assert prepare_tokenizer(byte_tokenizer(pad="<pad>")) == []
    endless = byte_tokenizer()
    endless.eos_token = None
    with pytest.raises(DiagError, match="no end token"):
        prepare_tokenizer(endless)
    with pytest.raises(DiagError, match="got id 260; expected ids below 260"):
        prepare_tokenizer(byte_tokenizer(), n_embeddings=260)


def test_chat_templates(tiny_model: Path, tmp_path: Path) -> None:
    file = tmp_path / "chat.jinja"
    file.write_text(CHAT)
    for given in (str(file), CHAT):
        tokenizer, _ = load_tokenizer(str(tiny_model), chat_template=given)
        assert tokenizer.chat_template == CHAT
        assert require_chat_template(tokenizer, "messages") == []
        assert len(require_chat_template(tokenizer, "text")) == 1
    with pytest.raises(DiagError, match="no such chat template"):
        load_tokenizer(str(tiny_model), chat_template="absent.jinja")
    with pytest.raises(DiagError, match=r"no chat template.*model\.chat_template"):
        require_chat_template(byte_tokenizer(), "messages")
    assert require_chat_template(byte_tokenizer(), "text") == []


def test_wrong_names_and_folders(tmp_path: Path, tiny_model: Path) -> None:
    assert "no such model folder" in _one_line(_hub(tmp_path / "absent"))
    assert "no model named" in _one_line(ModelConfig(kind="hub"))
    shutil.copytree(tiny_model, tmp_path / "run" / "checkpoint-10")
    assert "name one of the folders inside: checkpoint-10" in _one_line(_hub(tmp_path / "run"))
    assert "a model is a folder" in _one_line(_hub(tiny_model / "model.safetensors"))
    (tmp_path / "adapter_config.json").write_text("{}")
    assert "adapter alone" in _one_line(_hub(tmp_path))
    (tmp_path / "adapter_config.json").unlink()
    (tmp_path / "config.json").write_text("{broken")
    assert "cannot be loaded" in _one_line(_hub(tmp_path))


def test_an_unreachable_hub_is_told_quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    start = time.monotonic()
    assert "not in the local cache and the hub cannot be reached" in _one_line(_hub("owner/absent-model"))
    assert time.monotonic() - start < 20
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    for name in ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert hub.hub_reachable.__wrapped__() is False
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example")
    assert hub.hub_reachable.__wrapped__() is True


def test_pickles_are_refused_unless_asked(tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pickled"
    shutil.copytree(tiny_model, folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert "no safetensors weights" in _one_line(_hub(folder))
    loaded = load_policy(_hub(folder, allow_pickle=True), with_reference=False)
    assert model_fingerprint(loaded.model) == model_fingerprint(load_model(str(tiny_model)))


def test_weights_that_are_missing_would_be_random(tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "partial"
    shutil.copytree(tiny_model, folder)
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert "lacks weights" in _one_line(_hub(folder)) and "layers.1.mlp.up_proj" in _one_line(_hub(folder))


def test_not_a_causal_model_and_remote_code(tmp_path: Path) -> None:
    from transformers import T5Config

    T5Config(vocab_size=8, d_model=4).save_pretrained(tmp_path / "t5")
    assert "not a causal language model" in _one_line(_hub(tmp_path / "t5"))
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "config.json").write_text(
        '{"model_type": "made_up", "auto_map": {"AutoConfig": "mine.C", "AutoModelForCausalLM": "mine.M"}}'
    )
    (tmp_path / "own" / "mine.py").write_text("raise SystemExit('ran')")
    assert "model.trust_remote_code=true" in _one_line(_hub(tmp_path / "own"))


def test_another_vocabulary_is_no_reference(tiny_model: Path, tmp_path: Path) -> None:
    small = LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    LlamaForCausalLM(small).save_pretrained(tmp_path / "other")
    message = _one_line(_hub(tiny_model, reference=str(tmp_path / "other")))
    assert "another vocabulary" in message and "got 8 embeddings; expected 264" in message
    assert "ids that the model has no embedding for" in _one_line(_hub(tmp_path / "other", tokenizer=str(tiny_model)))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the GPU that the test asks for in vain")
def test_a_gpu_that_is_absent_stops_before_the_model_is_looked_for() -> None:
    """The model's path is wrong as well: the device is told first, since it costs nothing to check."""
    assert "a GPU was asked for and there is none" in _one_line(_hub("/absent", device="cuda"))
    assert "model.device=cuda:1" in _one_line(_hub("/absent", device="cuda:1"))
    assert "QLoRA needs a GPU" in _one_line(_hub("/absent", device="cpu"), PeftConfig(kind="qlora"))
    assert "unknown device" in _one_line(_hub("/absent", device="tpu"))
    assert check_device("cpu") == "cpu"


def test_dtypes() -> None:
    assert choose_dtype("auto", "cpu") == (torch.float32, [])
    assert choose_dtype("auto", "cuda") == ("auto", [])
    assert choose_dtype("bfloat16", "cuda") == (torch.bfloat16, [])
    assert "slow" in choose_dtype("bfloat16", "cpu")[1][0]
    with pytest.raises(DiagError, match="unknown dtype"):
        choose_dtype("fp8", "cpu")


def test_attention_that_is_absent(tiny_model: Path) -> None:
    assert "model.attn_implementation=sdpa or eager" in _one_line(_hub(tiny_model, attn_implementation="nonsense"))
    policy = load_policy(_hub(tiny_model, attn_implementation="eager"), with_reference=False)
    assert policy.meta["model"]["attn_implementation"] == "eager"


def test_adapters_are_checked(tiny_model: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    assert lora_config(PeftConfig(kind="none")) is None
    named = lora_config(PeftConfig(kind="lora", target_modules=["q_proj", "v_proj"]), model)
    assert named is not None and named.target_modules == {"q_proj", "v_proj"}
    with pytest.raises(DiagError, match=r"no such module.*got c_attn.*all-linear.*q_proj"):
        lora_config(PeftConfig(kind="lora", target_modules=["c_attn"]), model)
    for wrong in (
        PeftConfig("lora", r=0),
        PeftConfig("lora", dropout=1.0),
        PeftConfig("qlora", bits=3),
        PeftConfig("x"),
    ):
        with pytest.raises(DiagError):
            check_adapter(wrong, "cuda")
    four = quantization_config(PeftConfig("qlora"), torch.bfloat16)
    assert four is not None and four.bnb_4bit_quant_type == "nf4" and four.bnb_4bit_compute_dtype == torch.bfloat16
    assert quantization_config(PeftConfig("lora"), torch.float32) is None


def test_another_architecture_loads_too(tmp_path: Path) -> None:
    """GPT-2: tied embeddings, 1-D convolutions; nothing here is Llama's."""
    from transformers import GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=264, n_embd=8, n_layer=1, n_head=2, n_positions=32, bos_token_id=256, eos_token_id=256
    )
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    policy = load_policy(_hub(tmp_path), PeftConfig("lora", r=2))
    assert policy.meta["model"]["architecture"] == "GPT2LMHeadModel"
