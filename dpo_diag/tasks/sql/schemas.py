"""The databases of the task: six domains, each a parent and a child table, with the same rows on every machine."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from dpo_diag.documents import parse_yaml
from dpo_diag.tasks.sql.stream import Stream

PARENT_ROWS = 9
CHILD_ROWS = 36


@dataclass(frozen=True)
class Column:
    """One column that a question can name.

    Attributes:
        name: its name in SQL.
        phrase: its name in a question, singular, lower case.
        kind: "name" (text, unique in its table), "category" (text, few values) or "number" (integer, unique in its
            table, so that an ORDER BY has no ties and `>` differs from `>=` at every threshold).
        values: the pool of texts; for numbers (lowest, highest, granularity).
    """

    name: str
    phrase: str
    kind: str
    values: tuple[str, ...] | tuple[int, int, int]


@dataclass(frozen=True)
class Table:
    """A table: `name` in SQL and, for one row, in a question; an integer primary key `id` comes first."""

    name: str
    plural: str
    columns: tuple[Column, ...]

    def of_kind(self, kind: str) -> tuple[Column, ...]:
        """The columns of one kind, in order."""
        return tuple(column for column in self.columns if column.kind == kind)


@dataclass(frozen=True)
class Database:
    """Two tables; `child.<parent>_id` refers to `parent.id`."""

    name: str
    parent: Table
    child: Table

    @property
    def tables(self) -> tuple[Table, Table]:
        return (self.parent, self.child)

    @property
    def foreign_key(self) -> str:
        return f"{self.parent.name}_id"


def _column(name: str, spec: dict[str, Any], pools: dict[str, str]) -> Column:
    if "range" in spec:
        low, high, step = spec["range"]
        return Column(name, spec.get("phrase", name), "number", (low, high, step))
    kind, values = ("name", pools[spec["pool"]]) if "pool" in spec else ("category", spec["categories"])
    return Column(name, spec.get("phrase", name), kind, tuple(values.split()))


def _read() -> tuple[Database, ...]:
    document = parse_yaml(Path(__file__).with_name("databases.yaml").read_text(encoding="utf-8"))
    databases = []
    for name, tables in document["databases"].items():
        parent, child = (
            Table(t, spec["plural"], tuple(_column(c, v, document["pools"]) for c, v in spec["columns"].items()))
            for t, spec in tables.items()
        )
        databases.append(Database(name, parent, child))
    return tuple(databases)


DATABASES: tuple[Database, ...] = _read()
_BY_NAME = {database.name: database for database in DATABASES}


def database(name: str) -> Database:
    """The database called `name`. Raises KeyError for an unknown one."""
    return _BY_NAME[name]


def _column_values(key: tuple[str, str], column: Column, n: int) -> list[str | int]:
    stream = Stream("rows", *key, column.name)
    if column.kind == "category":
        # Uneven shares, so that "which genre has the most books" has an answer; every value occurs.
        pool = [str(v) for v in column.values]
        weights = [len(pool) + 2 * (len(pool) - i) for i in range(len(pool))]
        drawn = pool + [stream.weighted(pool, weights) for _ in range(n - len(pool))]
        return list(stream.shuffled(drawn))
    if column.kind == "name":
        return list(stream.shuffled([str(v) for v in column.values])[:n])
    low, high, grain = (int(v) for v in column.values)
    return list(stream.shuffled(list(range(low, high + 1, grain)))[:n])


@cache
def rows(db: str, table: str) -> tuple[tuple[str | int, ...], ...]:
    """All rows of a table as tuples (id, columns in order[, foreign key]).

    The number of rows is PARENT_ROWS or CHILD_ROWS. Raises KeyError for an unknown database or table.
    """
    owner = database(db)
    spec = {t.name: t for t in owner.tables}[table]
    n = PARENT_ROWS if spec is owner.parent else CHILD_ROWS
    columns: list[list[str | int]] = [list(range(1, n + 1))]
    columns += [_column_values((db, table), column, n) for column in spec.columns]
    if spec is owner.child:
        stream = Stream("rows", db, table, "foreign key")
        ids = list(range(1, PARENT_ROWS + 1))
        # Every parent but the last has a child: an inner join must leave something out.
        keys = ids[:-1] + [stream.weighted(ids[:-1], range(4, 4 + len(ids) - 1)) for _ in range(n - len(ids) + 1)]
        columns.append(list(stream.shuffled(keys)))
    return tuple(zip(*columns, strict=True))


def create_sql(db: str) -> list[str]:
    """The CREATE TABLE statements of a database, parent first."""
    owner = database(db)
    out = []
    for table in owner.tables:
        kinds = {"number": "INTEGER", "name": "TEXT", "category": "TEXT"}
        parts = ["id INTEGER PRIMARY KEY"] + [f"{c.name} {kinds[c.kind]} NOT NULL" for c in table.columns]
        if table is owner.child:
            parts.append(f"{owner.foreign_key} INTEGER NOT NULL REFERENCES {owner.parent.name} (id)")
        out.append(f"CREATE TABLE {table.name} ({', '.join(parts)})")
    return out


def populate(connection: sqlite3.Connection, db: str) -> None:
    """Create the tables of `db` on an empty connection and fill them."""
    for statement in create_sql(db):
        connection.execute(statement)
    for table in database(db).tables:
        data = rows(db, table.name)
        connection.executemany(f"INSERT INTO {table.name} VALUES ({', '.join('?' * len(data[0]))})", data)
    connection.commit()
