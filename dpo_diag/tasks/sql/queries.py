"""What is asked: one gold query and the words that fill a template's slots, for each intent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from dpo_diag.tasks.sql import schemas
from dpo_diag.tasks.sql.schemas import Column, Database, Table
from dpo_diag.tasks.sql.stream import Stream
from dpo_diag.tasks.sql.templates import COMPARISONS, FUNCTIONS, HAVING, ORDERS, SUPERLATIVES


@dataclass(frozen=True)
class Condition:
    """`sql` for a WHERE clause (column qualified when asked), `words` for the question."""

    sql: str
    words: str


Query = tuple[str, dict[str, str]]


def _values(db: Database, table: Table, column: Column) -> list[str | int]:
    at = 1 + table.columns.index(column)
    return [row[at] for row in schemas.rows(db.name, table.name)]


def _condition(
    stream: Stream, db: Database, table: Table, column: Column, *, row: int | None = None, qualified: bool = False
) -> Condition:
    """A condition on one column that some row meets: row number `row` when given, else any.

    A number is compared with a value that occurs, so that `>` and `>=` never mean the same.
    """
    values = _values(db, table, column)
    left = f"{table.name}.{column.name}" if qualified else column.name
    if column.kind != "number":
        value = values[stream.below(len(values)) if row is None else row]
        return Condition(f"{left} = '{value}'", f"{column.phrase} {value}")
    op = stream.weighted(list(COMPARISONS), (3, 3, 3, 3))
    ordered = sorted(int(v) for v in values)
    if row is None:
        candidates = ordered[1:-1]
    else:
        own = int(values[row])
        met = {">": lambda v: own > v, ">=": lambda v: own >= v, "<": lambda v: own < v, "<=": lambda v: own <= v}[op]
        # When no other value qualifies, the row's own does for >= and <=; for > and < the condition turns.
        candidates = [v for v in ordered if met(v)]
        if not candidates:
            op, candidates = {">": ">=", "<": "<="}[op], [own]
    value = stream.pick(candidates)
    return Condition(f"{left} {op} {value}", f"{column.phrase} {stream.pick(COMPARISONS[op])} {value}")


def _filters(table: Table) -> tuple[Column, ...]:
    return table.of_kind("number") + table.of_kind("category")


def _words(table: Table) -> dict[str, str]:
    return {"t": table.plural, "s": table.singular}


def _two(stream: Stream, columns: tuple[Column, ...]) -> tuple[Column, Column]:
    first, second = stream.shuffled(columns)[:2]
    return first, second


def _shown(stream: Stream, table: Table) -> Column:
    """The column a question asks for: mostly the name."""
    return table.of_kind("name")[0] if stream.chance(60) else stream.pick(table.columns)


def _list(stream: Stream, db: Database) -> Query:
    table = stream.pick(db.tables)
    c = stream.pick(table.columns)
    return f"SELECT {c.name} FROM {table.name}", {**_words(table), "c": c.phrase}


def _list_two(stream: Stream, db: Database) -> Query:
    table = stream.pick(db.tables)
    c, d = _two(stream, table.columns)
    return f"SELECT {c.name}, {d.name} FROM {table.name}", {**_words(table), "c": c.phrase, "d": d.phrase}


def _distinct(stream: Stream, db: Database) -> Query:
    table = stream.pick(db.tables)
    k = stream.pick(table.of_kind("category"))
    return f"SELECT DISTINCT {k.name} FROM {table.name}", {**_words(table), "k": k.phrase}


def _where(stream: Stream, db: Database) -> Query:
    table = stream.pick(db.tables)
    c = _shown(stream, table)
    w = _condition(stream, db, table, stream.pick([f for f in _filters(table) if f is not c]))
    return f"SELECT {c.name} FROM {table.name} WHERE {w.sql}", {**_words(table), "c": c.phrase, "w": w.words}


def _two_conditions(stream: Stream, db: Database, word: str) -> Query:
    table = db.child
    c = _shown(stream, table)
    first, second = _two(stream, _filters(table))
    row = stream.below(schemas.CHILD_ROWS)  # one row meets both, so that AND is never empty
    a, b = (_condition(stream, db, table, column, row=row) for column in (first, second))
    sql = f"SELECT {c.name} FROM {table.name} WHERE {a.sql} {word} {b.sql}"
    return sql, {**_words(table), "c": c.phrase, "w": a.words, "w2": b.words}


def _where_and(stream: Stream, db: Database) -> Query:
    return _two_conditions(stream, db, "AND")


def _where_or(stream: Stream, db: Database) -> Query:
    return _two_conditions(stream, db, "OR")


def _lookup(stream: Stream, db: Database) -> Query:
    table = stream.pick(db.tables)
    name = table.of_kind("name")[0]
    d, w = stream.pick(_filters(table)), _condition(stream, db, table, name)
    return f"SELECT {d.name} FROM {table.name} WHERE {w.sql}", {**_words(table), "d": d.phrase, "w": w.words}


def _count(stream: Stream, db: Database) -> Query:
    table = stream.pick(db.tables)
    return f"SELECT COUNT(*) FROM {table.name}", _words(table)


def _count_where(stream: Stream, db: Database) -> Query:
    table = stream.pick(db.tables)
    w = _condition(stream, db, table, stream.pick(_filters(table)))
    return f"SELECT COUNT(*) FROM {table.name} WHERE {w.sql}", {**_words(table), "w": w.words}


def _count_distinct(stream: Stream, db: Database) -> Query:
    table = stream.pick(db.tables)
    k = stream.pick(table.of_kind("category"))
    return f"SELECT COUNT(DISTINCT {k.name}) FROM {table.name}", {**_words(table), "k": k.phrase}


def _aggregate(stream: Stream, db: Database) -> Query:
    table = stream.pick(db.tables)
    n, f = stream.pick(table.of_kind("number")), stream.pick(list(FUNCTIONS))
    words = {**_words(table), "n": n.phrase, "f": stream.pick(FUNCTIONS[f])}
    return f"SELECT {f}({n.name}) FROM {table.name}", words


def _aggregate_where(stream: Stream, db: Database) -> Query:
    table = db.child
    n, f = stream.pick(table.of_kind("number")), stream.pick(list(FUNCTIONS))
    w = _condition(stream, db, table, stream.pick([c for c in _filters(table) if c is not n]))
    words = {**_words(table), "n": n.phrase, "f": stream.pick(FUNCTIONS[f]), "w": w.words}
    return f"SELECT {f}({n.name}) FROM {table.name} WHERE {w.sql}", words


def _group_count(stream: Stream, db: Database) -> Query:
    table = stream.pick(db.tables)
    k = stream.pick(table.of_kind("category"))
    return f"SELECT {k.name}, COUNT(*) FROM {table.name} GROUP BY {k.name}", {**_words(table), "k": k.phrase}


def _group_aggregate(stream: Stream, db: Database) -> Query:
    table = stream.pick(db.tables)
    k, n = stream.pick(table.of_kind("category")), stream.pick(table.of_kind("number"))
    f = stream.pick(list(FUNCTIONS))
    words = {**_words(table), "k": k.phrase, "n": n.phrase, "f": stream.pick(FUNCTIONS[f])}
    return f"SELECT {k.name}, {f}({n.name}) FROM {table.name} GROUP BY {k.name}", words


def _having(stream: Stream, db: Database) -> Query:
    table = db.child
    k = stream.pick(table.of_kind("category"))
    counts = sorted(Counter(_values(db, table, k)).values())
    op = stream.pick(list(HAVING))
    low = {">": 1, ">=": 2, "<": counts[0] + 1}[op]
    high = {">": counts[-1] - 1, ">=": counts[-1], "<": counts[-1] + 3}[op]
    n = low + stream.below(max(1, high - low + 1))
    sql = f"SELECT {k.name} FROM {table.name} GROUP BY {k.name} HAVING COUNT(*) {op} {n}"
    return sql, {**_words(table), "k": k.phrase, "hv": stream.pick(HAVING[op]).format(n=n)}


def _ordered(stream: Stream, table: Table) -> tuple[Column, Column, str]:
    n = stream.pick(table.of_kind("number"))
    return _shown(stream, table), n, stream.pick(list(ORDERS))


def _order(stream: Stream, db: Database) -> Query:
    table = stream.pick(db.tables)
    c, n, o = _ordered(stream, table)
    words = {**_words(table), "c": c.phrase, "n": n.phrase, "o": stream.pick(ORDERS[o])}
    return f"SELECT {c.name} FROM {table.name} ORDER BY {n.name} {o}", words


def _order_where(stream: Stream, db: Database) -> Query:
    table = db.child
    c, n, o = _ordered(stream, table)
    w = _condition(stream, db, table, stream.pick([f for f in _filters(table) if f is not n]))
    words = {**_words(table), "c": c.phrase, "n": n.phrase, "o": stream.pick(ORDERS[o]), "w": w.words}
    return f"SELECT {c.name} FROM {table.name} WHERE {w.sql} ORDER BY {n.name} {o}", words


def _top(stream: Stream, db: Database) -> Query:
    table = stream.pick(db.tables)
    c, n, o = _ordered(stream, table)
    lim = 2 + stream.below(6)
    words = {**_words(table), "c": c.phrase, "n": n.phrase, "x": stream.pick(SUPERLATIVES[o]), "lim": str(lim)}
    return f"SELECT {c.name} FROM {table.name} ORDER BY {n.name} {o} LIMIT {lim}", words


def _top_where(stream: Stream, db: Database) -> Query:
    table = db.child
    c, n, o = _ordered(stream, table)
    w = _condition(stream, db, table, stream.pick([f for f in _filters(table) if f is not n]))
    lim = 2 + stream.below(6)
    words = {**_words(table), "c": c.phrase, "n": n.phrase, "x": stream.pick(SUPERLATIVES[o]), "lim": str(lim)}
    sql = f"SELECT {c.name} FROM {table.name} WHERE {w.sql} ORDER BY {n.name} {o} LIMIT {lim}"
    return sql, {**words, "w": w.words}


def _join(db: Database) -> str:
    child, parent = db.child.name, db.parent.name
    return f"FROM {child} JOIN {parent} ON {child}.{db.foreign_key} = {parent}.id"


def _join_words(db: Database) -> dict[str, str]:
    parent = db.parent.singular
    return {**_words(db.child), "p": parent, "ap": f"{'an' if parent[0] in 'aeiou' else 'a'} {parent}"}


def _join_list(stream: Stream, db: Database) -> Query:
    c, d = stream.pick(db.child.columns), stream.pick(db.parent.columns)
    sql = f"SELECT {db.child.name}.{c.name}, {db.parent.name}.{d.name} {_join(db)}"
    return sql, {**_join_words(db), "c": c.phrase, "d": d.phrase}


def _join_where(stream: Stream, db: Database) -> Query:
    c = _shown(stream, db.child)
    w = _condition(stream, db, db.parent, stream.pick(db.parent.columns), qualified=True)
    sql = f"SELECT {db.child.name}.{c.name} {_join(db)} WHERE {w.sql}"
    return sql, {**_join_words(db), "c": c.phrase, "w": w.words}


def _join_count(stream: Stream, db: Database) -> Query:
    w = _condition(stream, db, db.parent, stream.pick(db.parent.columns), qualified=True)
    return f"SELECT COUNT(*) {_join(db)} WHERE {w.sql}", {**_join_words(db), "w": w.words}


def _join_group(stream: Stream, db: Database) -> Query:
    d = stream.pick(db.parent.of_kind("name") + db.parent.of_kind("category"))
    left = f"{db.parent.name}.{d.name}"
    return f"SELECT {left}, COUNT(*) {_join(db)} GROUP BY {left}", {**_join_words(db), "d": d.phrase}


INTENTS: dict[str, Callable[[Stream, Database], Query]] = {
    "list": _list, "list_two": _list_two, "distinct": _distinct, "where": _where, "where_and": _where_and,
    "where_or": _where_or, "lookup": _lookup, "count": _count, "count_where": _count_where,
    "count_distinct": _count_distinct, "aggregate": _aggregate, "aggregate_where": _aggregate_where,
    "group_count": _group_count, "group_aggregate": _group_aggregate, "having": _having, "order": _order,
    "order_where": _order_where, "top": _top, "top_where": _top_where, "join_list": _join_list,
    "join_where": _join_where, "join_count": _join_count, "join_group": _join_group,
}  # fmt: skip
