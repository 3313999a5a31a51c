"""Why did a perplexity move? Level + dispersion, or level + length weight; then the level over pairs. Exact.

For responses i with ce_i = -sum_logp_i / n_i, between two checkpoints (identities of `dpo_diag.records.metrics`):

    dlog ppl_seq_geomean = level
    dlog ppl_seq_mean    = level + dispersion      (change of J, the Jensen term)
    dlog ppl_token       = level + length_weight   (change of cov(n, ce) / mean n)

Over pairs, with no remainder either:

    level            share of pair i: (ce_i1 - ce_i0) / N
    dlog ppl_seq_mean   pair i: (E_i1 - E_i0) / (N L(P0, P1)), E = exp(ce), P = mean E, L the logarithmic mean
                        (P1 - P0) / (log P1 - log P0): the additive log-mean Divisia index (Ang 2005, Energy Policy
                        33:867). Its share of the whole is the pair's share of the change of the perplexity itself, so
                        "three pairs carry 71 % of the rise" means what it says. What exceeds the pair's level share
                        is its part of the dispersion.
    dlog ppl_token      pair i: mean weight * (ce_i1 - ce_i0) + mean ce_i * (w_i1 - w_i0), w_i = n_i / sum n; the second
                        term is 0 unless token counts changed between the steps (truncation).

Infinite log-probs have no finite split: such responses are counted and named by `Aligned`, the rest is split.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from dpo_diag.diagnosis.aligned import Aligned
from dpo_diag.diagnosis.pair_intervals import PairIntervals
from dpo_diag.diagnosis.pair_rows import FloatArray
from dpo_diag.records import metrics
from dpo_diag.stats import Interval

EXTRA_TERM = {"ppl_token": "length_weight", "ppl_seq_mean": "dispersion", "ppl_seq_geomean": None}


def perplexity_section(aligned: Aligned, intervals: PairIntervals) -> dict[str, Any]:
    """The explanation's perplexity section."""
    if not aligned.responses:
        return {"not_applicable": aligned.unit_and_note[1] or "no response can be measured"}
    result: dict[str, Any] = {}
    for side, arrays in aligned.responses.items():
        changes = perplexity_intervals(*arrays.args, arrays.pair_ids, intervals)
        section = split_perplexity(*arrays.args)
        result[side] = {name: {**row, "interval": changes[name].bounds} for name, row in section.items()}
        if arrays.excluded:
            result[side]["excluded"] = arrays.excluded
    return result


def split_perplexity(
    sum_from: npt.ArrayLike, n_from: npt.ArrayLike, sum_to: npt.ArrayLike, n_to: npt.ArrayLike
) -> dict[str, dict[str, float]]:
    """The three perplexities of one side and the exact split of their log-changes.

    Args:
        sum_from, n_from, sum_to, n_to: shape (responses,): sum_logp in nats and counts of the unit (tokens or bytes)
            at the first and at the second checkpoint, finite, counts > 0, the same responses in the same order.

    Returns:
        name -> {"from", "to" (perplexities), "dlog", "level", "dispersion" or "length_weight", "residual"}. For an
        empty set every number is NaN. `from` or `to` can be infinite where the log is finite (CE above 709).
    """
    before = (np.asarray(sum_from, dtype=np.float64), np.asarray(n_from, dtype=np.float64))
    after = (np.asarray(sum_to, dtype=np.float64), np.asarray(n_to, dtype=np.float64))
    level = metrics.mean_ce(*after) - metrics.mean_ce(*before)
    terms = {
        "dispersion": metrics.dispersion(*after) - metrics.dispersion(*before),
        "length_weight": metrics.length_weight(*after) - metrics.length_weight(*before),
    }
    result: dict[str, dict[str, float]] = {}
    for name, log_ppl in metrics.PERPLEXITIES.items():
        start, end = log_ppl(*before), log_ppl(*after)
        row = {
            "from": metrics.safe_exp(start),
            "to": metrics.safe_exp(end),
            "dlog": end - start,
            "level": level,
        }
        extra = EXTRA_TERM[name]
        if extra:
            row[extra] = terms[extra]
        row["residual"] = row["dlog"] - level - (terms[extra] if extra else 0.0)
        result[name] = row
    return result


def perplexity_intervals(
    sum_from: FloatArray, n_from: FloatArray, sum_to: FloatArray, n_to: FloatArray, pair_ids: Iterable[str],
    intervals: PairIntervals,
) -> dict[str, Interval]:  # fmt: skip
    """The change of each log-perplexity of one side (arguments as `split_perplexity`) with its interval over pairs.

    The level is a mean, log ppl_token a ratio of sums, log ppl_seq_mean neither. Both checkpoints are measured on the
    same pairs, so the interval is that of the paired change; it says nothing about another training seed.
    """
    s0, n0, s1, n1, ids = sum_from, n_from, sum_to, n_to, list(pair_ids)
    ce0, ce1 = metrics.ce(s0, n0), metrics.ce(s1, n1)
    top = float(max(ce0.max(initial=-math.inf), ce1.max(initial=-math.inf)))
    # Scaled by the largest one, so that no perplexity overflows; the log-ratio does not see it.
    each = np.exp(np.column_stack([ce0, ce1]) - top)

    def seq_mean(counts: FloatArray) -> FloatArray:
        e0, e1 = (counts @ each).T
        return np.asarray(np.log(e1) - np.log(e0))

    return {
        "ppl_token": intervals.ratio_change(s0, n0, s1, n1, ids).scaled(-1.0),
        "ppl_seq_mean": intervals.of_statistic(seq_mean, ids),
        "ppl_seq_geomean": intervals.mean(ce1 - ce0, ids),
    }


def logarithmic_mean(log_p: float, log_q: float) -> float:
    """(q - p) / (log q - log p), divided by exp(max(log p, log q)); in (0, 1], 1 where p = q. For finite logs."""
    gap = abs(log_q - log_p)
    return 1.0 if gap == 0.0 else -math.expm1(-gap) / gap


def pair_contributions(
    sum_from: npt.ArrayLike, n_from: npt.ArrayLike, sum_to: npt.ArrayLike, n_to: npt.ArrayLike
) -> pd.DataFrame:
    """Each pair's part of the change of each log-perplexity of one side (arguments as `split_perplexity`).

    Returns:
        One row per response, in order: `ce_from`, `ce_to` (nats per unit), `level`, `dispersion`, `seq_mean` (= level +
        dispersion), `length_weight`, `token` (= level + length_weight), and `share_of_rise`: seq_mean over its sum,
        i.e. the share of the net change of `ppl_seq_mean`; a pair that moved against the net change has a negative
        one. Columns sum to the terms of `split_perplexity`, `share_of_rise` to 1; it is NaN where nothing changed.
    """
    s0, n0, s1, n1 = (np.asarray(v, dtype=np.float64) for v in (sum_from, n_from, sum_to, n_to))
    columns = ("ce_from", "ce_to", "level", "dispersion", "seq_mean", "length_weight", "token", "share_of_rise")
    count = s0.size
    if count == 0:
        return pd.DataFrame({c: np.zeros(0) for c in columns})
    ce0, ce1 = metrics.ce(s0, n0), metrics.ce(s1, n1)
    change = ce1 - ce0
    level = change / count
    seq_mean = _divisia(ce0, ce1, change)
    w0, w1 = n0 / n0.sum(), n1 / n1.sum()
    token = 0.5 * (w0 + w1) * change + 0.5 * (ce0 + ce1) * (w1 - w0)
    total = float(seq_mean.sum())
    share = seq_mean / total if total != 0.0 else np.full(count, math.nan)
    values = (ce0, ce1, level, seq_mean - level, seq_mean, token - level, token, share)
    return pd.DataFrame(dict(zip(columns, values, strict=True)))


def _divisia(ce0: FloatArray, ce1: FloatArray, change: FloatArray) -> FloatArray:
    """Additive parts of log mean exp(ce1) - log mean exp(ce0); expm1 keeps small changes of large terms exact."""
    count = ce0.size
    log_p, log_q = metrics.log_mean_exp(ce0), metrics.log_mean_exp(ce1)
    top = max(log_p, log_q)
    # E1 - E0 over exp(top), written from the larger of the two so that nothing overflows.
    larger = np.maximum(ce0, ce1)
    difference = np.sign(change) * np.exp(larger - top) * -np.expm1(-np.abs(change))
    return np.asarray(difference / (count * logarithmic_mean(log_p, log_q)), dtype=np.float64)


def rank_pairs(contributions: pd.DataFrame) -> pd.DataFrame:
    """Contributions ordered by `share_of_rise`, largest first, with running sums.

    Added columns: `cumulative_share` (of the net change), `rank` (from 1) and `share_of_rises` (the pair's share of all
    rises alone, 0 for a pair that fell; sums to 1 if any rose). Missing shares (nothing changed) sort last.
    """
    ordered = contributions.sort_values("share_of_rise", ascending=False, kind="stable", na_position="last")
    ordered = ordered.reset_index(drop=True)
    rises = ordered["seq_mean"].clip(lower=0.0)
    total = float(rises.sum())
    ordered["cumulative_share"] = ordered["share_of_rise"].cumsum()
    ordered["share_of_rises"] = rises / total if total > 0 else 0.0
    ordered["rank"] = np.arange(1, len(ordered) + 1)
    return ordered


@dataclass(frozen=True)
class Concentration:
    """How few pairs carry how much of the net change, of how many; None where nothing moved."""

    pairs: int | None
    of: int
    share: float | None


def concentration(table: pd.DataFrame, share: float = 0.5) -> Concentration:
    """How few pairs carry at least `share` of the net change, from a table of `rank_pairs`."""
    cumulative = table["cumulative_share"].to_numpy(dtype=np.float64)
    reached = np.flatnonzero(cumulative >= share)
    if not reached.size:
        return Concentration(None, len(table), None)
    first = int(reached[0])
    return Concentration(first + 1, len(table), float(cumulative[first]))
