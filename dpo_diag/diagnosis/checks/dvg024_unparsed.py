"""DVG024: the importer met lines that look like metrics and could not read them."""

from __future__ import annotations

from typing import Any

from dpo_diag.diagnosis.checks import register
from dpo_diag.diagnosis.checks.shared.check import LISTED, Check, Missing, Outcome, silent, speaks
from dpo_diag.diagnosis.checks.shared.context import CheckContext
from dpo_diag.diagnosis.checks.shared.example import Example
from dpo_diag.text import percent, plural
from dpo_diag.thresholds import Thresholds


def unparsed(ctx: CheckContext, t: Thresholds) -> Outcome:
    """Asks the importer's report in run.json."""
    source = ctx.info.source
    count = source.skipped_count
    if count is None:
        raise Missing("not an imported log, or its importer reports no skipped lines")
    evidence: dict[str, Any] = {"skipped": source.skipped[:LISTED], "count": count, "read": source.read}
    if count:
        share = count / (count + (source.read or 0))
        evidence["share"] = share
        return speaks(
            f"{count} of {plural(count + (source.read or 0), 'line or row', 'lines or rows')} of the source "
            f"({percent(share, 1)}) could not be read",
            severity="warning" if share >= t["unparsed_material_share"] else "info",
            **evidence,
        )
    return silent("every line was read", **evidence)


_LOSS = {"loss": [0.69, 0.68, 0.67, 0.66, 0.65, 0.64]}

register(
    Check(
        code="DVG024",
        title="lines of the log that could not be read",
        says="The importer left out lines or rows that look like metrics; a warning where they are a material share.",
        why="A curve with a hole looks like a curve. If the last lines are missing, every 'last' value is an earlier "
        "one.",
        needs="an imported log",
        severity="info",
        evidence={
            "skipped": "the lines and why each was left out; empty where only their number is known",
            "count": "lines left out",
            "read": "rows that were read",
            "share": "lines left out, as a share of both",
        },
        false_alarms=("a log that was cut off while it was written: its last line is half a row",),
        bad=Example(
            "One of seven lines is cut off.",
            train=_LOSS,
            run={"source": {"read": 6, "skipped": [{"line": 4, "why": "a row is cut off"}], "skipped_count": 1}},
        ),
        good=Example("Every line was read.", train=_LOSS, run={"source": {"read": 6, "skipped_count": 0}}),
        try_next=("look at the skipped lines: dpo-diag import lists each with the reason",),
        sources=("what log linters look for",),
        since="0.1.0",
        function=unparsed,
        reads=("unparsed_material_share",),
    )
)
