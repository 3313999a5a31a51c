"""logits-SAM (Luo et al. 2026, arXiv 2603.18258; code RitianLuo/logits-sam-dpo): the loss is trained on under an output
layer that stands a step of length rho up the loss.

With hidden states h and the output layer W, the step is rho · g / |g|, g the gradient of the batch's loss for W with h
held fixed, and the training takes the gradient of the loss under W + step, for W and for h. The model runs forward and
backward once, as without it; the output layer runs forward twice more and backward once more, in TRL's own tiles. Each
process takes its own step.

Measured, recorded and split is the loss under W itself; how much higher the other is, is logged as `sam/rise`.
"""

from __future__ import annotations

from typing import Any

import torch

from dpo_diag.errors import DiagError
from dpo_diag.losses import LossSpec
from dpo_diag.training import trl_adapter
from dpo_diag.training.kept_head import KeptHead, laid_out


def uphill(kept: KeptHead, loss: torch.Tensor, rho: float) -> torch.Tensor:
    """The log-probs of the policy's targets under its output layer a step up `loss`, with a gradient; (positions,).

    Where the loss does not depend on the output layer they are the log-probs as they were.
    """
    assert kept.call is not None and kept.log_probs is not None
    hidden, weight, bias, targets, *settings = kept.call
    settings[-1] = ()  # nothing beside the log-probs
    (slope,) = torch.autograd.grad(loss, kept.log_probs)
    leaf = weight.detach().requires_grad_()
    fixed = kept.own.apply(hidden.detach(), leaf, None if bias is None else bias.detach(), targets, *settings)[0]
    (up,) = torch.autograd.grad(fixed, leaf, slope)
    step = up * (rho / up.float().norm().clamp_min(torch.finfo(torch.float32).tiny)).to(up.dtype)
    result: torch.Tensor = kept.own.apply(hidden, weight + step.to(weight.dtype), bias, targets, *settings)[0]
    return result


def trained_loss(
    trainer: Any, tap: trl_adapter.Tap, kept: KeptHead, inputs: dict[str, Any], spec: LossSpec, loss: torch.Tensor,
    rho: float,
) -> torch.Tensor:  # fmt: skip
    """The batch's loss under the output layer a step up `loss`: what is trained on.

    Raises:
        RuntimeError: TRL did not run its fused forward.
    """
    if tap.policy is None or tap.policy.label_mask is None or kept.call is None:
        raise RuntimeError("logits-SAM needs TRL's fused forward, which did not run")
    log_probs = laid_out(uphill(kept, loss, rho), tap.policy.label_mask)
    perturbed = trl_adapter.pair_terms(trainer, tap, inputs, spec, spec.types, log_probs)
    if trainer.aux_loss_enabled and tap.policy.aux_loss is not None:
        perturbed = perturbed + trainer.router_aux_loss_coef * tap.policy.aux_loss
    return perturbed


def check_sam(rho: float, spec: LossSpec, shared_prefix: str) -> None:
    """Raise where logits-SAM cannot be.

    Raises:
        DiagError: a negative step, a loss that couples the pairs of a batch, or shared prefixes that are insisted on.
    """
    if rho < 0:
        raise DiagError("logits_sam is the length of a step", got=rho, expected="0 (off) or more", usage=True)
    if rho and spec.not_additive:
        raise DiagError("logits-SAM needs a loss with a value per pair", got=spec.not_additive, usage=True)
    if rho and shared_prefix == "on":
        raise DiagError("logits-SAM needs TRL's padded batches", got="shared_prefix on", expected="auto", usage=True)
