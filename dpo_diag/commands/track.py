"""`dpo-diag track`: send a run's records to trackers; what they hold already is not sent again."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from dpo_diag.command_lines import say_next
from dpo_diag.commands.findings import FINDINGS, asked_of, made_from, read_findings, write_findings
from dpo_diag.errors import DiagError
from dpo_diag.next_steps import after_tracking
from dpo_diag.records import Run, load_run
from dpo_diag.text import to_json


def track(
    run: Path,
    /,
    *,
    to: Annotated[list[str] | None, Parameter(name=["--to", "--kind"], consume_multiple=True)] = None,
    mode: Literal["offline", "online"] = "offline",
    project: str = "dpo_diag",
    entity: str | None = None,
    group: str | None = None,
    name: str | None = None,
) -> int:
    """Send a run's records to trackers; what they hold already is not sent again.

    Args:
        run: a run folder.
        to: the trackers: wandb (default), mlflow, swanlab, tensorboard, trackio, or a plugin's.
        mode: of wandb and swanlab: write files only, or send.
        project: the project there.
        entity: W&B team or user.
        group: W&B group (default: WANDB_RUN_GROUP).
        name: the run's name there (default: the one that it has there, or a unique one from its folder).
    """
    opened = load_run(run)

    from dpo_diag.records.tracked import tracked_places
    from dpo_diag.records.writer import annotate
    from dpo_diag.tracking import Session, is_sent, kinds_of, mirror

    kinds = kinds_of([k for word in to or ["wandb"] for k in word.split(",")])
    earlier = tracked_places(opened.meta.get("tracking"))
    _explained(opened)
    held = [k for k in kinds if k in earlier and earlier[k].get("mode") in (None, mode) and is_sent(opened, k)]
    session = Session(
        [k for k in kinds if k not in held], opened.path, earlier, mode=mode, project=project, entity=entity,
        group=group,
    )  # fmt: skip
    places = mirror(opened, session, name) if session.trackers else {}
    if session.failures:
        kind, (reason, *_) = next(iter(session.failures.items()))
        later = places[kind].get("send")
        hint = later or f"check the service, then repeat: dpo-diag track {run} --to {kind}"
        _note(opened, {**earlier, **{k: p for k, p in places.items() if "id" in p or not p.get("failed")}}, annotate)
        raise DiagError(f"{kind} did not take the whole run", got=reason, hint=hint)
    _note(opened, {**earlier, **places}, annotate)
    for kind in held:
        print(f"{kind}: nothing new since it was sent", file=sys.stderr)
    shown = {kind: places.get(kind) or earlier[kind] for kind in kinds}
    for kind, tracker_sent in session.sent.items():
        if missed := tracker_sent.missed(opened):
            print(f"{kind}: not sent, since later rows were there before: {', '.join(missed)}", file=sys.stderr)
    say_next(after_tracking(shown, run), sys.stderr)
    print(to_json(shown))
    return 0


def _note(run: Run, places: dict[str, Any], annotate: Any) -> None:
    if places:
        annotate(run.path, tracking=places)


def _explained(run: Run) -> None:
    """Verdict, checks and page belong to what a tracker shows: made where the run has none, and anew, for the steps and
    thresholds that were asked for, where it has more records since."""
    from dpo_diag.diagnosis import explain_run
    from dpo_diag.report import write_report

    findings, page = run.path / FINDINGS, run.path / "report.html"
    if findings.is_file() and page.is_file() and _last_written(run) <= findings.stat().st_mtime_ns:
        return
    asked = asked_of(run.path)
    try:
        explanation = explain_run(run, **asked)
    except DiagError as error:
        print(f"sent without a verdict: {error}", file=sys.stderr)
        return
    identity = made_from(run.path, **asked)
    if read_findings(run.path, identity) is None:
        write_findings(run.path, explanation.document, identity)
    write_report(run, explanation=explanation)


def _last_written(run: Run) -> int:
    """When the newest file of the records was written, in nanoseconds; 0 without any."""
    from dpo_diag.records.schemas import TABLES

    return max((file.stat().st_mtime_ns for table in TABLES for file in run.files(table)), default=0)
