"""torchtune's DiskLogger: `Step N | k:v k:v ` lines (log_<unixtime>.txt), or JSON lines.

On one device its `log_probs/*` and rewards are those of the last micro-batch only (FACTS section 5).
"""

from __future__ import annotations

import re
from pathlib import Path

from dpo_diag.importers.parsed import Options, Parsed
from dpo_diag.importers.rows import RowStore
from dpo_diag.records.text_files import Skipped, lines

LINE = re.compile(rb"(?m)^\s*Step (\d+) \| +(?=\S+:\S)")
_PAIR = re.compile(r"([^\s:|]+):(\S+)")


def read_torchtune(path: Path, options: Options) -> Parsed:
    """Read `Step N | ...` lines; any other line that begins with `Step` is reported."""
    skipped = Skipped()
    store = RowStore(skipped, options.trainer or "torchtune")
    found = 0
    for line, text in lines(path, skipped):
        match = LINE.match(text)
        if match is None:
            if text.lstrip().startswith(b"Step "):
                skipped.add(line, "not of the form 'Step N | name:value'")
                found += 1
            continue
        found += 1
        row = dict(_PAIR.findall(text[match.end() :].decode("utf-8", "replace")))
        if len(match.group(1)) > 15 or not row:
            skipped.add(line, "no name:value after the step")
            continue
        store.add(row, line, int(match.group(1)))
    parsed = Parsed("torchtune", [path], skipped, options.trainer or "torchtune", options.trainer_version, store=store)
    parsed.steps_from = "the rows' own step"
    parsed.found, parsed.read = found, store.rows
    parsed.notes.append("on one device torchtune logs the last micro-batch only, not the step's mean")
    return parsed
