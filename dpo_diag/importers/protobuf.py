"""Protobuf's wire format, as far as event files and .wandb files need it: no generated code, no dependency."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """(field number, value) of a message: an int, or bytes (4 or 8 of a fixed-width number, or a nested message).

    Raises:
        ValueError, IndexError: the bytes are no message.
    """
    position, end = 0, len(data)
    while position < end:
        key, position = varint(data, position)
        kind = key & 7
        if kind == 0:
            value, position = varint(data, position)
            yield key >> 3, value
            continue
        if kind == 1:
            size = 8
        elif kind == 5:
            size = 4
        elif kind == 2:
            size, position = varint(data, position)
        else:
            raise ValueError("unknown wire type")
        if position + size > end:
            raise ValueError("field runs over its message")
        yield key >> 3, data[position : position + size]
        position += size


def varint(data: bytes, position: int) -> tuple[int, int]:
    """A base-128 number at `position`, and where it ends."""
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
        if shift > 63:
            raise ValueError("varint too long")
