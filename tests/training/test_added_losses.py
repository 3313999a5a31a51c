"""Losses that TRL does not have: computed from TRL's own forward, exact in value and gradient, and split by explain."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from dpo_diag import load_run, registry
from dpo_diag.diagnosis.explanation import explain
from dpo_diag.losses import LOSSES, LossSpec
from dpo_diag.training import DiagDPOTrainer, trl_adapter
from tests.test_losses import TYPES, batch, smoothing, stub_of

from .tiny import arguments, make_model, make_pairs

PLUGIN = """
from dpo_diag.losses import LOSSES, Loss

def squared_hinge(spec, pairs):
    return pairs.ops.at_least(1.0 - pairs.logits(spec), 0.0) ** 2

LOSSES.add("squared_hinge", Loss(squared_hinge, "Rosset et al. 2004"))
"""


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A module outside the package, named by the environment; it adds one loss."""
    (tmp_path / "plugin_with_a_loss.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("DPO_DIAG_PLUGINS", "plugin_with_a_loss")
    yield
    LOSSES._entries.pop("squared_hinge", None)
    registry._loaded_plugins.discard("plugin_with_a_loss")
    sys.modules.pop("plugin_with_a_loss", None)


def train(folder: Path, tokenizer: Any, model: Any = None, **options: Any) -> Any:
    from datasets import Dataset

    trainer = DiagDPOTrainer(
        model=model or make_model(1), ref_model=make_model(1, noise=0.05),
        args=arguments(folder / "out", eval_strategy="steps", eval_steps=4, **options),
        train_dataset=Dataset.from_list(make_pairs(11)), eval_dataset=Dataset.from_list(make_pairs(10, seed=1)),
        processing_class=tokenizer, recorder=folder / "run",
    )  # fmt: skip
    trainer.train()
    return trainer


@pytest.mark.parametrize(
    "spec",
    [LossSpec(types=(kind,), beta=0.3, label_smoothing=smoothing(kind)) for kind in TYPES]
    + [
        LossSpec(ld_alpha=0.5),
        LossSpec(types=("ipo",), use_weighting=True),
        LossSpec(f_divergence_type="alpha_divergence"),
        LossSpec(types=("sigmoid", "sft"), weights=(0.8, 0.2)),
    ],
    ids=lambda spec: f"{'+'.join(spec.types)}{'-ld' if spec.ld_alpha else ''}{'-wpo' if spec.use_weighting else ''}",
)
def test_value_and_gradient_are_trls(spec: LossSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every loss that TRL has, computed here as if it had not."""
    monkeypatch.setattr(trl_adapter, "added_types", lambda spec: spec.types)
    data = batch(0)
    results = []
    for ours in (False, True):
        data["logp"] = data["logp"].detach().requires_grad_()
        trainer, model, inputs = stub_of(spec, data)
        if ours:
            tap = SimpleNamespace(policy=model(), reference=trainer.ref_model(), pair_beta=None)
            loss = trl_adapter.added_loss(trainer, tap, inputs, spec)
        else:
            from trl import DPOTrainer

            loss = DPOTrainer._compute_loss(trainer, model, inputs, False)
        loss.backward()
        # What the head gives for padding is a constant.
        results.append((loss.detach(), data["logp"].grad * data["mask"][:, 1:]))
    torch.testing.assert_close(results[1], results[0], rtol=1e-5, atol=1e-7)


def test_a_loss_of_a_plugin_trains_and_is_split(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, plugin: None
) -> None:
    trainer = train(tmp_path, tokenizer, loss_type=["squared_hinge", "sigmoid"], loss_weights=[1.0, 0.5], beta=0.3)
    logged = [r for r in trainer.state.log_history if "loss_residual" in r or "eval_loss_residual" in r]
    assert len(logged) == 6  # four steps, an evaluation before the first and after the last
    assert max(r.get("loss_residual", r.get("eval_loss_residual")) for r in logged) < 1e-5  # float32 sums
    run = load_run(tmp_path / "run")
    assert run.meta["loss"]["types"] == ["squared_hinge", "sigmoid"]
    loss = explain(run)["loss"]
    assert loss["chosen_part"] + loss["rejected_part"] == pytest.approx(loss["delta"], abs=1e-12)
    assert loss["delta"] != 0


def test_a_plugins_loss_alone_starts_at_its_value_at_the_reference(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, plugin: None
) -> None:
    """max(0, 1 - 0) squared is 1 where policy and reference are one."""
    from datasets import Dataset

    model = make_model(1)
    trainer = DiagDPOTrainer(
        model=model, ref_model=make_model(1), args=arguments(tmp_path / "out", loss_type="squared_hinge", max_steps=5),
        train_dataset=Dataset.from_list(make_pairs(3)), processing_class=tokenizer,
    )  # fmt: skip
    before = [p.detach().clone() for p in model.parameters()]
    trainer.train()
    losses = [r["loss"] for r in trainer.state.log_history if "loss" in r]
    assert losses[0] == pytest.approx(1.0, abs=1e-6)
    assert losses[-1] < losses[0]
    assert any(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_conservative_dpo_trains(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """At the reference cdpo is ln 2 whatever the smoothing: (1 - e) ln 2 + e ln 2."""
    trainer = train(tmp_path, tokenizer, loss_type="cdpo", label_smoothing=0.2, beta=0.1, learning_rate=0.0)
    start = next(r for r in trainer.state.log_history if "eval_loss" in r)
    assert start["eval_loss_residual"] < 1e-6
    assert start["eval_loss"] == pytest.approx(math.log(2), abs=0.05)  # the reference is a little away


@pytest.mark.parametrize("adapter", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["full", "adapter"])
def test_a_loss_without_a_reference_is_trained_without_one(
    adapter: bool, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    """SimPO: one forward a batch, no reference loaded (a model from scratch could not be), none recorded; rewards are
    beta times the mean log-prob; explain splits the loss over chosen and rejected."""
    from datasets import Dataset
    from peft import LoraConfig

    model, forwards = make_model(1), []
    model.register_forward_hook(lambda *_: forwards.append(1))
    trainer = DiagDPOTrainer(
        model=model, loss_coefficients={"simpo_gamma": 0.5}, recorder=tmp_path / "run", processing_class=tokenizer,
        peft_config=LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", r=4) if adapter else None,
        args=arguments(tmp_path / "out", loss_type=["simpo", "sft"], loss_weights=[1.0, 0.2], beta=2.0,
                       eval_strategy="steps", eval_steps=4),
        train_dataset=Dataset.from_list(make_pairs(12)), eval_dataset=Dataset.from_list(make_pairs(4, seed=1)),
    )  # fmt: skip
    trainer.train()
    assert trainer.ref_model is None
    assert len(forwards) == 4 + 2  # four steps, an evaluation of one batch before and after
    logged = trainer.state.log_history
    assert max(r.get("loss_residual", r.get("eval_loss_residual", 0.0)) for r in logged) < 1e-5
    run = load_run(tmp_path / "run")
    assert run.meta["loss"]["types"] == ["simpo", "sft"]
    assert run.meta["loss"]["coefficients"] == {"simpo_gamma": 0.5}
    assert run.meta["reference_free"] is True
    assert run.pairs["role"].unique().tolist() == ["policy"]
    last = run.pairs.query("split == 'eval' and step == 4").assign(mean=lambda t: t["sum_logp"] / t["n_tokens"])
    means = last.groupby("side", observed=True)["mean"].mean()
    row = next(r for r in reversed(logged) if "eval_loss" in r)
    assert row["eval_rewards/chosen"] == pytest.approx(2 * means["chosen"], rel=1e-5)
    assert row["eval_rewards/margins"] == pytest.approx(2 * (means["chosen"] - means["rejected"]), rel=1e-5)
    assert not [name for name in row if "trl/rewards" in name]
    loss = explain(run)["loss"]
    assert loss["chosen_part"] + loss["rejected_part"] == pytest.approx(loss["delta"], abs=1e-12)
    assert (loss["at_reference"], loss["to"]) == (None, pytest.approx(row["eval_loss"], abs=1e-6))


def test_a_reference_that_no_term_looks_at_is_left_out(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    from datasets import Dataset

    trainer = DiagDPOTrainer(
        make_model(1), make_model(1), arguments(tmp_path, loss_type="cpo"), processing_class=tokenizer,
        train_dataset=Dataset.from_list(make_pairs(3)),
    )  # fmt: skip
    assert trainer.ref_model is None
    assert "no term of this loss looks at a reference" in caplog.text
