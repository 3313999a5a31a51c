"""The formats by name, and how a file is recognised."""

from __future__ import annotations

import csv
import importlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from dpo_diag.errors import DiagError
from dpo_diag.importers.console import METRIC
from dpo_diag.importers.parsed import Importer
from dpo_diag.importers.torchtune import LINE as TORCHTUNE_LINE
from dpo_diag.records.text_files import head_of


class Format(NamedTuple):
    """One foreign format: where its reader is and what it looks like."""

    name: str
    function: str
    what: str


FORMATS: tuple[Format, ...] = (
    Format("hf", "hf_state:read_hf_state", "trainer_state.json (TRL, LLaMA-Factory, ms-swift), or a JSON list of rows"),
    Format("llamafactory", "llamafactory:read_llamafactory", "LLaMA-Factory trainer_log.jsonl, v0 and v1"),
    Format("swift", "swift:read_swift", "ms-swift logging.jsonl"),
    Format("jsonl", "jsonl_log:read_jsonl_log", "JSON lines of log rows, any trainer"),
    Format("tensorboard", "tensorboard:read_tensorboard", "TensorBoard event file or folder (OpenRLHF and others)"),
    Format("h2o", "h2o:read_h2o", "H2O LLM Studio charts_<name>.json"),
    Format("torchtune", "torchtune:read_torchtune", "torchtune log_<time>.txt (Step N | k:v k:v)"),
    Format("console", "console:read_console", "console text with printed dictionaries between progress frames"),
    Format("csv", "wide_csv:read_wide_csv", "wide CSV or TSV (W&B and TensorBoard exports, notebook tables)"),
    Format("wandb", "wandb_run:read_wandb", "W&B offline run (run-<id>.wandb or its folder), or entity/project/run"),
    Format("trackio", "trackio_db:read_trackio", "trackio project database (sqlite)"),
    Format("ren", "ren:read_ren", "Ren & Sutherland: folder with an (eval, metric, prompt) .npy and its json lines"),
    Format("pairs", "pair_table:read_pair_table", "generic table, one row per (step, pair): JSON lines, CSV, Parquet"),
)  # fmt: skip
NAMES = tuple(f.name for f in FORMATS)


def reader(name: str) -> Importer:
    """The reading function of a format.

    Raises:
        DiagError: unknown name.
    """
    found = next((f for f in FORMATS if f.name == name), None)
    if found is None:
        raise DiagError("unknown format", got=name, expected=f"one of {', '.join(NAMES)}", usage=True)
    module, function = found.function.split(":")
    return getattr(importlib.import_module(f"dpo_diag.importers.{module}"), function)  # type: ignore[no-any-return]


def detect(path: Path) -> str:
    """The format of a file, by its first bytes, then by its first row; `console` for text with printed rows.

    Raises:
        DiagError: nothing fits.
    """
    head = head_of(path)
    if not head.strip(b"\0 \t\r\n"):
        raise DiagError("the file is empty", where=path, expected="a log", hint="name the trainer's log")
    raw = _raw_head(path)
    if raw.startswith(b"SQLite format 3\0"):
        return "trackio"
    if raw.startswith(b":W&B"):
        return "wandb"
    if raw.startswith(b"\x93NUMPY"):
        return "ren"
    if raw.startswith(b"PAR1"):
        return "pairs"
    if "tfevents" in path.name or _is_event_record(raw):
        return "tensorboard"
    return _detect_text(path, head)


def _raw_head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(64)


def _is_event_record(raw: bytes) -> bool:
    """A TFRecord of a first event: 8 bytes length (24 or more), 4 bytes checksum, then wall_time (field 1, double)."""
    return len(raw) > 24 and 9 < int.from_bytes(raw[:8], "little") < 4096 and raw[12] == 0x09 and b"brain.Event" in raw


def _detect_text(path: Path, head: bytes) -> str:
    text = head.decode("utf-8", "replace")
    stripped = text.lstrip("\ufeff \t\r\n")
    if TORCHTUNE_LINE.search(head):
        return "torchtune"
    if stripped[:1] in "{[" and (found := _detect_json(stripped, path)):
        return found
    if METRIC.search(head):
        return "console"
    first = stripped.split("\n", 1)[0]
    if stripped[:1] not in "{[" and _looks_like_header(first):
        columns = [c.strip().strip('"') for c in _split(first)]
        return "pairs" if {"chosen_sum_logp", "rejected_sum_logp"} & set(columns) else "csv"
    if b"\0" in head and b"\n" not in head[:4096]:
        raise DiagError(
            "not a log that is known here", where=path, got="binary data", hint="see dpo-diag import --formats"
        )
    return "console"


def _detect_json(text: str, path: Path) -> str | None:
    """By the first JSON value: a row (JSON lines) or the document."""
    if text.startswith("[") and not re.match(r"\[\s*[{\]]", text):
        return None  # `[rank0]: ...`, `[INFO] ...`
    decoder = json.JSONDecoder()
    try:
        value, _ = decoder.raw_decode(text)
    except (ValueError, RecursionError):
        value = None
    if isinstance(value, Mapping):
        return _document_kind(value) or _row_kind(value, path)
    if isinstance(value, list):
        rows = [v for v in value if isinstance(v, Mapping)]
        return ("pairs" if rows and "chosen_sum_logp" in rows[0] else "hf") if rows else None
    # A document longer than what was read, or broken: tell it by its opening keys.
    opening = text[:65536]
    if '"log_history"' in opening or ('"best_metric"' in opening and '"epoch"' in opening):
        return "hf"
    if ('"train"' in opening or '"validation"' in opening) and '"steps"' in opening and '"values"' in opening:
        return "h2o"
    if (text.startswith("[") and '"loss"' in opening) or '"history"' in opening[:200]:
        return "hf"
    first = text.split("\n", 1)[0]
    if first.rstrip().endswith("}"):
        for line in text.split("\n")[1:20]:
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(row, Mapping) and (kind := _row_kind(row, path)):
                return kind
    if path.name.split(".gz")[0].endswith(".json") and "trainer_state" in path.name:
        return "hf"
    return None


def _document_kind(value: Mapping[str, Any]) -> str | None:
    if isinstance(value.get("log_history"), list) and "loss" not in value:
        return "hf"
    if any(
        isinstance(inner, Mapping)
        and any(isinstance(s, Mapping) and "steps" in s and "values" in s for s in inner.values())
        for inner in value.values()
    ):
        return "h2o"
    if isinstance(value.get("history"), (list, Mapping)) or isinstance(value.get("data"), (list, Mapping)):
        return "hf"
    if value and all(str(k).isdigit() and isinstance(v, Mapping) for k, v in value.items()):
        return "hf"
    columns = [v for v in value.values() if isinstance(v, list)]
    if len(columns) >= 2 and any(str(k).endswith("loss") and isinstance(v, list) for k, v in value.items()):
        return "hf"
    return None


def _row_kind(row: Mapping[str, Any], path: Path) -> str | None:
    keys = set(row)
    if {"chosen_sum_logp", "rejected_sum_logp"} & keys:
        return "pairs"
    if "current_steps" in keys or (path.name.startswith("trainer_log") and "total_steps" in keys):
        return "llamafactory"
    if "global_step/max_steps" in keys or "train_speed(iter/s)" in keys or path.name.startswith("logging.jsonl"):
        return "swift"
    if any(isinstance(v, (int, float, str)) for v in row.values()) and METRIC.search(json.dumps(list(row)).encode()):
        return "jsonl"
    if any(k in keys for k in ("step", "global_step", "epoch", "_step")):
        return "jsonl"
    return None


def _split(header: str) -> list[str]:
    delimiter = max(",\t;|", key=header.count)
    try:
        return next(csv.reader([header.strip()], delimiter=delimiter), [])
    except csv.Error:
        return []


def _looks_like_header(first: str) -> bool:
    cells = [c.strip().strip('"').lower() for c in _split(first)]
    if len(cells) < 2 or any(len(c) > 200 for c in cells):
        return False
    words = ("step", "epoch", "loss", "value", "_step", "iteration", "chosen_sum_logp")
    return any(any(c == w or c.endswith((f"/{w}", f"_{w}", f" {w}")) for w in words) for c in cells)
