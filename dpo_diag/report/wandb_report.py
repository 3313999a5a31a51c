"""A W&B report over runs that a tracker mirrored: the same reading order as the HTML report, as a spec for wandb's own
editor. Building it needs no network; saving it does. Optional extra `wandb-report` (wandb-workspaces).
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dpo_diag.errors import DiagError
from dpo_diag.extras import require
from dpo_diag.records.metric_table import METRICS
from dpo_diag.records.schemas import SIDES
from dpo_diag.report.headline import HARM
from dpo_diag.report.section import SECTIONS
from dpo_diag.report.sections.checks import checks_frame
from dpo_diag.report.text import clean
from dpo_diag.text import capital, to_json
from dpo_diag.tracking.base import OUTPUTS, STEP, metric_name

CHARTS = ("loss", "ppl_seq_mean", "logps", "pairs/both_fell", "rewards/accuracies", "entropy")
"""Metrics of the table, one chart each against the optimizer step, both sides in one; ratios are logarithmic."""


def build_report(
    project: str,
    entity: str,
    *,
    title: str = "Why the loss fell",
    explanation: dict[str, Any] | None = None,
    split: str = "eval",
    scores: Sequence[str] = (),
    group: str | None = None,
) -> Any:
    """The report (a wandb_workspaces.reports.v2.Report), not yet saved; no network.

    Args:
        project, entity: where the mirrored runs are; the report is saved there.
        explanation: the explain document: its verdict and the checks that speak become text.
        split: evaluation split whose curves are shown.
        scores: task scores as tracked, e.g. "held_out/score/execution_accuracy": one chart.
        group: only the runs of this W&B group.

    Raises:
        DiagError: wandb_workspaces is not installed.
    """
    wr = _workspaces()
    charts = _charts(split, scores)
    places = [wr.Layout(x=12 * (i % 2), y=8 * (i // 2), w=12, h=8) for i in range(len(charts))]
    panels = [
        wr.LinePlot(title=name, x=STEP, y=metrics, log_y=log, layout=place)
        for (name, metrics, log), place in zip(charts, places, strict=True)
    ]
    answers = wr.WeavePanelSummaryTable(table_name=OUTPUTS, layout=wr.Layout(x=0, y=0, w=24, h=12))
    # A runset without entity and project is the report's own project; naming them would need the network.
    runs: dict[str, Any] = {"filters": f"Metric('Group') = {group!r}"} if group else {}
    curves, outputs = SECTIONS["curves"], SECTIONS["outputs"]
    blocks = [
        *_verdict(wr, explanation or {}),
        wr.H2(text=curves.title),
        wr.P(text=curves.lead),
        wr.PanelGrid(runsets=[wr.Runset(**runs)], panels=panels),
        *_checks(wr, explanation or {}),
        wr.H2(text=outputs.title),
        wr.PanelGrid(runsets=[wr.Runset(**runs)], panels=[answers]),
    ]
    return wr.Report(project=project, entity=entity, title=title, description="Written by dpo-diag", blocks=blocks)


def _charts(split: str, scores: Sequence[str]) -> list[tuple[str, list[str], bool]]:
    """(title, tracked metrics, logarithmic) of each chart."""
    charts = []
    for name in CHARTS:
        metric = METRICS[name]
        names = [f"{name}/{side}" for side in SIDES] if metric.sides else [name]
        label = capital(metric.label.format(side=" and ".join(SIDES)))
        charts.append((label, [metric_name(split, n) for n in names], metric.unit == "ratio"))
    return [*charts, ("Task scores", list(scores), False)] if scores else charts


def _workspaces() -> Any:
    require("wandb_workspaces", "a W&B report")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own deprecations, which its users can do nothing about
        import wandb_workspaces.reports.v2 as wr
    return wr


def _verdict(wr: Any, explanation: dict[str, Any]) -> list[Any]:
    verdict = explanation.get("verdict") or {}
    if not verdict:
        return []
    harm = HARM.get(str(verdict.get("harm")), ("No verdict", ""))[0]
    heading = clean(str(verdict.get("title") or verdict.get("label") or harm))
    return [wr.H1(text=heading), wr.P(text=f"{harm}. {clean(str(verdict.get('text') or ''))}")]


def _checks(wr: Any, explanation: dict[str, Any]) -> list[Any]:
    frame = checks_frame(explanation)
    speaking = frame.loc[frame["outcome"] == "speaks"].to_dict("records")
    lines = [clean(f"{check['title']} ({check['code']}): {check['reason']}") for check in speaking]
    return [wr.H2(text="Checks that speak"), wr.UnorderedList(items=lines)] if lines else []


def write_spec(report: Any, path: str | os.PathLike[str]) -> Path:
    """The report's spec as JSON, for review or version control; no network."""
    target = Path(path)
    spec = report._to_model().spec.model_dump_json(by_alias=True, exclude_none=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(to_json(json.loads(spec), indent=1) + "\n", encoding="utf-8")
    return target


def save_report(report: Any, *, draft: bool = False) -> str:
    """Save to W&B (WANDB_BASE_URL, WANDB_API_KEY) and return the report's address.

    Raises:
        DiagError: the server refused or could not be reached.
    """
    try:
        report.save(draft=draft)
    except Exception as error:
        raise DiagError(
            "the W&B report was not saved",
            got=error,
            hint="check wandb login and the entity, or write the spec instead",
        ) from error
    return str(report.url)
