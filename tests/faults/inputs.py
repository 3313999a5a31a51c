"""Hostile inputs made from small whole ones: changed values of JSON, and changed bytes; and what watches a reader."""

from __future__ import annotations

import json
import re
import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

from dpo_diag.errors import DiagError

SECONDS, MIB = 2.0, 500
"""What one input may take: of the processor's time, and of memory beyond what was there before."""
RAW = ("9" * 5000, "[" * 5000, '{"a":' * 200 + "1" + "}" * 200, '"\\ud800"', '"\\ud800 \\udfff"', "1e999", "NaN", "-0")
"""Values as text, since no writer of JSON would write them."""
VALUES: tuple[Any, ...] = (
    None, True, "", "x", "null", "nan", "-inf", 0, -1, 10**18, 10**30, 1e308, 0.1, [], {}, [[]], [1, "a"], {"a": 1},
    {"role": "user", "content": None}, [{"role": "user", "content": ["x"]}], "2026-99-99", "9" * 400, "a" * 20_000,
    "\u202e\x1b]0;x\x07", "=1+1", "\x00", "🙂", " " * 3000, "step 1 loss 1", "{'a': nan}", "1/0", "../../x", "[1, 2",
)  # fmt: skip
KEYS = (
    "",
    "step",
    "loss",
    "id",
    "eval_loss",
    "a" * 2000,
    "\ud83d",
    "__class__",
    "x/y/z",
    "train_runtime",
    "epoch",
    "0",
)


def mutated(text: bytes, random: Random) -> bytes:
    """The text with one to three changes."""
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        changed = _of_values(text, random) if random.random() < 0.6 else None
        text = changed if changed is not None else _of_bytes(text, random)
    return text


def _of_values(text: bytes, random: Random) -> bytes | None:
    """A value of its JSON changed, of one line where the lines are rows; None where it holds none."""
    lines = text.split(b"\n")
    at = random.randrange(len(lines))
    for before, part, after in ((b"", text, b""), (b"\n".join(lines[:at]), lines[at], b"\n".join(lines[at + 1 :]))):
        try:
            document = json.loads(part)
        except (ValueError, RecursionError):
            continue
        if isinstance(document, (dict, list)):
            return before + b"\n" + _written(_with_change(document, random)) + b"\n" + after
    return None


def _with_change(document: Any, random: Random) -> Any:
    places = list(_places(document))
    if not places:
        return random.choice(VALUES)
    holder, key = random.choice(places)
    kind = random.random()
    if kind < 0.6:
        holder[key] = random.choice(VALUES) if random.random() < 0.7 else _Raw(random.choice(RAW))
    elif kind < 0.75:
        del holder[key]
    elif isinstance(holder, dict):
        holder[random.choice(KEYS)] = random.choice(VALUES) if kind < 0.9 else holder.pop(key)
    else:
        holder.insert(0, random.choice(VALUES))
    return document


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in list(inner):
        yield value, key
        yield from _places(one)


class _Raw:
    """A value that is written as it stands."""

    def __init__(self, text: str) -> None:
        self.text = text


def _written(document: Any) -> bytes:
    raws: list[str] = []

    def mark(value: Any) -> str:
        raws.append(value.text)
        return f"@raw{len(raws) - 1}@"

    text = json.dumps(document, default=mark)
    return re.sub(r'"@raw(\d+)@"', lambda m: raws[int(m[1])], text).encode("utf-8", "surrogatepass")


def _of_bytes(text: bytes, random: Random) -> bytes:
    a, b = sorted(random.randrange(len(text) + 1) for _ in range(2))
    few = text[a : min(b, a + 200)]
    return random.choice((
        lambda: text[:a],
        lambda: text[:a] + text[b:],
        lambda: text[:a] + bytes(random.randrange(256) for _ in range(8)) + text[a:],
        lambda: text[:a] + few * random.choice((2, 50, 400)) + text[a:],
        lambda: bytes(c ^ (1 << random.randrange(8)) if random.random() < 0.01 else c for c in text),
        lambda: text[:a] + random.choice(RAW).encode() + text[b:],
        lambda: text.replace(b"\n", random.choice((b"\r", b"\r\n", b"", b"\n\n", b"\0"))),
        lambda: text.decode("latin-1").encode(random.choice(("utf-16", "utf-32", "utf-8-sig", "cp500"))),
        lambda: text[:a] + random.choice((b" ", b"{", b"|", b"\n", b",", b"'", b"_", b".")) * 30_000 + text[a:],
    ))()  # fmt: skip


class TooLong(BaseException):
    """The time is over; no handler of a program's own catches it."""


def _peak() -> int:
    found = re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())
    return int(found[1]) >> 10 if found else 0


@contextmanager
def _watched() -> Iterator[Callable[[], int]]:
    """Ends what takes too long; gives the MiB that were taken so far (0 where the system does not say)."""

    def over(*_: object) -> None:
        raise TooLong

    linux = Path("/proc/self/clear_refs").exists()
    if linux:
        Path("/proc/self/clear_refs").write_text("5")
    start = _peak() if linux else 0
    before = signal.signal(signal.SIGPROF, over)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield lambda: _peak() - start if linux else 0
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def trouble(read: Callable[[bytes], object], text: bytes) -> str | None:
    """What was wrong with reading an input: a foreign exception, a limit; None for a value or our own error."""
    try:
        with _watched() as taken:
            try:
                read(text)
            except DiagError as error:
                if "\n" in str(error) or len(str(error)) > 5000:
                    return f"an error that is no line: {str(error)[:200]!r}"
            memory = taken()
    except TooLong:
        return f"more than {SECONDS:g} s"
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        own = [f for f in traceback.extract_tb(error.__traceback__) if "dpo_diag/" in f.filename]
        at = own[-1] if own else last
        return f"{type(error).__name__}: {str(error)[:150]} ({at.filename.rpartition('dpo_diag/')[2]}:{at.lineno})"
    return f"{memory} MiB" if memory > MIB else None
