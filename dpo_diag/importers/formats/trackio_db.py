"""trackio's project database (sqlite): one row of JSON metrics per log call.

trackio's own `step` counts log calls; the training step is `train/global_step`. A name that was used twice continues
the old run: steps that come back are duplicates, the later ones count. NaN and infinities are strings.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dpo_diag.documents import parse_json
from dpo_diag.errors import DiagError
from dpo_diag.importers.databases import MAGIC, opened
from dpo_diag.importers.facts import facts_from_mapping
from dpo_diag.importers.log_format import LogFormat, register
from dpo_diag.importers.parsed import Facts, Options, Parsed
from dpo_diag.importers.several import choose, take
from dpo_diag.records.row_files import BadRow, as_row


def read_trackio(path: Path, options: Options) -> Parsed:
    """Read one run of a project; with several runs in it `--run` names the one.

    Raises:
        DiagError: no database of trackio's, or several runs and none named.
    """
    file = path if path.is_file() else _database(path)
    with opened(file, "trackio's tables") as connection:
        return _read(connection, file, options)


def _database(folder: Path) -> Path:
    files = sorted(folder.glob("*.db"))
    if len(files) != 1:
        raise DiagError(
            "which project",
            where=folder,
            got=[p.name for p in files] or "no .db file",
            hint="name the file",
            usage=True,
        )
    return files[0]


def _read(connection: sqlite3.Connection, file: Path, options: Options) -> Parsed:
    columns = [r[1] for r in connection.execute("PRAGMA table_info(metrics)")]
    if "metrics" not in columns:
        raise DiagError("not a database of trackio's", where=file, got="no table metrics", hint="name <project>.db")
    name_column = "run_name" if "run_name" in columns else None
    run = None
    if name_column:
        runs = [str(r[0]) for r in connection.execute("SELECT DISTINCT run_name FROM metrics ORDER BY run_name")]
        if not runs:
            raise DiagError("no runs in the database", where=file, hint="name another <project>.db")
        run = choose(runs, options.run, file)
    parsed = Parsed.of("trackio", [file], options)
    parsed.store.may_fill = False
    where, values = (" WHERE run_name = ?", (run,)) if run is not None else ("", ())
    order = " ORDER BY id" if "id" in columns else " ORDER BY timestamp" if "timestamp" in columns else ""
    step_column = "step" if "step" in columns else "NULL"
    for number, (step, text) in enumerate(
        connection.execute(f"SELECT {step_column}, metrics FROM metrics{where}{order}", values), start=1
    ):
        parsed.n_rows += 1
        row = _row(text)
        if isinstance(row, BadRow):
            parsed.skipped.add(number, str(row))
            continue
        parsed.store.add(row, number, step if isinstance(step, int) and step >= 0 else None)
    parsed.facts.merge(_config(connection, run, parsed))
    if run is not None:
        take(parsed, [run], run)
    return parsed.with_steps(options)


def _row(text: Any) -> Mapping[str, Any] | BadRow:
    try:
        return as_row(parse_json(text) if isinstance(text, (str, bytes)) else None)
    except ValueError:
        return BadRow("undecodable line", "metrics are not a JSON object")


def _config(connection: sqlite3.Connection, run: str | None, parsed: Parsed) -> Facts:
    try:
        found = connection.execute("SELECT config FROM configs WHERE run_name = ?", (run,)).fetchone()
        config = parse_json(found[0])
    except (sqlite3.Error, TypeError, ValueError, AttributeError):  # older versions have no such table; no row; no JSON
        return Facts()
    where = f"{parsed.files[0].name}: config"
    parsed.skipped.add_repeated(config, file=where)
    return facts_from_mapping(config, where)


register(
    LogFormat(
        name="trackio",
        description="trackio project database (sqlite)",
        trainers=("any",),
        file_name="project.db",
        order=10,
        why="begins with bytes that no other file begins with",
        sniff=lambda head: head.raw.startswith(MAGIC),
        read=read_trackio,
        rounding=0,
        reads_folders=True,
    )
)
