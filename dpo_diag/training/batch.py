"""One micro-batch of preference pairs as numbers on the CPU: what the adapter hands to everything else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from dpo_diag.losses import LossSpec, pair_losses
from dpo_diag.records.schemas import SIDES

FloatArray = npt.NDArray[np.float64]


def _numpy(values: torch.Tensor | None, dtype: torch.dtype) -> npt.NDArray[Any] | None:
    return None if values is None else values.to(dtype).cpu().numpy()


class Batch(Protocol):
    """What can be accumulated, exchanged and concatenated: pairs (DPO) or sequences (SFT)."""

    pair_ids: list[str]
    rows: npt.NDArray[np.int64]
    loss: float

    def __len__(self) -> int: ...

    def bad_rows(self) -> npt.NDArray[np.bool_]: ...

    def without_tokens(self) -> Self: ...

    def take(self, keep: npt.NDArray[np.bool_]) -> Self: ...

    def residual(self, spec: LossSpec | None) -> float: ...

    @classmethod
    def concat(cls, batches: Sequence[Self]) -> Self: ...


@dataclass
class TokenRows:
    """Per-token values of a micro-batch, padded; shape (2 x pairs, length - 1), chosen rows first."""

    mask: npt.NDArray[np.bool_]
    token_id: npt.NDArray[np.int32]
    logp: npt.NDArray[np.float32]
    entropy: npt.NDArray[np.float32] | None
    is_top1: npt.NDArray[np.bool_] | None
    ref_logp: npt.NDArray[np.float32] | None
    ref_entropy: npt.NDArray[np.float32] | None
    ref_is_top1: npt.NDArray[np.bool_] | None
    prompt_ids: list[list[int]]

    @classmethod
    def of(cls, *, prompt_ids: list[list[int]], **tensors: torch.Tensor | None) -> TokenRows:
        """From tensors on any device."""
        kinds = {"mask": torch.bool, "token_id": torch.int32, "is_top1": torch.bool, "ref_is_top1": torch.bool}
        arrays: dict[str, Any] = {k: _numpy(v, kinds.get(k, torch.float32)) for k, v in tensors.items()}
        return cls(prompt_ids=prompt_ids, **arrays)

    def frame(self, pair: int, pair_id: str, role: str) -> pd.DataFrame:
        """Token rows of both sides of one pair: columns of the tokens table but step and split; empty if unknown."""
        prefix = "ref_" if role == "ref" else ""
        parts = []
        for s, side in enumerate(SIDES):
            row = pair + s * (len(self.mask) // 2)
            where = self.mask[row]
            logp = getattr(self, f"{prefix}logp")
            if logp is None:
                continue
            part = {"position": np.arange(int(where.sum()), dtype=np.int32), "token_id": self.token_id[row][where]}
            part["logp"] = logp[row][where]
            for name in ("entropy", "is_top1"):
                values = getattr(self, f"{prefix}{name}")
                if values is not None:
                    part[name] = values[row][where]
            parts.append(pd.DataFrame(part).assign(side=side, pair_id=pair_id, role=role))
        return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()

    def response_ids(self, pair: int, side: int) -> list[int]:
        """Token ids of one response, as far as the loss saw it."""
        row = pair + side * (len(self.mask) // 2)
        return [int(i) for i in self.token_id[row][self.mask[row]]]


@dataclass
class PairBatch:
    """Per-pair values of one micro-batch (or of many, concatenated).

    Attributes:
        pair_ids: (pairs,).
        rows: (pairs,) row in the data set, -1 where it is not known.
        policy, reference: column -> (2, pairs), chosen first: sum_logp, n_tokens, n_bytes, n_truncated, top1_hits,
            top5_hits, entropy_sum, greedy_logp_sum, loss_logp; a column that is not known is absent. `reference` is
            empty where there was none.
        n_seen: (2, pairs) response tokens in the batch, scored or not: what ipo and sigmoid_norm divide by.
        weight: (pairs,) WPO weights, or None.
        loss: TRL's number for this micro-batch, the MoE auxiliary loss taken off; NaN for a concatenation.
        tokens: per-token values, where they were asked for.
    """

    pair_ids: list[str]
    rows: npt.NDArray[np.int64]
    policy: dict[str, FloatArray]
    reference: dict[str, FloatArray]
    n_seen: FloatArray
    weight: FloatArray | None = None
    loss: float = float("nan")
    tokens: TokenRows | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.pair_ids)

    def bad_rows(self) -> npt.NDArray[np.bool_]:
        """(pairs,) true where a log-prob sum is not finite."""
        return np.asarray(~np.isfinite(self.policy["sum_logp"]).all(axis=0))

    def without_tokens(self) -> PairBatch:
        """The same without its per-token values."""
        return PairBatch(self.pair_ids, self.rows, self.policy, self.reference, self.n_seen, self.weight, self.loss)

    def take(self, keep: npt.NDArray[np.bool_]) -> PairBatch:
        """The pairs where `keep` (pairs,) is true, without tokens."""
        return PairBatch(
            [p for p, k in zip(self.pair_ids, keep, strict=True) if k],
            self.rows[keep],
            {k: v[:, keep] for k, v in self.policy.items()},
            {k: v[:, keep] for k, v in self.reference.items()},
            self.n_seen[:, keep],
            None if self.weight is None else self.weight[keep],
        )

    @classmethod
    def concat(cls, batches: Sequence[PairBatch]) -> PairBatch:
        """All pairs of all batches in order; a column that one batch lacks is NaN there.

        Raises:
            ValueError: no batches.
        """
        if not batches:
            raise ValueError("nothing to concatenate")

        def joined(role: str) -> dict[str, FloatArray]:
            names = dict.fromkeys(n for b in batches for n in getattr(b, role))
            blank = {id(b): np.full((2, len(b)), np.nan) for b in batches}
            return {n: np.concatenate([getattr(b, role).get(n, blank[id(b)]) for b in batches], axis=1) for n in names}

        weights = [b.weight for b in batches]
        return cls(
            [p for b in batches for p in b.pair_ids],
            np.concatenate([b.rows for b in batches]),
            joined("policy"),
            joined("reference"),
            np.concatenate([b.n_seen for b in batches], axis=1),
            None if any(w is None for w in weights) else np.concatenate([w for w in weights if w is not None]),
        )

    def log_ratios(self) -> tuple[FloatArray, FloatArray] | None:
        """(a, b) as they enter the loss, each (pairs,); None where the reference is not known."""
        name = "loss_logp" if "loss_logp" in self.policy else "sum_logp"
        if name not in self.reference:
            return None
        ratio = self.policy[name] - self.reference[name]
        return ratio[0], ratio[1]

    def pair_losses(self, spec: LossSpec) -> FloatArray | None:
        """Loss of each pair, recomputed from the sums; None if this loss has no per-pair value or no reference."""
        ratios = self.log_ratios()
        if spec.not_additive is not None or ratios is None or not len(self):
            return None
        # TRL divides ipo and sigmoid_norm by the response tokens of the batch, scored or not: they differ by one
        # where a response starts at position 0 (no prompt left), which has no score.
        n = self.policy["n_tokens"] if "sft" in spec.types else self.n_seen
        return pair_losses(
            spec,
            *ratios,
            n_chosen=n[0],
            n_rejected=n[1],
            chosen_sum_logp=self.policy["sum_logp"][0],
            weight=self.weight,
        )

    def residual(self, spec: LossSpec | None) -> float:
        """|mean recomputed loss - TRL's number|; NaN where the loss has no per-pair value."""
        losses = None if spec is None else self.pair_losses(spec)
        return float("nan") if losses is None else abs(float(losses.mean()) - self.loss)
