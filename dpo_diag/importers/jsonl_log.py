"""JSON lines of log rows: what most trainers' own log files are. LLaMA-Factory and ms-swift build on `read_lines`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dpo_diag.importers.parsed import Options, Parsed
from dpo_diag.importers.rows import RowStore
from dpo_diag.importers.steps import fill_steps
from dpo_diag.records.text_files import Skipped, lines

_NESTED = ("metrics", "logs", "log", "data", "values", "scalars")


def read_jsonl_log(path: Path, options: Options) -> Parsed:
    """Read rows of any trainer; a row may keep its metrics under `metrics`, `logs` or `data`."""
    return read_lines(path, options, "jsonl", options.trainer or "any")


def read_lines(path: Path, options: Options, name: str, trainer: str) -> Parsed:
    """Read JSON lines; what is no object is reported by line. A `log_history` inside a row adds steps."""
    skipped = Skipped()
    store = RowStore(skipped, trainer)
    found, late = 0, list[tuple[int, Any]]()
    for line, text in lines(path, skipped):
        text = text.strip()
        if not text:
            continue
        found += 1
        row = parse_line(text, line, skipped)
        if row is None:
            continue
        if isinstance(row.get("log_history"), list):
            late += [(line, inner) for inner in row["log_history"]]
            store.summaries.append({k: v for k, v in row.items() if isinstance(v, (int, float, str))})
            continue
        for key in _NESTED:
            if isinstance(inner := row.get(key), Mapping):
                row = {**{k: v for k, v in row.items() if k != key}, **inner}
                break
        if isinstance(split := row.get("split"), str):
            row = with_split(row, split)
        store.add(row, line)
    seen = {int(s) for b in store.taken() for s in b.steps}
    for line, inner in late:
        if isinstance(inner, Mapping) and inner.get("step") not in seen:
            store.add(inner, line)
            found += 1
    parsed = Parsed(
        name, [path], skipped, trainer if trainer != "any" else "unknown", options.trainer_version, store=store
    )
    parsed.steps_from = fill_steps(store, logging_steps=options.logging_steps)
    parsed.found, parsed.read = found, store.rows
    return parsed


def parse_line(text: bytes, line: int, skipped: Skipped) -> dict[str, Any] | None:
    """One JSON object, or None with the reason reported."""
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:
        skipped.add(line, f"not JSON: {re.sub(r'[^ -~]', '?', str(error))[:80]}")
        return None
    if not isinstance(row, dict):
        skipped.add(line, f"a row is no object: {type(row).__name__}")
        return None
    return row


def with_split(row: Mapping[str, Any], split: str) -> dict[str, Any]:
    """A row whose `split` column names the set: the split goes into the keys of its metrics."""
    prefix = "" if split.lower().startswith("train") else f"{split}/"
    administrative = ("step", "epoch", "global_step", "current_steps", "total_steps")
    return {k if k in administrative else f"{prefix}{k}": v for k, v in row.items() if k != "split"}
