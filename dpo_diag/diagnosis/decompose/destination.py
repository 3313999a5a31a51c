"""Where did the probability go that the answers lost?

Per answer token: log-prob of the target, of the model's own first choice (greedy), entropy, share of targets that are
the first choice. Together they tell the model's own answer gaining (squeezing: Ren & Sutherland 2024, arXiv 2407.10490)
from mass that spreads over many tokens (3D-properties: arXiv 2406.07327). Which tokens gained takes two loaded models:
see `gained`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from dpo_diag.diagnosis.aligned import Aligned
from dpo_diag.diagnosis.pair_intervals import PairIntervals
from dpo_diag.diagnosis.token_rows import TokenChange
from dpo_diag.text import arrow

_QUANTITIES = {"target_logp": "sum_logp", "greedy_logp": "greedy_logp_sum", "entropy": "entropy_sum"}


def destination(aligned: Aligned, intervals: PairIntervals) -> dict[str, Any]:
    """Per side, nats per token over the answers that know each quantity:

    {"target_logp" | "greedy_logp" | "entropy" | "top1": {"from", "to", "delta", "interval" (over answers)},
     "gap": greedy minus target, likewise, "reading": "own_answer" | "spread" | "sharper" | "unchanged" | "mixed",
     "text"}; or {"not_applicable": reason} where neither greedy log-prob nor entropy is recorded.
    """
    return {side: _side(aligned.pairs, side, intervals) for side in aligned.sides}


def _side(pairs: pd.DataFrame, side: str, intervals: PairIntervals) -> dict[str, Any]:
    n0, n1 = (pairs[f"{side}_n_tokens_{w}"].to_numpy(dtype=np.float64) for w in (0, 1))
    counted = (n0 > 0) & (n1 > 0)
    result: dict[str, Any] = {}
    signs: dict[str, int] = {}
    columns = {name: f"{side}_{column}" for name, column in _QUANTITIES.items()} | {"top1": f"{side}_top1"}
    for name, column in columns.items():
        v0, v1 = (pairs[f"{column}_{w}"].to_numpy(dtype=np.float64) for w in (0, 1))
        if name == "top1":
            v0, v1 = v0 * n0, v1 * n1
        keep = counted & np.isfinite(v0) & np.isfinite(v1)
        if not keep.any():
            continue
        start, end = float(v0[keep].sum() / n0[keep].sum()), float(v1[keep].sum() / n1[keep].sum())
        change = intervals.ratio_change(v0[keep], n0[keep], v1[keep], n1[keep], pairs.loc[keep, "pair_id"])
        result[name] = {
            "from": start, "to": end, "delta": end - start, "interval": change.bounds, "answers": int(keep.sum()),
        }  # fmt: skip
        signs[name] = change.sign
    if "greedy_logp" not in result and "entropy" not in result:
        return {"not_applicable": "neither the greedy log-prob nor the entropy of this side is recorded"}
    if {"greedy_logp", "target_logp"} <= set(result):
        target, greedy = result["target_logp"], result["greedy_logp"]
        result["gap"] = {k: greedy[k] - target[k] for k in ("from", "to", "delta")}
    reading = read(*(signs.get(n) for n in ("target_logp", "greedy_logp", "entropy")))
    result["reading"] = reading
    result["text"] = _text(reading, result)
    return result


def read(target: int | None, greedy: int | None, entropy: int | None) -> str:
    """What the signs of the changes say together (None: not recorded).

    own_answer: the target fell while the model's own first choice did not fall and entropy did not rise; spread: the
    target fell and entropy rose or the first choice fell; sharper: the target did not fall and entropy fell;
    unchanged: nothing moved; mixed: anything else.
    """
    if target == -1:
        if entropy == 1 or greedy == -1:
            return "mixed" if greedy == 1 or entropy == -1 else "spread"
        return "own_answer" if greedy == 1 or entropy == -1 else "mixed"
    if entropy == -1 or greedy == 1:
        return "sharper"
    moved = [v for v in (target, greedy, entropy) if v]
    return "mixed" if moved else "unchanged"


_WORDS = {
    "own_answer": "the probability that the answers lost went to the model's own first choices",
    "spread": "the probability that the answers lost spread over many tokens",
    "sharper": "the model became surer of itself on these answers without losing them",
    "unchanged": "neither the answers nor the model's own choices moved",
    "mixed": "the signs do not agree on one reading",
}


def _text(reading: str, result: dict[str, Any]) -> str:
    numbers = [
        f"{words} {arrow(result[name]['from'], result[name]['to'], 3)}"
        for name, words in (("target_logp", "target"), ("greedy_logp", "own first choice"), ("entropy", "entropy"))
        if name in result
    ]
    return f"{_WORDS[reading]} (nats per token: {', '.join(numbers)})."


def lost_mass(aligned: Aligned, change: TokenChange) -> dict[str, Any]:
    """Of the target probability that a side's tokens lost, how much lay where: {side: {"lost", "gained" (expected
    target tokens, sum of probability), "displaced" (share of the lost mass at tokens that were first choice and are no
    longer), "still_first", "never_first", "others"}}; shares add up to 1. Without `is_top1` rows: not applicable.
    """
    before, after = (values.get("is_top1") for values in change.values)
    if before is None or after is None:
        return {"not_applicable": "whether a target was the first choice is not recorded (tokens.is_top1)"}
    result: dict[str, Any] = {}
    for side in aligned.sides:
        places = change.side(side) & ~np.isnan(before) & ~np.isnan(after)
        moved = np.exp(change.before[places]) - np.exp(change.after[places])
        lost = np.maximum(moved, 0.0)
        was, is_ = before[places] == 1, after[places] == 1
        total = float(lost.sum())
        groups = {"displaced": was & ~is_, "still_first": was & is_, "never_first": ~was & ~is_, "others": ~was & is_}
        result[side] = {
            "lost": total,
            "gained": float(np.maximum(-moved, 0.0).sum()),
            **{k: (float(lost[m].sum()) / total if total else None) for k, m in groups.items()},
        }
    return result
