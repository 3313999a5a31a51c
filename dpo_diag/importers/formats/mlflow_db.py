"""MLflow's database (sqlite: mlflow.db, mlruns.db): tables runs, metrics and params.

MLflow keeps every value that was logged: a number that is NaN was NaN, and stands as 0 with `is_nan`; an infinite one
stands as the largest float.
"""

from __future__ import annotations

import math
import sqlite3
import sys
from pathlib import Path

from dpo_diag.errors import DiagError
from dpo_diag.importers.databases import MAGIC, opened, tables_of
from dpo_diag.importers.facts import facts_from_mapping
from dpo_diag.importers.log_format import LogFormat, register
from dpo_diag.importers.numbers import number, step_number
from dpo_diag.importers.parsed import Options, Parsed
from dpo_diag.importers.several import choose, take

TABLES = frozenset({"runs", "metrics", "params"})


def read_mlflow_db(path: Path, options: Options) -> Parsed:
    """Read one run; with several in the database `--run` names the one, by its name or its id.

    Raises:
        DiagError: no database of MLflow's, no run with metrics, or several and none named.
    """
    with opened(path, "MLflow's tables") as connection:
        return _read(connection, path, options)


def _read(connection: sqlite3.Connection, path: Path, options: Options) -> Parsed:
    ids = connection.execute(
        "SELECT run_uuid, name FROM runs WHERE COALESCE(lifecycle_stage, '') != 'deleted' "
        "AND run_uuid IN (SELECT run_uuid FROM metrics) ORDER BY start_time"
    ).fetchall()
    if not ids:
        raise DiagError("no MLflow run with metrics", where=path, expected="a run in the table metrics")
    tags = dict(connection.execute("SELECT run_uuid, value FROM tags WHERE key = 'mlflow.runName'"))
    names: dict[str, str] = {}
    for run_id, given in ids:
        name = str(given or tags.get(run_id) or run_id)
        names[name if name not in names else run_id] = run_id
    # An id stands for the name.
    asked = options.run and next((name for name, run_id in names.items() if options.run == run_id), options.run)
    taken = choose(list(names), asked, path)
    parsed = Parsed.of("mlflow_db", [path], options)
    parsed.store.may_fill = False
    take(parsed, [taken], taken)
    points: list[tuple[int, str, float]] = []
    for row, (raw_step, key, raw, is_nan) in enumerate(
        connection.execute(
            "SELECT step, key, value, is_nan FROM metrics WHERE run_uuid = ? ORDER BY timestamp", (names[taken],)
        ),
        start=1,
    ):
        step, value = step_number(raw_step), math.nan if is_nan else number(raw)
        if step is None or value is None:
            parsed.skipped.add(row, "not a step and a value")
            continue
        points.append((step, str(key), _as_logged(value)))
    parsed.store.add_points(points)
    params = dict(connection.execute("SELECT key, value FROM params WHERE run_uuid = ?", (names[taken],)))
    parsed.facts.merge(facts_from_mapping(params, f"{path.name}: params"))
    parsed.steps_from = "the metrics' own step"
    parsed.n_rows = parsed.n_read = parsed.store.rows
    parsed.details["points"] = len(points)
    return parsed


def _as_logged(value: float) -> float:
    return math.copysign(math.inf, value) if abs(value) == sys.float_info.max else value


register(
    LogFormat(
        name="mlflow_db",
        description="MLflow's database (sqlite: mlflow.db)",
        trainers=("any",),
        file_name="mlflow.db",
        order=9,
        why="a database with MLflow's tables, before trackio's",
        sniff=lambda head: head.raw.startswith(MAGIC) and tables_of(head.path) >= TABLES,
        read=read_mlflow_db,
        rounding=0,
    )
)
