"""Every regular expression of the package, and texts on which one that backtracks would not end.

A text repeats what one of the pattern's repeats takes, behind a beginning that leads there, and ends so that the match
fails: what is linear stays so, what tries every way to part the text does not.
"""

from __future__ import annotations

import ast
import importlib
import re
import re._constants as constants  # type: ignore[import-not-found]
import re._parser as parser  # type: ignore[import-not-found]
import signal
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import dpo_diag

PACKAGE = Path(dpo_diag.__file__).parent
METHODS = {"match", "fullmatch", "search", "sub", "subn", "split", "findall", "finditer"}
CHARACTERS = "a0 {'\"|\t\n.,-_(=*\r[<\\\x1b`A;/:%#)]}><\x00é中"
ENDS = ("", "\0", "!", "\n\0")
ONE = (constants.LITERAL, constants.NOT_LITERAL, constants.ANY, constants.IN)
REPEATS = (constants.MAX_REPEAT, constants.MIN_REPEAT, constants.POSSESSIVE_REPEAT)


class Pattern(NamedTuple):
    """A regular expression, where it stands, and whether it is only asked at a text's beginning."""

    where: str
    compiled: re.Pattern[Any]
    methods: frozenset[str]


def patterns() -> Iterator[Pattern]:
    """Those that are literals or stand at a module's top; what is put together from words at run time is not."""
    trees = {file: ast.parse(file.read_text(encoding="utf-8")) for file in sorted(PACKAGE.rglob("*.py"))}
    used: dict[str, set[str]] = {}
    for file, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and node.attr in METHODS and isinstance(node.value, ast.Name):
                used.setdefault(_scoped(node.value.id, file), set()).add(node.attr)
    for file, tree in trees.items():
        named = {
            id(node.value): node.targets[0].id
            for node in tree.body
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
        }
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            method = call.func.attr if isinstance(call.func, ast.Attribute) else ""
            if method not in METHODS | {"compile"} or getattr(call.func.value, "id", None) != "re":
                continue
            name = named.get(id(call), "")
            if (compiled := _compiled(file, name, call)) is not None:
                methods = used.get(_scoped(name, file), set()) or METHODS if method == "compile" else {method}
                yield Pattern(f"{file.relative_to(PACKAGE)}:{call.lineno}", compiled, frozenset(methods))


def _scoped(name: str, file: Path) -> str:
    """A name as whoever may use it: one with an underscore is its module's own."""
    return f"{file}:{name}" if name.startswith("_") else name


def _compiled(file: Path, name: str, call: ast.Call) -> re.Pattern[Any] | None:
    flags = 0
    for node in (n for argument in (*call.args[1:], *(k.value for k in call.keywords)) for n in ast.walk(argument)):
        if isinstance(node, ast.Attribute) and node.attr.isupper() and getattr(node.value, "id", None) == "re":
            flags |= getattr(re, node.attr)
    try:
        return re.compile(ast.literal_eval(call.args[0]), flags)
    except ValueError:
        if not name:
            return None
    module = ".".join(("dpo_diag", *file.relative_to(PACKAGE).with_suffix("").parts))
    compiled = getattr(importlib.import_module(module), name)
    return compiled if isinstance(compiled, re.Pattern) else None


def attacks(pattern: re.Pattern[Any], length: int) -> Iterator[Any]:
    """Texts of about `length` characters."""
    tree = parser.parse(pattern.pattern, pattern.flags & ~re.UNICODE)
    whole = _sample(tree)
    cases = {*_repeats(tree, ""), ("", whole), *(("", whole[:n]) for n in range(1, min(len(whole), 40)))}
    for (start, pump), end in product(sorted(cases), ENDS):
        if pump:
            text = start + pump * (length // len(pump)) + end
            yield text.encode("utf-8", "replace") if isinstance(pattern.pattern, bytes) else text


def _repeats(tree: Any, start: str) -> Iterator[tuple[str, str]]:
    """(what leads to a repeat, what it takes) of every repeat without a narrow end."""
    for kind, value in tree:
        if kind in REPEATS:
            least, most, inner = value
            if most is constants.MAXREPEAT or most > 20:
                for pump in _taken(inner):
                    yield from ((start, pump), ("", start + pump))
            yield from _repeats(inner, start)
            start += _sample(inner) * max(least, 1 if most else 0)
        elif kind in (constants.SUBPATTERN, constants.ATOMIC_GROUP, constants.ASSERT, constants.ASSERT_NOT):
            inner = value[3] if kind is constants.SUBPATTERN else value[1] if isinstance(value, tuple) else value
            yield from _repeats(inner, start)
            start += _sample([(kind, value)])
        elif kind is constants.BRANCH:
            for branch in value[1]:
                yield from _repeats(branch, start)
            start += _sample(value[1][0])
        else:
            start += _sample([(kind, value)])


def _taken(inner: Any) -> list[str]:
    """What a repeat takes in one turn: single characters, and two beside each other."""
    if len(inner) == 1 and inner[0][0] in ONE:
        single = [c for c in CHARACTERS if _fits(inner[0], c)] or [_sample(inner)]
        return [*single, *(a + b for a, b in product("a0", ".- ") if a in single and b in single)]
    return [_sample(inner)]


def _sample(tree: Any) -> str:
    """A text that the part of a pattern takes, each repeat once at least."""
    text = ""
    for kind, value in tree:
        if kind in ONE:
            node = (kind, value)
            text += chr(value) if kind is constants.LITERAL else next(c for c in _candidates() if _fits(node, c))
        elif kind in REPEATS:
            text += _sample(value[2]) * max(value[0], 1 if value[1] else 0)
        elif kind is constants.SUBPATTERN:
            text += _sample(value[3])
        elif kind is constants.ATOMIC_GROUP:
            text += _sample(value)
        elif kind is constants.BRANCH:
            text += _sample(value[1][0])
    return text


def _candidates() -> Iterator[str]:
    yield from CHARACTERS
    yield from map(chr, range(1, 0x2FFFF))


def _fits(node: tuple[Any, Any], character: str) -> bool:
    """Whether one character of a pattern takes this one."""
    kind, value = node
    at = ord(character)
    if kind in (constants.LITERAL, constants.NOT_LITERAL):
        return (at == value) == (kind is constants.LITERAL)
    if kind is not constants.IN:
        return character != "\n"
    negated = value[0][0] is constants.NEGATE
    return negated != any(_in(one, at) for one in value if one[0] is not constants.NEGATE)


_CATEGORIES = {
    constants.CATEGORY_DIGIT: r"\d", constants.CATEGORY_NOT_DIGIT: r"\D", constants.CATEGORY_SPACE: r"\s",
    constants.CATEGORY_NOT_SPACE: r"\S", constants.CATEGORY_WORD: r"\w", constants.CATEGORY_NOT_WORD: r"\W",
}  # fmt: skip


def _in(one: tuple[Any, Any], at: int) -> bool:
    kind, value = one
    if kind is constants.RANGE:
        return bool(value[0] <= at <= value[1])
    return at == value if kind is constants.LITERAL else re.match(_CATEGORIES[value], chr(at)) is not None


class _TooLong(BaseException):
    """Ends a match; no handler of a program's own catches it."""


def _stop(*_: object) -> None:
    raise _TooLong


def seconds(pattern: Pattern, text: Any, most: float) -> float:
    """CPU seconds that the pattern takes with the text, at most about `most`."""
    before = signal.signal(signal.SIGPROF, _stop)
    signal.setitimer(signal.ITIMER_PROF, most)
    start = time.process_time()
    try:
        for method in pattern.methods & {"match", "fullmatch"}:
            getattr(pattern.compiled, method)(text)
        if pattern.methods - {"match", "fullmatch"}:
            for _ in pattern.compiled.finditer(text):
                pass
    except _TooLong:
        pass
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
    return time.process_time() - start
