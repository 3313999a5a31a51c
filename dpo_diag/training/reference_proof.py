"""Whether the policy equals its reference before the first step, where it must, and if not, what is wrong and how.

Looked at once, on a few pairs of the first batch that is measured, the policy in evaluation mode, so that its dropout
plays no part. No pass over a data set is made.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object, is_peft_model
from trl.trainer.utils import use_adapter

from dpo_diag.losses import LossSpec
from dpo_diag.models.borrowed import borrowed
from dpo_diag.records.model_info import ReferenceStart
from dpo_diag.text import number
from dpo_diag.training.batch import FloatArray
from dpo_diag.training.trl_adapter import REF_SUMS, ld_factors, reference_of

PROBE = 4
"""Pairs of each process that are looked at."""
_NOT_THE_MODELS = ("completion_mask", "ref_chosen_logps", "ref_rejected_logps")
_ALIKE = 0.25
"""A reading explains the reference where its sums lie this much nearer to it than the policy's."""


@dataclass(frozen=True)
class Handed:
    """How the trainer got its reference.

    Attributes:
        model: whether a `ref_model` was handed in.
        is_start: what the caller says: the reference must be the policy before training; None: nothing.
    """

    model: bool
    is_start: bool | None = None


def prove(
    trainer: Any, model: Any, inputs: Mapping[str, Any], spec: LossSpec, handed: Handed, limits: Mapping[str, float]
) -> ReferenceStart | None:
    """What the first pairs say of policy and reference; every rank must call it. None where nothing can be compared.

    Args:
        model: the policy as the trainer calls it.
        inputs: the batch as TRL has it.
        limits: thresholds by their dotted names.
    """
    try:
        found = _of_batch(trainer, model, _first_pairs(inputs), spec, handed)
    except (RuntimeError, ValueError, TypeError, AttributeError, KeyError, IndexError):
        found = None  # a model that cannot be asked like this is trained all the same
    parts = gather_object([found]) if trainer.accelerator.num_processes > 1 else [found]
    known = [part for part in parts if part is not None]
    if not known:
        return None
    gaps, tokens = np.concatenate([p[0] for p in known], axis=1), np.concatenate([p[1] for p in known], axis=1)
    half = _in_half_precision(trainer)
    per_token = limits["guards.reference_noise_half" if half else "guards.reference_noise"]
    tolerance = float((per_token * np.sqrt(tokens)).mean())
    expected, why = _expectation(trainer, spec, handed)
    agrees = bool(gaps.mean() <= tolerance)
    return ReferenceStart(
        agrees=agrees, expected=expected, why=why, mean_gap=float(gaps.mean()), largest_gap=float(gaps.max()),
        tolerance=tolerance, responses=gaps.size, cause=None if agrees or not expected else known[0][2],
    )  # fmt: skip


def message(start: ReferenceStart) -> str:
    """One line: how far apart, on what, why they must agree, and what is wrong."""
    return (
        f"before the first step the policy differs from its reference by {number(start.mean_gap)} nats per response "
        f"({start.responses} responses; rounding: {number(start.tolerance)}), but {start.why}: {start.cause}"
    )


def _first_pairs(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The first PROBE pairs of a batch; the whole batch where a tensor has rows of another kind (images)."""
    n = len(inputs["input_ids"]) // 2
    tensors = {k: v for k, v in inputs.items() if torch.is_tensor(v)}
    if n <= PROBE or any(len(v) not in (n, 2 * n) for v in tensors.values()):
        return dict(inputs)
    cut = {k: torch.cat([v[:PROBE], v[n : n + PROBE]]) if len(v) == 2 * n else v[:PROBE] for k, v in tensors.items()}
    return {**inputs, **cut}


def _of_batch(
    trainer: Any, model: Any, inputs: dict[str, Any], spec: LossSpec, handed: Handed
) -> tuple[FloatArray, FloatArray, str]:
    """(|log-ratio| (2, pairs), tokens (2, pairs), what is wrong if they must agree)."""
    policy = trainer.accelerator.unwrap_model(trainer.model)
    mask = inputs["completion_mask"][:, 1:].bool()
    factors = mask.double() if spec.ld_alpha is None else ld_factors(mask, spec.ld_alpha).double()

    def sums(of: Any) -> FloatArray:
        arguments = {k: v for k, v in inputs.items() if k not in _NOT_THE_MODELS}
        labels = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, -100)
        logp = of(**arguments, use_cache=False, labels=labels, fused_lm_head=True).log_probs[:, -mask.shape[1] :]
        return _two_sides((logp.double() * factors).sum(1))

    def without(adapter: str | None) -> FloatArray:
        with use_adapter(policy, adapter):
            return sums(trainer.model)

    tokens = _two_sides(mask.sum(1))
    with borrowed(policy):
        own = sums(model)
        if trainer.precompute_ref_logps:
            reference = _two_sides(torch.cat([inputs[name] for name in REF_SUMS]))
        elif trainer.ref_model is not None:
            reference = sums(trainer.ref_model)
        else:
            reference = without("ref" if "ref" in policy.peft_config else None)
        gap = np.abs(own - reference)
        readings: dict[str, FloatArray] = {}
        if is_peft_model(policy):
            readings["the reference is the base model, without the adapter that the policy starts from"] = without(None)
        if trainer.precompute_ref_logps:
            readings |= {
                "the precomputed sums stand at the wrong side, chosen's at rejected": own[::-1],
                "the precomputed log-probs are means over tokens, not sums": own / np.maximum(tokens, 1),
                "the precomputed sums are all 0": np.zeros_like(own),
            }
        elif trainer.ref_model is not None and trainer.ref_model.training:
            with borrowed(trainer.ref_model):
                right = sums(trainer.ref_model)
            if np.abs(own - right).mean() < _ALIKE * gap.mean():
                readings["the reference is in training mode, its dropout on"] = reference
    near = (text for text, sums_ in readings.items() if np.abs(sums_ - reference).mean() < _ALIKE * gap.mean())
    return gap, tokens, next(near, None) or _origin(trainer, handed)


def _two_sides(values: torch.Tensor) -> FloatArray:
    return np.asarray(values.double().cpu().numpy().reshape(2, -1))


def _origin(trainer: Any, handed: Handed) -> str:
    """What is wrong where no reading gives the reference's sums: where it comes from."""
    if trainer.precompute_ref_logps:
        return "the precomputed sums are those of another model, or of other tokens (a stale cache, another template)"
    if trainer.ref_model is None:
        adapters = ", ".join(trainer.accelerator.unwrap_model(trainer.model).peft_config)
        return f"switching the adapter off does not give back the policy's start (adapters: {adapters})"
    dtypes = _dtype(trainer.model), _dtype(trainer.ref_model)
    types = f"; the policy is {dtypes[0]}, the reference {dtypes[1]}" if dtypes[0] != dtypes[1] else ""
    name = _name(trainer.ref_model)
    if not handed.model:
        return (
            f"the trainer loaded the reference again from {name}, which is not the model in memory (a merged adapter, "
            f"changed weights or embeddings): hand in a frozen copy as ref_model{types}"
        )
    return f"ref_model holds other weights than the policy ({name or 'no name'}){types}"


def _expectation(trainer: Any, spec: LossSpec, handed: Handed) -> tuple[bool, str]:
    """Whether policy and reference must agree, and the reason."""
    kind = str(reference_of(trainer, spec)["kind"])
    if handed.is_start is not None:
        return (
            handed.is_start,
            "the reference is the policy before training" if handed.is_start else "another was named",
        )
    if not handed.model:
        return True, f"no other reference was handed in ({kind})"
    ours, theirs = _name(trainer.accelerator.unwrap_model(trainer.model)), _name(trainer.ref_model)
    if ours and ours == theirs:
        return True, f"both are {ours}"
    return False, f"another reference was handed in ({theirs or 'no name'})"


def _name(model: Any) -> str:
    return str(getattr(getattr(model, "config", None), "_name_or_path", "") or "")


def _dtype(model: Any) -> str:
    return str(next(model.parameters()).dtype).removeprefix("torch.")


def _in_half_precision(trainer: Any) -> bool:
    """Whether either forward rounds to 16 bits or fewer."""
    models = [m for m in (trainer.model, trainer.ref_model) if m is not None]
    full = all(p.dtype in (torch.float32, torch.float64) for m in models for p in m.parameters())
    return bool(trainer.args.bf16 or trainer.args.fp16 or not full)
