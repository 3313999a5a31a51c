"""JSON lines of log rows, as most trainers' own log files are: any trainer's, LLaMA-Factory's, ms-swift's.

LLaMA-Factory's trainer_log.jsonl, v0: current_steps, total_steps, loss, accuracy, lr, epoch, percentage, elapsed_time,
remaining_time: no margins, no log-probs (they are in trainer_state.json beside it). v1: all metrics, step, total_steps.
ms-swift's logging.jsonl: `"global_step/max_steps": "1/94"` or an integer `global_step`. Some files hold each step twice
(repeated steps are dropped), and the last line can hold the whole log_history.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dpo_diag.importers.keys import with_split
from dpo_diag.importers.log_format import METRIC_KEY, Head, LogFormat, register
from dpo_diag.importers.parsed import Options, Parsed
from dpo_diag.importers.several import StackedRuns, has_rows
from dpo_diag.importers.trainings import Trainings
from dpo_diag.records import row_files
from dpo_diag.records.row_files import BadRow

_NESTED = ("metrics", "logs", "log", "data", "values", "scalars")
_STEPS = ("step", "global_step", "epoch", "_step")


def _is_llamafactory(head: Head) -> bool:
    row = head.row or {}
    return "current_steps" in row or (head.path.name.startswith("trainer_log") and "total_steps" in row)


def _is_swift(head: Head) -> bool:
    row = head.row or {}
    named = head.path.name.startswith("logging.jsonl")
    return "global_step/max_steps" in row or "train_speed(iter/s)" in row or (named and bool(row))


def _holds_log_rows(head: Head) -> bool:
    row = head.row or {}
    if any(key in row for key in _STEPS):
        return True
    has_value = any(isinstance(value, (int, float, str)) for value in row.values())
    return has_value and METRIC_KEY.search(json.dumps(list(row)).encode()) is not None


def read_llamafactory(path: Path, options: Options) -> Parsed:
    """Read trainer_log.jsonl; its step column shows the version of the schema."""
    parsed = read_json_lines(path, options, "llamafactory", "llama-factory")
    steps = {b.step_key for b in parsed.store.filled()}
    parsed.version = options.trainer_version or ("v0" if "current_steps" in steps else "v1")
    if parsed.version == "v0":
        parsed.notes.append("LLaMA-Factory v0 logs loss and accuracy only; trainer_state.json beside it holds the rest")
    return parsed


def read_json_lines(path: Path, options: Options, name: str = "jsonl", trainer: str | None = None) -> Parsed:
    """Read rows of any trainer; a row may keep its metrics under `metrics`, `logs` or `data`.

    A line that is no object is reported by its number. A `log_history` inside a row adds the steps that no line has.
    """
    parsed = Parsed.of(name, [path], options, trainer)
    trainings = StackedRuns(lambda: Trainings(parsed.skipped, parsed.store.trainer))
    late = list[tuple[int, Any]]()
    for line, row in row_files.json_lines(path, parsed.skipped):
        parsed.n_rows += 1
        if isinstance(row, BadRow):
            parsed.skipped.add(line, str(row))
            continue
        if isinstance(row.get("log_history"), list):
            late += [(line, inner) for inner in row["log_history"]]
            stated = {k: v for k, v in row.items() if isinstance(v, (int, float, str))}
            trainings.of(row).current.store.summaries.append(stated)
            continue
        for key in _NESTED:
            if isinstance(inner := row.get(key), Mapping):
                row = {**{k: v for k, v in row.items() if k != key}, **inner}
                break
        if isinstance(split := row.get("split"), str):
            row = with_split(row, split)
        trainings.of(row).add(row, line)
    of_run, run = trainings.taken(parsed, options, path, lambda part: has_rows(part.chained[0].store))
    training, notes = of_run.taken(run)
    parsed.store = store = training.store
    parsed.notes += notes
    parsed.run = parsed.run or run
    logged = {int(step) for block in store.filled() for step in block.steps}
    for line, inner in late:
        if isinstance(inner, Mapping) and inner.get("step") not in logged:
            store.add(inner, line)
            parsed.n_rows += 1
    return parsed.with_steps(options, resumed_at=training.resumed_at)


register(
    LogFormat(
        name="llamafactory",
        description="LLaMA-Factory trainer_log.jsonl, v0 and v1",
        trainers=("LLaMA-Factory",),
        file_name="trainer_log.jsonl",
        example='{"current_steps": 5, "total_steps": 90, "loss": 0.6931, "accuracy": 0.5, "lr": 5e-06, "epoch": 0.1}\n',
        order=50,
        why="rows of one trainer, before rows of any",
        sniff=_is_llamafactory,
        read=read_llamafactory,
    )
)
register(
    LogFormat(
        name="swift",
        description="ms-swift logging.jsonl",
        trainers=("ms-swift",),
        file_name="logging.jsonl",
        example='{"loss": 0.6931, "rewards/margins": 0.0, "epoch": 0.01, "global_step/max_steps": "1/94"}\n',
        order=50,
        why="rows of one trainer, before rows of any",
        sniff=_is_swift,
        read=lambda path, options: read_json_lines(path, options, "swift", "ms-swift"),
    )
)
register(
    LogFormat(
        name="jsonl",
        description="JSON lines of log rows, any trainer",
        trainers=("open-instruct", "torchtune", "any"),
        file_name="log.jsonl",
        example='{"step": 10, "loss": 0.6931, "rewards/chosen": 0.01, "eval_loss": 0.69}\n',
        order=60,
        why="rows of any trainer, after those of one",
        sniff=_holds_log_rows,
        read=read_json_lines,
    )
)
