"""logits-SAM: a step by hand, a training step's gradient against autograd over whole logits, what is recorded."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch.nn.functional import logsigmoid
from transformers import PreTrainedTokenizerFast
from trl.kernels.chunked_logprob import ChunkedLogProbFunction

from dpo_diag import load_run
from dpo_diag.errors import DiagError
from dpo_diag.training import DiagDPOTrainer
from dpo_diag.training.kept_head import KeptHead, laid_out
from dpo_diag.training.logits_sam import uphill

from .tiny import arguments, make_model, make_pairs

RHO = 0.3


def trainer_of(folder: Path, tokenizer: Any, rho: float = RHO, recorder: Path | None = None, **options: Any) -> Any:
    return DiagDPOTrainer(
        model=make_model(1), ref_model=make_model(1, noise=0.05), processing_class=tokenizer, logits_sam=rho,
        args=arguments(folder / "out", **options), train_dataset=Dataset.from_list(make_pairs(6)), recorder=recorder,
    )  # fmt: skip


def test_a_step_by_hand() -> None:
    """Two words, hidden states of 1, an output layer of zeros; chosen is word 0, rejected word 1, the loss
    -log sigmoid(log p(0) - log p(1)) = ln 2. Its slope is -1/2 for chosen's log-prob and 1/2 for rejected's, so the
    layer's gradient is (-1/4, 1/4) from each, (-1/2, 1/2) in all, of length 1/sqrt 2. A step of that length leads to
    (-1/2, 1/2): log p(0) = log sigmoid(-1) = -1.313262, log p(1) = -0.313262, and the loss is -log sigmoid(-1)."""
    hidden = torch.ones(2, 1, requires_grad=True)
    weight = torch.zeros(2, 1, requires_grad=True)
    kept = KeptHead(ChunkedLogProbFunction)
    log_probs = kept.apply(hidden, weight, None, torch.tensor([0, 1]), 1.0, 32768, None, 1.0, ("log_probs",))[0]
    loss = -logsigmoid(log_probs[0] - log_probs[1])
    assert loss.item() == pytest.approx(math.log(2))
    found = uphill(kept, loss, math.sqrt(0.5))
    assert found.tolist() == pytest.approx([-1.313262, -0.313262], abs=1e-6)
    assert (-logsigmoid(found[0] - found[1])).item() == pytest.approx(1.313262, abs=1e-6)


def test_positions_of_a_head() -> None:
    mask = torch.tensor([[True, False], [True, True]])
    assert laid_out(torch.tensor([1.0, 2.0, 3.0, 4.0]), mask).tolist() == [[1.0, 0.0], [3.0, 4.0]]
    assert laid_out(torch.tensor([1.0, 2.0, 3.0]), mask).tolist() == [[1.0, 0.0], [2.0, 3.0]]


@pytest.mark.parametrize("kind", ["sigmoid", "dpop"])  # one that TRL computes, one of ours
def test_the_gradient_is_that_of_whole_logits(tmp_path: Path, tokenizer: PreTrainedTokenizerFast, kind: str) -> None:
    trainer = trainer_of(tmp_path, tokenizer, loss_type=[kind])
    model = trainer.model.train()
    inputs = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    loss = trainer._compute_loss(model, dict(inputs), False)
    loss.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()

    mask, targets = inputs["completion_mask"][:, 1:], inputs["input_ids"][:, 1:]
    asked = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    hidden = model.model(**asked).last_hidden_state[:, :-1]

    def sums(hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        logp = (hidden @ weight.T).log_softmax(-1).gather(-1, targets.unsqueeze(-1)).squeeze(-1)
        return (logp * mask).sum(1)

    with torch.no_grad():
        ref = trainer.ref_model
        reference = sums(ref.model(**asked).last_hidden_state[:, :-1], ref.lm_head.weight)

    def mean_loss(hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        a, b = (sums(hidden, weight) - reference).chunk(2)
        below = 50.0 * (-a).clamp(min=0) if kind == "dpop" else 0.0
        return -logsigmoid(0.1 * (a - b - below)).mean()

    weight = model.lm_head.weight
    leaf = weight.detach().requires_grad_()
    clean = mean_loss(hidden.detach(), leaf)
    (up,) = torch.autograd.grad(clean, leaf)
    expected = mean_loss(hidden, weight + RHO * up / up.norm())
    assert float(expected.detach()) > float(clean.detach()) + 1e-3
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    expected.backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(found[name], p.grad, rtol=1e-3, atol=1e-5)


def test_what_is_recorded_is_the_loss_of_the_layer_itself(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """The loss of the pairs as they were measured, TRL's beside it higher by the rise; rho 0 is a plain training."""
    trainer = trainer_of(tmp_path, tokenizer, recorder=tmp_path / "run", max_steps=2)
    trainer.train()
    plain = trainer_of(tmp_path, tokenizer, rho=0.0, max_steps=2)
    plain.train()
    logs = [row for row in trainer.state.log_history if "loss" in row]
    first = next(row for row in plain.state.log_history if "loss" in row)
    assert logs[0]["loss"] == pytest.approx(first["loss"], abs=1e-6) and "sam/rise" not in first
    for row in logs:
        assert row["sam/rise"] > 0
        assert row["trl/loss"] == pytest.approx(row["loss"] + row["sam/rise"], abs=1e-5)
        assert row["loss_residual"] < 1e-5
    run = load_run(tmp_path / "run")
    assert run.info.training.logits_sam == RHO


def test_where_it_cannot_be(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(DiagError, match=r"0 \(off\) or more"):
        trainer_of(tmp_path, tokenizer, rho=-1.0)
    with pytest.raises(DiagError, match=r"a value per pair.*aot"):
        trainer_of(tmp_path, tokenizer, loss_type=["aot"])
