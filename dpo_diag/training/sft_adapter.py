"""Where TRL's SFT trainer (1.16) is known from inside: what one `compute_loss` computed, per example."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from trl.trainer.utils import FusedCausalLMOutput

from dpo_diag.training.batch import ADDED, KL_COLUMNS, OF_ROWS, OF_TOKENS, PARTS, Batch, ResponseTokens, to_host
from dpo_diag.training.head_probe import HeadProbe
from dpo_diag.training.kept_head import kept_head
from dpo_diag.training.kl_probe import kl_of_kept, reference_forward
from dpo_diag.training.own_head import tiled
from dpo_diag.training.sft_terms import HeadTap, SftTerms, infonce, row_means

_PROBED = {"top5": "top5_hits", "greedy_logp": "greedy_logp_sum", **{name: f"{name}_sum" for name in KL_COLUMNS}}
"""What a probe reads -> the column of its sums."""


class PromptTap:
    """Stands in for the model inside SFTTrainer's `compute_loss`: the fused head scores the prompt's tokens too.

    TRL labels prompt tokens -100, and the head gives their positions no log-prob. Without Triton it projects every
    position anyway, and only looks up another target, so the prompt's log-probs are free: it is given all tokens as
    labels, and the loss gets the same output as before, masked afterwards (values and gradients of masked positions
    are zero either way; losses are bit for bit the same, a test). With Triton it projects labelled positions alone:
    then the prompt costs what its tokens cost in the head, forward and backward. With `tiled`, on a CPU, the head is
    `own_head`'s: it projects labelled positions alone too, and goes back through those of the loss alone, so that the
    prompt costs its part of the head's forward.

    Attributes:
        output: with every position that was scored, prompts included if `whole`.
        label_mask: (rows, length - 1) positions in the loss.
        per_token: name of a term -> its values at every position that was scored, before its weight.
        states: (rows, length - 1, width) last hidden states, where InfoNCE is on.
        extra: what a probe read, (rows, length - 1) each.
    """

    def __init__(
        self, model: Any, whole: bool, tiled: bool = False, terms: SftTerms | None = None,
        probe: HeadProbe | None = None, vocabulary: int = 0, kl: bool = False, reference: Any = None,
    ) -> None:  # fmt: skip
        self._vocabulary, self._kl, self._reference = vocabulary, kl, reference
        self._model, self._whole, self._tiled = model, whole, tiled
        self.terms, self._probe = terms or SftTerms(), probe
        self.output: FusedCausalLMOutput | None = None
        self.label_mask: torch.Tensor | None = None
        self.per_token: dict[str, torch.Tensor] = {}
        self.states: torch.Tensor | None = None
        self.extra: dict[str, torch.Tensor] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        labels, ids = kwargs.get("labels"), kwargs.get("input_ids")
        if not kwargs.get("fused_lm_head") or labels is None or ids is None or "shift_labels" in kwargs:
            return self._model(*args, **kwargs)
        if not self._whole:
            output = self._forward(labels, args, kwargs)
            self.output, self.label_mask = output, output.label_mask
            return output
        attention = kwargs.get("attention_mask")
        full = ids if attention is None else ids.masked_fill(attention == 0, -100)
        output = self._forward(torch.where(labels != -100, labels, full), args, kwargs)
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

    def _forward(self, labels: torch.Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        rows = (labels[:, 1:] != -100).reshape(-1)
        head = HeadTap(self.terms) if self.terms.any else None
        with ExitStack() as stack:
            if self._probe is not None:
                self._probe.expect(labels)
                stack.enter_context(self._probe.listening(self._vocabulary))
            if self._tiled:
                stack.enter_context(tiled(labels.device, self._probe, rows))
            if head is not None:
                stack.enter_context(head.listening())
            kept = stack.enter_context(kept_head()) if self._kl else None
            output = self._model(*args, **{**kwargs, "labels": labels})
            if kept is not None:
                reference_forward(kept, self._model, self._reference, *args, **{**kwargs, "labels": labels})
        if isinstance(output, FusedCausalLMOutput) and output.label_mask is not None:
            if head is not None:
                self.per_token = self.terms.per_token(head.placed(output.label_mask), output)
                self.states = head.states(output.label_mask)
            if self._probe is not None:
                self.extra = self._probe.take(output.label_mask)
            if kept is not None:
                self.extra |= kl_of_kept(kept, output.label_mask)
        return output

    def contrast(self, response: torch.Tensor | None) -> torch.Tensor | None:
        """(rows,) InfoNCE of the mean state that predicts a row's prompt against the one that predicts its response,
        NaN for a row that lacks either; None where it is off.

        Args:
            response: as `read_sequences`'.
        """
        if self.states is None or self.output is None or self.output.label_mask is None or self.label_mask is None:
            return None
        scored, is_response = self.output.label_mask, _responses(self.label_mask, response)
        prompt, answer = scored & ~is_response, scored & is_response
        both = prompt.any(1) & answer.any(1)
        found = self.states.new_full((len(both),), math.nan, dtype=torch.float32)
        if not both.any():
            return found
        queries, keys = (row_means(self.states[both], where[both]) for where in (prompt, answer))
        return found.masked_scatter(both, infonce(queries, keys, self.terms.temperature))


def _responses(in_loss: torch.Tensor, response: torch.Tensor | None) -> torch.Tensor:
    """Positions of the response; where the data do not say, those in the loss."""
    if response is None or response[:, 1:].shape != in_loss.shape:
        return in_loss
    known = response[:, 1:].to(in_loss.device)
    return torch.where(known >= 0, known == 1, in_loss)


@dataclass(frozen=True)
class Added:
    """What `added_loss` gives: `tokens` over the loss's tokens, `rows` InfoNCE's share, and its value of each row."""

    tokens: torch.Tensor
    rows: torch.Tensor
    contrast: torch.Tensor | None = None


def added_loss(
    trainer: Any, tap: PromptTap, response: torch.Tensor | None, num_items: torch.Tensor | int | None
) -> Added:
    """What the terms add to TRL's loss, divided as TRL divides it: terms over tokens by `num_items`, InfoNCE, a mean
    over the rows of a micro-batch, by the accumulated micro-batches.

    Raises:
        RuntimeError: TRL did not run its fused forward.
    """
    if tap.output is None or tap.label_mask is None or tap.output.log_probs is None:
        raise RuntimeError("the terms of the loss need TRL's fused forward, which did not run")
    zero = tap.output.log_probs.sum() * 0
    if not tap.terms.adds:
        return Added(zero, zero)
    n = tap.label_mask.sum() if num_items is None else num_items
    tokens = sum(
        (
            tap.terms.weight(name) * values.masked_fill(~tap.label_mask, 0).sum()
            for name, values in tap.per_token.items()
        ),
        zero,
    ) / torch.as_tensor(n).clamp(min=1)
    if trainer.args.average_tokens_across_devices and num_items is not None:
        tokens = tokens * (trainer.accelerator.num_processes // trainer.get_tp_size())
    contrast = tap.contrast(response)
    if contrast is None or contrast.isnan().all():
        return Added(tokens, zero, contrast)
    steps = trainer.current_gradient_accumulation_steps if num_items is not None else 1
    return Added(tokens, tap.terms.weights["infonce"] * contrast[~contrast.isnan()].mean() / steps, contrast)


def as_logged(terms: SftTerms) -> Mapping[str, float]:
    """Term -> its weight, for run.json."""
    smoothing = {"label_smoothing": terms.label_smoothing} if terms.label_smoothing else {}
    return {**smoothing, **terms.weights}


def row_ids(inputs: dict[str, Any]) -> list[str]:
    """Content hash of each row's token ids, padding left out, so that an example has one id in every batch."""
    ids = inputs["input_ids"].cpu().numpy()
    attention = inputs.get("attention_mask")
    # A batch without a mask is one row of packed sequences, without padding.
    real = np.ones(ids.shape, dtype=bool) if attention is None else attention.cpu().numpy().astype(bool)
    rows = (row[kept].astype(np.int64) for row, kept in zip(ids, real, strict=True))
    return [hashlib.sha256(row.tobytes()).hexdigest()[:16] for row in rows]


@torch.no_grad()
def read_sequences(
    trainer: Any, tap: PromptTap, inputs: dict[str, Any], rows: torch.Tensor | None, response: torch.Tensor | None,
    loss: torch.Tensor, num_items: torch.Tensor | int | None, *, added: Added | None = None,
    byte_table: torch.Tensor | None = None, with_tokens: bool = False,
) -> Batch | None:  # fmt: skip
    """What one SFT `compute_loss` did, per row of the batch; None if it did not run TRL's fused forward.

    Args:
        rows: (rows,) row in the data set, or None.
        response: (rows, length) 1 for a response token, 0 for any other, -1 for not known; or None.
        loss: what is trained on, `added` included.
        num_items: tokens that the loss is a mean over; None for those of this batch.
        byte_table: UTF-8 bytes of each token id, or None.
        with_tokens: keep the per-token values of the responses too; of packed rows there are none.
    """
    output, in_loss = tap.output, tap.label_mask
    if output is None or in_loss is None or output.label_mask is None or output.log_probs is None:
        return None
    if output.log_probs.shape != inputs["input_ids"][:, 1:].shape or output.is_top1 is None or output.entropy is None:
        return None
    scored = output.label_mask
    kind = torch.float32 if scored.device.type == "mps" else torch.float64
    is_response = _responses(in_loss, response)
    outside = torch.full((len(scored),), math.nan, dtype=kind, device=scored.device)
    if response is not None:
        unknown = ((response[:, 1:].to(scored.device) < 0) & scored).any(1)
        outside = (in_loss & ~is_response).sum(1).to(kind).masked_fill(unknown, math.nan)

    def total(values: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
        return values.to(kind).masked_fill(~where, 0).sum(1)

    columns: dict[str, torch.Tensor | None] = {
        "n_loss": in_loss.sum(1), "loss_sum": -total(output.log_probs, in_loss), "n_loss_prompt": outside,
        "loss_entropy": total(output.entropy, in_loss), "loss_hits": total(output.is_top1, in_loss),
    }  # fmt: skip
    terms = {name: total(values, in_loss) for name, values in tap.per_token.items()}
    columns |= {f"{OF_TOKENS}{name}": values for name, values in terms.items()}
    if terms:
        columns[ADDED] = torch.stack([tap.terms.weight(name) * values for name, values in terms.items()]).sum(0)
    columns[OF_ROWS] = None if added is None else added.contrast
    values = {
        "sum_logp": output.log_probs, "n_tokens": scored, "top1_hits": output.is_top1, "entropy_sum": output.entropy,
        **{sums: tap.extra.get(name) for name, sums in _PROBED.items()},
    }  # fmt: skip
    if byte_table is not None:
        table = byte_table.to(scored.device)
        values["n_bytes"] = table[inputs["input_ids"][:, 1:].clamp(max=len(table) - 1)]
    known = {name: v for name, v in values.items() if v is not None}
    for part, where in zip(PARTS, (scored & is_response, scored & ~is_response), strict=True):
        columns |= {f"{name}/{part}": total(v, where) for name, v in known.items()}
    of_row = [name for name, v in columns.items() if v is not None and not name.endswith(tuple(f"/{p}" for p in PARTS))]
    rows_share = loss.new_zeros(()) if added is None else added.rows
    host = to_host(columns | {"loss": loss, "rows_share": rows_share})
    share = float(host["rows_share"].item())
    by_trl = trainer.label_smoother is not None and "label_smoothing" in terms
    plain = trainer.args.loss_type == "nll" and trainer.compute_loss_func is None
    expected = math.nan
    if plain and (by_trl or trainer.label_smoother is None) and not trainer.aux_loss_enabled:
        n = float(host["n_loss"].sum()) if num_items is None else float(num_items)
        expected = float((host["loss_sum"] + host.get(ADDED, 0.0)).sum()) / max(n, 1.0)
        if trainer.args.average_tokens_across_devices and num_items is not None:
            expected *= trainer.accelerator.num_processes // trainer.get_tp_size()
    packed = any(k in inputs for k in ("cu_seq_lens_q", "seq_lengths", "position_ids"))
    tokens = None
    if with_tokens and not packed:
        per_token = {"token_id": inputs["input_ids"][:, 1:].int(), "logp": output.log_probs, "entropy": output.entropy,
                     "is_top1": output.is_top1,
                     **{name: tap.extra.get(name) for name in ("greedy_logp", *KL_COLUMNS)}}  # fmt: skip
        columns_of = {name: v.cpu().numpy() for name, v in per_token.items() if v is not None}
        tokens = ResponseTokens((scored & is_response).cpu().numpy(), columns_of)
    return Batch(
        row_ids(inputs),
        np.full(len(scored), -1, dtype=np.int64) if rows is None else rows.cpu().numpy(),
        PARTS,
        {name: np.stack([host[f"{name}/{part}"] for part in PARTS]) for name in known},
        of_row={name: host[name] for name in of_row},
        loss=float(host["loss"].item()) - share,
        added=share,
        expected=expected,
        is_share=num_items is not None,
        packed=packed,
        tokens=tokens,
    )
