"""A sweep on one page: every run with its verdict and rank beside the start, what was set against what came of it, the
front of task score and chosen answers, which knob moved what, and the curves of all runs.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup

from dpo_diag.diagnosis.logged import measured_split, score_label
from dpo_diag.diagnosis.sweep import Sweep
from dpo_diag.diagnosis.sweep_effects import RISE, as_number, effects, in_order, outcomes_of, pareto
from dpo_diag.diagnosis.sweep_values import METRICS
from dpo_diag.diagnosis.sweep_words import (
    SHORT,
    about_ranks,
    legend,
    outcome_words,
    short_names,
    short_runs,
    verdict_words,
)
from dpo_diag.records import load_run
from dpo_diag.report.html import page, write_page
from dpo_diag.report.panels import Panel, SmallChart, draw, panels
from dpo_diag.report.plots import Series
from dpo_diag.report.svg import responsive
from dpo_diag.report.sweep_plots import Axis, Point, category_axis, number_axis, parallel, plane
from dpo_diag.report.tables import Table, table
from dpo_diag.report.text import one_line
from dpo_diag.text import MISSING, bracket, number, plural, records, signed

MANY = 40
"""Runs whose curves are drawn: the best by rank."""
FACTOR = 10.0
"""A knob whose values span more than this has a logarithmic axis."""
Verdicts = Mapping[str, Mapping[str, Any]]


def write_sweep(
    collected: Sweep, path: str | os.PathLike[str], name: str, verdicts: Verdicts | None = None,
    document: Mapping[str, Any] | None = None,
) -> Path:  # fmt: skip
    """Write the page of a sweep and return its path.

    Args:
        name: what it is called: its folder.
        verdicts: run -> the explanation's verdict, where there is one.
        document: what `dpo-diag sweep --json` prints, for a script or an agent that reads the page.

    Raises:
        DiagError: a run cannot be read, or the file cannot be written.
    """
    return write_page(render_sweep(collected, name, verdicts or {}, document or {}), Path(path))


def render_sweep(collected: Sweep, name: str, verdicts: Verdicts, document: Mapping[str, Any]) -> str:
    """The page's text."""
    names = short_runs(collected.ranked["run"].tolist()) if len(collected.runs) else []
    best = names[0] if names and collected.ranking.best else None
    score = collected.ranking.score
    headline = "No run completed"
    if names:
        by = outcome_words(score or "reward_accuracy")
        headline = f"Run {best} is best by {by}" if best and len(names) > 1 else "The runs"
    about = list(about_ranks(collected)) if names else []
    return page(
        "sweep.html",
        {
            "name": name,
            "counted": f"{plural(len(collected.runs), 'completed run')} of {plural(len(collected.jobs), 'job')}",
            "constant": ", ".join(f"{k}={v}" for k, v in collected.constant.items()),
            "headline": headline,
            "about": about,
            "runs": runs_table(collected, names, verdicts),
            "legend": legend(collected) if names else "",
            "unfinished": unfinished_table(collected),
            "coordinates": coordinates(collected, names),
            "front": front(collected, names),
            "knobs": knobs_table(collected),
            "groups": groups_table(collected),
            "curves": curves(collected, names),
        },
        {"sweep": document} if document else None,
    )


def runs_table(collected: Sweep, names: Sequence[str], verdicts: Verdicts) -> Table:
    """One row per run in the order of ranks, a first one for the start that all have in common."""
    rows: list[dict[str, Any]] = []
    shown = [(c, SHORT.get(c, c)) for c in METRICS.values() if len(names) and collected.runs[c].notna().any()]
    parameters = list(zip(collected.parameters, short_names(collected.parameters), strict=True))
    if collected.before:
        rows.append({"run": "before", **{t: number(collected.before.get(c)) for c, t in shown},
                     **{outcome_words(s): number(collected.before.get(s), 3) for s in collected.scores}})  # fmt: skip
    for name, row in zip(names, records(collected.ranked), strict=True):
        verdict = verdicts.get(row["run"])
        told: dict[str, Any] = {"rank": number(row["rank"]), "run": name}
        told |= {title: str(row[p]) for p, title in parameters}
        for s in collected.scores:
            told[outcome_words(s)] = f"{number(row[s], 3)} {bracket(row[f'{s}_low'], row[f'{s}_high'])}"
        told["verdict"] = "" if verdict is None else verdict_words(verdict).replace("_", " ")
        for s in collected.scores:
            change = row.get(f"{s}_change")
            bounds = bracket(row.get(f"{s}_change_low"), row.get(f"{s}_change_high"), signed)
            told[f"its change{_again(s, collected)}"] = MISSING if change is None else f"{signed(change)} {bounds}"
            told[f"its best{_again(s, collected)}"] = _best(row, s)
        told |= {title: number(row[c]) for c, title in shown}
        rows.append(told)
    columns = list(dict.fromkeys(["rank", "run", *(k for r in reversed(rows) for k in r)]))
    frame = pd.DataFrame(rows, columns=columns).fillna("")
    formats = {c: str for c in columns if c not in ("run", "verdict", *(t for _, t in parameters))}
    return table(frame, "runs, the best first; [ ]: 95 % intervals", formats=formats)


def _again(score: str, collected: Sweep) -> str:
    """Tells apart what stands for each of several scores: columns have one name each."""
    return f" ({outcome_words(score)})" if collected.scores.index(score) else ""


def _best(row: Mapping[str, Any], column: str) -> str:
    best, at = row[f"{column}_best"], row[f"{column}_best_step"]
    return MISSING if best is None else f"{number(best, 3)} at step {at:.0f}"


def unfinished_table(collected: Sweep) -> Table | None:
    rows = [
        (job.name, job.status, " ".join(f"{k}={v}" for k, v in job.overrides.items() if k not in collected.constant),
         job.reason or job.progress, "" if job.log is None else str(job.log))
        for job in collected.unfinished
    ]  # fmt: skip
    frame = pd.DataFrame(rows, columns=["job", "status", "set", "why", "log"])
    return table(frame, "jobs that did not complete") if rows else None


def groups_table(collected: Sweep) -> Table | None:
    """The mean over seeds and its range; None where no setting has two runs."""
    groups = collected.groups
    if not len(groups) or len(groups) == len(collected.runs):
        return None
    parameters = [p for p in collected.parameters if p in groups]
    values = [*((c, SHORT.get(c, c)) for c in METRICS.values()), *((s, outcome_words(s)) for s in collected.scores)]
    rows = []
    for row in records(groups):
        told = {title: str(row[p]) for p, title in zip(parameters, short_names(parameters), strict=True)}
        told["runs"] = str(row["runs"])
        for column, title in values:
            if column in groups and groups[column].notna().any():
                mean, low, high = (number(row[f"{column}{end}"], 3) for end in ("", "_low", "_high"))
                told[title] = f"{mean} [{low}, {high}]"
        rows.append(told)
    return table(pd.DataFrame(rows), "mean [lowest, highest] over seeds")


def knobs_table(collected: Sweep) -> Table | None:
    """Every knob's effect on every outcome; None where no knob has two values."""
    found = effects(collected) if len(collected.runs) > 1 else []
    knobs = dict(zip(collected.parameters, short_names(collected.parameters), strict=True))
    rows = [
        (f"{knobs[e.knob]} {one_line(e.a, 24)} → {one_line(e.b, 24)}", outcome_words(e.outcome), number(e.before, 3),
         number(e.after, 3), signed(e.change.value), bracket(e.change.low, e.change.high, signed),
         plural(e.change.n, "pair") + " of runs" if e.matched else f"{e.change.n} runs each, not matched")
        for e in found
    ]  # fmt: skip
    columns = ["knob", "outcome", "first", "second", "change", "95 %", "over"]
    formats = dict.fromkeys(("first", "second", "change", "95 %"), str)
    return table(pd.DataFrame(rows, columns=columns), "effect of each knob", formats=formats) if rows else None


def coordinates(collected: Sweep, names: Sequence[str]) -> Markup | None:
    """Parallel coordinates: the knobs, then the outcomes; None below two runs or without a knob."""
    frame = collected.ranked
    knobs = [p for p in collected.parameters if frame[p].nunique() > 1]
    if len(names) < 2 or not knobs:
        return None
    axes = [_knob(title, frame[p].astype(str).tolist()) for p, title in zip(knobs, short_names(knobs), strict=True)]
    for column in outcomes_of(collected) or ["loss"]:
        values = [None if v is None else float(v) for v in (row[column] for row in records(frame))]
        axes.append(number_axis(outcome_words(column), values))
    told = [
        f"{name}: " + ", ".join(f"{t}={row[p]}" for p, t in zip(knobs, short_names(knobs), strict=True))
        + "".join(f", {outcome_words(c)} {number(row[c], 3)}" for c in outcomes_of(collected))
        for name, row in zip(names, records(frame), strict=True)
    ]  # fmt: skip
    best = 0 if collected.ranking.best else None
    description = f"parallel coordinates of {len(names)} runs over {', '.join(a.label for a in axes)}"
    # The marks carry their text themselves.
    return responsive(lambda width: parallel(axes, told, best, width=width, description=description))


def _knob(title: str, values: list[str]) -> Axis:
    order = in_order(values)
    numbers = [as_number(v) for v in values]
    if len(order) > 2 and all(n is not None for n in numbers):
        known = [n for n in numbers if n is not None]
        return number_axis(title, numbers, log=min(known) > 0 and max(known) / min(known) >= FACTOR)
    return category_axis(title, values, order)


def front(collected: Sweep, names: Sequence[str]) -> Markup | None:
    """Task score against the rise of the chosen answers' cross-entropy; None where the two cannot be compared."""
    best, score = pareto(collected), collected.ranking.score
    if len(names) < 2 or not best or score is None:
        return None
    rows = [r for r in zip(names, records(collected.ranked), strict=True) if None not in (r[1][score], r[1][RISE])]
    points = [Point(float(row[RISE]), float(row[score]), name, row["run"] in best) for name, row in rows]
    start = (0.0, collected.before.get(score))
    hover = {
        "points": [[p.x, p.y, f"{p.name}: {outcome_words(score)} {number(p.y, 3)}, rise {signed(p.x)}"] for p in points]
    }
    labels = ("rise of chosen CE, nats per token", outcome_words(score))
    text = (
        f"{outcome_words(score)} against the rise of the chosen answers' cross-entropy; on the front: {', '.join(best)}"
    )
    return responsive(lambda width: plane(points, start, *labels, width=width, description=text), hover)


def curves(collected: Sweep, names: Sequence[str]) -> list[SmallChart]:
    """One small chart per metric and task score with a line for each run; thin ones but for the best."""
    shown = [(name, load_run(row["run"])) for name, row in zip(names, records(collected.ranked), strict=True)][:MANY]
    lines: dict[str, list[Series]] = {}
    for place, (name, run) in reversed(list(enumerate(shown))):
        history, split = run.history, measured_split(run)
        of_split = history.loc[(history["split"] == split) | history["name"].astype(str).str.startswith("score/")]
        for (metric, where), rows in of_split.groupby(["name", "split"], observed=True):
            rows = rows.sort_values("step")
            x, y = (rows[c].to_numpy(dtype=float) for c in ("step", "value"))
            if not np.isfinite(y).any():
                continue
            top = place == 0 and collected.ranking.best is not None
            kind = "run-a" if top else "loss thin"
            key = f"{metric}@{where}" if str(metric).startswith("score/") else str(metric)
            note = number(y[-1], 3) if top else ""
            lines.setdefault(key, []).append(Series(one_line(name, 14), x, y, kind, note=note))
    scores = [
        draw(Panel(score_label(name, where).capitalize(), {}, False), of, "step")
        for (name, _, where), of in ((key.partition("@"), of) for key, of in lines.items() if "@" in key)
    ]
    wanted = [name for name in METRICS if name in lines]
    return [*scores, *(draw(panel, lines[next(iter(panel.names))], "step") for panel in panels(wanted, apart=True))]
