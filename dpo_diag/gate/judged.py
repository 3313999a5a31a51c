"""The run that a gate judges and its baseline, with what rules read of them: each computed once, when asked for."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from dpo_diag.diagnosis import explain
from dpo_diag.diagnosis.checks import CheckContext
from dpo_diag.diagnosis.explanation import known_starts
from dpo_diag.diagnosis.pair_rows import REFERENCE, PairRows, Step
from dpo_diag.outputs.answers import POLICY, answers
from dpo_diag.outputs.compare import Comparison, comparison
from dpo_diag.records import Run, load_run
from dpo_diag.thresholds import Thresholds, load_thresholds


class JudgedRun:
    """A run at its last step, and what it is held against.

    Args:
        run: the run to judge.
        baseline: a step of the same run, "ref" for its reference, another run's folder (its last step), or None for
            what the explanation starts from: the reference where it was measured, else the first step.
        thresholds: overrides by name (see `dpo_diag.thresholds`), of the explanation and of the comparison of answers.

    Attributes:
        run, other: the run and the baseline's run (the same, unless another was named).
        step: the baseline's step in this run, or "ref"; None where none was named, or the baseline is another run.
    """

    def __init__(
        self,
        run: Run | str | os.PathLike[str],
        baseline: str | None = None,
        thresholds: Mapping[str, float] | None = None,
    ) -> None:
        self.overrides = thresholds
        self.run = run if isinstance(run, Run) else load_run(run)
        is_step = baseline is not None and baseline.isdigit() and not Path(baseline).is_dir()
        self.step: Step | None = int(str(baseline)) if is_step else REFERENCE if baseline == REFERENCE else None
        self.other = self.run if baseline in (None, REFERENCE) or is_step else load_run(str(baseline))

    @property
    def same_run(self) -> bool:
        return self.other is self.run

    @cached_property
    def limits(self) -> Thresholds:
        """The thresholds, overrides included."""
        return load_thresholds(self.overrides)

    @cached_property
    def pairs(self) -> PairRows:
        """The pair rows of the run."""
        return PairRows(self.run, self.limits["reference_tolerance_nats"])

    @cached_property
    def other_pairs(self) -> PairRows:
        """The pair rows of the baseline's run."""
        return self.pairs if self.same_run else PairRows(self.other, self.limits["reference_tolerance_nats"])

    @cached_property
    def starts(self) -> dict[str, float]:
        """metric -> the value that the run is known to have started from (see `explain.known_starts`)."""
        return known_starts(CheckContext.from_run(self.pairs, thresholds=self.limits), self.limits)

    @cached_property
    def comparison(self) -> Comparison:
        """The answers of the run's last checkpoint against the baseline's; DiagError if they cannot be compared."""
        limits = self.limits
        if self.same_run:
            return comparison(self.run, baseline=self.step, thresholds=limits)
        # The other run's last answers stand in the place of the reference's: what changes are measured from.
        last = answers(self.other).policy_checkpoints()[-1]
        theirs = self.other.outputs
        theirs = theirs[(theirs["model"] == last.model) & (theirs["step"] == last.step)].assign(model=REFERENCE)
        own = self.run.outputs
        both = pd.concat([theirs, own[own["model"] == POLICY]], ignore_index=True)
        return comparison(both, texts=self.run.texts, thresholds=limits)

    @cached_property
    def checks(self) -> dict[str, dict[str, Any]]:
        """The checks of the explanation between baseline and last step, by code."""
        document = explain(self.run, from_step=self.step, thresholds=self.overrides)
        return {str(check["code"]): check for check in document["checks"]}
