"""W&B runs: the offline file (run-<id>.wandb, LevelDB framing around protobuf), or a run of the server by its path.

The file is read without wandb. Histories are keyed by W&B's own step, a counter of log calls: the training step is
`train/global_step` where it is logged. NaN and infinities come back as strings or as JSON's NaN.
"""

from __future__ import annotations

import json
import re
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dpo_diag.errors import DiagError
from dpo_diag.importers.facts import facts_from_mapping
from dpo_diag.importers.parsed import Options, Parsed
from dpo_diag.importers.protobuf import fields
from dpo_diag.importers.rows import RowStore
from dpo_diag.importers.steps import fill_steps
from dpo_diag.records.text_files import Skipped, pieces

BLOCK = 32768
_HEADER = 7
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4
_RECORD_HISTORY, _RECORD_CONFIG, _RECORD_RUN = 2, 5, 17
_RUN_CONFIG, _RUN_ID, _RUN_NAME = 4, 1, 8


def read_wandb(path: Path, options: Options) -> Parsed:
    """Read a .wandb file, a folder that holds one (`wandb/`, `offline-run-...`), `wandb:ID`, or `entity/project/run`.

    Raises:
        DiagError: no run there, or several and none named with `--run`.
    """
    if not path.exists():
        text = str(path)
        if match := re.fullmatch(r"wandb:/{0,2}([\w-]+)", text):
            return _read_file(_run_file(Path.cwd(), match.group(1)), options)
        return _read_server(text, options)
    return _read_file(path if path.is_file() else _run_file(path, options.run), options)


def _run_file(folder: Path, run: str | None) -> Path:
    patterns = ("*.wandb", "*/*.wandb", "wandb/*/*.wandb")
    found = sorted({p.resolve() for pattern in patterns for p in folder.glob(pattern)})
    if run is not None:
        found = [p for p in found if run in (p.stem.removeprefix("run-"), p.stem, p.parent.name)]
    if len(found) != 1:
        raise DiagError(
            "which W&B run",
            where=folder,
            got=", ".join(p.stem for p in found[:12]) or "no .wandb file",
            hint="name the .wandb file, or one of several with --run ID",
            usage=True,
        )
    return found[0]


def _read_file(file: Path, options: Options) -> Parsed:
    skipped = Skipped()
    store = RowStore(skipped, options.trainer or "any")
    parsed = Parsed("wandb", [file], skipped, options.trainer or "unknown", options.trainer_version, store=store)
    config: dict[str, Any] = {}
    for number, record in enumerate(records(file, skipped), start=1):
        try:
            for kind, value in fields(record):
                if kind == _RECORD_HISTORY and isinstance(value, bytes):
                    parsed.found += 1
                    row, step = _history(value)
                    store.add(dict(sorted(row.items())), number, step)
                elif kind == _RECORD_CONFIG and isinstance(value, bytes):
                    config.update(_config(value))
                elif kind == _RECORD_RUN and isinstance(value, bytes):
                    for inner, content in fields(value):
                        if inner == _RUN_CONFIG and isinstance(content, bytes):
                            config.update(_config(content))
                        elif inner in (_RUN_ID, _RUN_NAME) and isinstance(content, bytes):
                            key = "run_id" if inner == _RUN_ID else "run_name"
                            parsed.extra[key] = content.decode("utf-8", "replace")
        except (ValueError, IndexError, struct.error):
            skipped.add(number, "a record is no message of W&B's")
    parsed.facts.merge(facts_from_mapping(config, f"{file.name}: config"))
    return _finished(parsed, options)


def _finished(parsed: Parsed, options: Options) -> Parsed:
    store = parsed.store
    assert store is not None
    own = {str(b.step_key) for b in store.taken()}
    parsed.steps_from = fill_steps(store, logging_steps=options.logging_steps)
    if own == {"_step"}:
        parsed.notes.append("no global step is logged: W&B's own step (a counter of log calls) stands for it")
    elif "_step" in own:
        parsed.notes.append(
            "some rows have no global step: W&B's own step (a counter of log calls) stands for it there"
        )
    parsed.read = store.rows
    return parsed


def records(file: Path, skipped: Skipped) -> Iterator[bytes]:
    """Records of LevelDB's log format behind the 7-byte header: blocks of 32 KiB, each record with a CRC-32."""
    data = b"".join(pieces(file, skipped))
    if data[:4] != b":W&B":
        raise DiagError("no W&B file", where=file, got=data[:7], expected="a file that begins with :W&B")
    position, parts, number = _HEADER, list[bytes](), 0
    while position + _HEADER <= len(data):
        left = BLOCK - position % BLOCK
        if left < _HEADER:
            position += left
            continue
        check, size, kind = struct.unpack("<IHB", data[position : position + _HEADER])
        content = data[position + _HEADER : position + _HEADER + size]
        if kind == 0 and size == 0 and check == 0:  # the rest of a block that was never filled
            position += left
            continue
        if len(content) < size:
            skipped.add(number + 1, "the file ends inside a record")
            return
        if kind > _LAST or zlib.crc32(content, zlib.crc32(bytes([kind]))) != check:
            skipped.add(number + 1, "a record is damaged: the rest of its block is passed over")
            parts = []
            position += left
            continue
        position += _HEADER + size
        if kind in (_FULL, _FIRST):
            parts = [content]
        elif parts:
            parts.append(content)
        if kind in (_FULL, _LAST) and parts:
            number += 1
            yield b"".join(parts)
            parts = []


def _items(data: bytes) -> Iterator[tuple[str, Any]]:
    """(key, value) of a HistoryItem or ConfigItem; nested keys joined by dots."""
    key, nested, value = "", list[str](), None
    for number, content in fields(data):
        if number == 1 and isinstance(content, bytes):
            key = content.decode("utf-8", "replace")
        elif number == 2 and isinstance(content, bytes):
            nested.append(content.decode("utf-8", "replace"))
        elif number in (7, 8, 16) and isinstance(content, bytes):
            text = content.decode("utf-8", "replace")
            try:
                value = text if number == 7 else json.loads(text)
            except (ValueError, RecursionError):
                value = text
        elif number == 6 and isinstance(content, bytes) and len(content) == 8:
            value = struct.unpack("<d", content)[0]
        elif number == 5 and isinstance(content, int):
            value = (content >> 1) ^ -(content & 1)
    if key or nested:
        yield key or ".".join(nested), value


def _history(data: bytes) -> tuple[dict[str, Any], int | None]:
    row: dict[str, Any] = {}
    step = None
    for number, content in fields(data):
        if number == 1 and isinstance(content, bytes):
            row.update(_items(content))
        elif number == 2 and isinstance(content, bytes):
            step = next((v for n, v in fields(content) if n == 1 and isinstance(v, int)), 0)
    return {k: v for k, v in row.items() if not isinstance(v, (dict, list))}, step


def _config(data: bytes) -> dict[str, Any]:
    return dict(item for n, c in fields(data) if n == 1 and isinstance(c, bytes) for item in _items(c))


def _read_server(text: str, options: Options) -> Parsed:
    """A run of the server: `entity/project/run`, also as a wandb: path or a URL of the run's page."""
    where = re.sub(r"^(wandb:/{0,2}|https?:/{1,2}[^/]+/)", "", text)
    parts = [p for p in where.split("?")[0].split("/") if p and p != "runs"]
    if len(parts) != 3:
        raise DiagError("no path of a W&B run", got=text, expected="entity/project/run", usage=True)
    import wandb

    skipped = Skipped()
    store = RowStore(skipped, options.trainer or "any")
    parsed = Parsed("wandb", [Path(where)], skipped, options.trainer or "unknown", options.trainer_version, store=store)
    try:
        run = wandb.Api().run("/".join(parts))
        for number, row in enumerate(run.scan_history(), start=1):
            parsed.found += 1
            plain = {k: v for k, v in sorted(row.items()) if v is not None and not isinstance(v, (dict, list))}
            store.add(plain, number)
        config = dict(run.config)
        parsed.extra.update(run_id=parts[2], run_name=str(getattr(run, "name", "") or ""))
    except Exception as error:  # the client raises its own, requests' and plain errors
        raise DiagError(
            "W&B did not give the run",
            where=where,
            got=f"{type(error).__name__}: {str(error)[:120]}",
            hint="check WANDB_BASE_URL and WANDB_API_KEY, or import the offline run's folder",
        ) from error
    parsed.facts.merge(facts_from_mapping(config, "W&B config"))
    return _finished(parsed, options)
