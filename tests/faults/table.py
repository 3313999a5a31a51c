"""The table of faults: rows counted by the tests, summed by kind, written as Markdown; the plugin that gathers them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

PROPERTY = "fault"
MARKED = re.compile(r"(?<=<!-- faults -->\n).*?(?=<!-- /faults -->)", re.DOTALL)
"""Where the table stands in its page."""


def count(record: Callable[[str, object], None], name: str, *, tried: int, lost: int = 0) -> None:
    """Record one row of the table, then fail if something was lost.

    `lost` counts the tries in which something was lost that is said to be kept, a traceback was shown, a limit of time
    or memory was passed, or a wrong value was believed. A test may count several kinds, and a kind several times.
    """
    record(PROPERTY, {"fault": name, "tried": tried, "lost": lost})
    assert tried > 0, f"{name}: nothing was tried"
    assert lost == 0, f"{name}: {lost} of {tried} lost"


def markdown(rows: Iterable[tuple[str, int, int]], skipped: Sequence[tuple[str, str]] = ()) -> str:
    """`| fault | tried | lost |`, by name, with the sum at the foot; no rows: the header and a sum of 0. Below it what
    was `skipped`, and why."""
    rows = sorted(rows)
    total = ("all", sum(tried for _, tried, _ in rows), sum(lost for _, _, lost in rows))
    lines = ["| fault | tried | lost |", "| --- | ---: | ---: |"]
    lines += [f"| {name} | {tried:,} | {lost:,} |" for name, tried, lost in (*rows, total)]
    if skipped:
        lines += ["", "Not tried where this was written:", ""]
        lines += [f"- {name.replace('_', ' ').removeprefix('test ')}: {why}" for name, why in skipped]
    return "\n".join(lines) + "\n"


class Parts:
    """A pytest plugin that keeps the names of the tests that count faults."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def pytest_collection_finish(self, session: Any) -> None:
        self.names += [item.nodeid for item in session.items if "fault" in item.fixturenames]


# ---- pytest -p tests.faults.table --tally FILE: what the fixture `fault` counted, and why a test was skipped ----


def pytest_addoption(parser: Any) -> None:
    parser.addoption("--tally", type=Path)


def pytest_configure(config: Any) -> None:
    config.pluginmanager.register(Tally(config.getoption("--tally")))


class Tally:
    """Writes {"rows": [{"fault", "tried", "lost"}, ...], "skipped": why or ""} when all has run."""

    def __init__(self, file: Path | None) -> None:
        self.file, self.rows, self.skipped = file, list[Any](), ""

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.skipped and not hasattr(report, "wasxfail"):
            self.skipped = str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr)
            self.skipped = self.skipped.removeprefix("Skipped: ")
        if report.when == "call":
            self.rows += [row for name, row in report.user_properties if name == PROPERTY]

    def pytest_sessionfinish(self) -> None:
        if self.file is not None:
            self.file.write_text(json.dumps({"rows": self.rows, "skipped": self.skipped}))
