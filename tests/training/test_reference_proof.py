"""Policy and reference before the first step: silent where they agree, named cause where they must and do not."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from dpo_diag import load_run
from dpo_diag.records.model_info import ReferenceStart
from dpo_diag.training import DiagDPOTrainer

from .plain import score_pairs
from .tiny import arguments, make_model, make_pairs


def lora(**options: Any) -> LoraConfig:
    return LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", **options)


def adapted(model: Any) -> Any:
    """With a trained adapter."""
    torch.manual_seed(5)
    return get_peft_model(model, lora(init_lora_weights=False))


def start_of(
    folder: Path, tokenizer: Any, model: Any, ref: Any = None, *, peft: Any = None, change: Any = None,
    is_start: bool | None = None, stop_on: Any = (), **options: Any,
) -> tuple[ReferenceStart, list[str], int]:  # fmt: skip
    """(what run.json says of the start, the alerts' messages, steps that were made)."""
    trainer = DiagDPOTrainer(
        model=model, ref_model=ref, peft_config=peft, processing_class=tokenizer, recorder=folder / "run",
        args=arguments(folder / "out", max_steps=2, **options), train_dataset=Dataset.from_list(make_pairs(11)),
        reference_is_start=is_start, stop_on=stop_on,
    )  # fmt: skip
    if change is not None:
        trainer.train_dataset = trainer.train_dataset.map(change)
    trainer.train()
    run = load_run(folder / "run")
    start = run.info.reference.start
    assert start is not None
    return start, run.alerts["message"].tolist(), trainer.state.global_step


@pytest.fixture
def base(tmp_path: Path) -> Any:
    """`base()`: a model as loaded from one folder."""
    make_model(1).save_pretrained(tmp_path / "base")
    return lambda: AutoModelForCausalLM.from_pretrained(tmp_path / "base")


def changed(model: Any) -> Any:
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.03 * torch.randn_like(parameter))
    return model


def test_what_agrees_is_silent(tmp_path: Path, tokenizer: PreTrainedTokenizerFast, base: Any) -> None:
    """A copy, a fresh adapter with dropout, a trained adapter's copy, a reload, precomputed sums, an adapter merged."""
    trained = adapted(base())
    cases: dict[str, Any] = {
        "copy": {"model": make_model(1), "ref": make_model(1), "is_start": True},
        "adapter": {"model": make_model(1), "peft": lora(lora_dropout=0.5), "disable_dropout": False},
        "trained adapter": {"model": adapted(make_model(1))},
        "reload": {"model": base()},
        "precomputed": {"model": make_model(1), "precompute_ref_log_probs": True},
        "merged": {"model": trained, "ref": copy.deepcopy(trained).merge_and_unload()},
        "merged in bf16": {
            "model": copy.deepcopy(trained).bfloat16(), "ref": copy.deepcopy(trained).bfloat16().merge_and_unload(),
            "bf16": True,
        },
    }  # fmt: skip
    for name, case in cases.items():
        start, alerts, steps = start_of(tmp_path / name, tokenizer, **case)
        assert (start.expected, start.agrees, start.cause, alerts, steps) == (True, True, None, [], 2), name


BASE = "the reference is the base model, without the adapter that the policy starts from"


def test_what_disagrees_names_the_cause(tmp_path: Path, tokenizer: PreTrainedTokenizerFast, base: Any) -> None:
    cases: dict[str, tuple[dict[str, Any], str]] = {
        "adapter that starts elsewhere": ({"model": make_model(1), "peft": lora(init_lora_weights=False)}, BASE),
        "sft adapter": ({"model": adapted(base()), "ref": base()}, BASE),
        "changed in memory": ({"model": changed(base())}, f"loaded the reference again from {tmp_path / 'base'}"),
        "other weights": ({"model": base(), "ref": changed(base())}, "ref_model holds other weights than the policy"),
        "swapped": (
            {"model": make_model(1), "precompute_ref_log_probs": True, "change": lambda row: {
                "ref_chosen_logps": row["ref_rejected_logps"], "ref_rejected_logps": row["ref_chosen_logps"]}},
            "the precomputed sums stand at the wrong side",
        ),
        "stale": (
            {"model": make_model(1), "precompute_ref_log_probs": True,
             "change": lambda row: {"ref_chosen_logps": row["ref_chosen_logps"] - 9}},
            "those of another model, or of other tokens",
        ),
    }  # fmt: skip
    for name, (case, cause) in cases.items():
        start, alerts, _ = start_of(tmp_path / name, tokenizer, **case)
        assert start.expected and start.agrees is False and cause in str(start.cause), name
        assert len(alerts) == 1 and alerts[0].startswith("before the first step the policy differs"), name
        assert str(start.cause) in alerts[0]


def test_a_reference_that_was_named_may_differ(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """The gap is the plain loop's over the pairs of the first batch (3 pairs, 6 responses), and nobody is warned."""
    start, alerts, _ = start_of(tmp_path, tokenizer, make_model(1), make_model(2))
    assert (start.expected, start.agrees, alerts, start.responses) == (False, False, [], 6)
    rows = load_run(tmp_path / "run").pairs
    ids = set(rows.loc[rows["step"] == 1, "pair_id"])
    policy, reference = (score_pairs(make_model(k), tokenizer, make_pairs(11)) for k in (1, 2))
    gaps = [abs(policy[k]["sum_logp"] - reference[k]["sum_logp"]) for k in policy if k[0] in ids]
    assert start.mean_gap == pytest.approx(sum(gaps) / 6, rel=1e-4)


def test_a_mismatch_can_end_the_run(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    _, alerts, steps = start_of(
        tmp_path, tokenizer, make_model(1), make_model(2), is_start=True, stop_on=["reference_mismatch"]
    )
    assert len(alerts) == 1 and steps == 1
