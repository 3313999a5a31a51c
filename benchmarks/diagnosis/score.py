"""What the checks say about the runs, against what was planted: recall per cause, false alarms on healthy runs."""

from __future__ import annotations

import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.diagnosis.simulate import Plan, write
from dpo_diag.diagnosis.checks import CheckContext, all_checks, run_checks
from dpo_diag.records import load_run

NO_FAULT = ("DVG026",)
"""Says what the trainer's averages leave out, true of any run with an uneven last batch."""


@dataclass(frozen=True)
class Result:
    """One run's outcome: what was planted, what spoke, what said "cannot tell"."""

    name: str
    kind: str
    strength: str
    truth: tuple[str, ...]
    follows: tuple[str, ...]
    speaks: tuple[str, ...]
    cannot_tell: tuple[str, ...]

    @property
    def missed(self) -> tuple[str, ...]:
        return tuple(c for c in self.truth if c not in self.speaks)

    @property
    def extra(self) -> tuple[str, ...]:
        return tuple(c for c in self.speaks if c not in (*self.truth, *self.follows, *NO_FAULT))


def judge(
    folder: Path, name: str, kind: str, strength: str, truth: tuple[str, ...], follows: tuple[str, ...]
) -> Result:
    """Run the checks on a folder."""
    findings = run_checks(CheckContext.from_run(load_run(folder)))
    return Result(
        name, kind, strength, truth, follows,
        tuple(f["code"] for f in findings if f["outcome"] == "speaks"),
        tuple(f["code"] for f in findings if f["reason"].startswith("cannot tell")),
    )  # fmt: skip


def simulated(plans: Iterable[Plan]) -> list[Result]:
    """Write and judge each plan in a temporary folder."""
    results = []
    for plan in plans:
        with tempfile.TemporaryDirectory() as folder:
            path = write(plan, Path(folder) / "run")
            results.append(judge(path, plan.name, "simulated", plan.strength, plan.truth, plan.follows))
    return results


def table(results: list[Result]) -> str:
    """The confusion matrix as Markdown: causes down; found, missed, cannot tell, and what else spoke."""
    lines = [
        "| cause | kind | strength | runs | planted | found | cannot tell | missed | also spoke (true of the run) | "
        "also spoke (unplanted) |",
        "| --- | --- | --- | ---: | --- | ---: | ---: | ---: | --- | --- |",
    ]
    groups: dict[tuple[str, str, str], list[Result]] = defaultdict(list)
    for r in results:
        if r.strength != "healthy":
            groups[r.name, r.kind, r.strength].append(r)
    for (name, kind, strength), rows in groups.items():
        codes = [c for r in rows for c in r.truth]
        found = sum(len(r.truth) - len(r.missed) for r in rows)
        unsure = sum(c in r.cannot_tell for r in rows for c in r.missed)
        lines.append(
            f"| {name} | {kind} | {strength} | {len(rows)} | {', '.join(sorted(set(codes)))} | {found}/{len(codes)} | "
            f"{unsure} | {len(codes) - found - unsure} | "
            f"{_count(c for r in rows for c in r.speaks if c in r.follows)} | "
            f"{_count(c for r in rows for c in r.extra)} |"
        )
    return "\n".join(lines)


def healthy_table(results: list[Result]) -> str:
    """One row per kind of healthy run."""
    lines = ["| healthy run | kind | runs | false alarms | cannot tell |", "| --- | --- | ---: | --- | --- |"]
    groups: dict[tuple[str, str], list[Result]] = defaultdict(list)
    for r in results:
        if r.strength == "healthy":
            groups[r.name, r.kind].append(r)
    for (name, kind), rows in groups.items():
        alarms, unsure = _count(c for r in rows for c in r.extra), _count(c for r in rows for c in r.cannot_tell)
        lines.append(f"| {name} | {kind} | {len(rows)} | {alarms or 'none'} | {unsure} |")
    return "\n".join(lines)


def _count(codes: Iterable[str]) -> str:
    return ", ".join(f"{c} {n}" if n > 1 else c for c, n in sorted(Counter(codes).items()))


def by_code(results: list[Result]) -> str:
    """Recall of each check at clear strength, and how often it spoke where nothing of the kind was planted."""
    lines = ["| check | title | planted (clear) | recall | unplanted runs | spoke there |",
             "| --- | --- | ---: | ---: | ---: | ---: |"]  # fmt: skip
    for check in all_checks():
        rows = [r for r in results if check.code in r.truth and r.strength == "clear"]
        other = [r for r in results if check.code not in r.truth + r.follows]
        found = sum(check.code in r.speaks for r in rows)
        recall = f"{found / len(rows):.2f}" if rows else "-"
        lines.append(
            f"| {check.code} | {check.title} | {len(rows)} | {recall} | {len(other)} | "
            f"{sum(check.code in r.speaks for r in other)} |"
        )
    return "\n".join(lines)


@dataclass(frozen=True)
class Summary:
    """The figures that decide: recall at clear strength, false alarms on healthy runs."""

    clear: int
    found: int
    healthy: int
    alarmed: int
    unplanted: int

    @property
    def recall(self) -> float:
        return self.found / self.clear if self.clear else float("nan")

    @property
    def passed(self) -> bool:
        return self.clear > 0 and self.found == self.clear and self.healthy > 0 and self.alarmed == 0


def summarise(results: list[Result]) -> Summary:
    clear = [r for r in results if r.strength == "clear"]
    well = [r for r in results if r.strength == "healthy"]
    return Summary(
        sum(len(r.truth) for r in clear),
        sum(len(r.truth) - len(r.missed) for r in clear),
        len(well),
        sum(bool(r.extra) for r in well),
        sum(len(r.extra) for r in results if r.strength != "healthy"),
    )
