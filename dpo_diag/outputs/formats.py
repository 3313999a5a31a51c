"""Form of an answer: is it JSON, SQL that parses, a code fence, a list; how much structure it carries. Text only."""

from __future__ import annotations

import re
import sqlite3
import threading
from bisect import bisect_right

from dpo_diag.documents import parse_json

_FENCE = re.compile(r"(`{3,}+|~{3,}+)[^`]*\Z")
_BULLET = re.compile(r"^[ \t]*(?:[-*•+]|\d{1,3}[.)、])[ \t]*\S", re.MULTILINE)
_HEADING = re.compile(r"^[ \t]*#{1,6}[ \t]+\S", re.MULTILINE)
_BOLD = re.compile(r"\*\*[^*\n]+\*\*|__[^_\n]+__")
_TABLE_ROW = re.compile(r"^[ \t]*\|.*\|[ \t]*$", re.MULTILINE)
_SQL_START = re.compile(r"\s*(?:select|with|insert|update|delete|create)\b", re.IGNORECASE)
_SYNTAX = re.compile(
    r"syntax error|incomplete input|unrecognized token|null character|stack overflow|too large|too deep|maximum depth"
    r"|too big|too many|one statement at a time",
    re.IGNORECASE,
)
_SQL_QUOTED = re.compile(  # what is not closed reaches to the end
    r"'(?:[^']|'')*+'?|\"(?:[^\"]|\"\")*+\"?|`[^`]*+`?|\[[^\]]*+\]?|--[^\n]*|/\*.*?(?:\*/|\Z)", re.DOTALL
)
MAX_CHARS = 20_000
_local = threading.local()


def fenced(text: str) -> list[str]:
    """What stands in the text's closed code fences; a fence that is not closed is none."""
    lines = text.split("\n")
    closing: dict[str, list[int]] = {}
    for at, line in enumerate(lines):
        closing.setdefault(line.rstrip(" \t"), []).append(at)
    blocks, at = [], 0
    while at < len(lines):
        mark = _FENCE.match(lines[at])
        ends = closing.get(mark[1], []) if mark else []
        if (place := bisect_right(ends, at)) < len(ends):
            blocks.append("".join(f"{line}\n" for line in lines[at + 1 : ends[place]]))
            at = ends[place]
        at += 1
    return blocks


def unfenced(text: str) -> str:
    """The inside of the answer's only code fence, else the answer: models wrap JSON and SQL when not told not to."""
    blocks = fenced(text[:MAX_CHARS])
    return blocks[0] if len(blocks) == 1 else text


def is_json(text: str) -> bool:
    """Object or array as a whole (a fence around it is fine); a bare number or word is no JSON answer."""
    try:
        return isinstance(parse_json(unfenced(text)), (dict, list))
    except ValueError:
        return False


def _parser() -> sqlite3.Connection:
    if not hasattr(_local, "connection"):
        connection = sqlite3.connect(":memory:", isolation_level=None, cached_statements=0)
        connection.setlimit(sqlite3.SQLITE_LIMIT_SQL_LENGTH, MAX_CHARS)
        connection.setlimit(sqlite3.SQLITE_LIMIT_EXPR_DEPTH, 200)
        # Everything is denied once it has been parsed: nothing a model wrote is ever run.
        connection.set_authorizer(lambda *_: sqlite3.SQLITE_DENY)
        _local.connection = connection
    parser: sqlite3.Connection = _local.connection
    return parser


def is_sql(text: str) -> bool:
    """One statement that sqlite's parser accepts, whatever tables it names (a fence around it is fine)."""
    sql = unfenced(text).strip()
    if len(sql) > MAX_CHARS or not _SQL_START.match(sql):
        return False
    if re.search(r";\s*\S", _SQL_QUOTED.sub(" ", sql)):
        return False  # more than one statement
    try:
        _parser().execute(sql)
    except (sqlite3.Error, sqlite3.Warning, ValueError) as error:
        if not isinstance(error, sqlite3.Error):
            return False  # a NUL or a lone surrogate
        # Sqlite has one error class for a query that does not parse and one that names an unknown table; the words
        # tell them apart. Denied or unknown names mean that parsing succeeded.
        return not _SYNTAX.search(str(error))
    return True


def has_fence(text: str) -> bool:
    """A closed code fence."""
    return bool(fenced(text))


def is_list(text: str) -> bool:
    """At least two list items, and at least half of the non-empty lines are items."""
    lines = [line for line in text.split("\n") if line.strip()]
    items = len(_BULLET.findall(text))
    return items >= 2 and 2 * items >= len(lines)


FORMATS = {"json": is_json, "sql": is_sql, "code": has_fence, "list": is_list}
"""Name in a prompt's tag `format=NAME` -> whether an answer has that form."""


def structure(text: str) -> int:
    """Number of Markdown elements: list items, headings, bold spans, closed fences, table rows."""
    patterns = (_BULLET, _HEADING, _BOLD, _TABLE_ROW)
    return len(fenced(text)) + sum(len(pattern.findall(text)) for pattern in patterns)


def kind(text: str, refused: bool) -> str:
    """The answer's type: empty, refusal, json, sql, code, list, question, short (under 8 words' worth), prose.

    For the entropy over answer types: what counts is that the types differ, not what they are called.
    """
    bare = text.strip()
    if not bare:
        return "empty"
    if refused:
        return "refusal"
    for name, test in FORMATS.items():
        if test(bare):
            return name
    if bare.endswith(("?", "？")):
        return "question"
    return "short" if len(bare) < 40 else "prose"
