"""Where TRL's DPO trainer (1.16) is known from inside, with head_probe.py: what one `_compute_loss` computed, per pair.

TRL's fused LM head returns per-token log-probs, entropies and top-1 hits without building logits. `Tap` stands in for
the model while TRL's own `_compute_loss` runs and keeps those outputs, of the policy's forward and of the reference's;
`read_pairs` reduces them. No second forward, no logits, no random number is drawn, and TRL's loss is untouched; losses
that TRL does not have are added to it (`added_loss`), from the same forwards.

With PEFT both forwards pass through one module; what the stand-in calls is the policy, any other call is the
reference. Recomputation under gradient checkpointing happens in the backward pass, when nothing listens any more.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from accelerate.utils import is_peft_model
from trl.trainer.dpo_trainer import DataCollatorForPreference
from trl.trainer.utils import FusedCausalLMOutput

from dpo_diag.losses import LOSSES, LossSpec, Pairs, term_sum
from dpo_diag.records.schemas import SIDES
from dpo_diag.training.batch import Batch, FloatArray, TokenRows, to_host
from dpo_diag.training.head_probe import HeadProbe
from dpo_diag.training.pair_ids import decode_ids, ids_from_tokens

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
        chosen, rejected = _log_weights(tap.policy, mask.bool()).exp().to(logp.dtype).chunk(2)
        weight = chosen * rejected
    n_chosen, n_rejected = (mask if spec.counts_scored else completion).sum(1).to(logp.dtype).chunk(2)
    chosen_sum, rejected_sum = (logp * mask).sum(1).chunk(2)
    beta = tap.pair_beta.to(logp.dtype) if spec.has_pair_beta and tap.pair_beta is not None else None
    pairs = Pairs(a, b, n_chosen, n_rejected, chosen_sum, rejected_sum, weight, TORCH, beta)
    result: torch.Tensor = term_sum(spec, pairs, types).mean()
    return result


def _log_weights(output: FusedCausalLMOutput, mask: torch.Tensor) -> torch.Tensor:
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


# ---- one batch, read ----


def rearranged(full: npt.NDArray[np.int64], seen: FloatArray) -> bool:
    """Whether a collator gave its batch another order than its examples had, as far as lengths can tell.

    Args:
        full: (2, pairs) response tokens of the examples, -1 where they are not known.
        seen: (2, pairs) response tokens of the batch's rows.
    """
    if (full < 0).any():
        return False
    if (seen > full).any():
        return True  # more than there were
    return bool((seen != full).any()) and sorted(map(tuple, seen.T.tolist())) == sorted(map(tuple, full.T.tolist()))


@torch.no_grad()
def read_pairs(
    trainer: Any, tap: Tap, inputs: dict[str, Any], ids: torch.Tensor | None, loss: torch.Tensor,
    byte_table: torch.Tensor | None, spec: LossSpec, with_tokens: bool,
) -> Batch | None:  # fmt: skip
    """What one `_compute_loss` did, per pair; None if it did not run TRL's fused forward.

    Sums are float64 sums of TRL's float32 token log-probs, so that recorded tokens add up to them exactly.

    Args:
        inputs: the batch as TRL had it, without the ids.
        ids: int64 (pairs, 2 or 4) of `pair_ids.KEY`, or None.
        loss: what is trained on, the MoE auxiliary loss included.
        byte_table: UTF-8 bytes of each token id, or None.
        with_tokens: keep the per-token values too.
    """
    policy = tap.policy
    if policy is None:
        return None
    completion, targets = inputs["completion_mask"], inputs["input_ids"][:, 1:]
    mask = completion[:, 1:].bool()
    length, n_pairs = mask.shape[1], len(targets) // 2

    def tail(values: torch.Tensor | None) -> torch.Tensor | None:
        # Virtual tokens of prompt tuning come first.
        return None if values is None else values.detach()[:, -length:]

    per_token: dict[str, torch.Tensor | None] = {"policy.n_tokens": mask}
    columns: dict[str, torch.Tensor | None] = {}
    for role, output, extra in (("policy", policy, tap.policy_extra), ("ref", tap.reference, tap.reference_extra)):
        if output is None:
            continue
        logp = tail(output.log_probs)
        per_token[f"{role}.sum_logp"] = logp
        per_token[f"{role}.top1_hits"] = tail(output.is_top1)
        per_token[f"{role}.entropy_sum"] = tail(output.entropy)
        per_token[f"{role}.top5_hits"] = tail(extra.get("top5"))
        per_token[f"{role}.greedy_logp_sum"] = tail(extra.get("greedy_logp"))
        if spec.ld_alpha is not None and logp is not None:
            columns[f"{role}.loss_logp"] = (logp.double() * ld_factors(mask, spec.ld_alpha)).sum(1)
    kl = {name: tail(values) for name, values in tap.kl.items()}
    per_token |= {f"policy.{name}_sum": values for name, values in kl.items()}
    per_token["policy.logit_sum"] = tail(policy.mean_logits)
    columns["policy.n_seen"] = completion.sum(1)
    if byte_table is not None:
        table = byte_table if byte_table.device == targets.device else byte_table.to(targets.device)
        per_token["policy.n_bytes"] = table[targets.clamp(max=len(table) - 1)]
    if spec.use_weighting and policy.log_sum_sq_probs is not None:
        columns["log_weight"] = _log_weights(policy, mask)
    if trainer.precompute_ref_logps and spec.needs_reference:
        given = torch.cat([inputs[name] for name in REF_SUMS])
        columns["ref.loss_logp" if spec.ld_alpha is not None else "ref.sum_logp"] = given
    if trainer.aux_loss_enabled and policy.aux_loss is not None:
        columns["aux_loss"] = policy.aux_loss
    columns["pair_beta"] = tap.pair_beta
    summed = {name: of for name, of in per_token.items() if of is not None}
    values = to_host(columns | {"loss": loss, "sums": _masked_sums([*summed.values()], mask)})
    values |= dict(zip(summed, values.pop("sums"), strict=True))

    aux = float(values.pop("aux_loss", np.zeros(1)).item())
    added = float(trainer.router_aux_loss_coef) * aux
    number = float(values.pop("loss").item()) - added
    log_weight, beta = values.pop("log_weight", None), values.pop("pair_beta", None)
    of_row = {} if beta is None else {"beta": beta}
    if log_weight is not None:
        of_row["weight"] = np.exp(log_weight.reshape(2, n_pairs)).prod(axis=0)
    roles: dict[str, dict[str, FloatArray]] = {"policy": {}, "ref": {}}
    for name, value in values.items():
        role, column = name.split(".", 1)
        roles[role][column] = value.reshape(2, n_pairs)
    if roles["ref"]:
        roles["ref"]["n_tokens"] = roles["policy"]["n_tokens"]
    seen = roles["policy"]["n_seen"]
    pair_ids, rows, full = _identify(inputs, ids, seen)
    roles["policy"]["n_truncated"] = np.where(full >= 0, full - seen, np.nan)
    batch = Batch(
        pair_ids, rows, SIDES, roles["policy"], roles["ref"],
        of_row, loss=number, added=added,
    )  # fmt: skip
    losses = batch.pair_losses(spec)
    if losses is not None:
        batch.expected = float(losses.mean())
    if with_tokens:
        prompt = (inputs["attention_mask"].bool() & ~completion.bool())[:n_pairs].cpu()
        reference = tap.reference
        batch.tokens = TokenRows.of(
            mask=mask,
            token_id=targets,
            logp=tail(policy.log_probs),
            entropy=tail(policy.entropy),
            is_top1=tail(policy.is_top1),
            greedy_logp=tail(tap.policy_extra.get("greedy_logp")),
            ref_greedy_logp=tail(tap.reference_extra.get("greedy_logp")),
            ref_logp=None if reference is None else tail(reference.log_probs),
            ref_entropy=None if reference is None else tail(reference.entropy),
            ref_is_top1=None if reference is None else tail(reference.is_top1),
            **kl,
            prompt_ids=[row[p].tolist() for row, p in zip(inputs["input_ids"][:n_pairs].cpu(), prompt, strict=True)],
        )
    return batch


def _masked_sums(per_token: list[torch.Tensor], mask: torch.Tensor) -> torch.Tensor:
    """(columns, rows) sums of (rows, tokens) columns where `mask`, float64 (float32 on MPS, which has none): together,
    since for a small batch each operation costs more than its numbers."""
    kind = torch.float32 if mask.device.type == "mps" else torch.float64
    block = torch.empty((len(per_token), *mask.shape), dtype=kind, device=mask.device)
    for own, values in zip(block, per_token, strict=True):
        own.copy_(values)
    return block.masked_fill_(~mask, 0).sum(2)


def _identify(
    inputs: dict[str, Any], ids: torch.Tensor | None, seen: FloatArray
) -> tuple[list[str], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """(pair ids, rows in the data set, full response lengths (2, pairs)); -1 where not known."""
    if ids is not None and len(ids) == seen.shape[1]:
        pair_ids, rows, full = decode_ids(ids.cpu().numpy())
        if not rearranged(full, seen):
            return _token_ids(inputs) if pair_ids is None else pair_ids, rows, full
    return _token_ids(inputs), np.full(seen.shape[1], -1, dtype=np.int64), np.full(seen.shape, -1, dtype=np.int64)


_TOKENS = ("input_ids", "attention_mask", "completion_mask")
_NOT_SEEN = (*_TOKENS, "token_type_ids", "mm_token_type_ids", "position_ids", *REF_SUMS)


def _token_ids(inputs: dict[str, Any]) -> list[str]:
    beside = {k: v.float().cpu().numpy() for k, v in inputs.items() if k not in _NOT_SEEN and torch.is_tensor(v)}
    tokens, attention, completion = (inputs[k].cpu().numpy() for k in _TOKENS)
    return ids_from_tokens(tokens, attention, completion, beside)
