"""One micro-batch as numbers on the CPU: what TRL's insides hand to everything else, for DPO and SFT alike."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from dpo_diag.losses import LossSpec, pair_losses
from dpo_diag.records.schemas import SIDES

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]
PADDING = -2
"""Row of an example that only fills the last batch of several processes; -1: not known."""
KL_COLUMNS = ("kl_reverse", "kl_forward")
"""Per-token KL from the reference; behind `_sum` a response's."""
PARTS = ("response", "prompt")
"""Sides of an SFT batch: one response, and the prompt before it."""
ADDED, OF_TOKENS, OF_ROWS = "loss_added", "aux/", "infonce"
"""Columns of an SFT row beside its -log p: what terms add to it, weighted; before a term's name, its sum over the
tokens in the loss; InfoNCE of the row, NaN for one that lacks prompt or response."""


def to_host(columns: Mapping[str, torch.Tensor | None]) -> dict[str, FloatArray]:
    """Tensors as float64 arrays of the same shapes, without those that are None; in one transfer, since each would wait
    for the accelerator on its own."""
    present = {name: values for name, values in columns.items() if values is not None}
    # MPS has no float64.
    kind = torch.float32 if any(v.device.type == "mps" for v in present.values()) else torch.float64
    flat = torch.cat([v.detach().reshape(-1).to(kind) for v in present.values()]).cpu().double().numpy()
    ends = np.cumsum([v.numel() for v in present.values()])
    pieces = np.split(flat, ends[:-1])
    return {name: piece.reshape(v.shape) for (name, v), piece in zip(present.items(), pieces, strict=True)}


@dataclass
class TokenRows:
    """Per-token values of a micro-batch of pairs, padded; shape (2 x pairs, length - 1), chosen rows first."""

    mask: BoolArray
    token_id: npt.NDArray[np.int32]
    logp: npt.NDArray[np.float32]
    entropy: npt.NDArray[np.float32] | None
    is_top1: BoolArray | None
    ref_logp: npt.NDArray[np.float32] | None
    ref_entropy: npt.NDArray[np.float32] | None
    ref_is_top1: BoolArray | None
    prompt_ids: list[list[int]]
    greedy_logp: npt.NDArray[np.float32] | None = None
    ref_greedy_logp: npt.NDArray[np.float32] | None = None
    kl_reverse: npt.NDArray[np.float32] | None = None
    kl_forward: npt.NDArray[np.float32] | None = None

    @classmethod
    def of(cls, *, prompt_ids: list[list[int]], **tensors: torch.Tensor | None) -> TokenRows:
        """From tensors on any device."""
        kinds = {"mask": torch.bool, "token_id": torch.int32, "is_top1": torch.bool, "ref_is_top1": torch.bool}
        arrays: dict[str, Any] = {
            name: None if values is None else values.to(kinds.get(name, torch.float32)).cpu().numpy()
            for name, values in tensors.items()
        }
        return cls(prompt_ids=prompt_ids, **arrays)

    def frame(self, pair: int, pair_id: str, role: str) -> pd.DataFrame:
        """Token rows of both sides of one pair: columns of the tokens table but step and split; empty if unknown."""
        prefix = "ref_" if role == "ref" else ""
        logp = getattr(self, f"{prefix}logp")
        if logp is None:
            return pd.DataFrame()
        parts = []
        for s, side in enumerate(SIDES):
            row = pair + s * (len(self.mask) // 2)
            where = self.mask[row]
            part = {"position": np.arange(int(where.sum()), dtype=np.int32), "token_id": self.token_id[row][where]}
            part["logp"] = logp[row][where]
            for name in ("entropy", "is_top1", "greedy_logp", *(() if prefix else KL_COLUMNS)):
                values = getattr(self, f"{prefix}{name}")
                if values is not None:
                    part[name] = values[row][where]
            parts.append(pd.DataFrame(part).assign(side=side, pair_id=pair_id, role=role))
        return pd.concat(parts, ignore_index=True)

    def response_ids(self, pair: int, side: int) -> list[int]:
        """Token ids of one response, as far as the loss saw it."""
        row = pair + side * (len(self.mask) // 2)
        return [int(i) for i in self.token_id[row][self.mask[row]]]


@dataclass
class ResponseTokens:
    """Per-token values of the responses of a supervised micro-batch; arrays (rows, length - 1), by column."""

    mask: BoolArray
    columns: dict[str, npt.NDArray[Any]]

    def frame(self, row: int, pair_id: str, role: str) -> pd.DataFrame:
        """Token rows of one response: columns of the tokens table but step and split; empty for a reference."""
        where = self.mask[row]
        if role != "policy":
            return pd.DataFrame()
        values = {name: column[row][where] for name, column in self.columns.items()}
        position = np.arange(int(where.sum()), dtype=np.int32)
        return pd.DataFrame({"position": position, **values}).assign(side="response", pair_id=pair_id, role=role)


@dataclass
class Batch:
    """Sums of one micro-batch, or of many concatenated. A row is a pair with two responses, or an SFT example.

    Attributes:
        pair_ids: (rows,).
        rows: (rows,) row in the data set, -1 where it is not known.
        sides: chosen and rejected; for SFT response and prompt.
        policy, reference: column -> (2, rows), in the order of `sides`: sum_logp, n_tokens, n_bytes, n_truncated,
            top1_hits, top5_hits, entropy_sum, greedy_logp_sum, kl_reverse_sum, kl_forward_sum, logit_sum, loss_logp,
            and n_seen, the response tokens in the batch, scored or not. A column that is not known is absent;
            `reference` is empty where there was none.
        of_row: column -> (rows,): weight (WPO), beta (where it is each pair's own); for SFT n_loss, loss_sum,
            loss_entropy and loss_hits, tokens in the loss, their -log p, their entropies and how many are the model's
            first choice, and n_loss_prompt, those of them outside the response, NaN where only the loss mask says what
            the response is.
        loss: the trainer's number for this micro-batch, the MoE auxiliary loss taken off; NaN for a concatenation.
        added: that auxiliary loss's share of what is trained on.
        expected: the loss recomputed from the sums, NaN where it has another form or no value per pair.
        is_share: the loss is this micro-batch's part of its step's, which is their sum and not their mean.
        packed: a row may hold several sequences, so that no metric per response exists.
        tokens: per-token values, where they were asked for.
    """

    pair_ids: list[str]
    rows: npt.NDArray[np.int64]
    sides: tuple[str, str]
    policy: dict[str, FloatArray]
    reference: dict[str, FloatArray] = field(default_factory=dict)
    of_row: dict[str, FloatArray] = field(default_factory=dict)
    loss: float = math.nan
    added: float = 0.0
    expected: float = math.nan
    is_share: bool = False
    packed: bool = False
    tokens: TokenRows | ResponseTokens | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.pair_ids)

    @property
    def has_pairs(self) -> bool:
        """Whether a row is a preference pair."""
        return self.sides == SIDES

    @property
    def residual(self) -> float:
        """|recomputed loss - the trainer's number|, 0 where both are NaN; NaN where it could not be recomputed."""
        return 0.0 if math.isnan(self.loss) and math.isnan(self.expected) else abs(self.expected - self.loss)

    def bad_rows(self) -> BoolArray:
        """(rows,) true where a log-prob sum is not finite."""
        return np.asarray(~np.isfinite(self.policy["sum_logp"]).all(axis=0))

    def take(self, keep: BoolArray) -> Batch:
        """The rows where `keep` (rows,) is true, without tokens and loss."""
        policy, reference, of_row = (
            {name: values[..., keep] for name, values in part.items()} for part in self._columns()
        )
        pair_ids = [p for p, k in zip(self.pair_ids, keep, strict=True) if k]
        return Batch(pair_ids, self.rows[keep], self.sides, policy, reference, of_row, packed=self.packed)

    def without_padding(self) -> Batch:
        """The same without examples that only fill the epoch's last batch; the loss is still that of all rows."""
        real = self.rows != PADDING
        if real.all():
            return self
        kept = self.take(real)
        return replace(kept, loss=self.loss, added=self.added, expected=self.expected, is_share=self.is_share)

    def without_tokens(self) -> Batch:
        """The same without its per-token values."""
        return replace(self, tokens=None)

    def _columns(self) -> tuple[dict[str, FloatArray], ...]:
        return self.policy, self.reference, self.of_row

    @classmethod
    def concat(cls, batches: Sequence[Batch]) -> Batch:
        """All rows of all batches in order; a column that one batch lacks is NaN there.

        Raises:
            ValueError: no batches.
        """
        if not batches:
            raise ValueError("nothing to concatenate")

        def joined(part: int, *leading: int) -> dict[str, FloatArray]:
            columns = [b._columns()[part] for b in batches]
            blanks = [np.full((*leading, len(b)), np.nan) for b in batches]
            names = dict.fromkeys(name for c in columns for name in c)
            return {
                name: np.concatenate([c.get(name, blank) for c, blank in zip(columns, blanks, strict=True)], axis=-1)
                for name in names
            }

        return cls(
            [p for b in batches for p in b.pair_ids], np.concatenate([b.rows for b in batches]), batches[0].sides,
            joined(0, 2), joined(1, 2), joined(2), packed=any(b.packed for b in batches),
        )  # fmt: skip

    def pair_losses(self, spec: LossSpec) -> FloatArray | None:
        """Loss of each pair, recomputed from the sums; None if this loss has no per-pair value or no reference."""
        name = "loss_logp" if "loss_logp" in self.policy else "sum_logp"
        if spec.not_additive is not None or not len(self) or (spec.needs_reference and name not in self.reference):
            return None
        a, b = self.policy[name] - (self.reference[name] if spec.needs_reference else 0.0)
        n, sums = self.policy["n_tokens" if spec.counts_scored else "n_seen"], self.policy["sum_logp"]
        return pair_losses(
            spec, a, b, n_chosen=n[0], n_rejected=n[1], chosen_sum_logp=sums[0], rejected_sum_logp=sums[1],
            weight=self.of_row.get("weight"), beta=self.of_row.get("beta"),
        )  # fmt: skip
