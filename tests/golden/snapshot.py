"""A document as a small snapshot: numbers in NAME.json, sentences in NAME.text.txt, and the differences of two of them.

A sentence is kept apart from the numbers, so that a rewording is read in one file and a changed number in the other.
Long lists are cut to their first and last rows; floats keep seven significant digits.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

FOLDER = Path(__file__).parent / "snapshots"
LONGEST_LIST, FIRST, LAST = 8, 4, 2
DIGITS = 7
RTOL, ATOL = 1e-5, 1e-10
ZERO = 1e-13  # below: residuals of exact decompositions, different on every machine
NAMES = ("code", "name", "phrase", "behaviour")
MOST_SHOWN = 20
LINE = 118
ROUNDING_ERROR = re.compile(r"[-−+]?\d+(\.\d+)?e[-−]1[3-9]")
SCRATCH = re.compile(r"\S*/dpo-diag-import-[^/\s]+")  # where an archive was unpacked
MOMENT = re.compile(r"\b20\d\d-\d\d-\d\d(T[\d:.]+([+-][\d:]+|Z)?)?")
SENTENCE = re.compile(r"\S+\s+\S+")
MACHINE = frozenset((
    "created", "started", "ended", "packages", "git_commit", "time", "seconds", "duration", "version",
    "schema_version", "hash", "sha256",
))  # fmt: skip
"""Keys whose values belong to the machine, the moment or the release: left out of every snapshot."""


class Snapshot(NamedTuple):
    """`numbers` is a JSON document without its sentences; `texts` maps a path in the document to its sentence."""

    numbers: Any
    texts: dict[str, str]


def snapshot(document: Any, places: Mapping[str, str] | None = None) -> Snapshot:
    """Cut and rounded; `places` maps the folders of this test run to the words that stand for them."""
    texts: dict[str, str] = {}
    return Snapshot(_reduced(document, "", texts, places or {}), texts)


def _reduced(value: Any, path: str, texts: dict[str, str], places: Mapping[str, str]) -> Any:
    if isinstance(value, Mapping):
        return {
            str(k): _reduced(v, f"{path}.{k}".lstrip("."), texts, places)
            for k, v in value.items()
            if str(k) not in MACHINE
        }
    if isinstance(value, (list, tuple)):
        return _reduced_list(list(value), path, texts, places)
    if isinstance(value, float):
        if not math.isfinite(value):
            return str(value)  # NaN equals no NaN
        return float(f"{value:.{DIGITS}g}") if abs(value) > ZERO else 0.0
    if isinstance(value, str):
        for place, name in places.items():
            value = value.replace(place, name)
        value = SCRATCH.sub("SCRATCH", value)
        if SENTENCE.search(value):
            texts[path] = "\n".join(_printable(line) for line in value.split("\n"))
            return "..."
    return value


def _printable(line: str) -> str:
    """A line without control characters, the digits of rounding errors, and the time of the test."""
    kept = MOMENT.sub("DATE", ROUNDING_ERROR.sub("~0", line))
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in kept)


def _reduced_list(rows: list[Any], path: str, texts: dict[str, str], places: Mapping[str, str]) -> Any:
    """A list by the names of its rows where they have names (checks, rules, phrases), else cut if it is long."""
    if key := _name_of(rows):
        inner = [({k: v for k, v in row.items() if k != key}, str(row[key])) for row in rows]
        return {name: _reduced(row, f"{path}.{name}", texts, places) for row, name in inner}
    kept = list(enumerate(rows))
    if len(rows) > LONGEST_LIST:
        kept = kept[:FIRST] + kept[-LAST:]
    reduced = [_reduced(row, f"{path}[{i}]", texts, places) for i, row in kept]
    if len(rows) <= LONGEST_LIST:
        return reduced
    return {"length": len(rows), "first": reduced[:FIRST], "last": reduced[FIRST:]}


def _name_of(rows: list[Any]) -> str | None:
    """The column that names the rows of a list, each once."""
    if not rows or not all(isinstance(row, Mapping) for row in rows):
        return None
    for key in NAMES:
        names = {row.get(key) for row in rows if isinstance(row.get(key), str)}
        if key == "name" and any(" " in name for name in names):
            continue  # a sentence: rewording it must not move the numbers below it
        if len(names) == len(rows):
            return key
    return None


def differences(old: Snapshot, new: Snapshot, rtol: float = RTOL, atol: float = ATOL) -> list[str]:
    """One line per path that differs: `path: old -> new`, numbers first."""

    def same(a: Any, b: Any) -> bool:
        """Equal, or two numbers within the tolerance; True is no 1."""
        if isinstance(a, bool) or isinstance(b, bool) or not isinstance(a, (int, float)):
            return type(a) is type(b) and bool(a == b)
        return isinstance(b, (int, float)) and math.isclose(a, b, rel_tol=rtol, abs_tol=atol)

    return [*_different_values(old.numbers, new.numbers, "", same), *_different_texts(old.texts, new.texts)]


def _different_values(old: Any, new: Any, path: str, same: Callable[[Any, Any], bool]) -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*old, *(k for k in new if k not in old)]:
            inner = f"{path}.{key}".lstrip(".")
            if key not in new:
                yield f"{inner}: {_short(old[key])} -> absent"
            elif key not in old:
                yield f"{inner}: absent -> {_short(new[key])}"
            else:
                yield from _different_values(old[key], new[key], inner, same)
    elif isinstance(old, list) and isinstance(new, list):
        if len(old) != len(new):
            yield f"{path}: {len(old)} rows -> {len(new)} rows"
        for i, (a, b) in enumerate(zip(old, new, strict=False)):
            yield from _different_values(a, b, f"{path}[{i}]", same)
    elif not same(old, new):
        yield f"{path}: {_short(old)} -> {_short(new)}"


def _different_texts(old: dict[str, str], new: dict[str, str]) -> Iterator[str]:
    for path in [*old, *(k for k in new if k not in old)]:
        before, after = old.get(path, "absent"), new.get(path, "absent")
        if before == after:
            continue
        if "\n" not in before + after:
            yield f"{path}:\n      {before}\n   -> {after}"
            continue
        for line in difflib.unified_diff(before.splitlines(), after.splitlines(), lineterm="", n=0):
            if not line.startswith(("---", "+++", "@@")):
                yield f"{path}: {line}"


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 100 else f"{text[:97]}..."


def read(name: str) -> Snapshot:
    """The stored snapshot; an empty one where none is stored."""
    numbers = FOLDER / f"{name}.json"
    texts = FOLDER / f"{name}.text.txt"
    stored: dict[str, str] = {}
    path = ""
    for line in texts.read_text(encoding="utf-8").split("\n")[:-1] if texts.is_file() else []:
        if line.startswith("|"):
            stored[path] = f"{stored[path]}\n{line[1:]}" if path in stored else line[1:]
        else:
            path, _, sentence = line.partition(": ")
            path = path.removesuffix(":")
            if sentence:
                stored[path] = sentence
    return Snapshot(json.loads(numbers.read_text(encoding="utf-8")) if numbers.is_file() else {}, stored)


def write(name: str, new: Snapshot) -> None:
    """Store it; a sentence a line behind its path, a text of several lines below it, each behind a bar."""
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / f"{name}.json").write_text(pretty(new.numbers) + "\n", encoding="utf-8")
    lines = []
    for path, text in new.texts.items():
        lines += [f"{path}:", *(f"|{line}" for line in text.split("\n"))] if "\n" in text else [f"{path}: {text}"]
    texts = FOLDER / f"{name}.text.txt"
    if lines:
        texts.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    else:
        texts.unlink(missing_ok=True)


def pretty(value: Any, indent: str = "") -> str:
    """JSON, one line for what fits on one."""
    flat = json.dumps(value, ensure_ascii=False)
    if len(indent) + len(flat) <= LINE or not isinstance(value, (dict, list)) or not value:
        return flat
    inner = indent + " "
    if isinstance(value, dict):
        rows = [f"{inner}{json.dumps(k, ensure_ascii=False)}: {pretty(v, inner)}" for k, v in value.items()]
        return "{\n" + ",\n".join(rows) + f"\n{indent}}}"
    return "[\n" + ",\n".join(inner + pretty(v, inner) for v in value) + f"\n{indent}]"


def explanation(name: str, found: list[str]) -> str:
    """The message of a failed comparison."""
    shown = "\n".join(f"  {line}" for line in found[:MOST_SHOWN])
    more = f"\n  ... {len(found) - MOST_SHOWN} more" if len(found) > MOST_SHOWN else ""
    return (f"{name}: {len(found)} differences from tests/golden/snapshots/{name}.* (old -> new)\n{shown}{more}\n"
            "If they are meant: python -m tests.golden.update, and name them in the CHANGELOG.")  # fmt: skip
