"""The generic table: one row per (step, pair) in JSON lines, CSV or Parquet, for anyone who can print numbers.

Required: step, chosen_sum_logp, rejected_sum_logp and pair_id (or the three texts). Optional: split, ref_*_sum_logp,
and per side _n_tokens, _n_bytes, _n_truncated, _entropy_sum, _greedy_logp_sum, _top1, _top5; texts on any one row of
a pair; numeric columns `score/NAME`, one value a step or one a pair.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dpo_diag.errors import DiagError
from dpo_diag.importers.log_format import Head, LogFormat, register
from dpo_diag.importers.numbers import number, step_number
from dpo_diag.importers.pair_records import COUNTS, MEASURES, fill_bytes, pair_records, score_history
from dpo_diag.importers.pair_texts import PairTexts
from dpo_diag.importers.parsed import Options, Parsed
from dpo_diag.importers.same_ids import facts_of, told_apart
from dpo_diag.records.given_ids import GivenIds
from dpo_diag.records.row_files import BadRow, read_rows
from dpo_diag.records.schemas import EVAL_SPLIT, SIDES
from dpo_diag.records.text_files import Skipped
from dpo_diag.rows.columns import SAMPLE

REQUIRED = ("step", "chosen_sum_logp", "rejected_sum_logp")
_NUMERIC = tuple(f"{side}_{m}" for side in SIDES for m in ("sum_logp", *MEASURES)) + tuple(
    f"ref_{side}_sum_logp" for side in SIDES
)


class _Table:
    """Columns of numbers that grow row by row; NaN where a row has no value."""

    def __init__(self) -> None:
        self.steps = array("q")
        self.splits: list[str] = []
        self.pair_ids: list[str] = []
        self.numbers: dict[str, array[float]] = {}
        self.texts: dict[tuple[str, str], dict[str, str]] = {}
        self.given: dict[str, GivenIds] = {}

    def put(self, name: str, value: float) -> None:
        column = self.numbers.get(name)
        if column is None:
            column = self.numbers[name] = array("d")
        if len(column) < len(self.steps):
            column.extend([math.nan] * (len(self.steps) - len(column)))
        column.append(value)

    def frame(self) -> pd.DataFrame:
        n = len(self.steps)
        data: dict[str, Any] = {
            "step": np.frombuffer(self.steps, dtype=np.int64) if n else np.empty(0, np.int64),
            "split": self.splits,
            "pair_id": self.pair_ids,
        }
        for name, column in self.numbers.items():
            column.extend([math.nan] * (n - len(column)))
            data[name] = np.frombuffer(column, dtype=np.float64) if n else np.empty(0)
        return pd.DataFrame(data)


def _is_pair_table(head: Head) -> bool:
    names = head.columns or (head.row or {})
    is_other_parquet = head.data.startswith(b"PAR1") and not head.columns  # packed once more, or damaged
    return is_other_parquet or "chosen_sum_logp" in names or "rejected_sum_logp" in names


def read_pair_table(path: Path, options: Options) -> Parsed:
    """Read a generic table to pair records, texts and score history.

    Raises:
        DiagError: a required column is nowhere in the file.
    """
    parsed = Parsed.of("pairs", [path], options)
    table, names = _Table(), set[str]()
    rows = read_rows(path, parsed.skipped)
    first = list(islice(rows, SAMPLE))
    texts = PairTexts([row for _, row in first if not isinstance(row, BadRow)])
    for line, row in chain(first, rows):
        if isinstance(row, BadRow):
            parsed.skipped.add(line, str(row))
            continue
        parsed.n_rows += 1
        names.update(str(k) for k in row)
        _take(table, texts, row, line, parsed.skipped, options.split or EVAL_SPLIT)
    if texts.note:
        parsed.notes.append(texts.note)
    frame = table.frame()
    missing = [c for c in REQUIRED if c not in names]
    if missing and frame.empty:
        raise DiagError(
            f"columns {missing} are missing",
            where=path,
            got=sorted(names)[:12] or "no rows",
            expected="step, pair_id, chosen_sum_logp, rejected_sum_logp (dpo-diag import --formats)",
            hint="name the columns so",
        )
    parsed.steps_from = "the rows' own step"
    if frame.empty:
        return parsed
    n_rows = len(frame)
    frame, shared = told_apart(frame)
    parsed.splits, notes = facts_of(table.given, shared, frame)
    parsed.notes += notes
    keep = ~frame.duplicated(["step", "split", "pair_id"], keep="last")
    frame = frame[keep].sort_values(["step", "split", "pair_id"], kind="stable", ignore_index=True)
    parsed.n_read, parsed.n_duplicates = len(frame), n_rows - len(frame)
    if n := int((~keep).sum()):
        parsed.notes.append(f"{n} rows repeat the step and pair_id of another: the last of each is taken")
    fill_bytes(frame, table.texts, parsed)
    parsed.pairs = pair_records(frame, parsed)
    parsed.texts = _text_rows(table)
    parsed.history = score_history(frame)
    return parsed


def _take(table: _Table, reader: PairTexts, row: Mapping[str, Any], line: int, skipped: Skipped, split: str) -> None:
    step = step_number(row.get("step"))
    sums = [number(row.get(f"{side}_sum_logp")) for side in SIDES]
    if step is None:
        skipped.add(line, f"step is not a step: {str(row.get('step'))[:40]!r}")
        return
    if any(s is None for s in sums):
        bad = next(f"{side}_sum_logp" for side, s in zip(SIDES, sums, strict=True) if s is None)
        skipped.add(line, f"{bad} is not a number: {str(row.get(bad))[:40]!r}")
        return
    texts, content = reader.of(row)
    pair_id, name = row.get("pair_id"), str(row.get("split") or split)
    if pair_id is None or pair_id == "":
        if content is None:
            skipped.add(line, "no pair_id, and not all of prompt, chosen, rejected to make one")
            return
        pair_id = content
    elif content is not None:
        pair_id = table.given.setdefault(name, GivenIds()).own_content(str(pair_id), content)
    for column in _NUMERIC:
        raw = row.get(column)
        if raw is None or raw == "":
            continue
        value = number(raw)
        if value is None or (column.endswith(COUNTS) and not (0 <= value < 1 << 31 and value.is_integer())):
            if value is None or not math.isnan(value):
                skipped.add(line, f"{column} is not a {'count' if column.endswith(COUNTS) else 'number'}: {raw!r:.40}")
            continue
        table.put(column, value)
    for column, raw in row.items():
        if str(column).startswith("score/") and raw is not None and raw != "":
            value = number(raw)
            if value is None:
                skipped.add(line, f"{column} is not a number: {raw!r:.40}")
            else:
                table.put(str(column), value)
    table.steps.append(step)
    table.splits.append(name)
    table.pair_ids.append(str(pair_id))
    if texts:
        kept = table.texts.setdefault((name, str(pair_id)), {})
        for key, text in texts.items():
            kept.setdefault(key, text)


def _text_rows(table: _Table) -> pd.DataFrame | None:
    if not table.texts:
        return None
    return pd.DataFrame([{"split": s, "pair_id": p, **t} for (s, p), t in table.texts.items()])


_SIDE_COLUMNS = ", ".join(f"<side>_{measure}" for measure in MEASURES)
COLUMNS = (
    f"{', '.join(REQUIRED)}, pair_id (or prompt, chosen, rejected); optional split, ref_chosen_sum_logp, "
    f"ref_rejected_sum_logp, score/NAME, {_SIDE_COLUMNS} (<side>: chosen, rejected)"
)
"""The table's columns, in a sentence."""

register(
    LogFormat(
        name="pairs",
        description="generic table, one row per (step, pair): JSON lines, CSV, Parquet",
        trainers=("any",),
        file_name="pairs.jsonl",
        example='{"step": 0, "pair_id": "a", "chosen_sum_logp": -10.5, "rejected_sum_logp": -12.0}\n',
        order=30,
        why="columns that no log of means has",
        sniff=_is_pair_table,
        read=read_pair_table,
        rounding=0,
    )
)
