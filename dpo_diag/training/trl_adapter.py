"""Where TRL's DPO trainer (1.16) is known from inside, with head_probe.py: what one `_compute_loss` computed, per pair.

TRL's fused LM head returns per-token log-probs, entropies and top-1 hits without building logits. `Tap` stands in for
the model while TRL's own `_compute_loss` runs and keeps those outputs, of the policy's forward and of the reference's;
`trl_batch` reduces them. No second forward, no logits, no random number is drawn, and TRL's loss is untouched; losses
that TRL does not have are added to it (`added_loss`), from the same forwards.

With PEFT both forwards pass through one module; what the stand-in calls is the policy, any other call is the
reference. Recomputation under gradient checkpointing happens in the backward pass, when nothing listens any more.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.utils import is_peft_model
from trl.trainer.dpo_trainer import DataCollatorForPreference
from trl.trainer.utils import FusedCausalLMOutput

from dpo_diag.losses import LOSSES, LossSpec, Pairs, term_sum
from dpo_diag.training.head_probe import HeadProbe

REF_SUMS = ("ref_chosen_logps", "ref_rejected_logps")
"""Columns of a data set whose reference was precomputed, and entries of its batches."""


def loss_spec(trainer: Any, coefficients: Mapping[str, float]) -> LossSpec:
    """The trainer's loss as this project writes it down; `coefficients`: those that TRL's arguments do not hold."""
    return LossSpec(
        types=tuple(trainer.loss_types),
        weights=tuple(float(w) for w in trainer.loss_weights),
        beta=float(trainer.beta),
        label_smoothing=float(trainer.label_smoothing or 0.0),
        f_divergence_type=str(getattr(trainer.f_divergence_type, "value", trainer.f_divergence_type)),
        f_alpha_divergence_coef=float(trainer.f_alpha_divergence_coef),
        discopop_tau=float(trainer.args.discopop_tau),
        ld_alpha=None if trainer.ld_alpha is None else float(trainer.ld_alpha),
        use_weighting=bool(trainer.use_weighting),
        coefficients=dict(coefficients),
    )


def reference_of(trainer: Any, spec: LossSpec) -> dict[str, Any]:
    """Where the trainer's reference log-probs come from: {"kind", "fixed"}, for run.json; {} for a loss without."""
    if not spec.needs_reference:
        return {}
    if trainer.precompute_ref_logps:
        kind = "precomputed"
    elif trainer.ref_model is not None:
        kind = "model"
    elif "ref" in getattr(trainer.accelerator.unwrap_model(trainer.model), "peft_config", {}):
        kind = "ref adapter"
    else:
        kind = "adapter disabled"
    return {"kind": kind, "fixed": not trainer.args.sync_ref_model}


def why_not_plain_sums(trainer: Any) -> str | None:
    """Why what TRL precomputes is something else than the log-prob sums of each pair's responses as TRL's own collator
    cuts them; None where it is that."""
    if trainer.ld_alpha is not None:
        return "LD-DPO weighs the tokens of its reference sums"
    if type(trainer.data_collator) is not DataCollatorForPreference:
        return "a collator of your own decides what the reference is given"
    if (trainer.ref_model or trainer.model).training and not trainer.args.disable_dropout:
        return "the reference's dropout is on, so that its sums are drawn"
    return None


class Tap:
    """Stands in for the model inside TRL's `_compute_loss`: calls it, keeps what it returned.

    Use as a context manager; `policy` and `reference` are the two outputs afterwards (None where TRL made no such
    forward), `policy_extra` and `reference_extra` what a probe read. `pair_beta` (pairs,) is set by the caller
    where the loss asks for it, `kl` (`batch.KL_COLUMNS` -> (2 x pairs, length - 1)) where an evaluation measures it.
    """

    def __init__(self, trainer: Any, model: Any, probe: HeadProbe | None = None) -> None:
        self._trainer, self._model, self._probe = trainer, model, probe
        self._inside = False
        self.policy: FusedCausalLMOutput | None = None
        self.reference: FusedCausalLMOutput | None = None
        self.policy_extra: dict[str, torch.Tensor] = {}
        self.reference_extra: dict[str, torch.Tensor] = {}
        self.kl: dict[str, torch.Tensor] = {}
        self.pair_beta: torch.Tensor | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._probe is not None:
            config = getattr(self._trainer.model, "active_peft_config", None)
            self._probe.expect(None if getattr(config, "is_prompt_learning", False) else kwargs.get("labels"))
            self._probe.of_policy = True
        self._inside = True
        try:
            output = self._model(*args, **kwargs)
        finally:
            self._inside = False
        if isinstance(output, FusedCausalLMOutput) and self.policy is None:
            self.policy = output
            self.policy_extra = self._probed(output)
        if self._probe is not None:
            self._probe.of_policy = False
        return output

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def _probed(self, output: FusedCausalLMOutput) -> dict[str, torch.Tensor]:
        if self._probe is None or output.label_mask is None:
            return {}
        return self._probe.take(output.label_mask)

    def _on_forward(self, module: torch.nn.Module, args: Any, output: Any) -> None:
        if not self._inside and isinstance(output, FusedCausalLMOutput):
            self.reference = output
            self.reference_extra = self._probed(output)

    @contextmanager
    def open(self) -> Iterator[Tap]:
        """Listen for the length of one `_compute_loss`."""
        trainer = self._trainer
        shared = trainer.ref_model is None and is_peft_model(trainer.model)
        target = trainer.model if shared else trainer.ref_model
        handle = None
        if target is not None and not trainer.precompute_ref_logps:
            handle = target.register_forward_hook(self._on_forward)
        try:
            if self._probe is None:
                yield self
            else:
                head = trainer.accelerator.unwrap_model(trainer.model).get_output_embeddings()
                with self._probe.listening(head.weight.shape[0]):
                    yield self
        finally:
            if handle is not None:
                handle.remove()


def log_prob_sums(tap: Tap) -> tuple[torch.Tensor, ...]:
    """Each response's log-prob sum, float64 (2 x pairs,), of the forwards that ran.

    Raises:
        RuntimeError: TRL did not run its fused forward.
    """
    outputs = [o for o in (tap.policy, tap.reference) if o is not None]
    if tap.policy is None:
        raise RuntimeError("TRL's fused forward did not run")
    return tuple(o.log_probs.detach().double().sum(1) for o in outputs if o.log_probs is not None)


# ---- kinds of loss that TRL does not have ----


class _Torch:
    """`losses.Ops` with a gradient."""

    log_sigmoid = staticmethod(torch.nn.functional.logsigmoid)
    exp = staticmethod(torch.exp)

    def log1mexp(self, x: torch.Tensor) -> torch.Tensor:
        # Each form looks only at values that are its own: where() hands NaN gradients through from the other.
        near = x > -math.log(2.0)
        far = torch.log1p(-torch.exp(x.masked_fill(near, -1.0)))
        return torch.where(near, torch.log(-torch.expm1(x.masked_fill(~near, -0.5))), far)

    def at_least(self, x: torch.Tensor, low: float) -> torch.Tensor:
        return x.clamp(min=low)

    def at_most(self, x: torch.Tensor, high: float) -> torch.Tensor:
        return x.clamp(max=high)

    def total(self, x: torch.Tensor) -> torch.Tensor:
        return x.sum()


TORCH = _Torch()


def added_types(spec: LossSpec) -> tuple[str, ...]:
    """Types of a loss that TRL does not compute under their names, and `added_loss` does."""
    return tuple(kind for kind in spec.types if not LOSSES[kind].in_trl)


def added_loss(trainer: Any, tap: Tap, inputs: dict[str, Any], spec: LossSpec) -> torch.Tensor:
    """What `added_types` contribute to the loss: the mean over pairs, with the gradient of TRL's own forward.

    Raises:
        RuntimeError: TRL did not run its fused forward.
    """
    if tap.policy is None or tap.policy.log_probs is None:
        raise RuntimeError(f"loss {', '.join(added_types(spec))} needs TRL's fused forward, which did not run")
    return pair_terms(trainer, tap, inputs, spec, added_types(spec), tap.policy.log_probs)


def pair_terms(
    trainer: Any, tap: Tap, inputs: dict[str, Any], spec: LossSpec, types: Collection[str], log_probs: torch.Tensor
) -> torch.Tensor:
    """The mean over pairs of those types' formulas, of the policy's token log-probs (2 x pairs, length).

    Sums are formed as TRL forms them, in the type of its log-probs.
    """
    assert tap.policy is not None
    completion = inputs["completion_mask"]
    mask = completion[:, 1:]
    logp = log_probs[:, -mask.shape[1] :]
    factor = None if spec.ld_alpha is None else ld_factors(mask.bool(), spec.ld_alpha)

    def summed(values: torch.Tensor) -> torch.Tensor:
        return (values if factor is None else values * factor).sum(1)

    reference: torch.Tensor | float = 0.0
    if trainer.precompute_ref_logps and spec.needs_reference:
        reference = torch.cat([inputs[name] for name in REF_SUMS])
    elif spec.needs_reference:
        assert tap.reference is not None and tap.reference.log_probs is not None
        reference = summed(tap.reference.log_probs[:, -mask.shape[1] :])
    a, b = (summed(logp) - reference).chunk(2)
    weight = None
    if spec.use_weighting:
        chosen, rejected = log_weights(tap.policy, mask.bool()).exp().to(logp.dtype).chunk(2)
        weight = chosen * rejected
    n_chosen, n_rejected = (mask if spec.counts_scored else completion).sum(1).to(logp.dtype).chunk(2)
    chosen_sum, rejected_sum = (logp * mask).sum(1).chunk(2)
    beta = tap.pair_beta.to(logp.dtype) if spec.has_pair_beta and tap.pair_beta is not None else None
    pairs = Pairs(a, b, n_chosen, n_rejected, chosen_sum, rejected_sum, weight, TORCH, beta)
    result: torch.Tensor = term_sum(spec, pairs, types).mean()
    return result


def log_weights(output: FusedCausalLMOutput, mask: torch.Tensor) -> torch.Tensor:
    """(2 x pairs,) log of WPO's weight (arXiv 2406.11827, equation 2) of each response."""
    assert output.log_probs is not None and output.log_sum_sq_probs is not None
    aligned = (output.log_probs - output.log_sum_sq_probs).detach()[:, -mask.shape[1] :]
    aligned = aligned if aligned.device.type == "mps" else aligned.double()
    mean: torch.Tensor = aligned.masked_fill(~mask, 0).sum(1) / mask.sum(1).clamp(min=1)
    return mean


def ld_factors(mask: torch.Tensor, alpha: float) -> torch.Tensor:
    """LD-DPO's factor per position: 1 up to the shorter response's length, alpha beyond, 0 outside the response."""
    chosen, rejected = mask.sum(1).chunk(2)
    shared = torch.minimum(chosen, rejected).repeat(2).unsqueeze(1)
    return torch.where(mask.cumsum(1) <= shared, 1.0, alpha) * mask
