"""SFT measured: cross-entropy of the response and of the prompt apart, so that a wrong loss mask shows at once.

Which tokens are the response is taken from the data (prompt and completion, or the assistant's turns of a
conversation), not from the loss mask: otherwise training on the user's turns would look like a long response.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from datasets import Dataset

from dpo_diag.losses import LossSpec
from dpo_diag.records import metrics
from dpo_diag.training.aggregate import Value

ROW, RESPONSE = "_dpo_diag_row", "_dpo_diag_response"
"""Columns and batch entries: the row in the data set; 1 for a response token, 0 for any other, -1 for not known."""
PARTS = ("response", "prompt")
FloatArray = npt.NDArray[np.float64]


# ---- dataset ----


def _row(example: dict[str, Any], index: int) -> dict[str, int]:
    return {ROW: index}


def add_rows(dataset: Any, num_proc: int | None = None) -> Any:
    """A map-style data set with the row column; any other unchanged."""
    if not isinstance(dataset, Dataset) or dataset.format["type"] == "custom" or ROW in dataset.column_names:
        return dataset
    return dataset.map(_row, with_indices=True, num_proc=num_proc, desc="Numbering rows")


def assistant_mask(tokenizer: Any, messages: Sequence[Mapping[str, Any]], ids: list[int], **kwargs: Any) -> list[int]:
    """1 for the tokens of the assistant's turns, from prefixes of the conversation; all -1 where the chat template
    does not render a prefix as the beginning of the whole."""
    mask = [0] * len(ids)
    for i, message in enumerate(messages):
        if message.get("role") != "assistant":
            continue
        ends = []
        for upto, prompt in ((i, True), (i + 1, False)):
            text = tokenizer.apply_chat_template(
                list(messages[:upto]), add_generation_prompt=prompt, tokenize=False, **kwargs
            )
            prefix = tokenizer(text, add_special_tokens=False)["input_ids"]
            if prefix[: len(ids)] != ids[: len(prefix)]:
                return [-1] * len(ids)
            ends.append(len(prefix))
        mask[ends[0] : ends[1]] = [1] * len(mask[ends[0] : ends[1]])
    return mask


@dataclass
class MarkResponse:
    """Maps a prepared example to its response mask, as long as its `input_ids`.

    Args:
        tokenizer, chat_template: of the trainer.
        max_length, keep_end: how the trainer cut `input_ids` (the masks that it leaves behind are not cut).
        by_labels: the loss mask is the response already (completion-only or assistant-only loss).
    """

    tokenizer: Any
    chat_template: str | None
    max_length: int | None
    keep_end: bool
    by_labels: bool

    def __call__(self, example: Mapping[str, Any]) -> dict[str, list[int]]:
        ids, labels = example["input_ids"], example["labels"]
        if example.get("completion_mask") is not None:
            mask = list(example["completion_mask"])
            if self.max_length is not None:
                mask = mask[-self.max_length :] if self.keep_end else mask[: self.max_length]
        elif self.by_labels or not example.get("messages"):
            mask = [int(label != -100) for label in labels]
        else:
            kwargs = {"chat_template": self.chat_template, **(example.get("chat_template_kwargs") or {})}
            cut = self.max_length is not None and len(ids) >= self.max_length and self.keep_end
            try:
                mask = [-1] * len(ids) if cut else assistant_mask(self.tokenizer, example["messages"], ids, **kwargs)
            except Exception:
                # A template may refuse a prefix of a conversation (roles must alternate, say): then it is not known.
                mask = [-1] * len(ids)
        return {RESPONSE: mask if len(mask) == len(ids) else [-1] * len(ids)}


def has_prompt(example: Any) -> bool:
    """Whether an example has a part that is no response: a prompt or a conversation."""
    return isinstance(example, Mapping) and (
        "completion_mask" in example or "prompt" in example or "messages" in example
    )


@dataclass
class SequenceCollator:
    """A collator around the user's, as `PairIdCollator`: what it sees is what it would see otherwise."""

    collator: Callable[[list[Any]], Any]

    def __call__(self, examples: list[Any]) -> Any:
        ours = (ROW, RESPONSE)
        if not examples or not all(isinstance(e, Mapping) for e in examples) or not any(k in examples[0] for k in ours):
            return self.collator(examples)
        batch = self.collator([{k: v for k, v in e.items() if k not in ours} for e in examples])
        ids = batch.get("input_ids") if isinstance(batch, MutableMapping) else None
        if not torch.is_tensor(ids) or ids.dim() != 2 or len(ids) != len(examples):
            return batch
        if all(ROW in e for e in examples):
            batch[ROW] = torch.tensor([e[ROW] for e in examples], dtype=torch.int64)
        masks = [e.get(RESPONSE) for e in examples]
        attention = batch.get("attention_mask")
        if all(m is not None for m in masks) and torch.is_tensor(attention) and attention.shape == ids.shape:
            response = torch.full(ids.shape, -1, dtype=torch.int64)
            for i, mask in enumerate(masks):
                where = attention[i].bool()
                if int(where.sum()) == len(mask):  # whichever side is padded
                    response[i, where] = torch.tensor(mask, dtype=torch.int64)
            batch[RESPONSE] = response
        return batch


# ---- batch ----


@dataclass
class SequenceBatch:
    """Per-sequence sums of one micro-batch (or of many, concatenated).

    Attributes:
        pair_ids: (rows,) content hashes of the token ids.
        rows: (rows,) row in the data set, -1 where it is not known.
        sums: sum_logp, n_tokens, top1_hits, entropy_sum -> (2, rows), response first, then prompt.
        n_loss, n_loss_prompt: (rows,) tokens in the loss, and those of them outside the response; the latter NaN where
            the response is known from the loss mask alone.
        loss_sum: (rows,) -log p summed over the loss's tokens.
        packed: a row may hold several sequences, so that no metric per response exists.
        expected: the loss recomputed from the log-probs, NaN where it has another form.
    """

    pair_ids: list[str]
    rows: npt.NDArray[np.int64]
    sums: dict[str, FloatArray]
    n_loss: FloatArray
    n_loss_prompt: FloatArray
    loss_sum: FloatArray
    packed: bool = False
    loss: float = math.nan
    expected: float = math.nan

    def __len__(self) -> int:
        return len(self.pair_ids)

    def bad_rows(self) -> npt.NDArray[np.bool_]:
        """(rows,) true where a log-prob sum is not finite."""
        return np.asarray(~np.isfinite(self.sums["sum_logp"]).all(axis=0))

    def without_tokens(self) -> SequenceBatch:
        """Itself: nothing per token is kept."""
        return self

    def take(self, keep: npt.NDArray[np.bool_]) -> SequenceBatch:
        """The rows where `keep` is true."""
        return SequenceBatch(
            [p for p, k in zip(self.pair_ids, keep, strict=True) if k],
            self.rows[keep],
            {k: v[:, keep] for k, v in self.sums.items()},
            self.n_loss[keep],
            self.n_loss_prompt[keep],
            self.loss_sum[keep],
            self.packed,
        )

    @classmethod
    def concat(cls, batches: Sequence[SequenceBatch]) -> SequenceBatch:
        """All rows of all batches in order."""
        if not batches:
            raise ValueError("nothing to concatenate")
        return cls(
            [p for b in batches for p in b.pair_ids],
            np.concatenate([b.rows for b in batches]),
            {k: np.concatenate([b.sums[k] for b in batches], axis=1) for k in batches[0].sums},
            np.concatenate([b.n_loss for b in batches]),
            np.concatenate([b.n_loss_prompt for b in batches]),
            np.concatenate([b.loss_sum for b in batches]),
            any(b.packed for b in batches),
        )

    def residual(self, spec: LossSpec | None) -> float:
        """|recomputed loss - TRL's number|; NaN where the loss is not the plain negative log-likelihood."""
        return abs(self.expected - self.loss)


def row_ids(input_ids: npt.NDArray[Any]) -> list[str]:
    """Content hash of each row of token ids, padding included."""
    return [hashlib.sha256(np.ascontiguousarray(row).tobytes()).hexdigest()[:16] for row in input_ids]


def sequence_metrics(batch: SequenceBatch, residual: float = math.nan) -> dict[str, Value]:
    """`ce`, the perplexities, `top1` (token accuracy) and `entropy` of `/response` and `/prompt`; `loss_exact`, the
    mean over all tokens in the loss; `loss_on_prompt`, the share of those tokens that are not the response's.

    A part without tokens has no metrics. Packed rows have no metrics per response (`ce`, `ppl_seq_*`).
    """
    found: dict[str, Value] = {}
    for p, part in enumerate(PARTS):
        total, n = batch.sums["sum_logp"][p], batch.sums["n_tokens"][p]
        scored = n > 0
        if not scored.any():
            continue
        total, n, tokens, count = total[scored], n[scored], float(n.sum()), float(scored.sum())
        if not batch.packed:
            found[f"ce/{part}"] = Value(metrics.mean_ce(total, n), count)
            found[f"ppl_seq_mean/{part}"] = Value(metrics.ppl_seq_mean(total, n), count)
            found[f"ppl_seq_geomean/{part}"] = Value(metrics.ppl_seq_geomean(total, n), count)
        found[f"ppl_token/{part}"] = Value(metrics.ppl_token(total, n), tokens)
        for name, column in (("top1", "top1_hits"), ("entropy", "entropy_sum")):
            found[f"{name}/{part}"] = Value(float(batch.sums[column][p][scored].sum()) / tokens, tokens)
    in_loss = float(batch.n_loss.sum())
    if in_loss > 0:
        found["loss_exact"] = Value(float(batch.loss_sum.sum()) / in_loss, in_loss)
        known = ~np.isnan(batch.n_loss_prompt)
        if known.any():
            n = float(batch.n_loss[known].sum())
            share = float(batch.n_loss_prompt[known].sum()) / n if n else math.nan
            found["loss_on_prompt"] = Value(share, n)
    if not math.isnan(residual):
        found["loss_residual"] = Value(residual, float(len(batch)))
    return found


def sequence_weights(batch: SequenceBatch) -> dict[str, float]:
    """What TRL's own SFT metrics are means over."""
    tokens = float(batch.n_loss.sum())
    return {"#loss": tokens, "#entropy": tokens, "#mean_token_accuracy": tokens}
