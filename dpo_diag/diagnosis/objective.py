"""What a sweeper that searches (Optuna) is told of a run: named values of its records, each with its direction."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dpo_diag.diagnosis.evidence import SCORE, score_curves
from dpo_diag.diagnosis.logged import at_reference, measured_split, metric_rows
from dpo_diag.diagnosis.pair_rows import PairRows
from dpo_diag.errors import DiagError, did_you_mean
from dpo_diag.records import Run
from dpo_diag.records.metric_table import METRICS, metric_of
from dpo_diag.records.schemas import SIDES

DIRECTIONS = ("maximize", "minimize")
CHANGE = "change:"
_EXAMPLE = "e.g. score/execution_accuracy, rewards/accuracies, change:ce/chosen"


@dataclass(frozen=True)
class Objective:
    """A value of a run's records at its last evaluation.

    Attributes:
        name: as in the metric table, with its side.
        split: None for the best one that holds it.
        change: since the start, and not the value itself.
        direction: one of DIRECTIONS.
    """

    name: str
    split: str | None
    change: bool
    direction: str

    def of(self, run: Run) -> float:
        """The value.

        Raises:
            DiagError: the run holds none, or no finite one; or a change of what was not measured before training.
        """
        start, end = self._score(run) if self.name.startswith(SCORE) else self._metric(run)
        value = end - start if self.change else end
        if not math.isfinite(value):
            where = f"split {self.split}" if self.split else "any evaluation set"
            what = f"{CHANGE if self.change else ''}{self.name}"
            unmeasured = math.isfinite(end) and self.change
            raise DiagError(
                "the objective has no value", where=run.path, got=f"no finite {what} of {where}",
                expected="a value before the first step" if unmeasured else None,
                hint="trainer.args.eval_on_start=true measures it" if unmeasured else None,
            )  # fmt: skip
        return value

    def _score(self, run: Run) -> tuple[float, float]:
        curves = [c for c in score_curves(run) if c.name == self.name.removeprefix(SCORE)]
        found = next((c for c in curves if self.split in (None, c.split)), None)
        if found is None:
            return math.nan, math.nan
        return float(found.values[0]) if found.steps[0] == 0 else math.nan, float(found.values[-1])

    def _metric(self, run: Run) -> tuple[float, float]:
        pairs = PairRows(run)
        split = self.split or measured_split(run) or next(iter(pairs.steps), None)
        rows = metric_rows(pairs, self.name, split)
        if split is None or not len(rows) or run.role(split) == "train":
            return math.nan, math.nan
        first, last = float(rows["value"].iloc[0]), float(rows["value"].iloc[-1])
        # A first evaluation behind the first steps is no start: runs of other rates would be counted from elsewhere.
        start = first if int(rows["step"].iloc[0]) == 0 else math.nan
        return at_reference(pairs, split).get(self.name, start), last


def objectives(names: Any, directions: Any = None, prompts: str = "task", task: str = "sql") -> list[Objective]:
    """The objectives that a configuration names; [] for none.

    Args:
        names: `[change:]NAME[@SPLIT]`, or a list of such.
        directions: one of DIRECTIONS, or a list with one for each; None: what the metric table calls better.
        prompts, task: kinds of prompts and task, which decide what scores a run will have.

    Raises:
        DiagError: a name that no run records, or a direction that nothing says.
    """
    if names is None or names == "":
        return []
    listed = [names] if isinstance(names, str) else [str(name) for name in names]
    given = [directions] * len(listed) if directions is None or isinstance(directions, str) else list(directions)
    if len(given) != len(listed):
        raise _wrong("sweep.direction", given, f"one for each of {len(listed)} objectives")
    return [_objective(name, direction, prompts, task) for name, direction in zip(listed, given, strict=True)]


def _objective(text: str, direction: str | None, prompts: str, task: str) -> Objective:
    change = text.startswith(CHANGE)
    name, _, split = text.removeprefix(CHANGE).partition("@")
    known = _known(prompts, task)
    if name not in known:
        if name.startswith(SCORE) and not any(n.startswith(SCORE) for n in known):
            raise _wrong("sweep.objective", text, "prompts that are answered and judged: prompts=task or prompts=file")
        raise DiagError(
            "no such metric", where="sweep.objective", got=text, expected=_EXAMPLE,
            hint=did_you_mean(name, known) or "docs/reference/metrics.md lists them", usage=True,
        )  # fmt: skip
    metric = metric_of(name)
    better = None if metric is None else {"higher": "maximize", "lower": "minimize"}.get(metric.better)
    if direction is not None and direction not in DIRECTIONS:
        raise _wrong("sweep.direction", direction, " or ".join(DIRECTIONS))
    if direction is None and better is None:
        raise _wrong(
            "sweep.direction", f"nothing, and of {name} neither more nor less is better", " or ".join(DIRECTIONS)
        )
    return Objective(name, split or None, change, direction or str(better))


def _known(prompts: str, task: str) -> list[str]:
    """Names that a run of such prompts and task records."""
    scores = {"task": ["execution_accuracy"] if task == "sql" else [], "file": ["accuracy"]}.get(prompts, [])
    names: list[str] = [f"{SCORE}{name}" for name in scores]
    for name, metric in METRICS.items():
        if f"{name}/" != SCORE:
            names += [f"{name}/{side}" for side in SIDES] if metric.sides else [name]
    return names


def directions(names: Any, given: Any, prompts: str, task: str) -> str | list[str]:
    """What a sweeper's `direction` is: of one objective its own, of several a list.

    Raises:
        DiagError: no objective, or as `objectives`.
    """
    found = objectives(names, given, prompts, task)
    if not found:
        raise DiagError(
            "the sweeper looks for a number and none is named", expected=f"sweep.objective=NAME, {_EXAMPLE}", usage=True
        )
    return found[0].direction if len(found) == 1 else [o.direction for o in found]


def values(found: Sequence[Objective], run: Run) -> float | tuple[float, ...]:
    """What a sweeper takes as a job's result."""
    numbers = tuple(o.of(run) for o in found)
    return numbers[0] if len(numbers) == 1 else numbers


def _wrong(key: str, got: object, expected: str) -> DiagError:
    return DiagError("configuration does not fit", where=key, got=got, expected=expected, usage=True)
