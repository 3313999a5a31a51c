"""Two runs on one page: what differs, both verdicts, what came of it over the same pairs and questions, the curves over
each other, and both answers where they differ. The comparison itself is `diagnosis.two_runs`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dpo_diag.diagnosis import Explanation
from dpo_diag.diagnosis.differences import AREAS, Difference
from dpo_diag.diagnosis.two_runs import Change, TwoRuns, compare_runs, other_tokenizer
from dpo_diag.records import Run, load_run
from dpo_diag.records.metric_table import label_of, metric_of
from dpo_diag.records.schemas import TRAIN_SPLIT
from dpo_diag.report.answers import of_two
from dpo_diag.report.headline import headline
from dpo_diag.report.html import page, write_page
from dpo_diag.report.panels import SmallChart, draw, panels
from dpo_diag.report.plots import Series
from dpo_diag.report.run_page import explained, printed_document
from dpo_diag.report.section import Context
from dpo_diag.report.tables import Table, table
from dpo_diag.report.text import one_line, told_apart
from dpo_diag.text import bracket, capital, number, percent, plural, signed, some, to_json
from dpo_diag.translated import Catalogue, catalogue

AGAINST_FILE = "report-against-{}.html"
LETTERS = "ab"
PAIRS_SHOWN = 20
VALUE_CHARS = 32
"""Characters of a value that differs (a fingerprint's first ones tell as much as all)."""
APART = "{what}: their logged perplexities, cross-entropies and log-probs are not held against each other"


def write_two_runs(
    run: Run | str | os.PathLike[str],
    against: Run | str | os.PathLike[str],
    path: str | os.PathLike[str] | None = None,
    say: Catalogue | None = None,
) -> Path:
    """Write the page of a run (b) held against another (a) and return its path.

    Args:
        path: where to write; RUN/report-against-NAME.html if None.
        say: the language of its words; None: that of DPO_DIAG_LANG, or English.

    Raises:
        DiagError: a run cannot be read, or the file cannot be written.
    """
    b, a = (r if isinstance(r, Run) else load_run(r) for r in (run, against))
    target = Path(path) if path is not None else b.path / AGAINST_FILE.format(a.path.absolute().name)
    return write_page(render_two(compare_runs(a, b), (explained(a), explained(b)), say or catalogue()), target)


def render_two(found: TwoRuns, explanations: tuple[Explanation, Explanation], say: Catalogue | None = None) -> str:
    """The page's text, in English where `say` names no other language."""
    contexts = [Context(run, of, {}) for run, of in zip(found.runs, explanations, strict=True)]
    names = called(*found.runs)
    apart = incomparable(found)
    heads = [headline(context) for context in contexts]
    return page(
        "two_runs.html",
        {
            "names": names,
            "heads": heads,
            "apart": apart,
            "apart_above": apart and all(any("perplexity" in fact.name for fact in head.facts) for head in heads),
            "notes": [*found.notes],
            "differences": differences_table(found.differences, names),
            "alone": said_by_one(found.differences, names),
            "partings": partings_table(found),
            "changes": changes_table(found, names),
            "changes_note": changes_note(found),
            "scores": [m.told(found.thresholds) for m in found.scores],
            "curves": curves_over_each_other(contexts, names, apart is not None),
            "pairs": pairs_table(found, names),
            "answered": of_two(found.answers, names) if len(found.answers) else None,
        },
        {
            "two-runs": found.document(),
            **{
                f"explanation-{letter}": printed_document(context.run, context.document)
                for letter, context in zip(LETTERS, contexts, strict=True)
            },
        },
        say,
    )


def called(a: Run, b: Run) -> tuple[str, str]:
    """What the page calls the runs: by the names in their configurations where those differ, else by their folders."""
    names = [r.info.name or r.path.absolute().name for r in (a, b)]
    if names[0] == names[1] and a.path.resolve() == b.path.resolve():
        names = [f"{name} ({letter})" for name, letter in zip(names, LETTERS, strict=True)]
    elif names[0] == names[1]:
        folders = [r.path.absolute() for r in (a, b)]
        root = os.path.commonpath(folders)
        names = [os.path.relpath(folder, root) for folder in folders]
    return names[0], names[1]


def incomparable(found: TwoRuns) -> str | None:
    """Why the logged perplexities of the two runs must not be held against each other; None where they may."""
    if other_tokenizer(*found.runs):
        return APART.format(what="The tokenizers differ")
    if found.aligned is None:
        return APART.format(what="The runs share no measured pairs")
    left = found.aligned.coverage["only_from"] + found.aligned.coverage["only_to"]
    return APART.format(what=f"{plural(left, 'pair')} are in one of the two sets only") if left else None


def differences_table(differing: list[Difference], names: tuple[str, str]) -> Table | None:
    """What both say and say differently: area, name, both values; the configuration first."""
    rows = [(d.area, d.name, _value(d.a), _value(d.b)) for d in differing if d.a is not None and d.b is not None]
    frame = pd.DataFrame(rows, columns=["", "name", *LETTERS])
    caption = f"what differs: {', '.join(AREAS)}"
    return table(frame, caption, names=_heads(names), own=LETTERS) if rows else None


def said_by_one(differing: list[Difference], names: tuple[str, str]) -> list[tuple[str, str]]:
    """(whose, "name = value, ...") of what one run alone says."""
    # How a log was read says nothing of the training.
    told = [d for d in differing if not d.name.startswith("source.")]
    lone = ([d for d in told if d.b is None], [d for d in told if d.a is None])
    return [
        (f"Only {name} says", some((f"{d.name} = {_value(d.a if d.b is None else d.b)}" for d in of), 6))
        for name, of in zip(names, lone, strict=True)
        if of
    ]


def _heads(names: tuple[str, str]) -> dict[str, str]:
    """Column -> head: a run may be called as a column of ours is."""
    return dict(zip(LETTERS, names, strict=True))


def _value(value: Any) -> str:
    text = to_json(value) if isinstance(value, (list, Mapping, bool)) else number(value)
    return text if len(text) <= VALUE_CHARS else f"{text[:VALUE_CHARS]}…"


def partings_table(found: TwoRuns) -> Table | None:
    """From which step on each kind of record differs."""
    rows = [
        (f"{p.what} {p.split}".strip(), "alike" if p.step is None else f"step {p.step}",
         f"at all {plural(p.shared, 'shared step')}" if p.step is None else f"{p.n_different} of {p.n}: {p.text}")
        for p in found.partings
    ]  # fmt: skip
    frame = pd.DataFrame(rows, columns=["record", "differs from", "what"])
    return table(frame, "where they part") if rows else None


def changes_table(found: TwoRuns, names: tuple[str, str]) -> Table | None:
    """The quantities over the pairs of both, each with its paired interval."""
    rows = [
        (_quantity(c), number(c.a), number(c.b), signed(c.change.value),
         bracket(c.change.low, c.change.high, signed), c.change.n)
        for c in found.changes
    ]  # fmt: skip
    columns = ["quantity", *LETTERS, "change", f"{percent(found.intervals.level)} interval", "n"]
    frame, caption = pd.DataFrame(rows, columns=columns), "over the pairs of both runs, paired"
    return table(frame, caption, names=_heads(names), own=LETTERS) if rows else None


def _quantity(change: Change) -> str:
    """With the unit of this comparison: per byte where the tokenizers differ."""
    label = capital(label_of(change.name)) if metric_of(change.name) else change.name
    return f"{label.partition(' (')[0]}, {change.unit}"


def changes_note(found: TwoRuns) -> str:
    """Over what the changes are; "" where there are none."""
    if found.aligned is None:
        return ""
    counted = found.intervals.counted(found.aligned.pairs["pair_id"])
    at = " and ".join(run.info.at(step) for run, step in zip(found.runs, found.steps, strict=True) if step is not None)
    return f"Over {counted} of {found.split}, at {at}."


def pairs_table(found: TwoRuns, names: tuple[str, str]) -> Table | None:
    """The pairs whose chosen answer's cross-entropy differs most."""
    pairs = found.pairs
    sides = [s for s in ("chosen", "rejected") if f"{s}_change" in pairs]
    if pairs.empty or not pairs[[f"{s}_change" for s in sides]].abs().gt(0).any(axis=None):
        return None
    head = pairs.head(PAIRS_SHOWN)
    texts = [one_line(t if isinstance(t, str) else i, 70) for t, i in zip(head["chosen"], head["pair_id"], strict=True)]
    frame = pd.DataFrame({"pair, by its chosen answer": texts})
    for side in sides:
        for letter, name in zip(LETTERS, names, strict=True):
            frame[f"{side} CE, {name}"] = head[f"{side}_ce_{letter}"].to_numpy()
        frame[f"change {side}"] = head[f"{side}_change"].to_numpy()
    formats: dict[str, Callable[[Any], str]] = {f"change {side}": signed for side in sides}
    own = [str(column) for column in frame if " CE, " in str(column)]
    return table(frame, "pairs that differ most, cross-entropy in nats per token", formats=formats, own=own)


@dataclass(frozen=True)
class Overlaid:
    """The curves over each other: the charts, of which rows they are made, and whether some were left out."""

    charts: list[SmallChart]
    rows: str
    left_out: bool


def curves_over_each_other(contexts: list[Context], names: tuple[str, str], apart: bool) -> Overlaid:
    """One small chart per metric that both runs logged: both lines on the same axes, of evaluations where a run has
    them, else of training batches.

    Args:
        apart: leave out the likelihoods of one side, which only the same texts and tokens make comparable.
    """
    histories = [(c.run.history, c.split) for c in contexts]
    known = [set(h.loc[h["split"].isin([split, TRAIN_SPLIT]), "name"].map(str)) for h, split in histories]
    shared = known[0] & known[1]
    kept = {name for name in shared if not (apart and (m := metric_of(name)) is not None and m.sides)}
    charts, words = [], {context.run.info.step_word for context in contexts}
    short = told_apart(names, 14)
    for panel in panels(kept, apart=True):
        (metric,) = panel.names
        lines = []
        for letter, name, (history, split) in zip(LETTERS, short, histories, strict=True):
            own = history.loc[history["name"] == metric].sort_values("step")
            own = own.loc[own["split"] == (split if (own["split"] == split).any() else TRAIN_SPLIT)]
            x, y = (own[c].to_numpy(dtype=float) for c in ("step", "value"))
            if np.isfinite(y).any():
                lines.append(Series(name, x, y, f"run-{letter}", note=number(y[np.isfinite(y)][-1], 3)))
        if lines:
            charts.append(draw(panel, lines, "step" if words == {"step"} else "row"))
    splits = [split or "none" for _, split in histories]
    rows = f"split {splits[0]}" if splits[0] == splits[1] else f"split {splits[0]} against {splits[1]}"
    return Overlaid(charts, rows, any(m.unit != "tokens" for name in shared - kept if (m := metric_of(name))))
