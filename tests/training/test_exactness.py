"""Records and live metrics against the plain loop, in every setting that could bend them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import PreTrainedTokenizerFast
from trl import DPOTrainer

from dpo_diag import load_run
from dpo_diag.losses import LossSpec, pair_losses
from dpo_diag.training import DiagDPOTrainer

from .plain import assert_rows, score_pairs
from .tiny import arguments, copies, make_model, make_pairs, theirs

ALL = ("sum_logp", "n_tokens", "top1", "top5", "entropy_sum", "greedy_logp_sum", "n_truncated", "n_bytes")
EXTRA = ("top5", "greedy_logp")


def run_of(tmp_path: Path, tokenizer: Any, *, policy: Any = None, reference: Any = None, eval_set: Any = None,
           train: Any = None, extra: Any = EXTRA, trainer_options: Any = None, **options: Any):  # fmt: skip
    """(trainer after training, its run, the policy before training, the reference)."""
    policy = make_model(1) if policy is None else policy
    start = copies(policy)
    trainer = DiagDPOTrainer(
        model=policy, ref_model=reference,
        args=arguments(tmp_path / "out", **({"eval_strategy": "steps", "eval_steps": 4} | options)),
        train_dataset=Dataset.from_list(make_pairs(11)) if train is None else train,
        eval_dataset=Dataset.from_list(make_pairs(10, seed=1)) if eval_set is None else eval_set,
        processing_class=tokenizer, recorder=tmp_path / "run", extra_metrics=extra, **(trainer_options or {}),
    )  # fmt: skip
    trainer.train()
    return trainer, load_run(tmp_path / "run"), start


def at(run: Any, step: int, split: str = "eval") -> Any:
    rows = run.pairs
    return rows[(rows["split"] == split) & (rows["step"] == step)]


def test_metrics_are_those_of_the_set(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """Ten pairs in batches of 4, 4 and 2: every metric is the one formula over all ten, not a mean of batch means."""
    reference = make_model(2)
    trainer, run, start = run_of(tmp_path, tokenizer, reference=reference, beta=0.3)
    pairs = make_pairs(10, seed=1)
    policy, ref = score_pairs(start, tokenizer, pairs), score_pairs(reference, tokenizer, pairs)
    assert_rows(at(run, 0), policy, ALL)
    assert_rows(at(run, 0), ref, ("sum_logp", "n_tokens", "greedy_logp_sum"), prefix="ref_")
    logged = next(r for r in trainer.state.log_history if "eval_loss" in r and r["step"] == 0)
    chosen = [v for (_, side), v in policy.items() if side == "chosen"]
    s, n = (np.array([v[k] for v in chosen]) for k in ("sum_logp", "n_tokens"))
    expected = {
        "ce/chosen": (-s / n).mean(),
        "ppl_token/chosen": math.exp(-s.sum() / n.sum()),
        "ppl_seq_mean/chosen": np.exp(-s / n).mean(),
        "ppl_seq_geomean/chosen": math.exp((-s / n).mean()),
        "bits_per_byte/chosen": -s.sum() / math.log(2) / sum(v["n_bytes"] for v in chosen),
        "top1/chosen": sum(v["top1"] * v["n_tokens"] for v in chosen) / n.sum(),
        "top5/chosen": sum(v["top5"] * v["n_tokens"] for v in chosen) / n.sum(),
        "entropy/chosen": sum(v["entropy_sum"] for v in chosen) / n.sum(),
        "greedy_logp/chosen": sum(v["greedy_logp_sum"] for v in chosen) / n.sum(),
    }
    ids = [p for p, side in policy if side == "chosen"]
    a = np.array([policy[p, "chosen"]["sum_logp"] - ref[p, "chosen"]["sum_logp"] for p in ids])
    b = np.array([policy[p, "rejected"]["sum_logp"] - ref[p, "rejected"]["sum_logp"] for p in ids])
    expected |= {
        "pairs/chosen_fell": (a < 0).mean(),
        "pairs/both_fell": ((a < 0) & (b < 0)).mean(),
        "loss_exact": pair_losses(LossSpec(beta=0.3), a, b).mean(),
    }
    for name, value in expected.items():
        assert logged[f"eval_{name}"] == pytest.approx(value, rel=2e-5), name
        history = run.history[(run.history["split"] == "eval") & (run.history["step"] == 0)].set_index("name")
        assert history.loc[name, "value"] == logged[f"eval_{name}"]
    assert logged["eval_loss_residual"] < 1e-5
    assert history.loc["ce/chosen", "weight"] == 10
    assert history.loc["ppl_token/chosen", "weight"] == n.sum()
    assert logged["eval_rewards/margins"] == pytest.approx(0.3 * (a - b).mean(), rel=2e-5)
    # TRL's own rewards weigh its three batches alike: with the last half empty they are another number
    assert abs(logged["eval_trl/rewards/margins"] - 0.3 * (a - b).mean()) > 1e-2


@pytest.mark.parametrize("accumulate", [1, 2])
def test_training_metrics_are_those_of_the_step(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, accumulate: int
) -> None:
    """Step 1's row is the batch at the starting weights: its metrics are those of its 3 (or 2 x 3) pairs."""
    trainer, run, start = run_of(
        tmp_path, tokenizer, reference=make_model(2), gradient_accumulation_steps=accumulate, max_steps=1
    )
    rows = run.pairs
    rows = rows[(rows["split"] == "train") & (rows["step"] == 1)]
    assert len(rows) == 2 * 3 * accumulate
    everything = score_pairs(start, tokenizer, make_pairs(11))
    seen = {k: everything[k] for k in zip(rows["pair_id"], rows["side"], strict=True)}
    assert_rows(rows, seen, ALL)
    logged = next(r for r in trainer.state.log_history if "loss" in r)
    chosen = [v for (_, side), v in seen.items() if side == "chosen"]
    ce = [-v["sum_logp"] / v["n_tokens"] for v in chosen]
    assert logged["ce/chosen"] == pytest.approx(np.mean(ce), rel=1e-5)
    assert logged["ppl_seq_mean/chosen"] == pytest.approx(np.exp(ce).mean(), rel=1e-5)
    assert logged["loss_exact"] == pytest.approx(logged["loss"], abs=1e-6)  # batches of one size: the same mean


OWN = {"loss", "grad_norm", "learning_rate", "entropy", "num_tokens", "logits/chosen", "logits/rejected", "epoch",
       "mean_token_accuracy", "rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins",
       "logps/chosen", "logps/rejected", "step"}  # fmt: skip


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"gradient_accumulation_steps": 2}, marks=pytest.mark.slow),
        {
            "gradient_checkpointing": True,
            "gradient_accumulation_steps": 2,
            "loss_type": ["sigmoid", "sft"],
            "loss_weights": [1.0, 0.5],
        },
        {"bf16": True, "use_weighting": True},
        pytest.param({"precompute_ref_log_probs": True, "ld_alpha": 0.5}, marks=pytest.mark.slow),
    ],
    ids=["accumulation", "checkpointing", "bf16", "precomputed"],
)
def test_nothing_of_trls_changes(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, held_out: Dataset, options: dict[str, Any]
) -> None:
    """Gradients and weights are bit for bit those of stock TRL, with a recorder writing, an evaluation added at step 0
    and the extra metrics on; every number of TRL's is logged, to rounding."""
    values = {}
    for cls in (DPOTrainer, DiagDPOTrainer):
        extra = {}
        if cls is DiagDPOTrainer:
            extra = {"recorder": tmp_path / "run", "extra_metrics": EXTRA}
        trainer = cls(
            model=make_model(1, attention_dropout=0.1), ref_model=make_model(2), processing_class=tokenizer,
            args=arguments(tmp_path / "out", eval_strategy="steps", eval_steps=2, disable_dropout=False, **options),
            train_dataset=Dataset.from_list(make_pairs(11)), eval_dataset=held_out, **extra,
        )  # fmt: skip
        trainer.train()
        values[cls] = (trainer.state.log_history, [p.detach().clone() for p in trainer.model.parameters()])
    stock, ours = values[DPOTrainer][0], [r for r in values[DiagDPOTrainer][0] if r["step"] > 0]
    for own, mine in zip(stock, ours, strict=True):
        assert (own["step"], own.get("grad_norm")) == (mine["step"], mine.get("grad_norm"))
        for name in own:
            if name.removeprefix("eval_") in OWN:
                assert own[name] == pytest.approx(theirs(mine, name), rel=2e-5, abs=2e-5), name
    assert all(torch.equal(a, b) for a, b in zip(values[DPOTrainer][1], values[DiagDPOTrainer][1], strict=True))
    assert ours[0]["loss_residual"] < 1e-4


def test_at_the_reference_the_loss_is_ln_2(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    trainer, run, _ = run_of(tmp_path, tokenizer, policy=make_model(1), reference=make_model(1), max_steps=1)
    first = next(r for r in trainer.state.log_history if "eval_loss" in r)
    assert first["step"] == 0
    assert first["eval_loss_exact"] == pytest.approx(math.log(2), abs=1e-12)
    assert first["eval_pairs/both_fell"] == first["eval_pairs/chosen_fell"] == 0
    rows = at(run, 0)
    assert (rows["sum_logp"] == rows["ref_sum_logp"]).all()


@pytest.mark.slow
def test_swapping_the_sides_negates_the_margin(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    pairs = make_pairs(6, seed=3)
    swapped = [{"prompt": p["prompt"], "chosen": p["rejected"], "rejected": p["chosen"]} for p in pairs]
    margins = []
    for name, rows in (("a", pairs), ("b", swapped)):
        trainer, _, _ = run_of(
            tmp_path / name, tokenizer, reference=make_model(2), eval_set=Dataset.from_list(rows), max_steps=1
        )
        margins.append(next(r for r in trainer.state.log_history if "eval_loss" in r))
    first, second = margins
    assert first["eval_rewards/margins"] == pytest.approx(-second["eval_rewards/margins"], abs=1e-5)
    assert first["eval_ce/chosen"] == pytest.approx(second["eval_ce/rejected"], abs=1e-5)


@pytest.mark.slow
def test_batch_split_and_padding_change_nothing(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    reference = make_model(2)
    rows = []
    for name, options in (
        ("a", {"per_device_eval_batch_size": 1}),
        ("b", {"per_device_eval_batch_size": 7, "pad_to_multiple_of": 48}),
    ):
        trainer, run, _ = run_of(tmp_path / name, tokenizer, reference=copies(reference), max_steps=1, **options)
        logged = next(r for r in trainer.state.log_history if "eval_loss" in r)
        rows.append(({k: v for k, v in logged.items() if "/" in k or "exact" in k}, at(run, 0)))
    for name, value in rows[0][0].items():
        if name.removeprefix("eval_") not in OWN:
            assert rows[1][0][name] == pytest.approx(value, rel=1e-5, abs=1e-6), name
    merged = rows[0][1].merge(rows[1][1], on=["pair_id", "side"])
    assert len(merged) == 20
    assert (merged["sum_logp_x"] - merged["sum_logp_y"]).abs().max() < 1e-4


@pytest.mark.filterwarnings("ignore:The .'keep_end'. truncation mode is deprecated:FutureWarning")
@pytest.mark.parametrize("keep_end", [False, True], ids=["keep_start", "keep_end"])
def test_truncated_tokens_are_counted(tmp_path: Path, tokenizer: PreTrainedTokenizerFast, keep_end: bool) -> None:
    """max_length 8 cuts most responses (and with keep_end some prompts entirely, then the first token has no score);
    pairs whose prompt fills it are dropped with keep_start."""
    mode = "keep_end" if keep_end else "keep_start"
    pairs = make_pairs(10, seed=1)
    trainer, run, start = run_of(
        tmp_path, tokenizer, reference=make_model(2), max_length=8, truncation_mode=mode, max_steps=1, loss_type="ipo"
    )
    kept = [p for p in pairs if keep_end or len(tokenizer(p["prompt"])["input_ids"]) < 8]
    expected = score_pairs(start, tokenizer, kept, max_length=8, keep_end=keep_end)
    assert_rows(at(run, 0), expected, ("sum_logp", "n_tokens", "n_truncated", "n_bytes"))
    assert sum(v["n_truncated"] for v in expected.values()) > 0
    assert all(r["loss_residual"] < 1e-4 for r in trainer.state.log_history if "loss" in r)


LOSSES: list[dict[str, Any]] = [
    {"loss_type": ["ipo", "sft"], "loss_weights": [1.0, 0.2]},
    {"ld_alpha": 0.3, "loss_type": "sigmoid_norm"},
    {"use_weighting": True, "loss_type": "robust", "label_smoothing": 0.1},
]  # fmt: skip
OTHERS: list[dict[str, Any]] = [
    *({"loss_type": k} for k in ("sigmoid", "hinge", "ipo", "nca_pair", "sppo_hard", "apo_zero", "apo_down",
                                 "discopop", "sigmoid_norm", "sft")),
    {"loss_type": "exo_pair", "label_smoothing": 1e-3}, {"f_divergence_type": "js_divergence"},
    {"f_divergence_type": "forward_kl", "loss_type": "hinge"},
    {"f_divergence_type": "alpha_divergence", "loss_type": "ipo"},
]  # fmt: skip


def residual_is_rounding(tmp_path: Path, tokenizer: Any, options: dict[str, Any]) -> None:
    """One step and two evaluations; the recorded rows give TRL's loss once more."""
    trainer, run, _ = run_of(
        tmp_path, tokenizer, policy=make_model(1, noise=0.02), reference=make_model(1), max_steps=1, beta=0.2, extra=(),
        eval_steps=1, per_device_eval_batch_size=10, **options,
    )  # fmt: skip
    rows = [r for r in trainer.state.log_history if "loss_residual" in r or "eval_loss_residual" in r]
    assert len(rows) == 3
    for r in rows:
        assert r.get("loss_residual", r.get("eval_loss_residual")) < 1e-4
    frame = at(run, 1).set_index(["side", "pair_id"]).sort_index()
    name = "loss_logp" if "ld_alpha" in options else "sum_logp"
    ratio = frame[name] - frame[f"ref_{name}"]
    assert ratio.abs().max() > 0.05
    n = frame["n_tokens"]
    mean = pair_losses(
        LossSpec.from_dict(run.meta["loss"]), ratio["chosen"], ratio["rejected"], n_chosen=n["chosen"],
        n_rejected=n["rejected"], chosen_sum_logp=frame["sum_logp"]["chosen"],
        weight=frame["weight"]["chosen"].astype(float),
    ).mean()  # fmt: skip
    assert mean == pytest.approx(rows[-1]["eval_loss"], rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("options", LOSSES, ids=str)
def test_the_residual_is_rounding(tmp_path: Path, tokenizer: PreTrainedTokenizerFast, options: dict[str, Any]) -> None:
    residual_is_rounding(tmp_path, tokenizer, options)


@pytest.mark.slow
@pytest.mark.parametrize("options", OTHERS, ids=str)
def test_the_residual_is_rounding_for_all_others(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, options: dict[str, Any]
) -> None:
    residual_is_rounding(tmp_path, tokenizer, options)


def test_coupled_losses_have_no_residual_and_say_why(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    trainer, run, _ = run_of(tmp_path, tokenizer, reference=make_model(2), max_steps=1, loss_type="aot")
    assert not any("residual" in k or "loss_exact" in k for r in trainer.state.log_history for k in r)
    assert run.info.loss is not None
    assert run.info.loss.not_additive == "aot couples the pairs of a batch"
    assert len(at(run, 0)) == 20


def test_a_loss_that_is_not_the_trainers_own_shows(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    class Meddled(DPOTrainer):
        def _compute_loss(self, model: Any, inputs: Any, return_outputs: bool) -> Any:
            return super()._compute_loss(model, inputs, return_outputs) + 0.25

    class Measured(DiagDPOTrainer, Meddled):
        pass

    Measured(
        model=make_model(1), ref_model=make_model(2), args=arguments(tmp_path, max_steps=2), processing_class=tokenizer,
        train_dataset=Dataset.from_list(make_pairs(11)),
    ).train()  # fmt: skip
    messages = [r.message for r in caplog.records if "differs by 0.25" in r.message]
    assert len(messages) == 1


def test_lora_reference_is_the_disabled_adapter(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    base = make_model(1)
    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=True, task_type="CAUSAL_LM")
    trainer, run, start = run_of(
        tmp_path, tokenizer, policy=base, learning_rate=0.05, trainer_options={"peft_config": lora}
    )
    pairs = make_pairs(10, seed=1)
    assert_rows(at(run, 4), score_pairs(start, tokenizer, pairs), ("sum_logp", "entropy_sum", "top1"), prefix="ref_")
    assert_rows(at(run, 4), score_pairs(trainer.model, tokenizer, pairs), ("sum_logp", "entropy_sum", "top5"))
    assert (at(run, 4)["sum_logp"] - at(run, 4)["ref_sum_logp"]).abs().max() > 0.1
    assert (run.info.reference.kind, run.info.reference.fixed) == ("adapter disabled", True)
    assert run.meta["model"]["adapter"]["r"] == 4
    tokens = run.read("tokens", ["step", "role"], roles=["ref"])
    assert set(tokens["step"]) == {0}


@pytest.mark.slow
def test_a_trained_adapter_is_its_own_reference(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """A PeftModel handed in gets a frozen copy of its adapter ("ref"), not the base model, as reference."""
    lora = LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    torch.manual_seed(5)
    policy = get_peft_model(make_model(1), lora)
    start = copies(policy)
    trainer, run, _ = run_of(tmp_path, tokenizer, policy=policy, learning_rate=0.05)
    pairs = make_pairs(10, seed=1)
    expected = score_pairs(start, tokenizer, pairs)
    assert_rows(at(run, 0), expected, ("sum_logp",))
    assert_rows(at(run, 4), expected, ("sum_logp",), prefix="ref_")
    assert_rows(at(run, 4), score_pairs(trainer.model, tokenizer, pairs), ("sum_logp",))
    assert run.meta["reference"]["kind"] == "ref adapter"


def test_precomputed_reference(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    reference = make_model(2)
    _, run, _ = run_of(tmp_path, tokenizer, reference=reference, precompute_ref_log_probs=True, max_steps=1)
    assert_rows(at(run, 0), score_pairs(reference, tokenizer, make_pairs(10, seed=1)), ("sum_logp",), prefix="ref_")
    assert run.meta["reference"]["kind"] == "precomputed"
    assert run.read("tokens", ["role"], roles=["ref"]).empty


def test_gradient_checkpointing_counts_each_pair_once(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    for reentrant in (False, True):
        folder = tmp_path / str(reentrant)
        _, run, start = run_of(
            folder, tokenizer, reference=make_model(2), gradient_checkpointing=True, max_steps=1,
            gradient_checkpointing_kwargs={"use_reentrant": reentrant},
        )  # fmt: skip
        rows = run.read("pairs", splits=["train"], roles=["policy"])
        assert len(rows) == 6
        everything = score_pairs(start, tokenizer, make_pairs(11))
        assert_rows(rows, {k: everything[k] for k in zip(rows["pair_id"], rows["side"], strict=True)}, ("sum_logp",))


def test_bf16_autocast_adds_what_the_loss_added(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """Under autocast the log-probs themselves are those of bf16 matmuls: near the float32 ones, and the loss of the
    recorded sums is still TRL's own to rounding."""
    reference = make_model(2)
    trainer, run, start = run_of(tmp_path, tokenizer, reference=reference, bf16=True, max_steps=1)
    logged = next(r for r in trainer.state.log_history if "eval_loss_residual" in r)
    assert logged["eval_loss_residual"] < 1e-5
    assert_rows(at(run, 0), score_pairs(start, tokenizer, make_pairs(10, seed=1)), ("sum_logp",), tolerance=0.5)
