"""torchtune's DiskLogger: `Step N | k:v k:v ` lines (log_<unixtime>.txt). Its JSON lines are read as any trainer's.

On one device its `log_probs/*` and rewards are those of the last micro-batch only.
"""

from __future__ import annotations

import re
from pathlib import Path

from dpo_diag.importers.log_format import LogFormat, register
from dpo_diag.importers.parsed import Options, Parsed
from dpo_diag.importers.trainings import Trainings
from dpo_diag.records.text_files import lines

_LINE = re.compile(rb"(?m)^[ \t]*Step (\d+) \| +(?=\S+:\S)")
_PAIR = re.compile(r"(?<![^\s:|])([^\s:|]++):(\S++)")


def read_torchtune(path: Path, options: Options) -> Parsed:
    """Read `Step N | ...` lines; any other line that begins with `Step` is reported."""
    parsed = Parsed.of("torchtune", [path], options, "torchtune")
    trainings = Trainings(parsed.skipped, parsed.store.trainer)
    for line, text in lines(path, parsed.skipped):
        match = _LINE.match(text)
        if match is None and not text.lstrip().startswith(b"Step "):
            continue
        parsed.n_rows += 1
        row = dict(_PAIR.findall(text[match.end() :].decode("utf-8", "replace"))) if match else {}
        if match is None:
            parsed.skipped.add(line, "not of the form 'Step N | name:value'")
        elif len(match.group(1)) > 15 or not row:
            parsed.skipped.add(line, "no name:value after the step")
        else:
            trainings.add(row, line, int(match.group(1)))
    training, notes = trainings.taken(options.run)
    parsed.store, parsed.run, parsed.notes = training.store, options.run, notes
    parsed.steps, parsed.steps_from = "stated", "the rows' own step"
    parsed.n_read = parsed.store.rows
    parsed.notes.append("on one device torchtune logs the last micro-batch only, not the step's mean")
    return parsed


register(
    LogFormat(
        name="torchtune",
        description="torchtune log_<time>.txt (Step N | k:v k:v)",
        trainers=("torchtune",),
        file_name="log_1700000000.txt",
        example="Step 1 | loss:0.6931 lr:5e-07 rewards/chosen:0.01 log_probs/chosen:-120.5 \n",
        order=20,
        why="the form of its lines is its own, wherever the first one stands",
        sniff=lambda head: _LINE.search(head.data) is not None,
        read=read_torchtune,
    )
)
