"""Running one query that a model wrote, and comparing its result with the gold query's.

Model text is hostile input. A query runs on an in-memory copy that holds nothing else, and is stopped by layers that
do not depend on each other: one statement that starts with SELECT or WITH; sqlite's own size limits; an authorizer
that knows the task's tables and a list of harmless functions and denies all else (ATTACH, PRAGMA, writes, recursion,
load_extension, reading sqlite_master); `query_only`; a budget of virtual-machine steps, which is the same on a slow
and on a fast machine, with a wall clock behind it; a limit on the memory that the process gains meanwhile; limits on
rows and columns.
"""

from __future__ import annotations

import math
import os
import re
import sqlite3
import threading
import time
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache

from dpo_diag.tasks.sql import schemas

MAX_SQL_CHARS = 2_000
MAX_ROWS = 1_000
MAX_COLUMNS = 16
MAX_SELECTS = 16
# The largest gold query of the task takes under 3,000 steps; a two-million-step bomb is stopped in some 20 ms.
MAX_VM_STEPS = 1_000_000
MAX_SECONDS = 2.0
MAX_MEMORY = 64 << 20
"""Bytes that the process may gain while a query runs: a sort of wide rows took 300 MB within its steps. sqlite's own
`hard_heap_limit` holds for the whole process and can never be raised again, so it is no limit of a connection."""
_STEPS_PER_CALL = 1_000
REL_TOL = 1e-6
ABS_TOL = 1e-9

_FUNCTIONS = frozenset(
    ("count", "sum", "avg", "min", "max", "total", "abs", "round", "length", "lower", "upper", "like", "coalesce")
    + ("ifnull", "nullif", "iif", "substr", "substring", "trim", "ltrim", "rtrim", "instr")
)
# sqlite expands a CTE at each mention while it prepares, before any handler of ours is asked: thirty CTEs that each
# name the one before twice exhaust the memory. With at most 3 CTEs and 24 table references there are at most
# (24 / 4) ** 4 copies.
MAX_CTES = 3
MAX_CTE_REFERENCES = 24
_CTE = re.compile(r"\bas\s*(?:(?:not\s+)?materialized\s*)?\(", re.IGNORECASE)
_REFERENCE = re.compile(r",|\b(?:from|join|in)\b", re.IGNORECASE)  # whatever can stand before a table's name
_BUILT_IN = re.compile(r"sqlite_|pragma_|json|dbstat|bytecode|tables_used|generate_series", re.IGNORECASE)
_LIMITS = {
    sqlite3.SQLITE_LIMIT_LENGTH: 10_000,
    sqlite3.SQLITE_LIMIT_SQL_LENGTH: 4 * MAX_SQL_CHARS,
    sqlite3.SQLITE_LIMIT_COLUMN: 64,
    sqlite3.SQLITE_LIMIT_EXPR_DEPTH: 50,
    sqlite3.SQLITE_LIMIT_COMPOUND_SELECT: 8,
    sqlite3.SQLITE_LIMIT_VDBE_OP: 25_000,
    sqlite3.SQLITE_LIMIT_FUNCTION_ARG: 8,
    sqlite3.SQLITE_LIMIT_ATTACHED: 0,
    sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH: 50,
    sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER: 0,
    sqlite3.SQLITE_LIMIT_TRIGGER_DEPTH: 0,
    sqlite3.SQLITE_LIMIT_WORKER_THREADS: 0,
}

Cell = int | float | str | bytes | None


@dataclass(frozen=True)
class ExecutionResult:
    """What came of one query.

    Attributes:
        status: "ok"; "rejected" (not one SELECT or WITH statement, or denied by the sandbox); "error" (sqlite refused
            it: syntax, unknown column, a size limit); "timeout" (step or time budget); "too_large" (rows, columns,
            memory).
        rows: the rows in order; empty unless ok.
        message: sqlite's or the sandbox's words, one line; empty when ok.
    """

    status: str
    rows: tuple[tuple[Cell, ...], ...] = ()
    message: str = ""

    @property
    def ok(self) -> bool:
        return self.status == "ok"


class _Sandbox:
    """One locked connection to a fresh in-memory copy of a database, and the budget of the query that runs on it."""

    def __init__(self, db: str) -> None:
        self.tables = {table.name for table in schemas.database(db).tables}
        self.connection = sqlite3.connect(":memory:", isolation_level=None, cached_statements=0)
        schemas.populate(self.connection, db)
        self.connection.execute("PRAGMA temp_store = MEMORY")  # a large sort must not spill to the user's disk
        self.connection.execute("PRAGMA trusted_schema = OFF")
        self.connection.execute("PRAGMA query_only = ON")
        for limit, value in _LIMITS.items():
            self.connection.setlimit(limit, value)
        if hasattr(self.connection, "enable_load_extension"):
            self.connection.enable_load_extension(False)
        self.steps = self.selects = 0
        self.deadline = 0.0
        self.memory = 0
        self.timed_out = self.too_large = self.denied = False
        self.connection.set_authorizer(self._authorize)
        self.connection.set_progress_handler(self._progress, _STEPS_PER_CALL)

    def _authorize(
        self, action: int, one: str | None, two: str | None, database: str | None, _trigger: str | None
    ) -> int:
        allowed = False
        if action == sqlite3.SQLITE_SELECT:
            self.selects += 1
            allowed = self.selects <= MAX_SELECTS
        elif action == sqlite3.SQLITE_READ:
            # An empty column name is how sqlite reports a table whose columns go unread, be it a CTE's name.
            own = one in self.tables and database in (None, "main")
            allowed = own or (two == "" and not _BUILT_IN.match(one or ""))
        elif action == sqlite3.SQLITE_FUNCTION:
            allowed = (two or "").lower() in _FUNCTIONS
        self.denied |= not allowed
        return sqlite3.SQLITE_OK if allowed else sqlite3.SQLITE_DENY

    def _progress(self) -> int:
        self.steps += _STEPS_PER_CALL
        self.timed_out = self.steps > MAX_VM_STEPS or time.monotonic() > self.deadline
        self.too_large = _memory() - self.memory > MAX_MEMORY
        return int(self.timed_out or self.too_large)

    def run(self, sql: str) -> ExecutionResult:
        self.steps = self.selects = 0
        self.timed_out = self.too_large = self.denied = False
        self.deadline = time.monotonic() + MAX_SECONDS
        self.memory = _memory()
        cursor = self.connection.cursor()
        try:
            cursor.execute(sql)
            if cursor.description is None:
                return ExecutionResult("rejected", message="the statement returns no table")
            if len(cursor.description) > MAX_COLUMNS:
                return ExecutionResult("too_large", message=f"more than {MAX_COLUMNS} columns")
            rows = cursor.fetchmany(MAX_ROWS + 1)
        except (sqlite3.Error, sqlite3.Warning, ValueError, OverflowError, MemoryError) as error:
            message = " ".join(str(error).split())[:200]
            if self.too_large:
                return ExecutionResult("too_large", message=f"more than {MAX_MEMORY >> 20} MiB of memory")
            if self.timed_out:
                return ExecutionResult("timeout", message=f"more than {MAX_VM_STEPS} steps or {MAX_SECONDS} s")
            rejected = self.denied or "one statement at a time" in message
            return ExecutionResult("rejected" if rejected else "error", message=message)
        finally:
            cursor.close()
        if len(rows) > MAX_ROWS:
            return ExecutionResult("too_large", message=f"more than {MAX_ROWS} rows")
        return ExecutionResult("ok", rows=tuple(tuple(row) for row in rows))


def _memory() -> int:
    """Bytes of this process that are in memory; 0 where the system does not say (only Linux does so cheaply)."""
    try:
        with open("/proc/self/statm", "rb", buffering=0) as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


_local = threading.local()


def _sandbox(db: str) -> _Sandbox:
    """This thread's sandbox of `db`; sqlite connections may cross neither threads nor forks."""
    if getattr(_local, "pid", None) != os.getpid():
        _local.pid, _local.boxes = os.getpid(), {}
    boxes: dict[str, _Sandbox] = _local.boxes
    if db not in boxes:
        boxes[db] = _Sandbox(db)
    return boxes[db]


def _oversized_cte(text: str) -> str:
    """Why a query with a WITH might be a bomb while it is prepared; "" if it cannot, or has no WITH."""
    if not re.search(r"\bwith\b", text, re.IGNORECASE):
        return ""
    if re.search(r"--|/\*|[\"`\[]", text):
        return "comments and quoted names are not allowed beside WITH"  # they would hide what is counted here
    bare = re.sub(r"'[^']*'", "''", text)
    if len(_CTE.findall(bare)) > MAX_CTES:
        return f"more than {MAX_CTES} common table expressions"
    if len(_REFERENCE.findall(bare)) > MAX_CTE_REFERENCES:
        return f"more than {MAX_CTE_REFERENCES} table references beside WITH"
    return ""


def run_query(db: str, sql: object) -> ExecutionResult:
    """Run one query against database `db` in the sandbox. Never raises for any `sql`, and never takes much over 2 s.

    Args:
        db: one of `schemas.DATABASES`; KeyError for another, since it is the caller's, not the model's.
        sql: the model's text; one trailing semicolon is fine. What is not text is "rejected".
    """
    schemas.database(db)
    if not isinstance(sql, str):
        return ExecutionResult("rejected", message="not text")
    text = sql.strip()
    if len(text) > MAX_SQL_CHARS:
        return ExecutionResult("rejected", message=f"longer than {MAX_SQL_CHARS} characters")
    if not re.match(r"(?:select|with)\b", text, re.IGNORECASE):
        return ExecutionResult("rejected", message="does not start with SELECT or WITH")
    if (why := _oversized_cte(text)) != "":
        return ExecutionResult("rejected", message=why)
    if "\x00" in text or any(0xD800 <= ord(c) <= 0xDFFF for c in text):
        return ExecutionResult("rejected", message="NUL or lone surrogate in the text")
    return _sandbox(db).run(text)


def has_outer_order(sql: str) -> bool:
    """Whether the outermost SELECT is ordered: an ORDER BY outside all parentheses and quotes."""
    bare = re.sub(r"'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"", "''", sql)
    while (shorter := re.sub(r"\([^()]*\)", " ", bare)) != bare:
        bare = shorter
    return re.search(r"\border\s+by\b", bare, re.IGNORECASE) is not None


def _cell_equal(a: Cell, b: Cell) -> bool:
    if isinstance(a, int | float) and isinstance(b, int | float):
        if isinstance(a, int) and isinstance(b, int):
            return a == b
        return math.isclose(a, b, rel_tol=REL_TOL, abs_tol=ABS_TOL)
    return type(a) is type(b) and a == b


def _row_equal(a: tuple[Cell, ...], b: tuple[Cell, ...]) -> bool:
    return len(a) == len(b) and all(map(_cell_equal, a, b))


def same_result(predicted: tuple[tuple[Cell, ...], ...], gold: tuple[tuple[Cell, ...], ...], *, ordered: bool) -> bool:
    """Whether two results are equal: column order counts, names do not; row order only if `ordered`, repeats always.

    Integers are equal exactly, other numbers within a relative 1e-6; text never equals a number; NULL equals NULL.
    Two empty results are equal.
    """
    if len(predicted) != len(gold):
        return False
    if ordered:
        return all(map(_row_equal, predicted, gold))
    rest = list(gold)
    if not any(isinstance(cell, float) for row in (*predicted, *gold) for cell in row):
        return Counter(predicted) == Counter(rest)
    # A float has no hash that respects a tolerance, so rows are matched one by one; results are small.
    for row in predicted:
        for i, other in enumerate(rest):
            if _row_equal(row, other):
                del rest[i]
                break
        else:
            return False
    return True


@lru_cache(maxsize=16_384)
def _gold_result(db: str, gold: str) -> ExecutionResult:
    return run_query(db, gold)


def is_correct(db: str, predicted: object, gold: str) -> bool:
    """Whether `predicted` returns what `gold` returns; row order counts only if gold's outer SELECT has an ORDER BY.

    Raises:
        ValueError: the gold query itself does not run.
    """
    wanted = _gold_result(db, gold)
    if not wanted.ok:
        raise ValueError(f"the gold query does not run on {db}: {wanted.status} {wanted.message}: {gold}")
    got = run_query(db, predicted)
    return got.ok and same_result(got.rows, wanted.rows, ordered=has_outer_order(gold))
