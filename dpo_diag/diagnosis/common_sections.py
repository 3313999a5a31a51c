"""Sections that every explanation has, whether the run holds pairs or means: its head, the checks, the evidence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dpo_diag.diagnosis import uncertainty
from dpo_diag.diagnosis.evidence import Measure, measures
from dpo_diag.diagnosis.pair_rows import REFERENCE, Step
from dpo_diag.records import Run


def head(run: Run, from_step: Any, to_step: Any, split: str | None, n_pairs: int | None) -> dict[str, Any]:
    """The keys that say what was compared."""
    return {
        "run": run.name, "kind": run.kind, "from_step": from_step, "to_step": to_step, "split": split,
        "n_pairs": n_pairs,
    }  # fmt: skip


def run_all_checks(
    run: Run, from_step: Step | None, to_step: int | None, split: str | None, thresholds: Mapping[str, float]
) -> list[dict[str, Any]]:
    """Findings of `dpo_diag.diagnosis.checks` between the two steps.

    Raises:
        DiagError: a threshold that no check has, or no such split.
    """
    # Imported here: the checks are a package below this one, whose parent imports this module.
    from dpo_diag.diagnosis.checks import run_checks
    from dpo_diag.diagnosis.checks.context import CheckContext

    start = None if from_step is None or from_step == REFERENCE else int(from_step)
    return list(run_checks(CheckContext.from_run(run, start, to_step, split), dict(thresholds)))


def judged_evidence(run: Run, from_step: Step, to_step: int, values: Mapping[str, float]) -> list[tuple[Measure, str]]:
    """What is measured that is not likelihood, each with the direction that it speaks for."""
    return [(m, m.direction(values)) for m in measures(run, from_step, to_step, values["confidence_scores"])]


def perplexity_signs(perplexity: dict[str, Any], least: float) -> dict[str, int]:
    """Direction of each chosen perplexity; 0 where it cannot be told from none or is smaller than `least` in log."""
    chosen = perplexity.get("chosen", {})
    return {
        name: (uncertainty.sign(row["dlog"], row.get("interval")) if abs(row["dlog"]) >= least else 0)
        for name, row in chosen.items()
        if isinstance(row, dict) and "dlog" in row
    }
