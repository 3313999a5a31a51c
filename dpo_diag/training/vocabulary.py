"""The texts of recorded token ids beside them, so that a report shows words where no tokenizer is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dpo_diag.records import load_run
from dpo_diag.records.files import write_json


def write_vocabulary(folder: Path, tokenizer: Any) -> None:
    """vocab.json, {"id": "text"} of the token ids in tokens/; nothing where there are none."""
    table = load_run(folder).arrow("tokens", ["token_id"])
    if table.num_rows:
        ids = sorted(table.column("token_id").unique().to_pylist())
        write_json(folder / "vocab.json", {str(i): tokenizer.decode([i]) for i in ids})
