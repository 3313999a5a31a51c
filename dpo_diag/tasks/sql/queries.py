"""What is asked: intents.yaml read, and one gold query drawn with the words that fill a question's slots."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpo_diag.documents import parse_yaml
from dpo_diag.tasks.sql import schemas
from dpo_diag.tasks.sql.schemas import Column, Database, Table
from dpo_diag.tasks.sql.stream import Stream


@dataclass(frozen=True)
class Intent:
    """One entry of intents.yaml; `draw` names methods of `Draw`, in the order in which they use the stream."""

    weight: int
    table: str
    draw: list[str]
    sql: str
    training: list[str]
    paraphrased: list[str]


_DOCUMENT: dict[str, Any] = parse_yaml(Path(__file__).with_name("intents.yaml").read_text(encoding="utf-8"))
WORDS: dict[str, dict[str, list[str]]] = _DOCUMENT["words"]
INTENTS: dict[str, Intent] = {name: Intent(**entry) for name, entry in _DOCUMENT["intents"].items()}


class Draw:
    """Fills the slots of one query and of its question; each method draws one slot, or two.

    Attributes:
        sql, words: slot -> its text in the query and in the question.
    """

    def __init__(self, stream: Stream, db: Database, table: Table) -> None:
        self.stream, self.db, self.table = stream, db, table
        parent, child = db.parent.name, db.child.name
        join = f"FROM {child} JOIN {parent} ON {child}.{db.foreign_key} = {parent}.id"
        article = "an" if parent[0] in "aeiou" else "a"
        self.sql = {"t": table.name, "p": parent, "join": join}
        self.words = {"t": table.plural, "s": table.name, "p": parent, "ap": f"{article} {parent}"}
        self._subject: Column | None = None
        self._wording: Callable[[], None] | None = None

    def finish(self) -> None:
        """The word for the keyword that was drawn comes last."""
        if self._wording is not None:
            self._wording()

    # ---- columns ----

    def _column(self, slot: str, column: Column) -> None:
        self.sql[slot], self.words[slot] = column.name, column.phrase
        if slot == "n" or self._subject is None:
            # What the question is about gets no condition: the answer would stand in the question.
            self._subject = column

    def c(self) -> None:
        """Any column."""
        self._column("c", self.stream.pick(self.table.columns))

    def shown(self) -> None:
        """The column a question asks for: mostly the name."""
        name = self.table.of_kind("name")[0]
        self._column("c", name if self.stream.chance(60) else self.stream.pick(self.table.columns))

    def c_and_d(self) -> None:
        """Two columns."""
        for slot, column in zip("cd", self._two(self.table.columns), strict=True):
            self._column(slot, column)

    def asked(self) -> None:
        """The column that is looked up for one name."""
        self._column("d", self.stream.pick(self._filters()))

    def k(self) -> None:
        """A category."""
        self._column("k", self.stream.pick(self.table.of_kind("category")))

    def n(self) -> None:
        """A number."""
        self._column("n", self.stream.pick(self.table.of_kind("number")))

    def parent_d(self) -> None:
        """Any column of the parent."""
        self._column("d", self.stream.pick(self.db.parent.columns))

    def parent_k(self) -> None:
        """A column of the parent that tells groups apart."""
        self._column("d", self.stream.pick(self.db.parent.of_kind("name") + self.db.parent.of_kind("category")))

    def _filters(self) -> tuple[Column, ...]:
        return self.table.of_kind("number") + self.table.of_kind("category")

    def _two(self, columns: Sequence[Column]) -> tuple[Column, Column]:
        first, second = self.stream.shuffled(columns)[:2]
        return first, second

    # ---- keywords and numbers ----

    def _keyword(self, slot: str, kind: str) -> None:
        keyword = self.stream.pick(list(WORDS[kind]))
        self.sql[slot] = keyword
        self._wording = lambda: self.words.update({slot: self.stream.pick(WORDS[kind][keyword])})

    def f(self) -> None:
        """An aggregate function."""
        self._keyword("f", "functions")

    def o(self) -> None:
        """An order."""
        self._keyword("o", "orders")

    def x(self) -> None:
        """An order, as a superlative."""
        self._keyword("x", "superlatives")

    def lim(self) -> None:
        """2 to 7 rows."""
        self.sql["lim"] = self.words["lim"] = str(2 + self.stream.below(6))

    def hv(self) -> None:
        """A bound on a group's size that some group meets and, where possible, not all."""
        assert self._subject is not None
        counts = sorted(Counter(self._values(self.table, self._subject)).values())
        op = self.stream.pick(list(WORDS["having"]))
        low = {">": 1, ">=": 2, "<": counts[0] + 1}[op]
        high = {">": counts[-1] - 1, ">=": counts[-1], "<": counts[-1] + 3}[op]
        n = low + self.stream.below(max(1, high - low + 1))
        self.sql["hv"], self.words["hv"] = f"{op} {n}", self.stream.pick(WORDS["having"][op]).format(n=n)

    # ---- conditions ----

    def w(self) -> None:
        """A condition that some row meets."""
        columns = [c for c in self._filters() if c is not self._subject]
        self._condition("w", self.table, self.stream.pick(columns))

    def w_name(self) -> None:
        """One row, by its name."""
        self._condition("w", self.table, self.table.of_kind("name")[0])

    def w_and_w2(self) -> None:
        """Two conditions; one row meets both, so that AND is never empty."""
        columns = self._two(self._filters())
        row = self.stream.below(schemas.CHILD_ROWS)
        for slot, column in zip(("w", "w2"), columns, strict=True):
            self._condition(slot, self.table, column, row=row)

    def parent_w(self) -> None:
        """A condition on the parent."""
        column = self.stream.pick(self.db.parent.columns)
        self._condition("w", self.db.parent, column, left=f"{self.db.parent.name}.{column.name}")

    def _values(self, table: Table, column: Column) -> list[str | int]:
        at = 1 + table.columns.index(column)
        return [row[at] for row in schemas.rows(self.db.name, table.name)]

    def _condition(
        self, slot: str, table: Table, column: Column, *, row: int | None = None, left: str | None = None
    ) -> None:
        """A condition on one column that some row meets: row number `row` when given, else any.

        A number is compared with a value that occurs, so that `>` and `>=` never mean the same.
        """
        stream, values, left = self.stream, self._values(table, column), left or column.name
        if column.kind != "number":
            value = values[stream.below(len(values)) if row is None else row]
            self.sql[slot], self.words[slot] = f"{left} = '{value}'", f"{column.phrase} {value}"
            return
        op = stream.weighted(list(WORDS["comparisons"]), (3, 3, 3, 3))
        ordered = sorted(int(v) for v in values)
        if row is None:
            candidates = ordered[1:-1]
        else:
            own = int(values[row])
            met = {">": own.__gt__, ">=": own.__ge__, "<": own.__lt__, "<=": own.__le__}[op]
            # When no other value qualifies, the row's own does for >= and <=; for > and < the condition turns.
            candidates = [v for v in ordered if met(v)]
            if not candidates:
                op, candidates = {">": ">=", "<": "<="}[op], [own]
        number = stream.pick(candidates)
        words = stream.pick(WORDS["comparisons"][op])
        self.sql[slot], self.words[slot] = f"{left} {op} {number}", f"{column.phrase} {words} {number}"


def draw_query(stream: Stream, intent: Intent) -> tuple[Database, str, dict[str, str]]:
    """A database, a gold query on it, and the words for the slots of the intent's wordings."""
    db = stream.pick(schemas.DATABASES)
    table = stream.pick(db.tables) if intent.table == "any" else db.child
    draw = Draw(stream, db, table)
    for step in intent.draw:
        getattr(draw, step)()
    draw.finish()
    return db, intent.sql.format(**draw.sql), draw.words
