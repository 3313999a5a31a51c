"""TensorBoard event files, read without TensorBoard: TFRecord framing around the Event protobuf.

Scalars come as `simple_value` or as a one-element tensor (float32 either way). Hugging Face's callback also writes the
training arguments as text: loss type and beta come from there. OpenRLHF writes nothing but these files.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path

from dpo_diag.errors import DiagError
from dpo_diag.importers.by_step import RowsByStep
from dpo_diag.importers.facts import facts_from_mapping
from dpo_diag.importers.parsed import Options, Parsed
from dpo_diag.importers.protobuf import fields
from dpo_diag.importers.rows import RowStore
from dpo_diag.records.text_files import Skipped, pieces

MAX_RECORD = 256 << 20
_DOUBLE, _FLOAT, _INT32, _INT64 = 2, 1, 3, 9


def read_tensorboard(path: Path, options: Options) -> Parsed:
    """Read one event file, or all of a folder in the order of their names' time.

    Raises:
        DiagError: a folder without event files.
    """
    files = [path] if path.is_file() else event_files(path)
    if not files:
        raise DiagError("no TensorBoard events", where=path, expected="files named events.out.tfevents.*")
    skipped = Skipped()
    store = RowStore(skipped, options.trainer or "any")
    rows = RowsByStep(store)
    parsed = Parsed("tensorboard", files, skipped, options.trainer or "unknown", options.trainer_version, store=store)
    points, tags = 0, set[str]()
    for file in files:
        for step, tag, value in scalars(file, skipped):
            if isinstance(value, str):
                _take_text(parsed, tag, value, file.name)
                continue
            points += 1
            tags.add(tag)
            rows.add(step, tag, value)
    if any(tag.endswith(("reject_reward", "chosen_reward")) for tag in tags):
        parsed.trainer = store.trainer = options.trainer or "openrlhf"
    rows.finish()
    parsed.steps_from = "the events' own step"
    parsed.found = store.rows + len(store.summaries)
    parsed.read = store.rows
    parsed.extra["points"] = points
    return parsed


def event_files(folder: Path) -> list[Path]:
    """The event files of one writer folder and of its sub-folders (one per scalar group), oldest first."""
    found = [p for p in folder.rglob("*") if p.is_file() and "tfevents" in p.name]
    return sorted(found, key=lambda p: (p.name.split("tfevents.")[-1].split(".")[0].zfill(12), str(p)))


def _take_text(parsed: Parsed, tag: str, text: str, where: str) -> None:
    """`args/text_summary` and `model_config/text_summary` of the Hugging Face callback: JSON."""
    if not tag.startswith(("args", "model_config")):
        return
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return
    if tag.startswith("args"):
        parsed.facts.merge(facts_from_mapping(document, f"{where}: {tag}"))
    elif isinstance(document, dict) and isinstance(document.get("_name_or_path"), str) and document["_name_or_path"]:
        parsed.facts.model.setdefault("name", document["_name_or_path"])


def scalars(path: Path, skipped: Skipped) -> Iterator[tuple[int, str, float | str]]:
    """(step, tag, value) of a file; text values are strings. What cannot be read is reported by record."""
    for number, record in enumerate(records(path, skipped), start=1):
        try:
            yield from _event(record)
        except (ValueError, IndexError, struct.error, UnicodeDecodeError):
            skipped.add(number, "an event record is broken")


def records(path: Path, skipped: Skipped) -> Iterator[bytes]:
    """TFRecord framing: length (8), its checksum (4), data, their checksum (4). A wrong checksum ends the reading."""
    buffer, number = b"", 0
    for piece in pieces(path, skipped):
        buffer += piece
        position = 0
        while len(buffer) - position >= 12:
            head = buffer[position : position + 8]
            (size,) = struct.unpack("<Q", head)
            (check,) = struct.unpack("<I", buffer[position + 8 : position + 12])
            if size > MAX_RECORD or masked_crc(head) != check:
                skipped.add(number + 1, "a record's length is damaged: the rest of the file cannot be found")
                return
            if len(buffer) - position < 16 + size:
                break
            number += 1
            data = buffer[position + 12 : position + 12 + size]
            (check,) = struct.unpack("<I", buffer[position + 12 + size : position + 16 + size])
            position += 16 + size
            if masked_crc(data) != check:
                skipped.add(number, "a record is damaged: wrong checksum")
                continue
            yield data
        buffer = buffer[position:]
    if buffer:
        skipped.add(number + 1, "the file ends inside a record")


def _crc_table() -> list[int]:
    """CRC-32C (Castagnoli), reflected."""
    table = []
    for i in range(256):
        value = i
        for _ in range(8):
            value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return table


_CRC = _crc_table()


def masked_crc(data: bytes) -> int:
    """TFRecord's masked CRC-32C."""
    value = 0xFFFFFFFF
    table = _CRC
    for byte in data:
        value = table[(value ^ byte) & 0xFF] ^ (value >> 8)
    value ^= 0xFFFFFFFF
    return ((value >> 15 | value << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _event(record: bytes) -> Iterator[tuple[int, str, float | str]]:
    step, summaries = 0, []
    for number, value in fields(record):
        if number == 2 and isinstance(value, int):
            step = value
        elif number == 5 and isinstance(value, bytes):
            summaries.append(value)
    if step >= 1 << 53:
        return  # a negative step: not one of training
    for summary in summaries:
        for number, value in fields(summary):
            if number == 1 and isinstance(value, bytes):
                tag, found = _summary_value(value)
                if tag and found is not None:
                    yield step, tag, found


def _summary_value(data: bytes) -> tuple[str, float | str | None]:
    tag = ""
    found: float | str | None = None
    for number, value in fields(data):
        if number == 1 and isinstance(value, bytes):
            tag = value.decode("utf-8", "replace")
        elif number == 2 and isinstance(value, bytes) and len(value) == 4:
            found = float(struct.unpack("<f", value)[0])
        elif number == 8 and isinstance(value, bytes):
            found = _tensor(value)
    return tag, found


def _tensor(data: bytes) -> float | str | None:
    """A one-element tensor, or its first string."""
    kind, content, values = 0, b"", list[float]()
    for number, value in fields(data):
        if number == 1 and isinstance(value, int):
            kind = value
        elif number == 4 and isinstance(value, bytes):
            content = value
        elif number == 8 and isinstance(value, bytes):
            return value.decode("utf-8", "replace")
        elif number in (5, 6) and isinstance(value, bytes):
            form, size = ("<f", 4) if number == 5 else ("<d", 8)
            values += [
                float(struct.unpack(form, value[i : i + size])[0]) for i in range(0, len(value) - size + 1, size)
            ]
        elif number in (7, 10) and isinstance(value, int):
            values.append(float(value))
    forms = {_FLOAT: "<f", _DOUBLE: "<d", _INT32: "<i", _INT64: "<q"}
    if content and kind in forms and len(content) == struct.calcsize(forms[kind]):
        return float(struct.unpack(forms[kind], content)[0])
    return values[0] if len(values) == 1 else None
