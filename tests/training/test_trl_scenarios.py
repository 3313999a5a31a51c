"""Scenarios in which TRL's own trainer is used: each must train as with the stock class, and be measured rightly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PrefixTuningConfig, PromptTuningConfig, TaskType
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen3MoeConfig, Qwen3MoeForCausalLM
from trl import DPOTrainer

from dpo_diag import load_run
from dpo_diag.training import DiagDPOTrainer

from .plain import assert_rows, score_pairs
from .tiny import arguments, copies, make_model, make_pairs, make_tokenizer, theirs

HELD = make_pairs(4, seed=1)


def train_both(tmp_path: Path, tokenizer: Any, make: Any, make_reference: Any = None, *, rows: Any = None,
               held: Any = None, extra: Any = None, diag: Any = None, **options: Any) -> Any:  # fmt: skip
    """(stock trainer, ours, our run) after the same training: gradients are the same bits, TRL's means are logged."""
    found = []
    for cls in (DPOTrainer, DiagDPOTrainer):
        more = {"recorder": tmp_path / "run", **(diag or {})} if cls is DiagDPOTrainer else {}
        trainer = cls(
            model=make(), ref_model=make_reference() if make_reference else None, processing_class=tokenizer,
            args=arguments(
                tmp_path / "out", **({"eval_strategy": "steps", "eval_steps": 2, "max_steps": 2} | options)
            ),
            train_dataset=Dataset.from_list(rows or make_pairs(7)), eval_dataset=Dataset.from_list(held or HELD),
            **(extra or {}), **more,
        )  # fmt: skip
        trainer.train()
        found.append(trainer)
    means = ("loss", "eval_loss", "rewards/margins", "eval_rewards/margins", "entropy")
    stock, ours = ([r for r in t.state.log_history if "loss" in r or "eval_loss" in r] for t in found)
    for own, mine in zip(stock, ours[1:], strict=True):  # ours begins with the evaluation at step 0
        assert {k: own.get(k) for k in ("grad_norm", "aux_loss")} == {k: mine.get(k) for k in ("grad_norm", "aux_loss")}
        for name in [k for k in means if k in own]:
            assert own[name] == pytest.approx(theirs(mine, name), rel=2e-5, abs=2e-5), name
    return found[0], found[1], load_run(tmp_path / "run")


def at(run: Any, step: int) -> Any:
    rows = run.pairs
    return rows[(rows["split"] == "eval") & (rows["step"] == step)]


def test_a_moving_reference_is_not_written_as_if_it_were_fixed(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    _, ours, run = train_both(
        tmp_path, tokenizer, lambda: make_model(1), lambda: make_model(2), sync_ref_model=True, ref_model_sync_steps=1,
        ref_model_mixup_alpha=0.5, max_steps=3, eval_steps=3,
    )  # fmt: skip
    assert (run.info.reference.kind, run.info.reference.fixed) == ("model", False)
    assert run.read("pairs", ["role"], roles=["ref"]).empty
    assert run.pairs["ref_sum_logp"].isna().all()
    assert all(r["loss_residual"] < 1e-4 for r in ours.state.log_history if "loss_residual" in r)
    assert not ours.ref_model._forward_hooks


@pytest.mark.parametrize("kind", ["prompt tuning", "prefix tuning"])
def test_virtual_tokens_are_not_counted(tmp_path: Path, tokenizer: PreTrainedTokenizerFast, kind: str) -> None:
    if kind == "prompt tuning":
        config = PromptTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=3)
    else:
        config = PrefixTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=3)
    _, ours, run = train_both(
        tmp_path, tokenizer, lambda: make_model(1), extra={"peft_config": config}, learning_rate=0.1,
        diag={"extra_metrics": ("top5", "greedy_logp")},
    )  # fmt: skip
    base = make_model(1)
    names = ("sum_logp", "n_tokens", "greedy_logp_sum")
    assert_rows(at(run, 2), score_pairs(base, tokenizer, HELD), names, prefix="ref_")
    if kind == "prompt tuning":  # its forward without fused head returns virtual positions first
        return
    assert_rows(at(run, 2), score_pairs(ours.model, tokenizer, HELD), ("sum_logp", "n_tokens", "top5"))


def test_mixture_of_experts(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """The router's auxiliary loss is in TRL's number, not in any pair's: the residual accounts for it."""

    def make(seed: int = 1) -> Qwen3MoeForCausalLM:
        torch.manual_seed(seed)
        return Qwen3MoeForCausalLM(
            Qwen3MoeConfig(
                vocab_size=300, hidden_size=16, intermediate_size=16, moe_intermediate_size=8, num_hidden_layers=1,
                num_attention_heads=2, num_key_value_heads=1, head_dim=8, num_experts=4, num_experts_per_tok=2,
                max_position_embeddings=128, pad_token_id=0, eos_token_id=1, bos_token_id=None, initializer_range=0.3,
                router_aux_loss_coef=0.5,
            )
        ).eval()  # fmt: skip

    _, ours, run = train_both(tmp_path, tokenizer, make, lambda: make(2))
    logged = [r for r in ours.state.log_history if "aux_loss" in r]
    assert all(r["aux_loss"] > 0.1 for r in logged)
    assert all(r["loss_residual"] < 1e-5 for r in logged)
    assert_rows(at(run, 0), score_pairs(make(), tokenizer, HELD), ("sum_logp", "top1"))


@pytest.mark.slow
def test_half_precision_weights(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """A bfloat16 model: token log-probs are still float32, so that the sums are TRL's to rounding."""
    _, ours, run = train_both(tmp_path, tokenizer, lambda: make_model(1).bfloat16(), lambda: make_model(2).bfloat16())
    assert run.meta["model"]["dtype"] == "bfloat16"
    assert all(r["loss_residual"] < 1e-4 for r in ours.state.log_history if "loss_residual" in r)
    assert_rows(at(run, 0), score_pairs(make_model(1).bfloat16(), tokenizer, HELD), ("sum_logp",), tolerance=1.0)


def test_a_model_and_its_reference_from_a_folder(tmp_path: Path) -> None:
    """The shortest script: a path, data, nothing else; the reference is what the folder holds."""
    tokenizer = make_tokenizer()
    make_model(5).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    trainer = DiagDPOTrainer(
        str(tmp_path / "model"), args=arguments(tmp_path / "out", max_steps=2, learning_rate=0.01),
        train_dataset=Dataset.from_list(make_pairs(7)), eval_dataset=Dataset.from_list(HELD), recorder=tmp_path / "run",
        evaluate_at_start=True,
    )  # fmt: skip
    trainer.train()
    assert {"dpo", "trl"} <= set(trainer.model.model_tags)
    assert type(trainer.processing_class).__name__
    run = load_run(tmp_path / "run")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert_rows(at(run, 0), score_pairs(loaded, tokenizer, HELD), ("sum_logp",), prefix="ref_")
    assert trainer.state.log_history[0]["eval_loss"] == pytest.approx(0.693147, abs=1e-5)
    assert run.meta["model"]["name"] == str(tmp_path / "model")


@pytest.mark.slow
def test_several_losses_with_one_that_couples(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    _, ours, run = train_both(
        tmp_path, tokenizer, lambda: make_model(1), lambda: make_model(2), loss_type=["sigmoid", "bco_pair", "sft"],
        loss_weights=[0.8, 0.2, 1.0],
    )  # fmt: skip
    assert not any("residual" in k for r in ours.state.log_history for k in r)
    assert run.meta["loss"]["types"] == ["sigmoid", "bco_pair", "sft"]


@pytest.mark.slow
def test_tools_and_template_arguments(tmp_path: Path) -> None:
    """Extra columns change how a prompt is rendered: the recorded log-probs are those of what the model saw."""
    tokenizer = make_tokenizer()
    tokenizer.chat_template = (
        "{% if tools %}{{ tools | length }}{% endif %}{% if loud %}!{% endif %}"
        "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}<eos>{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    rows = [
        {
            "prompt": [{"role": "user", "content": f"{i} cat"}], "chosen": [{"role": "assistant", "content": " red"}],
            "rejected": [{"role": "assistant", "content": " dog dog"}], "tools": '[{"name": "f"}]',
            "chat_template_kwargs": {"loud": bool(i % 2)},
        }
        for i in range(4)
    ]  # fmt: skip
    _, _, run = train_both(tmp_path, tokenizer, lambda: make_model(1), lambda: make_model(2), rows=rows, held=rows)
    as_text = [
        {"prompt": f"1{'!' if i % 2 else ''}<user>{i} cat<eos><assistant>", "chosen": " red", "rejected": " dog dog"}
        for i in range(4)
    ]
    expected = score_pairs(make_model(1), tokenizer, as_text)
    frame = at(run, 0)
    for side in ("chosen", "rejected"):
        recorded = sorted(frame.loc[frame["side"] == side, "sum_logp"])
        wanted = sorted(v["sum_logp"] for (_, s), v in expected.items() if s == side)
        assert recorded == pytest.approx(wanted, abs=1e-4)
    assert len(run.texts[run.texts["split"] == "eval"]) == 4


@pytest.mark.slow
def test_dropout_in_the_adapter(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """LoRA dropout needs disable_dropout=False; the reference forward has none, and random numbers are drawn in the
    same order as in stock TRL."""
    lora = LoraConfig(r=4, lora_dropout=0.5, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    _, _, run = train_both(
        tmp_path, tokenizer, lambda: make_model(1), extra={"peft_config": lora}, disable_dropout=False,
        learning_rate=0.05, max_steps=3,
    )  # fmt: skip
    rows = run.pairs
    train = rows[(rows["split"] == "train") & (rows["step"] == 3)]
    everything = score_pairs(make_model(1), tokenizer, make_pairs(7))
    seen = {k: everything[k] for k in zip(train["pair_id"], train["side"], strict=True)}
    assert_rows(train, seen, ("sum_logp",), prefix="ref_")


@pytest.mark.slow
def test_deep_copies_and_pickles_do_not_drag_the_trainer_along(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    model = make_model(1)
    trainer = DiagDPOTrainer(
        model=model, ref_model=make_model(2), args=arguments(tmp_path, max_steps=1), processing_class=tokenizer,
        train_dataset=Dataset.from_list(make_pairs(7)), extra_metrics=("top5",),
    )  # fmt: skip
    trainer.train()
    again = copies(model)
    torch.save(again.state_dict(), tmp_path / "weights.pt")
    assert not any(again.modules() is None or m._forward_hooks for m in again.modules())
