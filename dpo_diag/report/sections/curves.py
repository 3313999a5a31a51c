"""Where loss, perplexities and the task score part: each against its own start, then in absolute values; then a small
chart of all else that was logged."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup

from dpo_diag.diagnosis.evidence import score_curves
from dpo_diag.diagnosis.logged import score_label
from dpo_diag.records import Run
from dpo_diag.records.schemas import TRAIN_SPLIT
from dpo_diag.report.panels import SmallChart, draw, lines_of, panels
from dpo_diag.report.plots import Series, line_chart, line_values
from dpo_diag.report.section import SECTIONS, Context, NotApplicable, Section
from dpo_diag.report.svg import NARROW, responsive
from dpo_diag.report.tables import table
from dpo_diag.report.text import ratio
from dpo_diag.text import arrow, capital, number, signed
from dpo_diag.thresholds import defaults

CHOSEN = "chosen perplexity"
PERPLEXITIES = ("ppl_token", "ppl_seq_mean", "ppl_seq_geomean")
"""The first one that was logged is drawn, as in the page's head and in `explain`."""
PANELS = {
    "loss": "Loss, nats per {unit}",
    "perplexity": "Perplexity of the answers ({measure}), logarithmic",
    "log-probs": "Log-prob of the answers, nats",
    "score": "Task score, with 95 % interval",
}
COLUMNS = ["panel", "line", "kind", "step", "value", "low", "high", "n", "measure", "split"]
LEAST_FOR_FACTORS = 3.0
"""Above this ratio to its start a line is drawn as a factor on a logarithmic axis, below it as a change in per cent."""

TEMPLATE = """
{% if parting %}
{% call ui.figure("Each line against its own first value. " ~ parting_text, [parting]) %}{{ plot }}{% endcall %}
{% endif %}
{% if panels %}
<figure>
{% for title, drawing in panels %}<h3>{{ title|say }}</h3>{{ drawing }}{% endfor %}
{{ ui.numbers(numbers) }}
</figure>
{% endif %}
{% if more %}
{% if fold %}
<details class="numbers more">
<summary>{{ "%(n)s more charts: all else that was logged"|say|format(n=more|length) }}</summary>
{% endif %}
{{ ui.grid(more) }}
{% if fold %}</details>{% endif %}
{% endif %}
<p class="small">{{ splits|say }}</p>
"""


def build(context: Context) -> Mapping[str, Any]:
    """What the template shows: the parting, the panels that it is made of, and a small chart of all else."""
    run, split, word = context.run, context.split, context.run.info.step_word
    frame = curves_frame(run, split, context.document.get("trajectory") or [], context.loss_label)
    more = small_charts(run.history, split, set(frame["measure"]), word)
    if frame.empty and not more:
        raise NotApplicable("the run has no history of a loss, a perplexity or a score")
    steps = {"from": context.document.get("from_step"), "to": context.document.get("to_step")}
    marks = [(step, name) for name, step in steps.items() if isinstance(step, int)]
    parting, unit = parting_frame(frame), "token" if run.info.method == "sft" else "pair"
    evaluated = frame.loc[frame["kind"] != "train"].drop(columns=["panel", "kind"])
    batches = bool((run.history["split"] == TRAIN_SPLIT).any()) and split != TRAIN_SPLIT
    return {
        "plot": draw_parting(parting, word) if len(parting) else None,
        "parting_text": parting_text(parting),
        "parting": table(
            parting.drop(columns="kind").rename(columns={"step": word}), "change since the first measurement",
            formats={"ratio": ratio, word: number},
        ) if len(parting) else None,
        "panels": [draw_panel(str(panel), frame, marks, word, unit) for panel in frame["panel"].unique()],
        "numbers": table(
            evaluated.rename(columns={"step": word}), "loss, perplexities and scores",
            formats={word: number, "n": number},
        ),
        **({} if len(parting) else {"section_title": "The curves", "section_lead": "Whatever was logged."}),
        "more": more,
        "fold": run.has("pairs"),
        "splits": split_text(split, batches),
    }  # fmt: skip


def split_text(split: str | None, batches: bool) -> str:
    """Which rows the lines are made of."""
    if split == TRAIN_SPLIT:
        return "All lines are means of training batches: no evaluation is logged."
    beside = "; thin lines: training batches" if batches else ""
    return f"Evaluation split: {split or 'none'}{beside}."


def small_charts(history: pd.DataFrame, split: str | None, drawn: set[str], word: str) -> list[SmallChart]:
    """A small chart of every metric that the history holds at two steps or more and that is not drawn already."""
    rows = history.loc[history["split"].isin([split, TRAIN_SPLIT]) & ~history["name"].isin(list(drawn))]
    counts = rows.loc[rows["value"].notna()].groupby(["name", "split"], observed=True).size()
    known = {str(name) for name, _ in counts.index[counts >= 2]}
    found = [(panel, lines_of(rows, panel, split)) for panel in panels(known)]
    reach = (float(rows["step"].min()), float(rows["step"].max())) if len(rows) else None
    return [draw(panel, lines, word, reach) for panel, lines in found if lines]


SECTIONS.add("curves", Section(
    title="The parting of the curves",
    lead="The loss sees the difference of two log-probs; perplexity sees one of them.",
    order=10, build=build, template=TEMPLATE,
))  # fmt: skip


# --- what is drawn ----------------------------------------------------------------------------------------------------


def curves_frame(
    run: Run, split: str | None, trajectory: Iterable[Mapping[str, Any]] = (), loss: str = "DPO loss"
) -> pd.DataFrame:
    """Long frame of what the panels draw: panel (a key of PANELS), line, kind (its style), step, value, low and high
    (a score's 95 % interval over its questions), n, measure (the history's name), split. What the history lacks (a
    scored run has none) comes from the explanation's `trajectory`. Empty where neither has anything.

    Args:
        loss: what the loss is called.
    """
    history = run.history
    own = _completed(history.loc[history["split"] == split], split, trajectory)
    parts = [_part(own, "loss", loss, "loss", "loss")]
    if split != TRAIN_SPLIT:
        batches = history.loc[history["split"] == TRAIN_SPLIT]
        parts.append(_part(batches, "loss", "training batches", "train", "loss"))
    logged = set(own["name"])
    sides = ("chosen", "rejected")
    shown = next((p for p in PERPLEXITIES if any(f"{p}/{side}" in logged for side in sides)), None)
    for side in sides:
        if shown is not None:
            parts.append(_part(own, "perplexity", f"{side} perplexity", side, f"{shown}/{side}"))
        else:
            parts.append(_part(own, "log-probs", f"{side} log-prob", side, f"logps/{side}"))
    for i, curve in enumerate(score_curves(run)):
        part = pd.DataFrame({"step": curve.steps, "value": curve.values, "n": curve.n})
        measured = [curve.value_at(place, defaults()) for place in range(len(part))]
        part["low"], part["high"] = [m.low for m in measured], [m.high for m in measured]
        # The second score of two has a line of its own, and so on in turn.
        kind = "score2" if i % 2 else "score"
        parts.append(part.assign(panel="score", line=score_label(curve.name, curve.split), kind=kind,
                                 measure=f"score/{curve.name}", split=curve.split))  # fmt: skip
    known = [part[COLUMNS] for part in parts if len(part)]
    return pd.concat(known, ignore_index=True) if known else pd.DataFrame(columns=COLUMNS)


def _part(rows: pd.DataFrame, panel: str, line: str, kind: str, name: str) -> pd.DataFrame:
    """One line of a panel from history rows of one split; empty where they lack the metric."""
    of = rows.loc[rows["name"] == name]
    values = {"step": of["step"], "value": of["value"].astype(float), "n": of["weight"].astype(float)}
    return pd.DataFrame(values).assign(
        panel=panel, line=line, kind=kind, low=np.nan, high=np.nan, measure=name, split=of["split"]
    )


def _completed(rows: pd.DataFrame, split: str | None, trajectory: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """A split's history and, of the loss and perplexities that it lacks, the explanation's own values per step."""
    known = set(rows["name"])
    names = {"loss": "loss"} | {f"{p}/{s}": f"{p}_{s}" for p in PERPLEXITIES for s in ("chosen", "rejected")}
    lacking = {name: key for name, key in names.items() if name not in known}
    added = [
        {"step": at["step"], "split": split, "name": name, "value": float(at[key])}
        for name, key in lacking.items()
        for at in trajectory
        if at.get(key) is not None
    ]
    more = pd.DataFrame(added, columns=["step", "split", "name", "value"]).assign(weight=math.nan)
    return pd.concat([rows[more.columns], more], ignore_index=True) if added else rows


def parting_frame(curves: pd.DataFrame) -> pd.DataFrame:
    """Loss, chosen perplexity and scores as ratios to their first finite value: line, kind, step, ratio, value.

    Left out: lines of one point, and lines whose first value is not positive (no ratio to it means anything). Empty
    where fewer than two are left: nothing parts from anything.
    """
    parts = []
    wanted = (curves["kind"] == "loss") | (curves["line"] == CHOSEN) | (curves["panel"] == "score")
    for _, rows in curves.loc[wanted].groupby("line", sort=False, observed=True):
        finite = rows["value"][np.isfinite(rows["value"])].tolist()
        if len(finite) >= 2 and finite[0] > 0:
            parts.append(rows.assign(ratio=rows["value"] / finite[0]))
    columns = ["line", "kind", "step", "ratio", "value"]
    return pd.concat(parts, ignore_index=True)[columns] if len(parts) > 1 else pd.DataFrame(columns=columns)


def parting_text(parting: pd.DataFrame) -> str:
    """What the plot says, in one sentence."""
    pieces = []
    for line, rows in parting.groupby("line", sort=False, observed=True):
        finite = rows.loc[np.isfinite(rows["ratio"])]
        values, last = finite["value"].tolist(), float(finite["ratio"].iloc[-1])
        change = per_cent(last - 1) if last <= LEAST_FOR_FACTORS else ratio(last)
        pieces.append(f"{line} {arrow(values[0], values[-1])} ({change})")
    return "; ".join(pieces) + "." if pieces else ""


def per_cent(change: float) -> str:
    """A relative change: "+12.5 %"."""
    return "0" if change == 0 else f"{signed(round(100 * change, 1))} %"


# --- how it is drawn --------------------------------------------------------------------------------------------------


def draw_parting(parting: pd.DataFrame, word: str) -> Markup:
    """One plot: every line starts at 1; loss, chosen perplexity and score leave in their own directions."""
    finite = parting["ratio"][np.isfinite(parting["ratio"].astype(float))]
    log = bool(len(finite) and finite.max() > LEAST_FOR_FACTORS and finite.min() > 0)
    start = 0.0 if log else 1.0
    write: Callable[[float], str] = ratio if log else per_cent

    lines = []
    for line, rows in parting.groupby("line", sort=False, observed=True):
        values = rows["ratio"].to_numpy(dtype=float) - start
        note = f"{write(float(values[np.isfinite(values)][-1]))} since the start"
        steps = rows["step"].to_numpy(dtype=float)
        lines.append(Series(str(line), steps, values, str(rows["kind"].iloc[0]), note=note))

    def picture(width: int) -> Markup:
        short = [_narrow(s.label) for s in lines]
        narrow = [
            # Two scores of one name are told apart by their splits.
            replace(s, label=name if short.count(name) == 1 else _short(s.label), note=s.note.partition(" since")[0])
            for s, name in zip(lines, short, strict=True)
        ]
        return line_chart(
            narrow if width <= NARROW else lines, width=width, height=320, log=log, x_label=word, tick=write,
            level=1.0 - start,
            description="Change since the first measurement: " + parting_text(parting),
        )  # fmt: skip

    return responsive(picture, line_values(lines, word, write))


def draw_panel(
    panel: str, curves: pd.DataFrame, marks: list[tuple[int, str]], word: str, unit: str = "pair"
) -> tuple[str, Markup]:
    """Title and drawing of one panel in absolute values; all panels share one step axis. `unit`: what a loss is a mean
    over."""
    rows = curves.loc[curves["panel"] == panel]
    measures = rows["measure"].unique().tolist()
    title = PANELS[panel].format(measure=str(measures[0]).split("/")[0], unit=unit)
    if panel == "score" and len(measures) == 1:
        title = f"{capital(score_label(measures[0], 'eval'))}, with 95 % interval"
    all_steps = (float(curves["step"].min()), float(curves["step"].max()))

    lines = []
    for line, part in rows.groupby("line", sort=False, observed=True):
        steps, values, low, high = (part[c].to_numpy(dtype=float) for c in ("step", "value", "low", "high"))
        finite = values[np.isfinite(values)]
        note = number(finite[-1], 3) if len(finite) else "NaN"
        lines.append(Series(_plain(str(line)), steps, values, str(part["kind"].iloc[0]), low, high, note))

    def picture(width: int) -> Markup:
        narrow = width <= NARROW
        return line_chart(
            [replace(s, label=_short(s.label) if narrow or len(s.label) > 26 else s.label) for s in lines],
            width=width, height=190, log=panel == "perplexity", marks=marks, description=title,
            right=130.0 if narrow else 230.0, x_range=all_steps, x_label=word,
        )  # fmt: skip

    return title, responsive(picture, line_values(lines, word))


def _plain(line: str) -> str:
    return line.replace(" perplexity", "").replace(" log-prob", "")


def _short(line: str) -> str:
    plain = line.replace("training batches", "training")
    plain = plain.split(", ")[-1]  # a score's split tells more than its name, which is in the title
    return plain if len(plain) <= 15 else plain[:14] + "…"


def _narrow(line: str) -> str:
    """A line's name in a narrow window: a score's without its split."""
    plain = line.split(", ")[0]
    return plain if len(plain) <= 18 else plain[:17] + "…"
