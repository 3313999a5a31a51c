"""The KL from the reference on an evaluation's own tokens: what TRL's fused LM head (1.16) is given, of the policy and
of the reference, is kept until both are there (`kept_head`); then both heads are projected side by side (`models.kl`).

Price: the product of both heads at the tokens that are scored; no forward where TRL makes the reference's anyway (DPO),
one of the reference's backbone where it does not (SFT). Nothing is kept beyond a micro-batch.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
import trl.trainer.utils as trl_utils
from accelerate.logging import get_logger
from accelerate.utils import is_peft_model

from dpo_diag.models.adapters import reference_adapter
from dpo_diag.models.kl import kl_of_inputs
from dpo_diag.training.batch import KL_COLUMNS
from dpo_diag.training.kept_head import KeptHead, head_input, laid_out

logger = get_logger(__name__)


class _NoHead:
    """A head that projects nothing, for a forward that is made for its hidden states alone."""

    @staticmethod
    def apply(hidden: torch.Tensor, *call: Any) -> tuple[torch.Tensor, ...]:
        """Zeros, as TRL's autograd function returns its five outputs."""
        zeros = hidden.new_zeros(len(hidden), dtype=torch.float32)
        return (zeros, zeros, zeros, zeros, zeros.bool())


@torch.no_grad()
def reference_forward(kept: KeptHead, policy: Any, reference: Any, *args: Any, **kwargs: Any) -> None:
    """Run the reference with the policy's arguments, behind its forward, and keep what its head is given.

    Args:
        reference: None for the policy without its adapter.
    """
    kept.own = _NoHead
    with nullcontext() if reference is not None else reference_adapter(getattr(policy, "module", policy)):
        (reference or policy)(*args, **kwargs)


def kl_of_kept(kept: KeptHead, mask: torch.Tensor) -> dict[str, torch.Tensor]:
    """`KL_COLUMNS` -> values in the mask's shape, float32, zeros outside of it. {} where the two forwards were not of
    the mask's positions.

    Args:
        mask: (rows, length - 1) positions that the head scored.
    """
    if kept.call is None or kept.reference is None:
        return {}
    policy, reference = head_input(kept.call, mask), head_input(kept.reference, mask)
    if not len(policy.hidden) == len(reference.hidden) == int(mask.sum()):
        return {}
    found = kl_of_inputs(policy, reference)
    return {name: laid_out(values.float(), mask) for name, values in zip(KL_COLUMNS, found, strict=True)}


def measures_kl(trainer: Any, wanted: bool, reason: str | None) -> bool:
    """Whether a trainer measures it; False, and a line, where it is asked for and cannot be.

    Args:
        reason: why this kind of training has no reference to compare with; None where it has.
    """
    if not wanted:
        return False
    if reason is None and getattr(getattr(trainer.model, "active_peft_config", None), "is_prompt_learning", False):
        reason = "the adapter adds virtual tokens to each sequence"
    zero3 = getattr(trainer.args.deepspeed_plugin, "zero_stage", 0) == 3
    if reason is None and (zero3 or trainer.is_fsdp_enabled or trainer.accelerator.parallelism_config is not None):
        reason = "the weights are shards, and the head of no process is whole"
    if reason is None and trainer.ref_model is not None:
        models = (trainer.accelerator.unwrap_model(m) for m in (trainer.model, trainer.ref_model))
        own, other = (m.get_output_embeddings().weight.shape[0] for m in models)
        if own != other:
            reason = f"the model's head has {own} tokens and the reference's {other}"
    if reason is not None:
        logger.warning(f"KL from the reference on the data: not applicable, {reason}")
    return reason is None


def supervised_reason(trainer: Any, reference: Any) -> str | None:
    """Why a supervised training has nothing to compare with; None where it has."""
    if reference is None and not is_peft_model(trainer.model):
        return "the trainer holds no reference model, and the model no adapter to switch off"
    return None


def preference_reason(trainer: Any, reference_free: bool) -> str | None:
    """The same of a training of preferences."""
    if reference_free:
        return "no term of this loss looks at a reference"
    if trainer.precompute_ref_logps:
        return "the reference was precomputed, and its sums hold no distributions"
    return None


def as_reference(trainer: Any, model: Any) -> Any:
    """A model as TRL's DPO trainer holds its reference: frozen, in evaluation mode, with the fused head."""
    trl_utils.add_fused_lm_head(model)
    model.requires_grad_(False)
    return trainer.accelerator.prepare_model(model, evaluation_mode=True).eval()
