"""A sweep's settings held against one of them, for a terminal."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from dpo_diag.commands.sweep_text import blocks
from dpo_diag.diagnosis.sweep_against import START, VALUES
from dpo_diag.diagnosis.sweep_words import short_names
from dpo_diag.styled import wrap
from dpo_diag.text import MISSING, bracket, number, safe, signed

if TYPE_CHECKING:
    from dpo_diag.diagnosis.sweep_against import Difference, Setting

_TITLES = {"ce/chosen": "chosen CE"}


def lines(base: str, bases: list[Setting], others: list[Setting], width: int) -> list[str]:
    """A table of the metrics, one of each task score, and what the numbers are."""
    knobs = list(dict.fromkeys(name for setting in (*bases, *others) for name in setting.given))
    keys = [[*(setting.given[k] for k in knobs), len(setting.seeds)] for setting in (*bases, *others)]
    header = [*short_names(knobs), "runs"]
    told = "the start of each, means over its seeds" if base == START else f"{base}, means over the seeds that both ran"
    out = [safe(f"against {told}", one_line=True)]
    metrics = [name for name in VALUES if any(not math.isnan(s.values[name]) for s in (*bases, *others))]
    titles = [_TITLES.get(name, " ".join(reversed(name.split("/")))) for name in metrics]
    rows = [
        [*key, *(MISSING if math.isnan(v) else number(v, 4) for v in (setting.values[n] for n in metrics))]
        for key, setting in zip(keys, (*bases, *others), strict=True)
    ]
    out += blocks([*header, *titles], rows, len(header), width)
    for score in dict.fromkeys(d.score for setting in others for d in setting.scores):
        rows = [
            [*key, *_cells(d)]
            for key, setting in zip(keys[len(bases) :], others, strict=True)
            for d in setting.scores if d.score == score
        ]  # fmt: skip
        out += [
            "",
            score,
            *blocks([*header, "base", "score", "difference", "95 %", "by seed", "q"], rows, len(header), width),
        ]
    return [*out, "", *wrap(_LEGEND, width)]


_LEGEND = (
    "difference: paired over the same questions, their answers averaged over the seeds; 95 %: over the questions; by "
    "seed: its least and most, seed by seed; q: p-value corrected over the rows (Benjamini-Hochberg). A difference "
    "whose interval or seeds reach to both sides of 0 is not told apart from none"
)


def _cells(d: Difference) -> list[str]:
    change = round(d.change.value, 12) + 0.0  # thirds of a question do not add up to 0 exactly
    return [
        f"{d.base:.3f}", f"{d.value:.3f}", signed(change), bracket(d.change.low, d.change.high, signed),
        bracket(min(d.by_seed), max(d.by_seed), signed), MISSING if math.isnan(d.q) else number(d.q, 2),
    ]  # fmt: skip
