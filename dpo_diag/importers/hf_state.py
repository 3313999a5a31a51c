"""Hugging Face trainer_state.json (TRL, LLaMA-Factory, ms-swift, Axolotl): `log_history`, also as a bare list.

A file that was cut off or holds a broken row gives the rows that can still be read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dpo_diag.errors import DiagError
from dpo_diag.importers.parsed import Options, Parsed
from dpo_diag.importers.rows import RowStore, step_number
from dpo_diag.importers.steps import fill_steps
from dpo_diag.records.text_files import Skipped, whole

_START = re.compile(r'"(?:log_history|history|logs|rows|data)"\s*:\s*\[|^\s*\[')
_ROW_START = re.compile(r"\{")


def read_hf_state(path: Path, options: Options) -> Parsed:
    """Read `log_history`. Rows of a cut-off document are read up to the cut, which is reported.

    Raises:
        DiagError: the document holds no list of rows.
    """
    skipped = Skipped()
    raw = whole(path, skipped)
    text = raw.decode("utf-8", "replace")
    document: Any = None
    try:
        document = json.loads(text)
        rows = rows_of(document)
        numbered = _line_numbers(text, rows)
    except (ValueError, RecursionError) as error:
        rows, numbered = salvage(text, skipped, str(error))
    if rows is None:
        raise DiagError(
            "no log_history", where=path, expected="trainer_state.json or a list of rows", hint="name the trainer's log"
        )
    store = RowStore(skipped, options.trainer or "any")
    for row, line in zip(rows, numbered, strict=True):
        if isinstance(row, Mapping):
            store.add(row, line)
        else:
            skipped.add(line, f"a row of log_history is no object: {type(row).__name__}")
    parsed = Parsed("hf", [path], skipped, options.trainer or "unknown", options.trainer_version, store=store)
    if isinstance(document, Mapping):
        state = {k: v for k, v in document.items() if isinstance(v, (int, float, str)) and not isinstance(v, bool)}
        parsed.extra["trainer_state"] = state
        parsed.facts.take("total_steps", step_number(document.get("max_steps")), f"{path.name}: max_steps")
        parsed.facts.take("logging_steps", step_number(document.get("logging_steps")), f"{path.name}: logging_steps")
        if isinstance(document.get("stateful_callbacks"), Mapping):
            parsed.extra["transformers_at_least"] = "4.42"
    parsed.steps_from = fill_steps(
        store,
        logging_steps=options.logging_steps or parsed.facts.logging_steps,
        total_steps=parsed.facts.total_steps,
    )
    parsed.found = len(rows)
    parsed.read = store.rows
    return parsed


def rows_of(document: Any) -> list[Any] | None:
    """The list of rows in a document: log_history, history, a bare list, or columns of equal length; None if none."""
    if isinstance(document, list):
        return document
    if not isinstance(document, Mapping):
        return None
    for key in ("log_history", "history", "logs", "rows", "data"):
        inner = document.get(key)
        if isinstance(inner, list) and (key == "log_history" or any(isinstance(r, Mapping) for r in inner)):
            return inner
        if isinstance(inner, Mapping) and (found := rows_of(inner)) is not None:
            return found
    if document and all(str(k).isdigit() and isinstance(v, Mapping) for k, v in document.items()):
        return [{"step": int(k), **v} for k, v in document.items() if len(str(k)) < 16]
    columns = {k: v for k, v in document.items() if isinstance(v, list)}
    lengths = {len(v) for v in columns.values()}
    if len(columns) >= 2 and len(lengths) == 1 and all(not isinstance(v, list) for c in columns.values() for v in c):
        return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    return None


def _line_numbers(text: str, rows: list[Any] | None) -> list[int]:
    """Line of each row in a document that is written one value a line; the row's number where it is on one line."""
    if not rows:
        return []
    start = _START.search(text)
    position = start.end() if start else 0
    decoder, numbers, line, counted = json.JSONDecoder(), [], 1, 0
    for _ in rows:
        while position < len(text) and text[position] in " \t\r\n,[":
            position += 1
        line += text.count("\n", counted, position)
        counted = position
        numbers.append(line)
        try:
            _, position = decoder.raw_decode(text, position)
        except (ValueError, RecursionError):
            return numbers + [line] * (len(rows) - len(numbers))
    return numbers


def salvage(text: str, skipped: Skipped, why: str) -> tuple[list[Any] | None, list[int]]:
    """The rows of a broken document, one by one; every part that cannot be read is reported by line."""
    start = _START.search(text)
    if start is None:
        return None, []
    decoder = json.JSONDecoder()
    rows: list[Any] = []
    numbers: list[int] = []
    position, line, counted = start.end(), 1, 0
    skipped.add(None, f"the document is broken: {why}")
    while (match := _ROW_START.search(text, position)) is not None:
        line += text.count("\n", counted, match.start())
        counted = match.start()
        try:
            row, position = decoder.raw_decode(text, match.start())
        except (ValueError, RecursionError):
            skipped.add(line, "a row is cut off or broken")
            position = match.start() + 1
            continue
        rows.append(row)
        numbers.append(line)
    return rows, numbers
