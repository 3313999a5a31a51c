"""torchtune's DiskLogger: `Step N | k:v k:v ` lines (log_<unixtime>.txt), or JSON lines.

On one device its `log_probs/*` and rewards are those of the last micro-batch only (FACTS section 5).
"""

from __future__ import annotations

import re
from pathlib import Path

from dpo_diag.importers.opening import Trouble, lines
from dpo_diag.importers.parsed import Options, Parsed
from dpo_diag.importers.rows import RowStore

LINE = re.compile(rb"(?m)^\s*Step (\d+) \| +(?=\S+:\S)")
_PAIR = re.compile(r"([^\s:|]+):(\S+)")


def read_torchtune(path: Path, options: Options) -> Parsed:
    """Read `Step N | ...` lines; any other line that begins with `Step` is reported."""
    trouble = Trouble()
    store = RowStore(trouble, options.trainer or "torchtune")
    found = 0
    for line, text in lines(path, trouble):
        match = LINE.match(text)
        if match is None:
            if text.lstrip().startswith(b"Step "):
                trouble.skip(line, "not of the form 'Step N | name:value'")
                found += 1
            continue
        found += 1
        row = dict(_PAIR.findall(text[match.end() :].decode("utf-8", "replace")))
        if len(match.group(1)) > 15 or not row:
            trouble.skip(line, "no name:value after the step")
            continue
        store.add(row, line, int(match.group(1)))
    parsed = Parsed("torchtune", [path], trouble, options.trainer or "torchtune", options.trainer_version, store=store)
    parsed.steps_from = "the rows' own step"
    parsed.found, parsed.read = found, store.rows
    parsed.notes.append("on one device torchtune logs the last micro-batch only, not the step's mean")
    return parsed
