"""What a comparison of two checkpoints comes to, in words: who is preferred, how many more judgements would tell."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dpo_diag.stats import proportion
from dpo_diag.text import about, percent, plural
from dpo_diag.thresholds import load_thresholds

NO_PREFERENCE = 0.5
LEAST_PREFERENCE = 0.1
"""Where both won as often: a preference of 60 to 40 is what more judgements are to show."""


def conclude(comparison: Mapping[str, Any]) -> dict[str, Any]:
    """{"preferred": label or None, "more": judgements or None, "conclusion": sentences} of an entry of `comparisons`.

    One is preferred where the interval of the win rate excludes one half and so does the sign test, corrected for all
    comparisons. Where none is, `more` is how many further items would tell a preference of the size that was seen from
    none with power 80 % (`Interval.needed`), if they scatter as these do.
    """
    a, b, n = comparison["a"], comparison["b"], int(comparison["n"])
    rate = proportion(comparison["win_rate"] * n, n)
    least = int(load_thresholds()["least_for_interval"])
    won = f"{b} won {percent(rate.value)} of {plural(n, 'item')} (ties count half"
    if n < least:
        more = least - n
        return _said(None, more, f"Too few to say who is better: {won}); {_more(more)} at least give an interval.")
    low, high = (percent(bound) for bound in (rate.low, rate.high))
    change = rate.shifted(-NO_PREFERENCE)
    if change.sign and comparison["q"] < 1 - rate.level:
        better, other = (b, a) if change.above else (a, b)
        if better == a:
            won = f"it won {percent(1 - rate.value)} of {plural(n, 'item')} (ties count half"
            low, high = percent(1 - rate.high), percent(1 - rate.low)
        else:
            won = f"it{won.removeprefix(b)}"
        return _said(better, 0, f"{better} is preferred over {other}: {won}; 95 % interval {low} to {high}).")
    seen = change.value or LEAST_PREFERENCE
    needed = change.needed(seen)
    more = max(needed or 0, n + 1) - n
    size = "of this size" if change.value else f"of {percent(NO_PREFERENCE + LEAST_PREFERENCE)}"
    left = "" if comparison["differ"] is None else _left(int(comparison["differ"]) - n, more)
    return _said(
        None,
        more,
        f"Neither {a} nor {b} is preferred so far: {won}; 95 % interval {low} to {high}). About {_more(about(more))} "
        f"would tell a preference {size} from none (power 80 %){left}.",
    )


def _said(preferred: str | None, more: int, text: str) -> dict[str, Any]:
    return {"preferred": preferred, "more": more, "conclusion": text}


def _more(n: int) -> str:
    return f"{n} more {'judgement' if n == 1 else 'judgements'}"


def _left(unjudged: int, more: int) -> str:
    """Where the run holds fewer answers that differ than would be needed."""
    if unjudged >= more:
        return ""
    return f"; the run holds {unjudged or 'no'} more {'answer' if unjudged == 1 else 'answers'} that differ"
