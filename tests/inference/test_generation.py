"""Generation: against a plain one-by-one loop, and leaving no trace in what it touched."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from dpo_diag.errors import DiagError
from dpo_diag.inference.generation import encode_prompt, generate
from dpo_diag.inference.prompts import Prompt
from dpo_diag.models.decoding import Decoding, draw, stop_ids
from dpo_diag.records.schemas import TABLES
from dpo_diag.records.writer import to_arrow

from .conftest import make_model, make_tokenizer

if TYPE_CHECKING:
    import pandas as pd
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

PROMPTS = [
    {"id": "short", "prompt": "a"},
    {"id": "long", "prompt": "the longest of the prompts in this list", "tags": ["x"], "reference": "r"},
    {"id": "zh", "prompt": "你好"},
    {"id": "chat", "messages": [{"role": "user", "content": "hi there"}]},
    {"id": "mid", "prompt": "some words"},
]


def plain_loop(model: LlamaForCausalLM, ids: list[int], new: int, stops: set[int]) -> tuple[list[int], float, float]:
    """Greedy, without cache, padding or batch: (tokens, sum of log-probs, sum of entropies)."""
    tokens: list[int] = []
    sum_logp = entropy = 0.0
    with torch.no_grad():
        while len(tokens) < new and not (tokens and tokens[-1] in stops):
            logp = model(torch.tensor([ids + tokens])).logits[0, -1].double().log_softmax(-1)
            tokens.append(int(logp.argmax()))
            sum_logp += float(logp[tokens[-1]])
            entropy -= float((logp.exp() * logp).sum())
    return tokens, sum_logp, entropy


def test_greedy_equals_one_by_one_without_cache(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    """Stop tokens {1} and some common byte, so that rows end at different positions and the cache is thinned out."""
    stops = (1, *range(60, 90))
    decoding = Decoding(max_new_tokens=12, stop_token_ids=stops)
    frame = generate(model, tokenizer, PROMPTS, decoding, step=3, batch_size=5, progress=False)
    assert list(frame.columns) == TABLES["outputs"].names
    assert frame["prompt_id"].tolist() == ["short", "long", "zh", "chat", "mid"]
    assert frame["n_tokens"].nunique() > 1
    for row, prompt in zip(frame.to_dict("records"), PROMPTS, strict=True):
        ids, _ = encode_prompt(tokenizer, Prompt(id="x", prompt=prompt.get("prompt"), messages=prompt.get("messages")))
        tokens, sum_logp, entropy = plain_loop(model, ids, 12, set(stops))
        assert row["token_ids"] == tokens
        assert row["n_tokens"] == len(tokens)
        assert row["sum_logp"] == pytest.approx(sum_logp, abs=1e-4)
        assert row["entropy_sum"] == pytest.approx(entropy, abs=1e-4)
        assert row["finish_reason"] == ("stop" if tokens[-1] in stops else "length")
    assert frame["finish_reason"].nunique() == 2
    to_arrow(TABLES["outputs"], frame)


def test_batch_composition_and_order_change_nothing(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    decoding = Decoding(max_new_tokens=10, n_samples=3, temperature=1.3, top_p=0.9, seed=5)

    def rows(prompts: list[dict[str, Any]], batch_size: int) -> pd.DataFrame:
        frame = generate(model, tokenizer, prompts, decoding, step=0, batch_size=batch_size, progress=False)
        return frame.sort_values(["prompt_id", "sample"], ignore_index=True)

    whole, single, reverse = rows(PROMPTS, 64), rows(PROMPTS, 1), rows(PROMPTS[::-1], 8)
    for other in (single, reverse):
        assert whole["token_ids"].tolist() == other["token_ids"].tolist()
        assert np.allclose(whole["sum_logp"], other["sum_logp"], atol=1e-4)
    assert whole["sample"].tolist() == [0, 1, 2, 3] * 5
    assert whole["seed"].isna().tolist() == [True, False, False, False] * 5
    alone = generate(model, tokenizer, PROMPTS, Decoding(max_new_tokens=10), step=0, progress=False)
    greedy = whole[whole["sample"] == 0].set_index("prompt_id")["token_ids"]
    assert greedy.loc[alone["prompt_id"]].tolist() == alone["token_ids"].tolist()
    assert whole.loc[whole["sample"] > 0, "token_ids"].map(tuple).nunique() > 5


def test_sampling_follows_the_distribution() -> None:
    """Masses .5, .3, .2 at u = .49, .51, .79, .81; top_p .7 keeps the first two: .625 and .375 of what is left."""
    logits = torch.tensor([[0.3, 0.5, 0.2]]).log().repeat(4, 1)
    u = torch.tensor([0.29, 0.31, 0.79, 0.81], dtype=torch.float64)
    assert draw(logits, u, Decoding()).tolist() == [0, 1, 1, 2]
    nucleus = Decoding(top_p=0.7)
    assert draw(logits, torch.tensor([0.62, 0.63, 0.999, 0.0]).double(), nucleus).tolist() == [1, 0, 0, 1]
    assert draw(logits, u, Decoding(top_k=1)).tolist() == [1, 1, 1, 1]
    cold = draw(logits, torch.tensor([0.01, 0.99, 0.5, 0.5]).double(), Decoding(temperature=0.01))
    assert cold.tolist() == [1, 1, 1, 1]


def test_sampled_frequencies_match(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    """First tokens of 600 samples against the model's own distribution: total variation within sampling noise."""
    frame = generate(
        model, tokenizer, PROMPTS[:1], Decoding(1, False, 600, temperature=0.7), step=0, batch_size=600, progress=False
    )
    with torch.no_grad():
        probs = (model(torch.tensor([encode_prompt(tokenizer, Prompt("x", "a"))[0]])).logits[0, -1] / 0.7).softmax(-1)
    counts = np.bincount([t[0] for t in frame["token_ids"]], minlength=258) / 600
    expected_noise = float((probs * (1 - probs) / 600).sqrt().sum()) * math.sqrt(2 / math.pi) / 2
    assert 0.5 * np.abs(counts - probs.numpy()).sum() < 1.5 * expected_noise
    assert counts.max() > 0


def test_nothing_is_left_behind(tokenizer: PreTrainedTokenizerFast) -> None:
    model = make_model()
    model.train()
    model.model.layers[0].eval()
    model.generation_config.temperature = 0.3
    model.generation_config.max_new_tokens = 3
    tokenizer.padding_side = "right"
    before = {
        "modes": [m.training for m in model.modules()],
        "generation": model.generation_config.to_dict(),
        "config": model.config.to_dict(),
        "torch": torch.get_rng_state().clone(),
        "numpy": np.random.get_state()[1].copy(),  # noqa: NPY002
        "grads": [p.requires_grad for p in model.parameters()],
    }
    generate(model, tokenizer, PROMPTS, Decoding(max_new_tokens=5, n_samples=2), step=0, progress=False)
    assert [m.training for m in model.modules()] == before["modes"]
    assert model.generation_config.to_dict() == before["generation"]
    assert model.config.to_dict() == before["config"]
    assert torch.equal(torch.get_rng_state(), before["torch"])
    assert np.array_equal(np.random.get_state()[1], before["numpy"])  # noqa: NPY002
    assert [p.requires_grad for p in model.parameters()] == before["grads"]
    assert torch.is_grad_enabled()
    assert tokenizer.padding_side == "right"


@pytest.mark.parametrize("checkpointing", [False, True])
def test_training_with_and_without_is_bit_identical(tokenizer: PreTrainedTokenizerFast, checkpointing: bool) -> None:
    """Dropout draws from the global state at every step, so that any draw of ours would show in the weights."""

    def train(look: bool) -> list[torch.Tensor]:
        model = make_model(rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0})
        if checkpointing:
            model.activation_checkpointing_enable()
        torch.manual_seed(1)
        model.train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        for step in range(3):
            if look:
                generate(model, tokenizer, PROMPTS, Decoding(4, n_samples=1), step=step, progress=False)
            ids = torch.randint(2, 258, (2, 140 if step == 1 else 9))
            model(ids, labels=ids).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        return [p.detach().clone() for p in model.parameters()]

    assert all(torch.equal(a, b) for a, b in zip(train(False), train(True), strict=True))


def test_a_failure_inside_restores_the_mode(tokenizer: PreTrainedTokenizerFast) -> None:
    model = make_model().train()
    bad = {"id": "b", "prompt": "x", "checker": "sql"}
    with pytest.raises(DiagError, match="needs db"):
        generate(model, tokenizer, [bad], Decoding(2), step=0, progress=False)
    assert model.training


PEFT_WARNS = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")


@PEFT_WARNS
@pytest.mark.filterwarnings("ignore:Position ids:UserWarning")
@pytest.mark.parametrize("kind", ["prompt", "prefix"])
def test_prompt_learning_adapters_equal_one_by_one(tokenizer: PreTrainedTokenizerFast, kind: str) -> None:
    """Virtual tokens: the whole sequence is read anew, so that padding cannot come between them and the prompt."""
    from peft import PrefixTuningConfig, PromptTuningConfig, get_peft_model

    config_class = PromptTuningConfig if kind == "prompt" else PrefixTuningConfig
    torch.manual_seed(0)
    model = get_peft_model(make_model(), config_class(num_virtual_tokens=3, task_type="CAUSAL_LM"))
    model.eval()
    frame = generate(model, tokenizer, PROMPTS, Decoding(5, n_samples=1), step=0, progress=False)
    for row in frame[frame["sample"] == 0].to_dict("records"):
        ids = tokenizer(row["prompt"], add_special_tokens=False)["input_ids"]
        tokens: list[int] = []
        with torch.no_grad():
            while len(tokens) < 5 and 1 not in tokens:
                tokens.append(int(model(input_ids=torch.tensor([ids + tokens])).logits[0, -1].argmax()))
        assert row["token_ids"] == tokens


@PEFT_WARNS
def test_peft_model_reference_by_disabling(tokenizer: PreTrainedTokenizerFast) -> None:
    from peft import LoraConfig, get_peft_model

    plain = generate(make_model(), tokenizer, PROMPTS, Decoding(6), step=0, progress=False)
    adapted = get_peft_model(make_model(), LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    with torch.no_grad():
        for name, p in adapted.named_parameters():
            if "lora_B" in name:
                p.fill_(0.5)
    changed = generate(adapted, tokenizer, PROMPTS, Decoding(6), step=0, progress=False)
    with adapted.disable_adapter():
        base = generate(adapted, tokenizer, PROMPTS, Decoding(6), step=0, model_name="ref", progress=False)
    assert base["token_ids"].tolist() == plain["token_ids"].tolist() != changed["token_ids"].tolist()
    assert base["model"].unique().tolist() == ["ref"]


def test_stop_ids_come_from_model_and_tokenizer(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    model.generation_config.eos_token_id = [1, 9]
    assert stop_ids(model, tokenizer, Decoding()) == (1, 9)
    assert stop_ids(model, tokenizer, Decoding(stop_token_ids=(7, 5, 5))) == (5, 7)


def test_no_pad_token_no_chat_template_too_long_and_empty(model: LlamaForCausalLM) -> None:
    bare = make_tokenizer(pad=False, chat=False)
    frame = generate(model, bare, [p for p in PROMPTS if "prompt" in p], Decoding(3), step=0, progress=False)
    assert len(frame) == 4 and bare.pad_token is None
    with pytest.raises(DiagError, match="no chat template; in prompt chat"):
        generate(model, bare, PROMPTS, Decoding(3), step=0, progress=False)
    with pytest.raises(DiagError, match=r"prompts long.*39 prompt tokens.*at most 128"):
        generate(model, bare, PROMPTS[:2], Decoding(100), step=0, progress=False)
    empty = generate(model, bare, [], step=0, progress=False)
    assert empty.empty and list(empty.columns) == TABLES["outputs"].names


def test_a_diverged_model_writes_something_and_says_nan(tokenizer: PreTrainedTokenizerFast) -> None:
    model = make_model()
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    frame = generate(model, tokenizer, PROMPTS, Decoding(3, n_samples=1, top_p=0.9), step=0, progress=False)
    assert frame["sum_logp"].isna().all() and len(frame) == 10


def test_decoding_hash_and_refusals() -> None:
    base = Decoding(max_new_tokens=8)
    assert base.hash == Decoding(max_new_tokens=8).hash != Decoding(max_new_tokens=9).hash
    sampling = Decoding(max_new_tokens=8, n_samples=2, temperature=0.7)
    assert sampling.row_hash(False) == base.row_hash(False)
    assert sampling.row_hash(True) == Decoding(8, n_samples=4, temperature=0.7).row_hash(True)
    assert sampling.row_hash(True) != Decoding(8, n_samples=2, temperature=0.8).row_hash(True)
    assert sampling.to_dict()["hash"] == sampling.hash
    for wrong in ({"temperature": 0}, {"top_p": 0}, {"top_p": 1.1}, {"max_new_tokens": 0}, {"n_samples": -1}):
        with pytest.raises(DiagError, match=f"decoding.{next(iter(wrong))}"):
            Decoding(**wrong)
    with pytest.raises(DiagError, match="nothing to write"):
        Decoding(greedy=False)
