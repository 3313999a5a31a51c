"""TensorBoard event files: what OpenRLHF writes, and transformers' callback beside its trainer_state.json.

Scalars come as `simple_value` or as a one-element tensor (float32 either way). The callback also writes the training
arguments as text: loss type and beta come from there. Messages, tensors and checksums are read by the package
tensorboard. The framing of records is read here because tensorboard's own loaders end at the first damaged record
without a word (measured, 2.21: a flipped byte in the middle of 2,000 points loses the second 1,000), and read no .gz.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dpo_diag.documents import parse_json
from dpo_diag.errors import DiagError
from dpo_diag.extras import require
from dpo_diag.importers.event_folders import Events, runs_of
from dpo_diag.importers.facts import facts_from_mapping
from dpo_diag.importers.log_format import Head, LogFormat, register
from dpo_diag.importers.numbers import MAX_STEP
from dpo_diag.importers.parsed import Options, Parsed
from dpo_diag.importers.several import choose, take
from dpo_diag.records.text_files import Skipped, pieces

MAX_RECORD = 256 << 20


def _is_event_file(head: Head) -> bool:
    """By its name, or by its first record: length (8 bytes), checksum (4), wall_time (field 1, double), the version."""
    raw = head.raw
    is_version = len(raw) > 24 and 9 < int.from_bytes(raw[:8], "little") < 4096 and raw[12] == 0x09
    return "tfevents" in head.path.name or (is_version and b"brain.Event" in raw)


def read_tensorboard(path: Path, options: Options) -> Parsed:
    """Read one event file, or one run of a folder: `--run`'s, else the latest by the time in its files' names.

    Raises:
        DiagError: a folder without event files, no run of that name, or tensorboard is not installed.
    """
    files = [path] if path.is_file() else event_files(path)
    if not files:
        raise DiagError("no TensorBoard events", where=path, expected="files named events.out.tfevents.*")
    require("tensorboard", "reading event files")
    parsed = Parsed.of("tensorboard", files, options)
    parsed.store.may_fill = False
    folders: dict[Path, Events] = {}
    for file in files:
        events = folders.setdefault(file.parent, Events(file.parent))
        events.files.append(file)
        events.written = max(events.written, written(file))
        for step, tag, value in _values(file, parsed.skipped):
            if isinstance(value, str):
                events.texts.append((tag, value, file.name))
            else:
                events.points.append((step, tag, value))
    runs = {} if path.is_file() else runs_of(folders.values(), path)
    if runs:
        taken = choose(list(runs), options.run, path, list(runs)[-1])
        events = runs[taken]
        parsed.run, parsed.files = taken, events.files
        if len(runs) > 1:
            take(parsed, list(runs), taken)
    for tag, text, where in events.texts:
        _take_text(parsed, tag, text, where)
    if any(tag.endswith(("reject_reward", "chosen_reward")) for _, tag, _ in events.points):
        parsed.trainer = parsed.store.trainer = options.trainer or "openrlhf"
    parsed.store.add_points(events.points)
    parsed.steps_from = "the events' own step"
    parsed.n_rows = parsed.store.rows + len(parsed.store.summaries)
    parsed.n_read = parsed.store.rows
    parsed.details["points"] = len(events.points)
    return parsed


def event_files(folder: Path) -> list[Path]:
    """The event files in and below a folder, in the order of their names' time."""
    return sorted((p for p in folder.rglob("*tfevents*") if p.is_file()), key=written)


def written(path: Path) -> tuple[int, str]:
    """The time in an event file's name (`events.out.tfevents.<seconds>.<host>`), which copying does not change."""
    match = re.search(r"tfevents\.(\d+)", path.name)
    return (int(match.group(1)) if match else 0, str(path))


def _take_text(parsed: Parsed, tag: str, text: str, where: str) -> None:
    """`args/text_summary` and `model_config/text_summary` of the Hugging Face callback: JSON."""
    if not tag.startswith(("args", "model_config")):
        return
    try:
        document = parse_json(text)
    except ValueError:
        return
    parsed.skipped.add_repeated(document, file=f"{where}: {tag}")
    if tag.startswith("args"):
        parsed.facts.merge(facts_from_mapping(document, f"{where}: {tag}"))
    elif isinstance(document, dict) and isinstance(document.get("_name_or_path"), str) and document["_name_or_path"]:
        parsed.facts.model.setdefault("name", document["_name_or_path"])


def _values(path: Path, skipped: Skipped) -> Iterator[tuple[int, str, float | str]]:
    """(step, tag, value) of a file; text values are strings. What cannot be read is reported by record."""
    from google.protobuf.message import DecodeError
    from tensorboard.compat.proto.event_pb2 import Event

    for number, record in records(path, skipped):
        try:
            event = Event.FromString(record)
        except DecodeError:
            skipped.add(number, "an event record is broken")
            continue
        if not 0 <= event.step <= MAX_STEP:
            continue
        for item in event.summary.value:
            value = item.simple_value if item.HasField("simple_value") else _of_tensor(item)
            if item.tag and value is not None:
                yield event.step, item.tag, value


def _of_tensor(item: Any) -> float | str | None:
    """The number of a one-element tensor, or the first string of one; None for anything else."""
    if not item.HasField("tensor"):
        return None
    if item.tensor.string_val:
        return str(item.tensor.string_val[0].decode("utf-8", "replace"))
    from tensorboard.util.tensor_util import make_ndarray

    try:
        array = make_ndarray(item.tensor)
        return float(array.item()) if array.size == 1 else None
    except (TypeError, ValueError):  # a type that is not a number, or fewer bytes than its shape says
        return None


def records(path: Path, skipped: Skipped) -> Iterator[tuple[int, bytes]]:
    """(number from 1, content) of a file's records: length (8 bytes), its checksum (4), content, its checksum (4).

    A record with a wrong checksum is passed over; after a wrong length nothing more is read.
    """
    from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

    buffer, number = b"", 0
    for piece in pieces(path, skipped):
        buffer += piece
        position = 0
        while len(buffer) - position >= 12:
            size, check = struct.unpack_from("<QI", buffer, position)
            if size > MAX_RECORD or masked_crc32c(buffer[position : position + 8]) != check:
                skipped.add(number + 1, "a record's length is damaged: the rest of the file is lost")
                return
            end = position + 12 + size
            if len(buffer) < end + 4:
                break
            number += 1
            content = buffer[position + 12 : end]
            position = end + 4
            if masked_crc32c(content) == struct.unpack_from("<I", buffer, end)[0]:
                yield number, content
            else:
                skipped.add(number, "a record is damaged: wrong checksum")
        buffer = buffer[position:]
    if buffer:
        skipped.add(number + 1, "the file ends inside a record")


register(
    LogFormat(
        name="tensorboard",
        description="TensorBoard event file or folder (OpenRLHF and others)",
        trainers=("OpenRLHF", "transformers", "any"),
        file_name="events.out.tfevents.1700000000.host.1.0",
        order=10,
        why="known by its name, or begins with a record that no other file begins with",
        sniff=_is_event_file,
        read=read_tensorboard,
        rounding=2,
        reads_folders=True,
    )
)
