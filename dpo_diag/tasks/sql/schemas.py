"""The databases of the task: six domains, each a parent and a child table, with the same rows on every machine."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from functools import cache

from dpo_diag.tasks.sql.stream import Stream

PARENT_ROWS = 9
CHILD_ROWS = 36


def _text(words: str) -> tuple[str, ...]:
    return tuple(words.split())


_PEOPLE = _text(
    "Amara Boris Carmen Dmitri Elena Farid Greta Hiro Ines Jonas Kira Leon Mina Nadia Omar Petra Quinn Rosa Sven Tara "
    "Uma Viktor Wanda Xenia Yusuf Zora Abel Bianca Cyril Dalia Emil Flora Gustav Hana Igor Jade Karim Lydia"
)
_THINGS = _text(
    "Amber Beacon Canyon Dune Ember Falcon Glacier Harbor Island Juniper Kestrel Lantern Meadow Nectar Orchid Pebble "
    "Quartz Raven Saddle Tundra Umbra Valley Willow Yonder Zephyr Anchor Bramble Copper Drift Echo Fable Grove Hollow "
    "Ivory Jasper Kite Linden Mirror"
)


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
    """A table: `name` in SQL, `plural` and `singular` in a question; an integer primary key `id` comes first."""

    name: str
    singular: str
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


DATABASES: tuple[Database, ...] = (
    Database(
        "library",
        Table(
            "author",
            "author",
            "authors",
            (
                Column("name", "name", "name", _PEOPLE),
                Column("country", "country", "category", _text("Peru Kenya Norway Japan")),
                Column("born", "birth year", "number", (1900, 1990, 1)),
            ),
        ),
        Table(
            "book",
            "book",
            "books",
            (
                Column("title", "title", "name", _THINGS),
                Column("genre", "genre", "category", _text("Crime Poetry Travel Drama Satire")),
                Column("pages", "page count", "number", (90, 890, 10)),
                Column("year", "release year", "number", (1950, 2020, 1)),
            ),
        ),
    ),
    Database(
        "clinic",
        Table(
            "doctor",
            "doctor",
            "doctors",
            (
                Column("name", "name", "name", _PEOPLE),
                Column("field", "field", "category", _text("Heart Skin Bone Eye")),
                Column("age", "age", "number", (30, 68, 1)),
            ),
        ),
        Table(
            "visit",
            "visit",
            "visits",
            (
                Column("patient", "patient", "name", _PEOPLE),
                Column("reason", "reason", "category", _text("Checkup Fever Injury Vaccine Cough")),
                Column("cost", "cost", "number", (20, 420, 5)),
                Column("minutes", "duration", "number", (5, 95, 1)),
            ),
        ),
    ),
    Database(
        "airline",
        Table(
            "plane",
            "plane",
            "planes",
            (
                Column("model", "model", "name", _THINGS),
                Column("maker", "maker", "category", _text("Aero Boreal Cirrus Delta")),
                Column("seats", "seat count", "number", (60, 420, 10)),
            ),
        ),
        Table(
            "flight",
            "flight",
            "flights",
            (
                Column("pilot", "pilot", "name", _PEOPLE),
                Column("status", "status", "category", _text("Ontime Delayed Boarding Cancelled Landed")),
                Column("price", "price", "number", (40, 940, 5)),
                Column("miles", "distance", "number", (100, 4900, 50)),
            ),
        ),
    ),
    Database(
        "orchard",
        Table(
            "farm",
            "farm",
            "farms",
            (
                Column("name", "name", "name", _THINGS),
                Column("region", "region", "category", _text("North South East West")),
                Column("acres", "area", "number", (10, 250, 5)),
            ),
        ),
        Table(
            "harvest",
            "harvest",
            "harvests",
            (
                Column("picker", "picker", "name", _PEOPLE),
                Column("fruit", "fruit", "category", _text("Apple Pear Plum Fig Cherry")),
                Column("kilos", "weight", "number", (50, 980, 10)),
                Column("rain", "rainfall", "number", (1, 75, 1)),
            ),
        ),
    ),
    Database(
        "school",
        Table(
            "teacher",
            "teacher",
            "teachers",
            (
                Column("name", "name", "name", _PEOPLE),
                Column("subject", "subject", "category", _text("Music Physics History Art")),
                Column("salary", "salary", "number", (2000, 6000, 100)),
            ),
        ),
        Table(
            "pupil",
            "pupil",
            "pupils",
            (
                Column("name", "name", "name", _PEOPLE),
                Column("club", "club", "category", _text("Chess Choir Robotics Garden Judo")),
                Column("score", "score", "number", (10, 100, 1)),
                Column("height", "height", "number", (110, 190, 1)),
            ),
        ),
    ),
    Database(
        "museum",
        Table(
            "gallery",
            "gallery",
            "galleries",
            (
                Column("name", "name", "name", _THINGS),
                Column("wing", "wing", "category", _text("Main Annex Tower Court")),
                Column("capacity", "capacity", "number", (30, 480, 5)),
            ),
        ),
        Table(
            "artwork",
            "artwork",
            "artworks",
            (
                Column("title", "title", "name", _THINGS),
                Column("medium", "medium", "category", _text("Oil Bronze Paper Glass Marble")),
                Column("value", "value", "number", (100, 9900, 100)),
                Column("year", "year", "number", (1700, 1990, 1)),
            ),
        ),
    ),
)

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
