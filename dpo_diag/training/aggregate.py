"""Live metrics, exact: numerators and denominators of every pair, gathered over ranks once, divided once.

TRL averages micro-batch means, each weighing the same; here every pair (or token) weighs the same, whatever the
micro-batches, the accumulation and the number of processes. The definitions are those of `dpo_diag.records.metrics`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
from accelerate.utils import gather_object

from dpo_diag.losses import LossSpec
from dpo_diag.records import metrics
from dpo_diag.records.schemas import SIDES
from dpo_diag.training.batch import Batch, PairBatch

B = TypeVar("B", bound=Batch)


class Value(NamedTuple):
    """A metric and what it is a mean over."""

    value: float
    weight: float


@dataclass
class Gathered(Generic[B]):
    """One rank's view after the exchange.

    Attributes:
        pairs: every pair of every rank, padded duplicates removed (None where there were none at all).
        residual: largest loss residual of any micro-batch of any rank; NaN if none could be formed.
        own_first: (own pairs,) true where this rank's row is the first of its pair_id: the one that is recorded.
        n_duplicates: identical pairs in the set beyond their first; they count in the metrics, and are recorded once.
    """

    pairs: B | None
    residual: float
    own_first: npt.NDArray[np.bool_]
    n_duplicates: int


@dataclass
class Accumulator(Generic[B]):
    """Collects micro-batches of one split on one rank."""

    batches: list[B] = field(default_factory=list)
    residual: float = math.nan

    def add(self, batch: B, residual: float = math.nan) -> None:
        """Take one micro-batch and its loss residual; its per-token values are not kept."""
        if not math.isnan(residual):
            self.residual = residual if math.isnan(self.residual) else max(self.residual, residual)
        self.batches.append(batch.without_tokens())

    def clear(self) -> None:
        """Start anew."""
        self.batches, self.residual = [], math.nan

    def gather(self, world_size: int = 1, rank: int = 0, *, padded: bool = False) -> Gathered[B]:
        """Exchange with the other ranks; every rank must call it.

        Args:
            padded: a sampler may have repeated examples to fill the last batch (evaluation): count each example of
                the set once, known by its row in the data set, or by its pair_id where rows are not known.
        """
        own = type(self.batches[0]).concat(self.batches) if self.batches else None
        everyone: list[tuple[B | None, float]] = [(own, self.residual)]
        if world_size > 1:
            everyone = gather_object([(own, self.residual)])
        parts = [p for p, _ in everyone if p is not None]
        residuals = [r for _, r in everyone if not math.isnan(r)]
        worst = max(residuals) if residuals else math.nan
        if not parts:
            return Gathered(None, worst, np.zeros(0, dtype=bool), 0)
        pairs = type(parts[0]).concat(parts)
        first = _first_of([("id", p) for p in pairs.pair_ids])
        start = sum(len(p) for p, _ in everyone[:rank] if p is not None) if world_size > 1 else 0
        own_first = first[start : start + (0 if own is None else len(own))]
        if padded and world_size > 1:
            keys = [("row", int(r)) if r >= 0 else ("id", p) for r, p in zip(pairs.rows, pairs.pair_ids, strict=True)]
            pairs = pairs.take(_first_of(keys))
        return Gathered(pairs, worst, own_first, len(pairs) - int(first.sum()))


def _first_of(keys: list[Any]) -> npt.NDArray[np.bool_]:
    seen: set[Any] = set()
    first = np.zeros(len(keys), dtype=bool)
    for i, key in enumerate(keys):
        if key not in seen:
            seen.add(key)
            first[i] = True
    return first


def pair_metrics(pairs: PairBatch, spec: LossSpec, residual: float = math.nan) -> dict[str, Value]:
    """Every live metric of a set of pairs; what cannot be known is absent.

    `ce` (nats per token, mean over responses), the three perplexities, `bits_per_byte`, `top1`, `top5` (shares of
    tokens), `entropy`, `greedy_logp` (nats per token), each `/chosen` and `/rejected`; `pairs/both_fell` and
    `pairs/chosen_fell` (shares of pairs, against the reference); `loss_exact` (mean over pairs of the recomputed
    loss: unlike TRL's it weighs every pair the same); `loss_residual` (largest over the micro-batches).
    """
    found: dict[str, Value] = {}
    policy, count = pairs.policy, float(len(pairs))
    for s, side in enumerate(SIDES):
        total, tokens = policy["sum_logp"][s], policy["n_tokens"][s]
        scored = tokens > 0  # a response cut to nothing has no cross-entropy
        total, n = total[scored], tokens[scored]
        n_all = float(n.sum())
        found[f"ce/{side}"] = Value(metrics.mean_ce(total, n), float(scored.sum()))
        found[f"ppl_token/{side}"] = Value(metrics.ppl_token(total, n), n_all)
        found[f"ppl_seq_mean/{side}"] = Value(metrics.ppl_seq_mean(total, n), float(scored.sum()))
        found[f"ppl_seq_geomean/{side}"] = Value(metrics.ppl_seq_geomean(total, n), float(scored.sum()))
        if "n_bytes" in policy:
            n_bytes = policy["n_bytes"][s][scored]
            found[f"bits_per_byte/{side}"] = Value(metrics.bits_per_byte(total, n_bytes), float(n_bytes.sum()))
        for name, column in (("top1", "top1_hits"), ("top5", "top5_hits"), ("entropy", "entropy_sum"),
                             ("greedy_logp", "greedy_logp_sum")):  # fmt: skip
            if column in policy and n_all > 0:
                found[f"{name}/{side}"] = Value(float(policy[column][s][scored].sum()) / n_all, n_all)
    if "sum_logp" in pairs.reference:
        delta = policy["sum_logp"] - pairs.reference["sum_logp"]
        shares = metrics.quadrants(delta[0], delta[1])
        found["pairs/both_fell"] = Value(shares.both_fell, count)
        found["pairs/chosen_fell"] = Value(shares.both_fell + shares.rejected_rose, count)
    losses = pairs.pair_losses(spec)
    if losses is not None:
        found["loss_exact"] = Value(float(losses.mean()), count)
    if not math.isnan(residual):
        found["loss_residual"] = Value(residual, count)
    return found


def pair_weights(pairs: PairBatch) -> dict[str, float]:
    """What TRL's own DPO metrics are means over: `#name` -> pairs or tokens."""
    n = float(len(pairs))
    chosen, rejected = (float(t) for t in pairs.policy["n_tokens"].sum(axis=1))
    of_pairs = (
        "loss", "aux_loss", "rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies",
        "logps/chosen", "logps/rejected",
    )  # fmt: skip
    of_tokens = {
        "entropy": chosen + rejected,
        "mean_token_accuracy": chosen,
        "logits/chosen": chosen,
        "logits/rejected": rejected,
    }
    return {f"#{name}": n for name in of_pairs} | {f"#{name}": t for name, t in of_tokens.items()}
