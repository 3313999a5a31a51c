"""ms-swift's logging.jsonl: `"global_step/max_steps": "1/94"` or an integer `global_step`.

Some files hold each step twice, and the last line can hold the whole log_history: repeated steps are dropped.
"""

from __future__ import annotations

from pathlib import Path

from dpo_diag.importers.jsonl_log import read_lines
from dpo_diag.importers.parsed import Options, Parsed


def read_swift(path: Path, options: Options) -> Parsed:
    """Read logging.jsonl; the closing line (best checkpoint, memory, log_history) is no step."""
    return read_lines(path, options, "swift", "ms-swift")
