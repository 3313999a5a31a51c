"""What follows a training or a scoring: explain the records, write the report, print the short table."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dpo_diag.commands.findings import made_from, write_findings
from dpo_diag.next_steps import after_training


def explain_and_report(
    folder: Path, *, explain: bool = True, report: bool = True, thresholds: Mapping[str, Any] | None = None
) -> list[str]:
    """Write findings.json and report.html into a finished run and print what a person wants to see first.

    Returns: the next commands (see `next_steps`), for whoever prints the last line.

    Works from the records alone, like `dpo-diag explain` and `dpo-diag report` on the same folder.
    """
    from dpo_diag.diagnosis import explain_run
    from dpo_diag.diagnosis.logged import before_after, before_after_text
    from dpo_diag.records import load_run

    run = load_run(folder)
    print()
    print(before_after_text(before_after(run)))
    if not explain:
        return after_training(run)
    identity = made_from(run.path, thresholds=thresholds)
    explanation = explain_run(run, thresholds=dict(thresholds or {}) or None)
    write_findings(run.path, explanation.document, identity)
    print(f"\n{explanation.document['verdict']['text']}\n")
    if report:
        from dpo_diag.report import write_report

        print(f"report: {write_report(run, explanation=explanation)}")
    return after_training(run, explanation.document)
