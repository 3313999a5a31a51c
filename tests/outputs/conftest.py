"""Small frames of outputs/ rows, written by hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from dpo_diag.records.schemas import TABLES


def answer_rows(
    texts: Mapping[str, str], *, step: int = 0, model: str = "policy", decoding_hash: str | None = "h", **columns: Any
) -> list[dict[str, Any]]:
    """Rows of outputs/ for one look; a mapping given as column is looked up by prompt id."""
    rows = []
    for prompt_id, text in texts.items():
        row: dict[str, Any] = dict.fromkeys(TABLES["outputs"].names)
        row |= {"step": step, "model": model, "prompt_id": prompt_id, "sample": 0, "text": text}
        row |= {"prompt": f"question {prompt_id}", "tags": [], "finish_reason": "stop", "decoding_hash": decoding_hash}
        row |= {"n_tokens": 4, "entropy_sum": 2.0}
        row |= {k: v.get(prompt_id) if isinstance(v, Mapping) else v for k, v in columns.items()}
        rows.append(row)
    return rows


def frame(*looks: list[dict[str, Any]]) -> pd.DataFrame:
    """All rows as one frame."""
    return pd.DataFrame([row for rows in looks for row in rows])
