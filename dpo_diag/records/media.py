"""What an image or a sound is for hashing: its values, whoever holds them; its address where only that is known."""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
from collections.abc import Mapping
from typing import Any

import numpy as np

_DATA_URL = "data:"


def media_key(value: Any) -> Any:
    """A document that stands for an image, an array of values, or bytes: the same for a file's bytes, a `data:` URL of
    them, the image that they decode to and its array; None for what is none of these (a path or URL is text).

    Bytes that are no image, or that nothing here can decode (Pillow is missing), count as they are.
    """
    if isinstance(value, str) and value.startswith(_DATA_URL):
        head, _, body = value.partition(",")
        try:
            return _of_bytes(base64.b64decode(body, validate=True)) if head.endswith(";base64") else None
        except (binascii.Error, ValueError):
            return None
    if isinstance(value, Mapping) and "bytes" in value and set(value) <= {"bytes", "path"}:
        # A data set's image that is not decoded.
        return media_key(value["bytes"]) if value["bytes"] is not None else value.get("path")
    if isinstance(value, (bytes, bytearray, memoryview)):
        return _of_bytes(bytes(value))
    if hasattr(value, "getpalette") and hasattr(value, "convert"):  # Pillow's Image, which need not be installed
        return _of_array(np.asarray(value.convert("RGBA") if value.mode == "P" else value))
    if hasattr(value, "__array__"):  # numpy's array, torch's tensor
        array = np.asarray(value)
        return None if array.dtype == object or array.ndim < 2 else _of_array(array)
    return None


def _of_bytes(data: bytes) -> Any:
    try:
        from PIL import Image

        with Image.open(io.BytesIO(data)) as image:
            return media_key(image)
    except (ImportError, OSError, ValueError):
        return {"bytes": hashlib.sha256(data).hexdigest()}


def _of_array(array: np.ndarray[Any, Any]) -> Any:
    head = f"{array.dtype.str} {array.shape} ".encode()
    return {"values": hashlib.sha256(head + np.ascontiguousarray(array).tobytes()).hexdigest()}
