"""Whether a file still holds what was written: a CRC-32 over all of its bytes, which stands in the file itself.

JSON has it as its last key, YAML as a comment at its end, Parquet in its footer: it takes its name together with what
it covers, and other programs read the file as before. A file that has none is taken as it is: one of an older version,
or one that was changed by hand and whose line `crc32` was removed.
"""

from __future__ import annotations

import errno
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dpo_diag.documents import parse_json, parse_yaml, regular
from dpo_diag.errors import DiagError
from dpo_diag.text import to_json

KEY = "crc32"
PARQUET_KEY = "dpo_diag.crc32"
ZERO = "00000000"
"""Stands for the sum while the file is summed."""
_MARKS = {
    ".json": f'"{KEY}": "'.encode(),
    ".yaml": f"# {KEY} ".encode(),
    # Thrift's compact form of a string field that follows the key: type and length.
    ".parquet": PARQUET_KEY.encode() + b"\x18\x08",
}
"""Suffix -> what stands before the sum."""
SUMMED = tuple(_MARKS)
_RESTORE = "restore it"
SUM_MEND = f"{_RESTORE}; if it was changed on purpose, remove its line crc32"


class DamagedFile(DiagError):
    """A file whose bytes are not those that were written, or that cannot be read at all."""


def damaged(path: Path, why: object, mend: str) -> DamagedFile:
    """The error for a damaged file, in one line.

    Args:
        why: what was found.
        mend: what the user can do.
    """
    what = "a record file" if path.suffix == ".parquet" else path.name
    return DamagedFile(f"{what} cannot be read", where=path, got=why, hint=mend or None)


def sealed(data: bytes, suffix: str) -> bytes:
    """The bytes of a file, written with `ZERO` for its sum, with the sum."""
    at = data.rfind(_MARKS[suffix]) + len(_MARKS[suffix])
    return data[:at] + _sum(data, at) + data[at + 8 :]


def agrees(data: bytes, suffix: str) -> bool | None:
    """Whether a file's bytes are those that were summed; None where they hold no sum.

    Line ends of Windows are taken for those that were written: git and editors change them, and no value with them.
    """
    begin = data.rfind(_MARKS[suffix])
    at = begin + len(_MARKS[suffix])
    if begin < 0 or data[at : at + 8] == _sum(data, at):
        return None if begin < 0 else True
    return suffix != ".parquet" and b"\r\n" in data and agrees(data.replace(b"\r\n", b"\n"), suffix) is True


def _sum(data: bytes, at: int) -> bytes:
    view = memoryview(data)  # a slice of bytes would copy the file
    return f"{zlib.crc32(view[at + 8 :], zlib.crc32(ZERO.encode(), zlib.crc32(view[:at]))):08x}".encode()


def verified(path: Path, mend: str) -> bytes:
    """The bytes of a file.

    Raises:
        FileNotFoundError: there is none.
        DamagedFile: the disk cannot read it, or its bytes are not those that were written.
        DiagError: it may not be read, or not now (permissions, a stale handle): no damage, and no reason to go on
            without its rows.
    """
    try:
        data = regular(path).read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:
        why = error.strerror or error
        if error.errno in (errno.EIO, None):
            raise damaged(path, why, mend) from error
        raise DiagError("a file cannot be opened", where=path, got=why, hint="see its permissions and disk") from error
    if agrees(data, path.suffix) is False:
        raise damaged(path, "a checksum that is not its bytes'", mend)
    return data


# --- JSON and YAML ----------------------------------------------------------------------------------------------------


def json_bytes(document: Any) -> bytes:
    """A document as a JSON file: an object gets its sum as its last key."""
    if not isinstance(document, Mapping):
        return (to_json(document, indent=2) + "\n").encode()
    return sealed((to_json({**_bare(document), KEY: ZERO}, indent=2) + "\n").encode(), ".json")


def read_json(path: Path, mend: str = SUM_MEND) -> Any:
    """The document of a JSON file, without its sum.

    Raises:
        FileNotFoundError: there is none.
        DamagedFile: it cannot be read, is no JSON in UTF-8, or not what was written.
    """
    data = verified(path, mend)
    summed = agrees(data, ".json")
    try:
        document = parse_json(data if summed else _without_last_comma(data))
    except ValueError as error:
        # Without a sum there is no line of it to remove.
        told = _RESTORE if mend == SUM_MEND and not summed else mend
        raise damaged(path, f"no JSON: {error}", told) from error
    return _bare(document) if isinstance(document, dict) else document


def _without_last_comma(data: bytes) -> bytes:
    """JSON whose last key, the sum, was removed by hand as one line: the comma before it is left over."""
    body = data.rstrip()
    inner = body[:-1].rstrip()
    return inner[:-1] + b"}" if body.endswith(b"}") and inner.endswith(b",") else data


def _bare(document: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in document.items() if name != KEY}


def read_yaml(path: Path, mend: str = SUM_MEND) -> Any:
    """The document of a YAML file.

    Raises:
        FileNotFoundError: there is none.
        DamagedFile: it cannot be read, is no YAML in UTF-8, or not what was written.
    """
    try:
        return parse_yaml(verified(path, mend))
    except ValueError as error:
        raise damaged(path, f"no YAML: {error}", mend) from error


def yaml_bytes(text: str) -> bytes:
    """A YAML text as a file: with its sum at the end, in place of one that it has."""
    lines = [line for line in text.splitlines() if not line.startswith(f"# {KEY} ")]
    return sealed("\n".join([*lines, f"# {KEY} {ZERO}", ""]).encode(), ".yaml")
