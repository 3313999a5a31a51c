"""`dpo-diag gate`: rules over a run for CI: exit status, JUnit XML, one table."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from dpo_diag.command_lines import say_next
from dpo_diag.errors import DiagError
from dpo_diag.next_steps import after_gate
from dpo_diag.records import load_run
from dpo_diag.text import safe, terminal_width, to_json
from dpo_diag.thresholds import parse_threshold

if TYPE_CHECKING:
    from dpo_diag.gate.judge import Outcome


def gate(
    run: str | None = None,
    /,
    *thresholds: str,
    rules: Path | None = None,
    baseline: str | None = None,
    junit: Path | None = None,
    json: bool = False,
    subjects: bool = False,
) -> int:
    """Judge a run by rules; 1 where one fails.

    Args:
        run: a run folder; judged at its last step.
        thresholds: NAME=VALUE, e.g. gaming.least_length_ratio=1.2.
        rules: YAML with the rules; --subjects says what they can be about and how a limit decides.
        baseline: a step of this run, ref, or another run (default: the reference if measured, else the first step).
        junit: write JUnit XML there.
        json: one JSON document on standard output instead of the table.
        subjects: print what a rule can be about, with its limits and options, and stop.
    """
    if subjects:
        from dpo_diag.gate.rules import describe

        print(describe())
        return 0
    if run is None or rules is None:
        raise DiagError("a run and its rules are needed", expected="dpo-diag gate RUN --rules FILE", usage=True)
    from dpo_diag.gate.rules import load_rules

    opened = load_run(run)  # what is mistyped is answered before anything heavy is imported
    checked = load_rules(rules)
    from dpo_diag.gate.judge import Gate
    from dpo_diag.gate.judge import junit as to_junit

    outcomes = Gate(opened, baseline, dict(map(parse_threshold, thresholds))).judge_all(checked)
    failed = [o for o in outcomes if o.status == "failed"]
    if junit:
        junit.parent.mkdir(parents=True, exist_ok=True)
        junit.write_bytes(to_junit(outcomes, run))
        print(f"wrote {junit}", file=sys.stderr)
    following = after_gate(run, not failed)
    if json:
        rules_told = [o.document() for o in outcomes]
        print(to_json({"run": run, "passed": not failed, "rules": rules_told, "next": following}))
    else:
        # A log of CI is no terminal and wraps by itself; what failed, and by how much, is never cut.
        width = terminal_width() if sys.stdout.isatty() else None
        print("\n".join(line for o in outcomes for line in _told(o, width)))
        print(", ".join(f"{sum(o.status == s for o in outcomes)} {s}" for s in ("passed", "failed", "skipped")))
        say_next(following)
    return 1 if failed else 0


def _told(outcome: Outcome, width: int | None) -> list[str]:
    """One rule's line and its reason below, wrapped at `width` if that is not None."""
    from dpo_diag.styled import wrap

    status = outcome.status.upper() if outcome.status == "failed" else outcome.status
    head, reason = f"{status:<7}  {safe(outcome.name, one_line=True)}", safe(outcome.reason, one_line=True)
    indent = " " * 9
    lines = [reason] if width is None else wrap(reason, width - len(indent))
    return [head, *(indent + line for line in lines if line)]
