"""Where TRL's SFT trainer (1.16) is known from inside: what one `compute_loss` computed, per example."""

from __future__ import annotations

import hashlib
import math
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from trl.trainer.utils import FusedCausalLMOutput

from dpo_diag.training.batch import PARTS, Batch, to_host
from dpo_diag.training.own_head import tiled

_SUMS = ("sum_logp", "n_tokens", "top1_hits", "entropy_sum")


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
    """

    def __init__(self, model: Any, whole: bool, tiled: bool = False) -> None:
        self._model, self._whole, self._tiled = model, whole, tiled
        self.output: FusedCausalLMOutput | None = None
        self.label_mask: torch.Tensor | None = None

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
        with tiled(labels.device, rows=rows) if self._tiled else nullcontext():
            return self._model(*args, **{**kwargs, "labels": labels})


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
    loss: torch.Tensor, num_items: torch.Tensor | int | None,
) -> Batch | None:  # fmt: skip
    """What one SFT `compute_loss` did, per row of the batch; None if it did not run TRL's fused forward.

    Args:
        rows: (rows,) row in the data set, or None.
        response: (rows, length) 1 for a response token, 0 for any other, -1 for not known; or None.
        num_items: tokens that the loss is a mean over; None for those of this batch.
    """
    output, in_loss = tap.output, tap.label_mask
    if output is None or in_loss is None or output.label_mask is None or output.log_probs is None:
        return None
    if output.log_probs.shape != inputs["input_ids"][:, 1:].shape or output.is_top1 is None or output.entropy is None:
        return None
    scored = output.label_mask
    kind = torch.float32 if scored.device.type == "mps" else torch.float64
    is_response, outside = in_loss, torch.full((len(scored),), math.nan, dtype=kind, device=scored.device)
    if response is not None:
        known = response[:, 1:].to(scored.device)
        is_response = torch.where(known >= 0, known == 1, in_loss)
        unknown = ((known < 0) & scored).any(1)
        outside = (in_loss & ~is_response).sum(1).to(kind).masked_fill(unknown, math.nan)

    def total(values: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
        return values.to(kind).masked_fill(~where, 0).sum(1)

    columns: dict[str, torch.Tensor | None] = {
        "n_loss": in_loss.sum(1), "loss_sum": -total(output.log_probs, in_loss), "n_loss_prompt": outside,
        "loss_entropy": total(output.entropy, in_loss), "loss_hits": total(output.is_top1, in_loss),
    }  # fmt: skip
    for part, where in zip(PARTS, (scored & is_response, scored & ~is_response), strict=True):
        values = (output.log_probs, where, output.is_top1, output.entropy)
        columns |= {f"{name}/{part}": total(v, where) for name, v in zip(_SUMS, values, strict=True)}
    host = to_host(columns | {"loss": loss})
    plain = trainer.args.loss_type == "nll" and trainer.compute_loss_func is None and trainer.label_smoother is None
    expected = math.nan
    if plain and not trainer.aux_loss_enabled:
        n = float(host["n_loss"].sum()) if num_items is None else float(num_items)
        expected = float(host["loss_sum"].sum()) / max(n, 1.0)
        if trainer.args.average_tokens_across_devices and num_items is not None:
            expected *= trainer.accelerator.num_processes // trainer.get_tp_size()
    return Batch(
        row_ids(inputs),
        np.full(len(scored), -1, dtype=np.int64) if rows is None else rows.cpu().numpy(),
        PARTS,
        {name: np.stack([host[f"{name}/{part}"] for part in PARTS]) for name in _SUMS},
        of_row={name: host[name] for name in ("n_loss", "n_loss_prompt", "loss_sum", "loss_entropy", "loss_hits")},
        loss=float(host["loss"].item()),
        expected=expected,
        packed=any(k in inputs for k in ("cu_seq_lens_q", "seq_lengths", "position_ids")),
    )
