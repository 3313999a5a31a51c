"""`dpo-diag track`: send a finished run's records to W&B or trackio; optionally save a W&B report over them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

from dpo_diag.errors import DiagError
from dpo_diag.next_steps import after_tracking, say_next
from dpo_diag.records import Run, load_run
from dpo_diag.text import to_json


def track(
    run: Path,
    /,
    *,
    kind: str = "wandb",
    mode: Literal["offline", "online"] = "offline",
    project: str = "dpo_diag",
    entity: str | None = None,
    group: str | None = None,
    name: str | None = None,
    report: bool = False,
    report_spec: Path | None = None,
) -> int:
    """Send a finished run's records to a tracker; optionally save a W&B report over them.

    Args:
        run: a run folder.
        kind: the tracker: wandb, trackio, or a plugin's.
        mode: of wandb: write files only, or send.
        project: the project there.
        entity: W&B team or user; needed with --report.
        group: W&B group (default: WANDB_RUN_GROUP).
        name: the run's name there (default: a unique one from its folder).
        report: save a W&B report, too (with --mode online).
        report_spec: write the W&B report's spec as JSON; needs no network.
    """
    opened = load_run(run)
    if (report or report_spec) and not entity:
        raise DiagError("a W&B report needs an entity", hint="add --entity TEAM", usage=True)
    if report and (kind != "wandb" or mode != "online"):
        hint = "--kind wandb --mode online, or --report-spec FILE"
        raise DiagError("a report is saved online", hint=hint, usage=True)
    from dpo_diag.records.writer import annotate
    from dpo_diag.tracking import make_tracker, mirror

    tracker = make_tracker(kind, project=project, mode=mode, entity=entity, group=group)
    where = mirror(opened, tracker, name)
    if tracker.failures:
        hint = "check the service, then repeat"
        raise DiagError("the run was not mirrored whole", got=tracker.failures[0], hint=hint)
    annotate(opened.path, tracking=where)
    if entity and (report or report_spec):
        _report(opened, project, entity, group, spec=report_spec, save=report)
    say_next(after_tracking(where, run), sys.stderr)
    print(to_json(where))
    return 0


def _report(opened: Run, project: str, entity: str, group: str | None, *, spec: Path | None, save: bool) -> None:
    from dpo_diag.diagnosis import explain
    from dpo_diag.diagnosis.logged import measured_split
    from dpo_diag.report.wandb_report import build_report, save_report, write_spec

    history = opened.history
    scores = history.loc[history["name"].str.startswith("score/"), ["split", "name"]].drop_duplicates()
    try:
        explanation = dict(explain(opened))
    except DiagError:
        explanation = {}
    report = build_report(
        project,
        entity,
        explanation=explanation,
        split=measured_split(opened, explanation.get("split")) or "eval",
        scores=[f"{split}/{name}" for split, name in scores.itertuples(index=False, name=None)],
        group=group,
    )
    if spec:
        print(write_spec(report, spec))
    if save:
        print(save_report(report))
