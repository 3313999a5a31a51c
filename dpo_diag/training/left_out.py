"""Rows that TRL leaves out of a data set when it prepares it: it does so without a word."""

from __future__ import annotations

from typing import Any

from accelerate.logging import get_logger
from datasets import Dataset

from dpo_diag.text import percent

logger = get_logger(__name__)


def say_left_out(before: Any, after: Any, name: str, why: str) -> None:
    """Say how many rows are gone; nothing of a data set that has no length."""
    if isinstance(before, Dataset) and (n := len(before) - len(after)) > 0:
        logger.warning(f"{name} dataset: TRL leaves out {n} of {len(before)} rows ({percent(n / len(before))}): {why}")
