"""Rules over a run for CI: what must hold at its last step against a baseline, with intervals.

A rule fails only if the whole 95 % interval of what it is about lies beyond the limit: a change inside its own noise
is no failure. Where no interval is known (a metric without a count), the number itself decides and the table says so.
A rule whose quantity is absent fails too, unless it says `missing: skip`: a gate that cannot see must not pass.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from xml.etree import ElementTree

from dpo_diag.errors import DiagError
from dpo_diag.gate.judged import JudgedRun
from dpo_diag.gate.subject import LIMITS, RELATIVE, SUBJECTS, Missing, Quantity, Rule
from dpo_diag.records import Run
from dpo_diag.stats import Interval
from dpo_diag.text import visible


@dataclass(frozen=True)
class Outcome:
    """What came of one rule: passed, failed or skipped, and the numbers that decided."""

    name: str
    status: str
    reason: str
    value: float | None = None
    baseline: float | None = None
    low: float | None = None
    high: float | None = None
    n: int | None = None


class Gate:
    """A run and its baseline, to hold rules against; the arguments are those of `JudgedRun`."""

    def __init__(
        self,
        run: Run | str | os.PathLike[str],
        baseline: str | None = None,
        thresholds: Mapping[str, float] | None = None,
    ) -> None:
        self.judged = JudgedRun(run, baseline, thresholds)

    def judge(self, rule: Rule) -> Outcome:
        """One rule; never raises for what the run lacks."""
        subject = next(name for name in SUBJECTS if name in rule)
        name = str(rule.get("name") or _name(subject, rule))
        try:
            result = SUBJECTS[subject].judge(self.judged, rule)
            if isinstance(result, Quantity):
                return _limited(name, rule, result)
            return Outcome(name, "failed" if result.broken else "passed", result.reason, result.value)
        except (Missing, DiagError) as error:
            status = "skipped" if rule.get("missing") == "skip" else "failed"
            return Outcome(name, status, f"not judged: {error}")

    def judge_all(self, rules: Iterable[Rule]) -> list[Outcome]:
        """All rules in order."""
        return [self.judge(rule) for rule in rules]


def _name(subject: str, rule: Rule) -> str:
    limits = ", ".join(f"{key} {rule[key]}" for key in SUBJECTS[subject].limits if key in rule)
    split = f" ({rule['split']})" if "split" in rule else ""
    of = " gap" if rule.get("of") == "gap" else ""
    return f"{subject} {rule[subject]}{of}{split}{': ' + limits if limits else ''}"


def _limited(name: str, rule: Rule, quantity: Quantity) -> Outcome:
    """Hold a quantity against the rule's limits; each limit gives its reason."""
    reasons, failed, shown = [], False, quantity.value
    for key in LIMITS:
        if key not in rule:
            continue
        limit = float(rule[key])
        estimate = quantity.change if key in RELATIVE else quantity.value
        if estimate is None or not math.isfinite(estimate.value):
            raise Missing("there is no baseline value")
        broken, reason = _held(estimate, key, limit)
        reasons.append(reason)
        failed |= broken
        if key in RELATIVE:
            shown = estimate
    low, high = shown.bounds or (None, None)
    return Outcome(
        name, "failed" if failed else "passed", "; ".join(reasons), quantity.value.value, quantity.before, low, high,
        quantity.value.n or None,
    )  # fmt: skip


def _held(estimate: Interval, key: str, limit: float) -> tuple[bool, str]:
    """(whether the whole interval lies beyond the limit, in words)."""
    low, high = estimate.bounds or (estimate.value, estimate.value)
    floor = -limit if key == "max_drop" else limit
    below = key in ("min", "max_drop")
    broken = high < floor if below else low > limit
    inside = estimate.value >= floor if below else estimate.value <= limit
    written = f"change {estimate.value:+.4g}" if key in RELATIVE else f"{estimate.value:.4g}"
    bounds = f"[{low:.4g}, {high:.4g}]" if estimate.bounds else "(no interval)"
    place = "beyond" if broken else "within" if inside else "beyond, but inside its noise:"
    return broken, f"{written} {bounds} {place} {key} {limit:g}"


def junit(outcomes: list[Outcome], suite: str) -> bytes:
    """The outcomes as JUnit XML, UTF-8; model text in it is made visible, since XML forbids control characters."""
    counted = {s: sum(o.status == s for o in outcomes) for s in ("failed", "skipped")}
    root = ElementTree.Element(
        "testsuite", name=visible(suite), tests=str(len(outcomes)), failures=str(counted["failed"]),
        skipped=str(counted["skipped"]), errors="0",
    )  # fmt: skip
    for outcome in outcomes:
        case = ElementTree.SubElement(root, "testcase", classname="dpo-diag.gate", name=visible(outcome.name))
        if outcome.status == "passed":
            ElementTree.SubElement(case, "system-out").text = visible(outcome.reason)
        else:
            kind = "failure" if outcome.status == "failed" else "skipped"
            ElementTree.SubElement(case, kind, message=visible(outcome.reason))
    ElementTree.indent(root)
    document: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    return document
