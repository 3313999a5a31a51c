"""`python -m tests.faults [--write docs/reliability.md] [PYTEST ARGUMENTS]`: run every fault, print the table.

A part, which is a test that counts faults, runs in a process of its own, two at a time, and is said as it ends. One
that fails stops no other: what failed is printed at the end, and the exit code is 1. `--write` puts the table between
the page's markers if nothing failed and nothing was lost. Further arguments choose among the parts (`-k killed`).
"""

import contextlib
import io
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import NamedTuple

import pytest

from dpo_diag.documents import parse_json
from tests.faults.table import MARKED, Parts, markdown

REPOSITORY = Path(__file__).parents[2]
PLACES = ("tests/faults", "tests/report/test_report_browser.py", "tests/review/test_page_in_a_browser.py",
          "tests/play/test_page_in_a_browser.py")  # fmt: skip
AT_A_TIME = 2
LONG = ("planted", "moment", "killed", "broken")
"""Words in the names of the parts that begin first, so that no long one is left alone at the end."""


class Done(NamedTuple):
    """A part that has run: rows of the table; why it was skipped, and what it printed where it failed, else ""."""

    part: str
    rows: list[dict[str, object]]
    skipped: str
    failed: str
    seconds: float
    cpu: float


def parts(arguments: list[str]) -> list[str]:
    """The tests below `PLACES` that count faults, the long ones first."""
    found = Parts()
    with contextlib.redirect_stdout(io.StringIO()) as said:
        code = pytest.main([*PLACES, "-m", "slow or not slow", "--collect-only", *arguments], plugins=[found])
    if code:
        sys.exit(said.getvalue())
    return sorted(found.names, key=lambda name: next((i for i, w in enumerate(LONG) if w in name), len(LONG)))


def run(part: str, folder: Path) -> Done:
    """A part in a process of its own, with the CPU seconds of all that it started."""
    tally, log = folder / f"{abs(hash(part))}.json", folder / f"{abs(hash(part))}.log"
    command = [sys.executable, "-m", "pytest", "-q", "-rs", "-m", "slow or not slow", "-p", "tests.faults.table",
               "-p", "no:cacheprovider", "--timeout", "3600", "--tally", str(tally), part]  # fmt: skip
    began = time.monotonic()
    with log.open("wb") as out:
        process = subprocess.Popen(command, cwd=REPOSITORY, stdout=out, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    found = parse_json(tally.read_bytes()) if tally.exists() else {"rows": [], "skipped": ""}
    failed = log.read_text(errors="replace") if process.returncode else ""
    return Done(part, **found, failed=failed, seconds=time.monotonic() - began, cpu=usage.ru_utime + usage.ru_stime)


def run_all(names: list[str]) -> list[Done]:
    """Every part, said as it ends."""
    done: list[Done] = []
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(AT_A_TIME) as pool:
        for one in as_completed(pool.submit(run, name, Path(folder)) for name in names):
            done.append(part := one.result())
            said = "; ".join(f"{row['fault']}: {row['tried']} tried, {row['lost']} lost" for row in part.rows)
            outcome = "FAILED; " * bool(part.failed) + (f"skipped: {part.skipped}" if part.skipped else said)
            name = part.part.rpartition("/")[2].replace("::", " ")
            print(
                f"{len(done):3}/{len(names)} {part.seconds:5.0f} s ({part.cpu:.0f} CPU) {name}: {outcome}", flush=True
            )
    return done


def main(arguments: list[str]) -> int:
    page = None
    if "--write" in arguments:
        place = arguments.index("--write")
        page = Path(arguments[place + 1])
        arguments = arguments[:place] + arguments[place + 2 :]
    began = time.monotonic()
    done = run_all(parts(arguments))
    tried, lost = Counter[str](), Counter[str]()
    for row in (row for part in done for row in part.rows):
        tried[row["fault"]] += row["tried"]
        lost[row["fault"]] += row["lost"]
    skipped = [(part.part.rpartition("::")[2], part.skipped) for part in done if part.skipped]
    table = markdown([(name, tried[name], lost[name]) for name in tried], skipped)
    for part in (part for part in done if part.failed):
        print(f"\n==== {part.part}\n{part.failed[-4000:]}")
    print(f"\n{table}\n{time.monotonic() - began:.0f} s ({sum(part.cpu for part in done):.0f} CPU)")
    failed = [part.part for part in done if part.failed]
    print(*(f"failed: {name}" for name in failed), sep="\n")
    if failed or lost.total():
        return 1
    if page is not None:
        text = page.read_text(encoding="utf-8")
        page.write_text(MARKED.sub(lambda _: table, text), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
