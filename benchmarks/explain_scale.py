"""What the analyst's commands cost, and how it grows: CPU seconds, peak memory, and the exponent of cost against size.

    python benchmarks/explain_scale.py                       # the example run, and every way in which a run grows
    python benchmarks/explain_scale.py --only pairs,tokens   # some of them
    python benchmarks/explain_scale.py --run RUN             # explain (twice), outputs and report of a run of yours

Each command is a process of its own with one thread; the middle of `--repeat` measurements is shown. Sizes are doubled;
the exponent is the slope of the cost's logarithm over that of the size, over all sizes but the smallest, whose cost
(Python, the imports) is taken off the others: between the last two alone a tenth of a second of noise makes 0.3 of it
where a command takes three seconds. 1 is linear; `flat`: not above what the smallest takes. Runs are synthetic
(`benchmarks/synthetic.py`) but for the example.
"""

from __future__ import annotations

import argparse
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import linear_regression, median
from typing import NamedTuple

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))  # as a file, too

from benchmarks.synthetic import write_run  # noqa: E402

ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "ARROW_NUM_THREADS"), "1")


class Cost(NamedTuple):
    """CPU seconds (user and system) and the largest resident set in GiB of one process."""

    cpu: float
    gib: float


def run_command(*arguments: str) -> Cost:
    """One `dpo-diag` command in a process of its own; a usage error is a result like another."""
    command = [sys.executable, "-m", "dpo_diag.commands.diag", *arguments]
    process = subprocess.Popen(
        command, cwd=REPOSITORY, env={**os.environ, **ONE_THREAD}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    said = process.stderr.read().decode() if process.stderr else ""
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode not in (0, 2):
        raise SystemExit(f"{' '.join(arguments)} failed: {said.strip()[-500:]}")
    return Cost(used.ru_utime + used.ru_stime, used.ru_maxrss / 2**20)


def measured(repeat: int, *arguments: str) -> Cost:
    """The middle of several measurements; the largest memory."""
    costs = [run_command(*arguments) for _ in range(repeat)]
    return Cost(median(c.cpu for c in costs), max(c.gib for c in costs))


def show(name: str, cost: Cost, exponent: str = "") -> None:
    print(f"{name:<52} {cost.cpu:>8.2f} {cost.gib:>9.2f} {exponent:>9}", flush=True)


def of_a_run(repeat: int, run: Path, folder: Path) -> None:
    """Every command on one run; the explanation twice."""
    (run / "findings.json").unlink(missing_ok=True)
    show(f"explain {run.name}, first", measured(repeat, "explain", str(run), "--no-write"))
    run_command("explain", str(run))
    show(f"explain {run.name}, unchanged again", measured(repeat, "explain", str(run)))
    show(f"outputs {run.name}", measured(repeat, "outputs", str(run)))
    show(f"report {run.name}", measured(repeat, "report", str(run), "--out", str(folder / "report.html")))


def starts(repeat: int, folder: Path) -> None:
    show("python -c pass", Cost(_python(), 0.0))
    for call in (
        ["--help"],
        ["ppl", "2.3"],
        ["nosuch"],
        ["explain", "no/such/run", "nosuch=1"],
        ["outputs", "--nosuch"],
    ):
        show(f"dpo-diag {' '.join(call)}", measured(repeat, *call))


def _python() -> float:
    before = os.times()
    subprocess.run([sys.executable, "-c", "pass"], check=True)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def example(repeat: int, folder: Path) -> None:
    of_a_run(repeat, REPOSITORY / "runs" / "example", folder)


def looks(repeat: int, folder: Path) -> None:
    of_a_run(repeat, write_run(folder / "600_prompts_9_looks", pairs=600, steps=9, tokens=30, prompts=600), folder)


def _slope(found: list[tuple[int, float]]) -> float:
    """Of log cost over log size, least squares; NaN where a cost is lost in what the smallest run costs."""
    if any(cost <= 0 for _, cost in found):
        return math.nan
    sizes, costs = ([math.log(value) for value in values] for values in zip(*found, strict=True))
    return linear_regression(sizes, costs).slope


Part = Callable[[int, Path], None]


def growing(command: str, what: str, sizes: list[int], write: Callable[[Path, int], Path]) -> Part:
    """A command on runs of several sizes, the first of which shows what it costs anyway."""

    def measure(repeat: int, folder: Path) -> None:
        options = ["--no-write"] if command == "explain" else []
        found: list[tuple[int, float]] = []
        least = 0.0
        for size in sizes:
            run = write(folder / f"{what.replace(' ', '_')}_{size}", size)
            cost = measured(repeat, command, str(run), *options)
            found.append((size, cost.cpu - least))
            least = least or cost.cpu
            slope = _slope(found[1:]) if len(found) == len(sizes) else None
            exponent = "" if slope is None else "flat" if math.isnan(slope) else f"{slope:.2f}"
            show(f"{command}, {size:,} {what}", cost, exponent)

    return measure


PARTS: dict[str, Part] = {
    "starts": starts,
    "example": example,
    "looks": looks,
    "evaluations": growing(
        "explain", "evaluations of 100 pairs", [2, 100, 200, 400], lambda p, n: write_run(p, pairs=100, steps=n)
    ),
    "pairs": growing(
        "explain", "pairs at 20 evaluations", [100, 25_000, 50_000, 100_000],
        lambda p, n: write_run(p, pairs=n, steps=20),
    ),
    "tokens": growing(
        "explain", "token rows at 20 evaluations", [20_000, 2_500_000, 5_000_000, 10_000_000],
        lambda p, n: write_run(p, pairs=n // 10_000, steps=20, tokens=250),
    ),
    "outputs": growing(
        "outputs", "prompts at 20 looks", [20, 2_500, 5_000, 10_000],
        lambda p, n: write_run(p, pairs=20, steps=20, prompts=n),
    ),
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default=",".join(PARTS), help=f"some of {', '.join(PARTS)}")
    parser.add_argument("--repeat", type=int, default=3, help="measurements of each, of which the middle is shown")
    parser.add_argument("--run", type=Path, help="a run of yours instead")
    parser.add_argument("--folder", type=Path, help="where to write the synthetic runs (default: a temporary folder)")
    args = parser.parse_args()
    if unknown := set(args.only.split(",")) - PARTS.keys():
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    print(f"{'':<52} {'CPU s':>8} {'peak GiB':>9} {'exponent':>9}")
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        if args.run:
            of_a_run(args.repeat, args.run, Path(folder))
            return
        for name in args.only.split(","):
            PARTS[name](args.repeat, Path(folder))


if __name__ == "__main__":
    main()
