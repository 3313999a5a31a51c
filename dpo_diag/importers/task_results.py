"""What an evaluation harness measured of one checkpoint: task scores with their n, and who answered what.

A score is `score/METRIC` in the split that the task names, with the number of questions as weight; the answers behind
one metric of each task stand in the outputs, tagged with the task: two checkpoints are compared question by question.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from dpo_diag.errors import DiagError
from dpo_diag.importers.numbers import number
from dpo_diag.importers.parsed import Options, Parsed

RESULTS = ("lm_eval", "inspect")
"""Formats of evaluation harnesses."""
_STEP = re.compile(r"(?:checkpoint|global_step|step)[-_]?(\d+)", re.IGNORECASE)
_SPLIT = re.compile(r"[^\w.-]+")


@dataclass
class TaskResults:
    """One checkpoint's results, as they are read.

    Attributes:
        step: of the checkpoint.
        history, outputs: rows of those tables.
    """

    step: int
    history: list[dict[str, Any]] = field(default_factory=list)
    outputs: list[dict[str, Any]] = field(default_factory=list)
    _asked: Counter[tuple[str, int]] = field(default_factory=Counter)

    def score(self, task: str, metric: str, value: Any, n: float | None, *, better: bool = True) -> bool:
        """Take one metric of a task; whether it was one. Where less is better it is kept, but is no score."""
        taken, questions = number(value), number(n)
        if taken is None or isinstance(value, bool):
            return False
        name = metric_key(metric)
        self.history.append(
            {
                "step": self.step, "split": split_key(task), "name": f"score/{name}" if better else f"lower/{name}",
                "value": taken, "weight": questions or math.nan,
            }
        )  # fmt: skip
        return True

    def answer(
        self, task: str, question: str, correct: Any, text: str, *, prompt: str | None = None,
        reference: str | None = None, sample: int = 0,
    ) -> bool:  # fmt: skip
        """Take one judged answer; whether its verdict is a share. A question that a task asks twice is two."""
        verdict = float(correct) if isinstance(correct, bool) else number(correct)
        if verdict is None or not 0 <= verdict <= 1:
            return False
        prompt_id = f"{split_key(task)}:{question}"
        self._asked[prompt_id, sample] += 1
        if (times := self._asked[prompt_id, sample]) > 1:
            prompt_id = f"{prompt_id}#{times}"
        self.outputs.append(
            {
                "step": self.step, "model": "policy", "prompt_id": prompt_id, "sample": sample,
                "prompt": prompt, "tags": [split_key(task)], "reference": reference, "text": text, "correct": verdict,
            }
        )  # fmt: skip
        return True

    def put_into(self, parsed: Parsed) -> Parsed:
        """Hand all of it over."""
        parsed.history = pd.DataFrame(self.history)
        parsed.outputs = pd.DataFrame(self.outputs) if self.outputs else None
        parsed.n_rows += len(self.history) + len(self.outputs)
        parsed.n_read = len(self.history) + len(self.outputs)
        parsed.steps = "stated"
        return parsed


def step_of(path: Path, options: Options, *names: Any) -> tuple[int, str]:
    """(step, what said so): `--step`, else `checkpoint-80` in what the harness calls the model, else in the last parts
    of the file's path, else 0, the start.

    Args:
        names: the model's names and arguments, best first.
    """
    if options.step is not None:
        return options.step, "--step"
    for name in names:
        found = _STEP.findall(str(name)) if name else []
        if found:
            return int(found[-1]), f"the model's name, {name}"
    found = _STEP.findall("/".join(path.absolute().parts[-4:]))
    if found:
        return int(found[-1]), f"the path, {path}"
    return 0, "no name says one: the start (--step N says another)"


def split_key(task: str) -> str:
    """A task's name as a split: letters, digits and `_.-`.

    >>> split_key("hellaswag"), split_key("inspect_evals/gsm8k")
    ('hellaswag', 'inspect_evals_gsm8k')
    """
    return _SPLIT.sub("_", task).strip("_") or "task"


def metric_key(metric: str) -> str:
    """A metric's name in the history, without the filter that is none.

    >>> metric_key("acc,none"), metric_key("exact_match,strict-match")
    ('acc', 'exact_match_strict-match')
    """
    name, _, filtered = metric.partition(",")
    return _SPLIT.sub("_", name if filtered in ("", "none") else f"{name}_{filtered}")


def text_of(value: Any) -> str:
    """The text in what a harness calls an answer: the first one of nested lists."""
    while isinstance(value, (list, tuple)) and value:
        value = value[0]
    return value if isinstance(value, str) else "" if value is None else str(value)


def plain_mapping(value: Any) -> Mapping[str, Any]:
    """A mapping, or an empty one for anything else."""
    return value if isinstance(value, Mapping) else {}


def check_apart(sources: Sequence[Parsed]) -> None:
    """No two results say one thing twice.

    Raises:
        DiagError: two say the same score of the same step.
    """
    seen: dict[tuple[Any, ...], Path] = {}
    for source in sources:
        rows = source.history
        if rows is None or rows.empty:
            continue
        for step, split, name in rows[["step", "split", "name"]].itertuples(index=False, name=None):
            other = seen.setdefault((step, split, name), source.files[0])
            if other != source.files[0]:
                raise DiagError(
                    f"two results say {split} {name} of step {step}", where=f"{other}, {source.files[0]}",
                    hint="import each with its --step N, or put them into folders called checkpoint-N", usage=True,
                )  # fmt: skip
