"""Where TRL's insides (1.16) are known, with head_probe.py: what one `_compute_loss` computed, as numbers per pair.

TRL's fused LM head returns per-token log-probs, entropies and top-1 hits without building logits. `Tap` stands in for
the model while TRL's own `_compute_loss` runs and keeps those outputs, of the policy's forward and of the reference's;
`read_pairs` reduces them. No second forward, no logits, no random number is drawn, and TRL's loss is untouched.

With PEFT both forwards pass through one module; what the stand-in calls is the policy, any other call is the
reference. Recomputation under gradient checkpointing happens in the backward pass, when nothing listens any more.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from accelerate.utils import is_peft_model
from trl.trainer.utils import FusedCausalLMOutput

from dpo_diag.losses import LossSpec
from dpo_diag.training.batch import PairBatch, TokenRows
from dpo_diag.training.head_probe import HeadProbe
from dpo_diag.training.pair_ids import decode_ids, ids_from_tokens
from dpo_diag.training.sequences import SequenceBatch, row_ids


def loss_spec(trainer: Any) -> LossSpec:
    """The trainer's loss as this project writes it down."""
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
    )


def reference_of(trainer: Any) -> dict[str, Any]:
    """Where the trainer's reference log-probs come from: {"kind", "fixed"}, for run.json."""
    if trainer.precompute_ref_logps:
        kind = "precomputed"
    elif trainer.ref_model is not None:
        kind = "model"
    elif "ref" in getattr(trainer.accelerator.unwrap_model(trainer.model), "peft_config", {}):
        kind = "ref adapter"
    else:
        kind = "adapter disabled"
    return {"kind": kind, "fixed": not trainer.args.sync_ref_model}


class Tap:
    """Stands in for the model inside TRL's `_compute_loss`: calls it, keeps what it returned.

    Use as a context manager; `policy` and `reference` are the two outputs afterwards (None where TRL made no such
    forward), `policy_extra` and `reference_extra` what a probe read.
    """

    def __init__(self, trainer: Any, model: Any, probe: HeadProbe | None = None) -> None:
        self._trainer, self._model, self._probe = trainer, model, probe
        self._inside = False
        self.policy: FusedCausalLMOutput | None = None
        self.reference: FusedCausalLMOutput | None = None
        self.policy_extra: dict[str, torch.Tensor] = {}
        self.reference_extra: dict[str, torch.Tensor] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._probe is not None:
            config = getattr(self._trainer.model, "active_peft_config", None)
            self._probe.expect(None if getattr(config, "is_prompt_learning", False) else kwargs.get("labels"))
            self._probe.looking = True
        self._inside = True
        try:
            output = self._model(*args, **kwargs)
        finally:
            self._inside = False
        if isinstance(output, FusedCausalLMOutput) and self.policy is None:
            self.policy = output
            self.policy_extra = self._heard(output)
        if self._probe is not None:
            self._probe.looking = False
        return output

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def _heard(self, output: FusedCausalLMOutput) -> dict[str, torch.Tensor]:
        if self._probe is None or output.label_mask is None:
            return {}
        return self._probe.take(output.label_mask)

    def _on_forward(self, module: torch.nn.Module, args: Any, output: Any) -> None:
        if not self._inside and isinstance(output, FusedCausalLMOutput):
            self.reference = output
            self.reference_extra = self._heard(output)

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


def _ld_weights(mask: torch.Tensor, alpha: float) -> torch.Tensor:
    """LD-DPO's factor per position: 1 up to the shorter response's length, alpha beyond, 0 outside the response."""
    lengths = mask.sum(1)
    chosen, rejected = lengths.chunk(2)
    shared = torch.minimum(chosen, rejected).repeat(2).unsqueeze(1)
    position = mask.cumsum(1)
    return torch.where(position <= shared, 1.0, alpha) * mask


def rearranged(full: npt.NDArray[np.int64], seen: npt.NDArray[np.float64]) -> bool:
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
    trainer: Any,
    tap: Tap,
    inputs: dict[str, Any],
    ids: torch.Tensor | None,
    loss: torch.Tensor,
    byte_table: torch.Tensor | None,
    spec: LossSpec,
    with_tokens: bool,
) -> PairBatch | None:
    """What one `_compute_loss` did, per pair; None if it did not run TRL's fused forward.

    Sums are float64 sums of TRL's float32 token log-probs, so that recorded tokens add up to them exactly.

    Args:
        inputs: the batch as TRL had it, without the ids.
        ids: int64 (pairs, 2 or 4) of `pair_ids.KEY`, or None.
        loss: what TRL returned, the MoE auxiliary loss included.
        byte_table: UTF-8 bytes of each token id, or None.
        with_tokens: keep the per-token values too.
    """
    policy = tap.policy
    if policy is None:
        return None
    completion = inputs["completion_mask"]
    mask = completion[:, 1:].bool()
    length = mask.shape[1]
    targets = inputs["input_ids"][:, 1:]

    def tail(values: torch.Tensor | None) -> torch.Tensor | None:
        return None if values is None else values.detach()[:, -length:]

    def total(values: torch.Tensor | None) -> torch.Tensor | None:
        if values is None:
            return None
        values = values if values.device.type == "mps" else values.double()
        return values.masked_fill(~mask, 0).sum(1)

    columns: dict[str, torch.Tensor | None] = {}
    for role, output, extra in (("policy", policy, tap.policy_extra), ("ref", tap.reference, tap.reference_extra)):
        if output is None:
            continue
        logp = tail(output.log_probs)
        columns[f"{role}.sum_logp"] = total(logp)
        columns[f"{role}.top1_hits"] = total(tail(output.is_top1))
        columns[f"{role}.entropy_sum"] = total(tail(output.entropy))
        columns[f"{role}.top5_hits"] = total(tail(extra.get("top5")))
        columns[f"{role}.greedy_logp_sum"] = total(tail(extra.get("greedy_logp")))
        if spec.ld_alpha is not None and logp is not None:
            columns[f"{role}.loss_logp"] = (logp.double() * _ld_weights(mask, spec.ld_alpha)).sum(1)
    columns["policy.n_tokens"] = mask.sum(1)
    columns["seen"] = completion.sum(1)
    if byte_table is not None:
        table = byte_table if byte_table.device == targets.device else byte_table.to(targets.device)
        columns["policy.n_bytes"] = total(table[targets.clamp(max=len(table) - 1)])
    if spec.use_weighting and policy.log_sum_sq_probs is not None:
        aligned = total(tail(policy.log_probs - policy.log_sum_sq_probs))
        columns["log_weight"] = None if aligned is None else aligned / mask.sum(1).clamp(min=1)
    if trainer.precompute_ref_logps:
        given = torch.cat([inputs["ref_chosen_logps"], inputs["ref_rejected_logps"]])
        columns["ref.loss_logp" if spec.ld_alpha is not None else "ref.sum_logp"] = given
    present = {k: v for k, v in columns.items() if v is not None}
    kind = torch.float32 if targets.device.type == "mps" else torch.float64
    number = loss.detach().reshape(1).to(kind)
    if trainer.aux_loss_enabled and policy.aux_loss is not None:
        number = number - trainer.router_aux_loss_coef * policy.aux_loss.detach().to(kind)
    # One transfer for all of them: each would wait for the accelerator on its own.
    flat = torch.cat([*(v.to(kind) for v in present.values()), number]).cpu().double().numpy()
    pairs = len(targets) // 2
    values = dict(zip(present, flat[:-1].reshape(len(present), 2, pairs), strict=True))

    seen = values.pop("seen")
    log_weight = values.pop("log_weight", None)
    roles: dict[str, dict[str, npt.NDArray[np.float64]]] = {"policy": {}, "ref": {}}
    for name, value in values.items():
        role, column = name.split(".", 1)
        roles[role][column] = value
    if roles["ref"]:
        roles["ref"]["n_tokens"] = roles["policy"]["n_tokens"]
    pair_ids, rows, full = (None, np.full(pairs, -1, dtype=np.int64), np.full((2, pairs), -1, dtype=np.int64))
    if ids is not None and len(ids) == pairs:
        pair_ids, rows, full = decode_ids(ids.cpu().numpy())
        if rearranged(full, seen):
            pair_ids, rows, full = None, np.full_like(rows, -1), np.full_like(full, -1)
    if pair_ids is None:
        pair_ids = ids_from_tokens(
            *(inputs[k].cpu().numpy() for k in ("input_ids", "attention_mask", "completion_mask"))
        )
    roles["policy"]["n_truncated"] = np.where(full >= 0, full - seen, np.nan)
    tokens = None
    if with_tokens:
        tokens = TokenRows.of(
            mask=mask,
            token_id=targets,
            logp=tail(policy.log_probs),
            entropy=tail(policy.entropy),
            is_top1=tail(policy.is_top1),
            ref_logp=None if tap.reference is None else tail(tap.reference.log_probs),
            ref_entropy=None if tap.reference is None else tail(tap.reference.entropy),
            ref_is_top1=None if tap.reference is None else tail(tap.reference.is_top1),
            prompt_ids=[row[a & ~c].tolist() for row, a, c in zip(
                inputs["input_ids"][:pairs].cpu(), inputs["attention_mask"][:pairs].bool().cpu(),
                completion[:pairs].bool().cpu(), strict=True,
            )],
        )  # fmt: skip
    return PairBatch(
        pair_ids=pair_ids,
        rows=rows,
        policy=roles["policy"],
        reference=roles["ref"],
        n_seen=seen,
        weight=None if log_weight is None else np.exp(log_weight[0]) * np.exp(log_weight[1]),
        loss=float(flat[-1]),
        tokens=tokens,
    )


class PromptTap:
    """Stands in for the model inside SFTTrainer's `compute_loss`: the fused head scores the prompt's tokens too.

    TRL labels prompt tokens -100, and the head gives their positions no log-prob. Without Triton it projects every
    position anyway, and only looks up another target, so the prompt's log-probs are free: it is given all tokens as
    labels, and the loss gets the same output as before, masked afterwards (values and gradients of masked positions
    are zero either way; losses are bit for bit the same, a test). With Triton it projects labelled positions alone:
    then the prompt costs what its tokens cost in the head, forward and backward.
    """

    def __init__(self, model: Any, whole: bool) -> None:
        self._model, self._whole = model, whole
        self.output: FusedCausalLMOutput | None = None
        """With every position that was scored, prompts included."""
        self.label_mask: torch.Tensor | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        labels, ids = kwargs.get("labels"), kwargs.get("input_ids")
        if not kwargs.get("fused_lm_head") or labels is None or ids is None or "shift_labels" in kwargs:
            return self._model(*args, **kwargs)
        if not self._whole:
            output = self._model(*args, **kwargs)
            self.output, self.label_mask = output, output.label_mask
            return output
        attention = kwargs.get("attention_mask")
        full = ids if attention is None else ids.masked_fill(attention == 0, -100)
        output = self._model(*args, **{**kwargs, "labels": torch.where(labels != -100, labels, full)})
        if not isinstance(output, FusedCausalLMOutput):
            return output
        mask = labels[:, 1:] != -100
        self.output, self.label_mask = output, mask

        def masked(values: torch.Tensor | None) -> torch.Tensor | None:
            return None if values is None else values.masked_fill(~mask, 0)

        log_probs = masked(output.log_probs)
        assert log_probs is not None
        return FusedCausalLMOutput(
            loss=-log_probs.sum() / mask.sum().clamp(min=1),
            log_probs=log_probs,
            entropy=masked(output.entropy),
            log_sum_sq_probs=masked(output.log_sum_sq_probs),
            mean_logits=masked(output.mean_logits),
            is_top1=masked(output.is_top1),
            label_mask=mask,
            aux_loss=output.aux_loss,
        )


@torch.no_grad()
def read_sequences(
    trainer: Any,
    tap: PromptTap,
    inputs: dict[str, Any],
    rows: torch.Tensor | None,
    response: torch.Tensor | None,
    loss: torch.Tensor,
    num_items: torch.Tensor | int | None,
) -> SequenceBatch | None:
    """What one SFT `compute_loss` did, per row of the batch; None if it did not run TRL's fused forward."""
    output, in_loss = tap.output, tap.label_mask
    if output is None or in_loss is None or output.label_mask is None or output.log_probs is None:
        return None
    if output.log_probs.shape != inputs["input_ids"][:, 1:].shape or output.is_top1 is None or output.entropy is None:
        return None
    scored = output.label_mask
    known = None if response is None else response[:, 1:].to(scored.device)
    is_response = in_loss if known is None else torch.where(known >= 0, known == 1, in_loss)
    kind = torch.float32 if scored.device.type == "mps" else torch.float64
    columns = [in_loss.sum(1).to(kind), (output.log_probs.to(kind) * in_loss).sum(1).neg()]
    unknown = torch.ones(len(scored), dtype=torch.bool, device=scored.device)
    if known is not None:
        unknown = ((known < 0) & scored).any(1)
    outside = (in_loss & ~is_response).sum(1).to(kind)
    columns.append(outside.masked_fill(unknown, float("nan")))
    for part in (scored & is_response, scored & ~is_response):
        for values in (output.log_probs, part, output.is_top1, output.entropy):
            columns.append(values.to(kind).masked_fill(~part, 0).sum(1))
    flat = torch.cat([*columns, loss.detach().reshape(1).to(kind)]).cpu().double().numpy()
    table = flat[:-1].reshape(len(columns), len(scored))
    names = ("sum_logp", "n_tokens", "top1_hits", "entropy_sum")
    sums = {name: table[[3 + i, 3 + len(names) + i]] for i, name in enumerate(names)}
    plain = trainer.args.loss_type == "nll" and trainer.compute_loss_func is None and trainer.label_smoother is None
    expected = float("nan")
    if plain and not trainer.aux_loss_enabled:
        n = float(table[0].sum()) if num_items is None else float(num_items)
        expected = float(table[1].sum()) / max(n, 1.0)
        if trainer.args.average_tokens_across_devices and num_items is not None:
            expected *= trainer.accelerator.num_processes // trainer.get_tp_size()
    return SequenceBatch(
        pair_ids=row_ids(inputs["input_ids"].cpu().numpy()),
        rows=np.full(len(scored), -1, dtype=np.int64) if rows is None else rows.cpu().numpy(),
        sums=sums,
        n_loss=table[0],
        n_loss_prompt=table[2],
        loss_sum=table[1],
        packed=any(k in inputs for k in ("cu_seq_lens_q", "seq_lengths", "position_ids")),
        loss=float(flat[-1]),
        expected=expected,
    )
