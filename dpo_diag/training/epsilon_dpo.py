"""ε-DPO (Lee et al. 2025, arXiv 2502.13177; code oddqueue/e-dpo): a beta of each pair's own.

A beta of beta / (1 + ε) or beta / (1 - ε) would have led to another policy, which the paper estimates by the logits
(1 + ε) · policy - ε · reference and (1 - ε) · policy + ε · reference. With r the log-prob of chosen less that of
rejected, a pair trains with beta / (1 + ε) where r rises along the three and with beta / (1 - ε) where it falls along
them; elsewhere, and always while the policy equals its reference, with beta. After each update beta itself becomes
beta / (1 + ε s), s the mean over the update's pairs of 1, -1 and 0: `RunningBeta`.

No model runs another time. Both output layers do, without a gradient, over the responses' positions, tile by tile.
"""

from __future__ import annotations

from typing import Any

import torch

from dpo_diag.errors import DiagError
from dpo_diag.losses import LOSSES, LossSpec
from dpo_diag.models.two_heads import log_probs_between
from dpo_diag.training.kept_head import KeptHead, head_input, laid_out, of_mask


def pair_betas(kept: KeptHead, mask: torch.Tensor, beta: float, epsilon: float) -> torch.Tensor:
    """Each pair's beta, (pairs,), without a gradient.

    Args:
        kept: the heads of the policy's forward and of the reference's, over the same positions.
        mask: bool (2 x pairs, length), the positions that predict a response's token; chosen rows first.

    Raises:
        RuntimeError: one of the two forwards did not run through TRL's fused head.
    """
    if kept.call is None or kept.reference is None:
        raise RuntimeError("ε-DPO needs TRL's fused forward of policy and reference, which did not run")
    ours, theirs = head_input(kept.call, mask), head_input(kept.reference, mask)
    targets = of_mask(kept.call[3], mask)
    falling, now, rising = (
        laid_out(values, mask).sum(1) for values in log_probs_between(ours, theirs, targets, (-epsilon, 0.0, epsilon))
    )
    lower, own, higher = (chosen - rejected for chosen, rejected in (s.chunk(2) for s in (falling, now, rising)))
    step = ((higher > own) & (own > lower)).to(own.dtype) - ((lower > own) & (own > higher)).to(own.dtype)
    return beta / (1 + epsilon * step)


class RunningBeta:
    """What has become of the beta from which each pair's is made, as a factor on the configured one."""

    def __init__(self) -> None:
        self._seen: torch.Tensor | None = None

    def see(self, beta: float, of_pairs: torch.Tensor) -> None:
        """A micro-batch that is trained on: what its pairs' betas, (pairs,), were made from."""
        steps = beta / of_pairs  # 1 + ε s of each pair
        seen = torch.stack([steps.sum(), steps.new_tensor(float(len(steps)))])
        self._seen = seen if self._seen is None else self._seen + seen

    def after_update(self, factor: float, accelerator: Any, dropped: bool) -> float:
        """The factor behind an update; as it was where the update was left out. Every process calls it."""
        seen, self._seen = self._seen, None
        if seen is None or dropped:
            return factor
        if accelerator.num_processes > 1:
            seen = accelerator.reduce(seen, "sum")
        steps, pairs = seen.tolist()
        return factor * float(pairs / steps)


def check_pair_beta(arguments: Any) -> None:
    """Raise where what TRL's arguments precompute of the reference is not enough for their loss.

    Raises:
        DiagError: sums, where the loss asks for distributions.
    """
    kinds = getattr(arguments, "loss_type", None) or ()
    asking = [k for k in ([kinds] if isinstance(kinds, str) else kinds) if k in LOSSES and "beta" in LOSSES[k].inputs]
    if asking and getattr(arguments, "precompute_ref_log_probs", False):
        raise DiagError(
            f"{asking[0]} asks for the reference's distributions, and precomputing keeps sums", got=True, usage=True,
            where="precompute_ref_log_probs", expected="false, and no reference_store",
        )  # fmt: skip


def check_whole_heads(trainer: Any, spec: LossSpec) -> None:
    """Raise where an output layer is gone after its forward.

    Raises:
        DiagError: weights are sharded over processes, and the loss asks for them once more.
    """
    if spec.has_pair_beta and (trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled):
        raise DiagError(
            f"{', '.join(spec.types)} asks both output layers again after their forward, when sharded ones are gone",
            where="loss", got="DeepSpeed" if trainer.is_deepspeed_enabled else "FSDP", usage=True,
            expected="one process, or several with whole models",
        )  # fmt: skip
