"""The generic table: one row per (step, pair) in JSON lines, CSV or Parquet, for anyone who can print numbers.

Required: step, chosen_sum_logp, rejected_sum_logp and pair_id (or the three texts). Optional: split, ref_*_sum_logp,
and per side _n_tokens, _n_bytes, _n_truncated, _entropy_sum, _greedy_logp_sum, _top1, _top5; texts on any one row of
a pair; numeric columns `score/NAME`, one value a step or one a pair.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dpo_diag.errors import DiagError
from dpo_diag.importers.parsed import Options, Parsed
from dpo_diag.importers.rows import number, step_number
from dpo_diag.records.pair_id import make_pair_id
from dpo_diag.records.row_files import readable_rows
from dpo_diag.records.schemas import EVAL_SPLIT, SIDES
from dpo_diag.records.text_files import Skipped

MEASURES = ("n_tokens", "n_bytes", "n_truncated", "entropy_sum", "greedy_logp_sum", "top1", "top5")
_COUNTS = ("n_tokens", "n_bytes", "n_truncated")
REQUIRED = ("step", "chosen_sum_logp", "rejected_sum_logp")
TEXTS = ("prompt", "chosen", "rejected")
_NUMERIC = tuple(f"{side}_{m}" for side in SIDES for m in ("sum_logp", *MEASURES)) + tuple(
    f"ref_{side}_sum_logp" for side in SIDES
)
_MISSING = -1


class _Table:
    """Columns of numbers that grow row by row; NaN where a row has no value."""

    def __init__(self) -> None:
        self.steps = array("q")
        self.lines = array("q")
        self.splits: list[str] = []
        self.pair_ids: list[str] = []
        self.numbers: dict[str, array[float]] = {}
        self.texts: dict[tuple[str, str], dict[str, str]] = {}

    def put(self, name: str, value: float) -> None:
        column = self.numbers.get(name)
        if column is None:
            column = self.numbers[name] = array("d", [math.nan]) * 0
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


def read_pair_table(path: Path, options: Options) -> Parsed:
    """Read a generic table to pair records, texts and score history.

    Raises:
        DiagError: a required column is nowhere in the file.
    """
    skipped = Skipped()
    table, seen, found = _Table(), set[str](), 0
    for line, row in readable_rows(path, skipped):
        found += 1
        seen.update(str(k) for k in row)
        _take(table, row, line, skipped, options.split or EVAL_SPLIT)
    frame = table.frame()
    missing = [c for c in REQUIRED if c not in seen]
    if missing and frame.empty:
        raise DiagError(
            f"columns {missing} are missing",
            where=path,
            got=sorted(seen)[:12] or "no rows",
            expected="step, pair_id, chosen_sum_logp, rejected_sum_logp (dpo-diag import --formats)",
            hint="name the columns so",
        )
    parsed = Parsed("pairs", [path], skipped, options.trainer or "unknown", options.trainer_version)
    parsed.found = found
    parsed.steps_from = "the rows' own step"
    if frame.empty:
        return parsed
    keep = ~frame.duplicated(["step", "split", "pair_id"], keep="last")
    parsed.duplicates = int((~keep).sum())
    frame = frame[keep].sort_values(["step", "split", "pair_id"], kind="stable", ignore_index=True)
    parsed.read = len(frame)
    fill_bytes(frame, table.texts, parsed)
    parsed.pairs = pair_records(frame, parsed)
    parsed.texts = _text_rows(table)
    parsed.history = score_history(frame)
    return parsed


def _take(table: _Table, row: Mapping[str, Any], line: int, skipped: Skipped, split: str) -> None:
    step = step_number(row.get("step"))
    sums = [number(row.get(f"{side}_sum_logp")) for side in SIDES]
    if step is None:
        skipped.add(line, f"step is no step: {str(row.get('step'))[:40]!r}")
        return
    if any(s is None for s in sums):
        bad = next(f"{side}_sum_logp" for side, s in zip(SIDES, sums, strict=True) if s is None)
        skipped.add(line, f"{bad} is not a number: {str(row.get(bad))[:40]!r}")
        return
    texts = {k: text for k in TEXTS if (text := _text(row.get(k))) is not None}
    pair_id = row.get("pair_id")
    if pair_id is None or pair_id == "":
        if len(texts) < len(TEXTS):
            skipped.add(line, "no pair_id, and not all of prompt, chosen, rejected to make one")
            return
        try:
            pair_id = make_pair_id(row["prompt"], row["chosen"], row["rejected"])
        except (TypeError, ValueError, AttributeError):
            pair_id = make_pair_id(texts["prompt"], texts["chosen"], texts["rejected"])
    name = str(row.get("split") or split)
    for column in _NUMERIC:
        raw = row.get(column)
        if raw is None or raw == "":
            continue
        value = number(raw)
        if value is None or (column.endswith(_COUNTS) and not (value >= 0 and value == int(value))):
            if value is None or not math.isnan(value):
                skipped.add(line, f"{column} is no {'count' if column.endswith(_COUNTS) else 'number'}: {raw!r:.40}")
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
        known = table.texts.setdefault((name, str(pair_id)), {})
        for key, text in texts.items():
            known.setdefault(key, text)


def _text(value: Any) -> str | None:
    """A text column: a string, or chat messages rendered as `role: content` lines."""
    if isinstance(value, str):
        return value if value else None
    if isinstance(value, list) and value and all(isinstance(m, Mapping) for m in value):
        return "\n".join(f"{m.get('role', '')}: {m.get('content', '')}" for m in value)
    return None


def fill_bytes(frame: pd.DataFrame, texts: Mapping[tuple[str, str], Mapping[str, str]], parsed: Parsed) -> None:
    """UTF-8 bytes of the response text where the table has none."""
    for side in SIDES:
        column = f"{side}_n_bytes"
        sizes = {key: float(len(t[side].encode("utf-8", "replace"))) for key, t in texts.items() if side in t}
        if not sizes:
            continue
        found = pd.Series([sizes.get(key, math.nan) for key in zip(frame["split"], frame["pair_id"], strict=True)])
        if column in frame:
            frame[column] = frame[column].fillna(found)
        else:
            frame[column] = found
            parsed.extra["n_bytes_from"] = "UTF-8 bytes of the response texts"


def pair_records(frame: pd.DataFrame, parsed: Parsed) -> pd.DataFrame:
    """Wide rows (step, split, pair_id, chosen_*, rejected_*, ref_*) to rows of the `pairs` table, reference rows once.

    Without ref columns the rows of step 0 stand for the reference, if there are any; what was used is told in `extra`.
    """
    parts: list[pd.DataFrame] = []
    base = frame[["step", "split", "pair_id"]]
    for side in SIDES:
        part = base.assign(role="policy", side=side, sum_logp=frame[f"{side}_sum_logp"])
        for measure in MEASURES:
            if f"{side}_{measure}" in frame:
                part[measure] = frame[f"{side}_{measure}"]
        parts.append(part)
    has_ref = [s for s in SIDES if f"ref_{s}_sum_logp" in frame and frame[f"ref_{s}_sum_logp"].notna().any()]
    if len(has_ref) == len(SIDES):
        parsed.extra["reference_from"] = "the table's ref_*_sum_logp"
        for side in SIDES:
            column = f"ref_{side}_sum_logp"
            known = frame[frame[column].notna()]
            grouped = known.groupby(["split", "pair_id"], sort=False)[column]
            if float((grouped.max() - grouped.min()).abs().max()) > 1e-3:
                parsed.notes.append(f"{column} changes between steps: the first value of each pair is taken")
            first = known.drop_duplicates(["split", "pair_id"])
            part = first[["step", "split", "pair_id"]].assign(role="ref", side=side, sum_logp=first[column])
            if f"{side}_n_tokens" in first:
                part["n_tokens"] = first[f"{side}_n_tokens"]
            parts.append(part)
    elif (frame["step"] == 0).any():
        parsed.extra["reference_from"] = "the rows of step 0"
        parts += [p[p["step"] == 0].assign(role="ref") for p in parts]
    else:
        parsed.notes.append("no reference: neither ref_*_sum_logp nor rows of step 0")
    rows = pd.concat(parts, ignore_index=True)
    for column in _COUNTS:
        if column in rows:
            rows[column] = rows[column].astype("Int64")
    positive = int((rows["sum_logp"] > 1e-6).sum())
    if positive > 0.5 * len(rows):
        # Negative log-likelihoods under the wrong name would turn every finding upside down.
        raise DiagError(
            "log-probs are above 0", where="*_sum_logp", got=f"{positive} of {len(rows)} values",
            expected="sums of log-probs, 0 or less", hint="negate the column if it holds negative log-likelihoods",
        )  # fmt: skip
    if positive:
        parsed.notes.append(f"{positive} log-probs are positive: not sums of log-probs?")
    return rows


def _text_rows(table: _Table) -> pd.DataFrame | None:
    if not table.texts:
        return None
    return pd.DataFrame([{"split": s, "pair_id": p, **t} for (s, p), t in table.texts.items()])


def score_history(frame: pd.DataFrame) -> pd.DataFrame | None:
    """`score/NAME` columns as history: one value a step if it never varies within one, else the mean over pairs (n)."""
    parts = []
    for column in [c for c in frame.columns if str(c).startswith("score/")]:
        known = frame[frame[column].notna()]
        if known.empty:
            continue
        grouped = known.groupby(["step", "split"], sort=True)[column]
        varies = bool((grouped.max() - grouped.min()).abs().gt(1e-12).any())
        part = grouped.mean().rename("value").reset_index()
        part["weight"] = grouped.size().to_numpy(dtype=float) if varies else math.nan
        parts.append(part.assign(name=column))
    return pd.concat(parts, ignore_index=True) if parts else None
