"""Hugging Face trainer_state.json (TRL, LLaMA-Factory, ms-swift, Axolotl): `log_history`, also as a bare list.

A file that was cut off or holds a broken row gives the rows that can still be read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from dpo_diag.documents import parse_json
from dpo_diag.errors import DiagError
from dpo_diag.importers.columns import rows_of_table, uneven
from dpo_diag.importers.log_format import METRIC_KEY, Head, LogFormat, register
from dpo_diag.importers.numbers import step_number
from dpo_diag.importers.parsed import Options, Parsed
from dpo_diag.importers.rows import RowStore
from dpo_diag.importers.several import StackedRuns, has_rows
from dpo_diag.records.json_tables import BEGINS, BEGINS_NAMELESS, NAMELESS, WITH_NAMES, nameless
from dpo_diag.records.row_files import BadRow, as_row, json_values
from dpo_diag.records.text_files import whole

_START = re.compile(r'"(?:log_history|history|logs|rows|data)"\s*:\s*\[|^\s*\[')


def _is_state_or_rows(head: Head) -> bool:
    if BEGINS_NAMELESS.match(head.text):
        return True  # to be refused with the reason
    if isinstance(head.document, list):
        return any(isinstance(row, Mapping) for row in head.document)
    if isinstance(head.document, Mapping):
        # With a loss of its own it is itself a row, whatever lists that row holds (ms-swift's last line).
        is_row = isinstance(head.document.get("loss"), (int, float, str))
        return not is_row and (rows_of(head.document) is not None or bool(uneven(head.document)))
    if not head.is_json:
        return False
    # Longer than the head, or broken: by the keys in it.
    if '"log_history"' in head.text or ('"best_metric"' in head.text and '"epoch"' in head.text):
        return True
    if BEGINS.match(head.text) and METRIC_KEY.search(head.data):
        return True
    is_array = head.text.startswith("[") and '"loss"' in head.text
    return is_array or '"history"' in head.text[:200] or (head.row is None and "trainer_state" in head.path.name)


def read_hf_state(path: Path, options: Options) -> Parsed:
    """Read `log_history`. Rows of a cut-off document are read up to the cut, which is reported.

    Raises:
        DiagError: the document holds no list of rows.
    """
    parsed = Parsed.of("hf", [path], options)
    text = whole(path, parsed.skipped).decode("utf-8", "replace")
    document, rows, lines = None, None, list[int]()
    try:
        document = parse_json(text)
        rows = rows_of(document)
        parsed.skipped.add_repeated(document, rows=rows)
        lines = [line for line, _ in islice(json_values(text, _START), len(rows or ()))]
        lines += [lines[-1] if lines else 1] * (len(rows or ()) - len(lines))
    except ValueError as error:
        if _START.search(text) is not None:
            parsed.skipped.add(None, f"the document is broken: {error}")
            values = list(json_values(text, _START))
            rows, lines = [value for _, value in values], [line for line, _ in values]
    if nameless(document):
        raise DiagError(NAMELESS, where=path, expected="rows as objects", hint=WITH_NAMES)
    if lengths := uneven(document):
        expected, hint = "as many values in each", "write one table for each, or pad with null"
        raise DiagError(
            "columns of different lengths", where=path, got=", ".join(lengths[:8]), expected=expected, hint=hint
        )
    if rows is None:
        raise DiagError(
            "no log_history", where=path, expected="trainer_state.json or a list of rows", hint="name the trainer's log"
        )
    stacked = StackedRuns(lambda: RowStore(parsed.skipped, parsed.store.trainer))
    for row, line in zip(map(as_row, rows), lines, strict=True):
        if isinstance(row, BadRow):
            parsed.skipped.add(line, str(row))
        else:
            stacked.of(row).add(row, line)
    parsed.store, _ = stacked.taken(parsed, options, path, has_rows)
    if isinstance(document, Mapping):
        state = {k: v for k, v in document.items() if isinstance(v, (int, float, str)) and not isinstance(v, bool)}
        parsed.details["trainer_state"] = state
        parsed.facts.take("total_steps", step_number(document.get("max_steps")), f"{path.name}: max_steps")
        parsed.facts.take("logging_steps", step_number(document.get("logging_steps")), f"{path.name}: logging_steps")
        if isinstance(document.get("stateful_callbacks"), Mapping):
            parsed.details["transformers_at_least"] = "4.42"
    parsed.n_rows = sum(not isinstance(row, BadRow) for row in rows)
    return parsed.with_steps(options)


def rows_of(document: Any) -> list[Any] | None:
    """The list of rows in a document: log_history, history, a bare list, or columns of equal length; None if none."""
    if isinstance(document, list):
        return document
    if not isinstance(document, Mapping):
        return None
    if (rows := rows_of_table(document)) is not None:
        return rows
    for key in ("log_history", "history", "logs", "rows", "data"):
        inner = document.get(key)
        if isinstance(inner, list) and (key == "log_history" or any(isinstance(r, Mapping) for r in inner)):
            return inner
        if isinstance(inner, Mapping) and (rows := rows_of(inner)) is not None:
            return rows
    return None


register(
    LogFormat(
        name="hf",
        description="trainer_state.json (TRL, LLaMA-Factory, ms-swift), or a JSON list of rows",
        trainers=("TRL", "LLaMA-Factory", "ms-swift", "Axolotl", "unsloth"),
        file_name="trainer_state.json",
        example='{"log_history": [{"step": 10, "epoch": 0.1, "loss": 0.6931, "rewards/chosen": 0.01}]}\n',
        order=41,
        why="a JSON document or array of rows",
        sniff=_is_state_or_rows,
        read=read_hf_state,
        rounding=0,
    )
)
