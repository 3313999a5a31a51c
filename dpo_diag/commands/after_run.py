"""What follows a training, a scoring or a generation: explain the records, write the report, print 15 lines."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpo_diag.commands.explain import print_short
from dpo_diag.commands.findings import made_from, write_findings
from dpo_diag.next_steps import after_training
from dpo_diag.text import terminal_width

if TYPE_CHECKING:
    from dpo_diag.diagnosis import Explanation
    from dpo_diag.records import Run


def explain_and_report(
    folder: Path, *, explain: bool = True, report: bool = True, thresholds: Mapping[str, Any] | None = None
) -> list[str]:
    """Write findings.json and report.html into a finished run and print what a person wants to see first: what
    `dpo-diag explain` prints; without an explanation the first and last value of what was measured.

    Returns: the next commands (see `next_steps`), for whoever prints the last line.

    Works from the records alone, like `dpo-diag explain` and `dpo-diag report` on the same folder.
    """
    from dpo_diag.records import load_run

    run = load_run(folder)
    if not explain:
        from dpo_diag.diagnosis.logged import before_after, before_after_text

        print(f"\n{before_after_text(before_after(run))}")
        return after_training(run)
    explanation = print_explanation(run, thresholds)
    if report:
        from dpo_diag.report import write_report

        print(f"report: {write_report(run, explanation=explanation)}")
    return after_training(run, explanation.document, reported=report)


def print_explanation(run: Run, thresholds: Mapping[str, Any] | None = None) -> Explanation:
    """Explain a run anew, write its findings.json, print the 15 lines."""
    from dpo_diag.diagnosis import explain_run

    identity = made_from(run.path, thresholds=thresholds)
    explanation = explain_run(run, thresholds=dict(thresholds or {}) or None)
    write_findings(run.path, explanation.document, identity)
    print()
    print_short(explanation.document)
    return explanation


def print_comparison(run: Run) -> None:
    """What became of the answers from the first checkpoint to the last, as `dpo-diag outputs` begins."""
    from dpo_diag.commands.outputs import head
    from dpo_diag.outputs.compare import comparison, to_document

    print()
    print(*head(to_document(run, comparison(run)), terminal_width(unknown=80)), sep="\n")
