"""The table of faults: rows counted by the tests, summed by kind, written as Markdown."""

from collections.abc import Callable, Iterable

PROPERTY = "fault"


def count(record: Callable[[str, object], None], name: str, *, tried: int, lost: int = 0) -> None:
    """Record one row of the table, then fail if something was lost.

    `lost` counts the tries in which something was lost that is said to be kept, a traceback was shown, a limit of time
    or memory was passed, or a wrong value was believed. A test may count several kinds, and a kind several times.
    """
    record(PROPERTY, {"fault": name, "tried": tried, "lost": lost})
    assert tried > 0, f"{name}: nothing was tried"
    assert lost == 0, f"{name}: {lost} of {tried} lost"


class Tally:
    """A pytest plugin that sums what the fixture `fault` counted, in whichever process the test ran."""

    def __init__(self) -> None:
        self.rows: dict[str, list[int]] = {}
        self.failed: list[str] = []

    def pytest_runtest_logreport(self, report) -> None:  # type: ignore[no-untyped-def]
        if report.failed:
            self.failed.append(report.nodeid)
        if report.when != "call":
            return
        for name, row in report.user_properties:
            if name == PROPERTY:
                total = self.rows.setdefault(row["fault"], [0, 0])
                total[0] += row["tried"]
                total[1] += row["lost"]


def markdown(rows: Iterable[tuple[str, int, int]]) -> str:
    """`| fault | tried | lost |`, by name, with the sum at the foot; no rows: the header and a sum of 0."""
    rows = sorted(rows)
    total = ("all", sum(tried for _, tried, _ in rows), sum(lost for _, _, lost in rows))
    lines = ["| fault | tried | lost |", "| --- | ---: | ---: |"]
    lines += [f"| {name} | {tried:,} | {lost:,} |" for name, tried, lost in (*rows, total)]
    return "\n".join(lines) + "\n"
