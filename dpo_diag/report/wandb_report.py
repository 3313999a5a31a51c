"""A W&B report over runs that a tracker mirrored: the same reading order as the HTML report, as a spec for wandb's own
editor. Building it needs no network; saving it does. Optional extra `wandb-report` (wandb-workspaces).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dpo_diag.documents import parse_json
from dpo_diag.errors import DiagError
from dpo_diag.extras import require
from dpo_diag.records.metric_table import METRICS
from dpo_diag.records.schemas import SIDES
from dpo_diag.report.headline import HARM
from dpo_diag.report.section import SECTIONS
from dpo_diag.report.sections.checks import checks_frame
from dpo_diag.report.text import clean
from dpo_diag.text import capital
from dpo_diag.tracking.base import CHECKS, OUTPUTS, PAIRS, STEP, metric_name

CHARTS = ("loss", "logps", "rewards/accuracies", "entropy")
"""Metrics of the table, one chart each against the optimizer step, both sides in one; ratios are logarithmic."""
PARTED = ("ce", "ppl_token", "ppl_seq_mean", "ppl_seq_geomean")
"""What the loss is drawn against: where the loss falls to the left and these rise, the two have parted."""
QUADRANTS = ("pairs/both_fell", "pairs/chosen_fell")
NOWHERE = "ENTITY"
"""Stands for the entity of a spec that is only written."""


@dataclass(frozen=True)
class Told:
    """One run's part of the report.

    Attributes:
        name: how the tracker calls it.
        id: its id there, by which the report finds it; None where it was not tracked.
        explanation: its explain document; {} where there is none.
    """

    name: str
    id: str | None = None
    explanation: Mapping[str, Any] = field(default_factory=dict)


def build_report(
    project: str,
    entity: str | None = None,
    *,
    title: str = "Why the loss fell",
    runs: Sequence[Told] = (),
    split: str = "eval",
    scores: Sequence[str] = (),
    knobs: Sequence[str] = (),
    group: str | None = None,
) -> Any:
    """The report (a wandb_workspaces.reports.v2.Report), not yet saved; no network.

    Args:
        project, entity: where the mirrored runs are; the report is saved there. Without an entity it can be written.
        runs: whose verdicts and speaking checks become text, and of which the charts are; () for all of the project.
        split: evaluation split whose curves are shown.
        scores: task scores as tracked, e.g. "held_out/score/execution_accuracy": one chart.
        knobs: keys of the config that differ between the runs: the first axes of the parallel coordinates.
        group: only the runs of this W&B group.

    Raises:
        DiagError: wandb_workspaces is not installed.
    """
    wr = _workspaces()
    # A runset without entity and project is the report's own project; naming them would need the network.
    ids = [told.id for told in runs if told.id]
    filters = [f"Metric('ID') in {ids!r}"] if ids else []
    filters += [f"Metric('Group') = {group!r}"] if group else []
    runset: dict[str, Any] = {"filters": " and ".join(filters)} if filters else {}

    def grid(panels: list[Any]) -> Any:
        return wr.PanelGrid(runsets=[wr.Runset(**runset)], panels=panels)

    curves, outputs = SECTIONS["curves"], SECTIONS["outputs"]
    blocks = [*(block for told in runs for block in _story(wr, told, alone=len(runs) == 1))]
    blocks += [wr.H2(text="Loss against likelihood"), wr.P(text=PARTED_LEAD), grid(_parted(wr, split))]
    blocks += [wr.H2(text=curves.title), wr.P(text=curves.lead), grid(_curves(wr, split, scores))]
    if len(runs) != 1:
        blocks += [wr.H2(text="The sweep"), grid(_sweep(wr, split, scores, knobs))]
    tables = [wr.WeavePanelSummaryTable(table_name=n, layout=_place(wr, i, 24, 12)) for i, n in enumerate(TABLES)]
    blocks += [wr.H2(text=outputs.title), grid(tables)]
    name = entity or NOWHERE
    return wr.Report(project=project, entity=name, title=title, description="Written by dpo-diag", blocks=blocks)


PARTED_LEAD = (
    "Each curve runs with the training. The loss sees the difference of the two answers' log-probs; cross-entropy and "
    "perplexity see one alone: where a curve goes left and up, the loss falls while the answer gets less likely."
)
TABLES = (OUTPUTS, PAIRS, CHECKS)


def _place(wr: Any, i: int, width: int = 12, height: int = 8) -> Any:
    columns = 24 // width
    return wr.Layout(x=width * (i % columns), y=height * (i // columns), w=width, h=height)


def _names(name: str, split: str) -> list[str]:
    return [metric_name(split, n) for n in ([f"{name}/{side}" for side in SIDES] if METRICS[name].sides else [name])]


def _label(name: str) -> str:
    return capital(METRICS[name].label.format(side=" and ".join(SIDES)))


def _parted(wr: Any, split: str) -> list[Any]:
    """Cross-entropy and each perplexity over the loss."""
    return [
        wr.LinePlot(
            title=f"{_label(name)} over the loss", x=metric_name(split, "loss"), y=_names(name, split),
            log_y=METRICS[name].unit == "ratio", title_x="loss", layout=_place(wr, i),
        )
        for i, name in enumerate(PARTED)
    ]  # fmt: skip


def _curves(wr: Any, split: str, scores: Sequence[str]) -> list[Any]:
    """Each against the optimizer step; the quadrants in one chart."""
    charts = [(_label(n), _names(n, split), METRICS[n].unit == "ratio") for n in (*CHARTS, *PARTED)]
    charts.append(("Pairs whose answers fell, by quadrant", [metric_name(split, n) for n in QUADRANTS], False))
    if scores:
        charts.append(("Task scores", list(scores), False))
    return [
        wr.LinePlot(title=title, x=STEP, y=metrics, log_y=log, layout=_place(wr, i))
        for i, (title, metrics, log) in enumerate(charts)
    ]


def _sweep(wr: Any, split: str, scores: Sequence[str], knobs: Sequence[str]) -> list[Any]:
    """Parallel coordinates from what was set to what came of it, and what differs between the runs."""
    axis = wr.ParallelCoordinatesPlotColumn
    ends = [metric_name(split, "loss"), metric_name(split, "ppl_seq_mean/chosen"), *scores]
    columns = [axis(metric=wr.Config(k), log=k.endswith(LOGARITHMIC)) for k in knobs or KNOBS]
    columns += [axis(metric=wr.SummaryMetric(name)) for name in ends]
    return [
        wr.ParallelCoordinatesPlot(
            title="What was set, what came of it", columns=columns, layout=_place(wr, 0, 24, 10)
        ),
        wr.RunComparer(diff_only=True, layout=wr.Layout(x=0, y=10, w=24, h=12)),
    ]


KNOBS = ("loss.beta", "trainer.learning_rate")
LOGARITHMIC = ("beta", "learning_rate")


def _workspaces() -> Any:
    require("wandb_workspaces", "a W&B report")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own deprecations, which its users can do nothing about
        import wandb_workspaces.reports.v2 as wr
    return wr


def _story(wr: Any, told: Told, *, alone: bool) -> list[Any]:
    """The run's verdict and the checks that speak; of several runs each under its name."""
    verdict = told.explanation.get("verdict") or {}
    if not verdict:
        return []
    harm = HARM.get(str(verdict.get("harm")), ("No verdict", ""))[0]
    heading = clean(str(verdict.get("title") or verdict.get("label") or harm))
    head = wr.H1(text=heading) if alone else wr.H2(text=f"{clean(told.name)}: {heading}")
    blocks = [head, wr.P(text=f"{harm}. {clean(str(verdict.get('text') or ''))}")]
    for part in told.explanation.get("narrative") or []:
        said = [clean(str(s.get("text", ""))) for s in part.get("sentences") or []]
        if alone and said and said != [verdict.get("text")]:
            blocks += [wr.H3(text=clean(str(part.get("heading", "")))), wr.P(text=" ".join(said))]
    frame = checks_frame(told.explanation)
    speaking = frame.loc[frame["outcome"] == "speaks"].to_dict("records")
    lines = [clean(f"{check['title']} ({check['code']}): {check['reason']}") for check in speaking]
    return [*blocks, wr.H3(text="Checks that speak"), wr.UnorderedList(items=lines)] if lines else blocks


def spec_of(report: Any) -> dict[str, Any]:
    """The report's spec, as wandb's editor reads it; no network."""
    found = parse_json(report._to_model().spec.model_dump_json(by_alias=True, exclude_none=True))
    assert isinstance(found, dict)
    return found


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
            hint="check wandb login and the entity, or write the spec with --json",
        ) from error
    return str(report.url)
