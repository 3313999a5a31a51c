"""Is a run folder whole: every file readable and of the declared schema, no step or pair missing, nothing half written.

Reads every record file once, table by table; no torch.
"""

from __future__ import annotations

import time
from functools import partial
from itertools import chain, islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dpo_diag.errors import DiagError
from dpo_diag.records.checksums import SUM_MEND, SUMMED, DamagedFile, agrees, verified
from dpo_diag.records.files import part_of
from dpo_diag.records.finding import FAIL, OK, WARN, Finding
from dpo_diag.records.parts import listed, steady, visible
from dpo_diag.records.reader import Run
from dpo_diag.records.run_lock import OWN, held_by, owner_is_gone
from dpo_diag.records.schemas import TABLES
from dpo_diag.text import plural, some

_STALE_SECONDS = 3600.0
_MAX_DUPLICATE_ROWS = 5_000_000


def check_run(path: str | Path) -> list[Finding]:
    """Every finding about a run folder, the good ones included. A folder that is no run is one failed finding."""
    try:
        run = Run(path)
    except DiagError as error:
        return [Finding("run.json", FAIL, str(error))]
    try:
        version = f"kind {run.info.kind}, schema {run.info.schema_version}"
    except DiagError as error:
        return [Finding("run.json", FAIL, str(error))]
    findings = [Finding("run.json", OK, version), _status(run)]
    for name, table in TABLES.items():
        parts, broken = steady(partial(_read_parts, run, name), run.path / name)
        findings += broken
        if not parts:
            continue
        frame = pd.concat(parts, ignore_index=True)
        span = f", steps {frame['step'].min()} to {frame['step'].max()}" if "step" in frame and len(frame) else ""
        findings.append(Finding(name, OK, f"{len(frame)} rows in {len(parts)} files{span}"))
        findings += _duplicates(run, name, list(table.key), frame)
        if name in ("history", "pairs"):
            findings += _gaps(run, name, frame)
        if name == "pairs":
            sets = frame[_in_fixed_sets(run, frame)]
            findings += _incomplete_sets(sets)
            findings += _missing_reference(sets)
    findings += _sums(run)
    if not any(run.has(name) for name in TABLES):
        findings.append(Finding("records", FAIL, "the run holds no records", "train, score or import again"))
    findings += _leftovers(run.path)
    if run.kind == "trained" and not (run.path / ".hydra" / "config.yaml").is_file():
        findings.append(Finding(".hydra", WARN, "no composed configuration beside the records"))
    return findings


def _status(run: Run) -> Finding:
    status = run.info.status or "none"
    if status == "finished":
        return Finding("status", OK, status)
    if status != "running":
        shown = f"{status}: {run.info.error}" if run.info.error else status
        return Finding("status", FAIL, shown, "resume or train again")
    if owner_is_gone(run.path):
        found = f"running, yet {held_by(run.path)} is gone: killed"
        return Finding("status", FAIL, found, "dpo-diag explain says how to go on")
    files = [p for name in TABLES for p in run.files(name)]
    newest = max((p.stat().st_mtime for p in files), default=(run.path / "run.json").stat().st_mtime)
    idle = max(0.0, time.time() - newest)  # a clock that was set back
    if idle < _STALE_SECONDS:
        return Finding("status", WARN, f"running, last written {idle:.0f} s ago")
    return Finding("status", FAIL, f"running, yet nothing was written for {idle / 3600:.1f} h: killed?", "resume it")


def _read_parts(run: Run, name: str) -> tuple[list[pd.DataFrame], list[Finding]]:
    """The key columns of every readable file and the rank that wrote it, and a finding for every other file."""
    table = TABLES[name]
    keep = list(dict.fromkeys([*table.key, *(c for c in ("role",) if c in table.names)]))
    parts, findings = [], []
    for path in run.files(name):
        try:
            rows = run.part(name, path)
        except DiagError as error:
            findings.append(Finding(name, FAIL, str(error)))
            continue
        part = part_of(path)
        if "step" in table.names and rows.num_rows and part is not None:
            steps = rows.column("step").to_numpy()
            if (int(steps.min()), int(steps.max())) != (part.first, part.last):
                found = f"{path.name} holds steps {steps.min()} to {steps.max()}"
                findings.append(Finding(name, FAIL, found, "rename it: reading prunes by the name"))
        parts.append(rows.select(keep).to_pandas().assign(rank=0 if part is None else part.rank))
    foreign = [p.name for p in sorted((run.path / name).glob("*")) if part_of(p) is None and p.suffix != ".tmp"]
    if foreign:
        findings.append(Finding(name, WARN, f"files that are never read: {some(foreign)}", "remove or rename them"))
    return parts, findings


def _in_fixed_sets(run: Run, frame: pd.DataFrame) -> pd.Series:
    """Which rows belong to a fixed set: its pairs are measured again and again, those of a training batch once."""
    splits = frame["split"].astype(str)
    return splits.isin([s for s in splits.unique() if run.role(s) != "train"])


def _duplicates(run: Run, name: str, key: list[str], frame: pd.DataFrame) -> list[Finding]:
    if len(frame) > _MAX_DUPLICATE_ROWS:
        return [Finding(name, OK, f"duplicates not looked for beyond {_MAX_DUPLICATE_ROWS} rows")]
    if name == "pairs":
        # A batch of training pairs may hold the same pair twice in one step (several epochs within an accumulation).
        frame = frame[_in_fixed_sets(run, frame)]
    if name == "texts":
        key = [*key, "rank"]  # in its next epoch a pair may come to another process, which writes its texts too
    n = int(frame.duplicated(key).sum())
    return [Finding(name, FAIL, f"{n} duplicate rows", "reading keeps the last")] if n else []


def _gaps(run: Run, name: str, frame: pd.DataFrame) -> list[Finding]:
    """Steps that are missing from a regular series. What an import does not know is no gap of ours: it only warns."""
    findings = []
    rows = frame[frame["role"].astype(str) == "policy"] if "role" in frame else frame
    for split, group in rows.groupby("split", observed=True):
        missing = missing_steps(group["step"].to_numpy())
        if missing:
            n = sum(-(-(gap.stop - gap.start) // gap.step) for gap in missing)  # len() ends at 2**63
            outcome = WARN if run.kind == "imported" else FAIL
            first = some(islice(chain(*missing), 5))
            found = f"split {split}: {n} steps missing, {first}{f' and {n - 5} more' if n > 5 else ''}"
            findings.append(Finding(name, outcome, found, "resume from the checkpoint before the first of them"))
    return findings


def missing_steps(steps: Any) -> list[range]:
    """Steps that a regular series lacks, a range for each gap: those that its commonest distance would have put into a
    wider one.

    A shorter distance (the last evaluation, at the end of training) is no gap. A series is regular where at least half
    of its distances, and three in all, are the commonest one; any other says nothing: [].

    >>> missing_steps([0, 10, 20, 40, 45])
    [range(30, 40, 10)]
    """
    distinct = np.unique(np.asarray(steps, dtype=np.int64))
    values, counts = np.unique(np.diff(distinct), return_counts=True)
    if counts.sum() < 3 or 2 * counts.max() < counts.sum():
        return []
    usual = int(values[np.argmax(counts)])
    if usual <= 0:  # steps so far apart that their distance is no int64
        return []
    gaps = (range(int(before) + usual, int(after), usual) for before, after in pairwise(distinct))
    return [gap for gap in gaps if gap]


def _incomplete_sets(frame: pd.DataFrame) -> list[Finding]:
    """Every evaluation of a fixed set must hold the same number of rows."""
    findings = []
    policy = frame[frame["role"].astype(str) == "policy"]
    for split, group in policy.groupby("split", observed=True):
        counts = group.groupby("step", observed=True).size()
        short = counts[counts < counts.max()]
        if len(short):
            steps = [f"{step} ({count} of {counts.max()} rows)" for step, count in short.items()]
            findings.append(Finding("pairs", FAIL, f"split {split}: incomplete at steps {some(steps)}"))
    return findings


def _missing_reference(frame: pd.DataFrame) -> list[Finding]:
    role, key = frame["role"].astype(str), ["split", "pair_id", "side"]
    policy = set(frame.loc[role == "policy", key].astype(str).itertuples(index=False, name=None))
    reference = set(frame.loc[role == "ref", key].astype(str).itertuples(index=False, name=None))
    if reference and (lacking := policy - reference):
        return [Finding("pairs", WARN, f"{len(lacking)} responses of fixed sets have no reference row")]
    return []


def _sums(run: Run) -> list[Finding]:
    """Of files that hold a checksum: each whose bytes do not agree with it, and how many do; the tables' own are told
    where they are read."""
    findings, sums = [], []
    tables = [path for name in TABLES for path in run.files(name)]
    others = [
        p
        for p in sorted([*run.path.glob("*.*"), *run.path.glob(".hydra/*.*")])
        if p.suffix in SUMMED and p.name not in OWN
    ]
    for path in (*tables, *others):
        try:
            sums.append(agrees(verified(path, SUM_MEND), path.suffix))
        except FileNotFoundError:
            continue
        except DamagedFile as error:
            findings += [] if path in tables else [Finding(path.name, FAIL, str(error))]
    for path in sorted(run.path.glob("review/*.jsonl")):
        lines = [agrees(line, ".json") for line in path.read_bytes().splitlines()]
        if damaged := [str(i) for i, whole in enumerate(lines, 1) if whole is False]:
            findings.append(Finding(path.name, FAIL, f"{plural(len(damaged), 'line')} damaged: {some(damaged)}"))
    older = sums.count(None)
    without = f"; {older} have none: changed by hand, or of an earlier version" if older else ""
    return [*findings, Finding("checksums", OK, f"{plural(sums.count(True), 'file')} as written{without}")]


def _leftovers(folder: Path) -> list[Finding]:
    """Files under a temporary name, or in others by now: a writer that was killed, or one that is at it."""
    temporary = [str(p.relative_to(folder)) for p in sorted(folder.rglob(".*.tmp"))]
    hint = "nothing reads them; remove them unless the run is still writing"
    replaced = []
    for name in TABLES:
        seen = {path for _, path in visible(folder / name)}
        replaced += [str(path.relative_to(folder)) for _, path in listed(folder / name) if path not in seen]
    found = {"temporary files": temporary, "files that a merged one replaced": replaced}
    return [Finding("leftovers", WARN, f"{len(v)} {k}: {some(v)}", hint) for k, v in found.items() if v]
