"""No secret reaches run.json, a tracker or a report: values of keys that look like one are replaced."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_SECRET = re.compile(
    r"(^|_)(secret|password|passwd|api_?key|credential)s?$|^((hf|hub|hub_model|access|auth|api|bearer|user|git\w*|wandb)_)?token$",
    re.IGNORECASE,
)
"""Keys whose values are not written down; pad_token and its like are no secrets."""


def without_secrets(value: Any) -> Any:
    """The same structure with the values of secret-looking keys replaced; keys compare case-insensitively."""
    if isinstance(value, Mapping):
        return {
            str(k): "[redacted]" if _SECRET.search(str(k)) and isinstance(v, str) and v else without_secrets(v)
            for k, v in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [without_secrets(v) for v in value]
    return value
