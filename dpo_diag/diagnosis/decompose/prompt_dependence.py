"""Key tokens: those that the context makes likely. LongPPL, and its idea on preference pairs.

LongPPL (Fang et al. 2024, arXiv 2410.23771): a token is key when its long-short difference
log p(token | long context) - log p(token | short context) exceeds alpha = 2 and its long-context log-prob exceeds
beta = -2; LongPPL = exp(mean of -log p over key tokens). The average over all tokens hides them. On a preference pair
the natural short context is the answer without its prompt: key tokens are those that answer this prompt.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from dpo_diag.diagnosis.aligned import Aligned
from dpo_diag.diagnosis.pair_rows import REFERENCE, FloatArray, step_name
from dpo_diag.diagnosis.token_rows import TokenChange, token_values
from dpo_diag.records import metrics

GAIN, FLOOR = 2.0, -2.0
"""alpha and beta of the paper (its appendix finds results stable around them), for library calls that name none; an
explanation takes those of conf/checks."""


class LongPPL(NamedTuple):
    """LongPPL and what it rests on; perplexities are NaN where there is no token to average over."""

    longppl: float
    ppl: float
    n_key: int
    n_tokens: int


def key_tokens(
    long_logp: npt.ArrayLike, short_logp: npt.ArrayLike, gain: float = GAIN, floor: float = FLOOR
) -> npt.NDArray[np.bool_]:
    """Marks of the key tokens: long - short > gain and long > floor, both strictly; same shape as the input.

    A token with an unknown (NaN) log-prob is not key. A token that the short context makes impossible (-inf) and the
    long one likely is key.
    """
    long_, short = np.asarray(long_logp, dtype=np.float64), np.asarray(short_logp, dtype=np.float64)
    if long_.shape != short.shape:
        raise ValueError(f"long and short log-probs must have the same shape, got {long_.shape} and {short.shape}")
    with np.errstate(invalid="ignore"):
        return np.asarray((long_ - short > gain) & (long_ > floor), dtype=bool)


def longppl(
    long_logp: npt.ArrayLike,
    short_logp: npt.ArrayLike,
    *,
    evaluator_long: npt.ArrayLike | None = None,
    evaluator_short: npt.ArrayLike | None = None,
    gain: float = GAIN,
    floor: float = FLOOR,
) -> LongPPL:
    """LongPPL of one or many documents, from token log-probs (nats) that a model gave with long and short context.

    Args:
        long_logp, short_logp: log p of the same tokens with the whole context and with the truncated one, any equal
            shape; tokens whose long and short context coincide (the document's first) have difference 0, never key.
        evaluator_long, evaluator_short: the paper lets one strong model choose the key tokens for all evaluated ones;
            where given, keys come from these and `short_logp` is not looked at.

    Returns: see `LongPPL`. Hand case: long [-1, -0.5, -3, -0.1], short [-4, -1, -9, -2.2]: tokens 0 and 3 are key
        (2 fails the floor), so exp((1 + 0.1) / 2) = 1.7333.
    """
    own = np.asarray(long_logp, dtype=np.float64)
    if (evaluator_long is None) != (evaluator_short is None):
        raise ValueError("evaluator_long and evaluator_short go together")
    if evaluator_long is not None and evaluator_short is not None:
        keys = key_tokens(evaluator_long, evaluator_short, gain, floor)
    else:
        keys = key_tokens(own, short_logp, gain, floor)
    known = ~np.isnan(own)
    return LongPPL(_perplexity(own[keys & known]), _perplexity(own[known]), int((keys & known).sum()), int(known.sum()))


def _perplexity(logp: FloatArray) -> float:
    return metrics.safe_exp(-float(logp.mean())) if logp.size else math.nan


def prompt_dependence(
    aligned: Aligned, change: TokenChange, gain: float = GAIN, floor: float = FLOOR
) -> dict[str, Any]:
    """Perplexity over the prompt's key tokens beside the plain one, at both steps, for each side.

    Keys are chosen once, by the first model for which `logp_no_prompt` is recorded (policy at the first step, else the
    reference, else the last step), so that both steps are measured on the same tokens.

    Returns: {"chosen_by", "gain", "floor", side: {"n_tokens", "n_key", "key_share", "ppl_token": {"from", "to",
        "dlog"}, "ppl_key": {...}, "ppl_other": {...}, "delta_key", "delta_other", "delta", "residual"}} with deltas in
        nats of summed log-prob; or {"not_applicable": reason}.
    """
    found = _no_prompt(aligned, change)
    if found is None:
        return {"not_applicable": "no log-probs without the prompt are recorded (tokens.logp_no_prompt)"}
    chosen_by, with_prompt, without = found
    keys = key_tokens(with_prompt, without, gain, floor)
    result: dict[str, Any] = {"chosen_by": chosen_by, "gain": gain, "floor": floor}
    for side in aligned.sides:
        places = change.side(side) & ~np.isnan(without)
        if places.any():
            result[side] = _side(change.before[places], change.after[places], keys[places])
    return result


def _no_prompt(aligned: Aligned, change: TokenChange) -> tuple[str, FloatArray, FloatArray] | None:
    """(model, log-probs with the prompt, without it) of the first model that records both."""
    column = "logp_no_prompt"
    names = (step_name(s) if s == REFERENCE else f"the policy at {step_name(s)}"
             for s in (aligned.from_step, aligned.to_step))  # fmt: skip
    first, last = zip(names, change.values, strict=True)
    candidates = [first, last]
    if column not in first[1] and aligned.from_step != REFERENCE:
        # Most runs record none: looking at the column alone is much cheaper than placing it.
        recorded = aligned.run.arrow("tokens", [column], None, [aligned.split], ["ref"]).column(0)
        if recorded.null_count < len(recorded):
            values = token_values(aligned.run, change.layout, aligned.split, REFERENCE, ["logp", column])
            candidates.insert(1, ("the reference", values))
    for model, values in candidates:
        if column in values and not np.isnan(values[column]).all():
            return model, values["logp"], values[column]
    return None


def _side(before: FloatArray, after: FloatArray, keys: npt.NDArray[np.bool_]) -> dict[str, Any]:
    moved = after - before
    delta, delta_key, delta_other = float(moved.sum()), float(moved[keys].sum()), float(moved[~keys].sum())
    result: dict[str, Any] = {"n_tokens": int(keys.size), "n_key": int(keys.sum()), "key_share": float(keys.mean())}
    everything = np.ones(keys.size, dtype=bool)
    for name, mask in (("ppl_token", everything), ("ppl_key", keys), ("ppl_other", ~keys)):
        start, end = _perplexity(before[mask]), _perplexity(after[mask])
        dlog = float(before[mask].mean() - after[mask].mean()) if mask.any() else math.nan
        result[name] = {"from": start, "to": end, "dlog": dlog}
    return {
        **result, "delta": delta, "delta_key": delta_key, "delta_other": delta_other,
        "residual": delta - delta_key - delta_other,
    }  # fmt: skip
