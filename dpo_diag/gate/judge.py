"""Rules over a run for CI: what must hold at its last step against a baseline, with intervals.

What a limit does with an interval is chosen with `decide`, for a file or a rule (see `DECIDE`): by default a change
beyond the limit fails where its interval excludes no change. Where no interval is known (a metric without a count), the
number itself decides and the reason says so. A rule whose quantity is absent fails too, unless it says `missing: skip`:
a gate that cannot see must not pass.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

from dpo_diag.errors import DiagError
from dpo_diag.gate.judged import JudgedRun
from dpo_diag.gate.subject import DECIDE, LIMITS, RELATIVE, SUBJECTS, Ambiguous, Missing, Quantity, Rule
from dpo_diag.records import Run
from dpo_diag.stats import TOO_FEW, Interval
from dpo_diag.text import interval, number, signed, visible


@dataclass(frozen=True)
class Outcome:
    """What came of one rule.

    Attributes:
        status: passed, failed or skipped.
        value, baseline, n: the number now, at the baseline, and the units behind it.
        limits: one entry per limit, see `Limit`; empty for a rule that holds or does not.
        low, high: the interval of the limit that failed, else of the first.
    """

    name: str
    status: str
    reason: str
    value: float | None = None
    baseline: float | None = None
    low: float | None = None
    high: float | None = None
    n: int | None = None
    limits: tuple[Limit, ...] = ()

    def document(self) -> dict[str, Any]:
        """As --json prints it; estimate, interval and decide are those of the limit that failed, else of the first;
        `limits` lists them where the rule has several."""
        about = {key: getattr(_shown(self.limits), key, None) for key in ("estimate", "interval", "decide")}
        several = [vars(limit) for limit in self.limits] if len(self.limits) > 1 else []
        return {**vars(self), **about, "verdict": self.status, "limits": several}


@dataclass(frozen=True)
class Limit:
    """One limit of a rule: what it allows, the estimate that it is held against (the change for max_drop and max_rise,
    else the value) with its interval, how it was decided (`DECIDE`), and the verdict: passed or failed."""

    limit: str
    allows: float
    estimate: float
    interval: list[float] | None
    decide: str
    verdict: str
    reason: str


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
        except Ambiguous as error:
            return Outcome(name, "failed", f"refused: {error}")
        except (Missing, DiagError) as error:
            status = "skipped" if rule.get("missing") == "skip" else "failed"
            return Outcome(name, status, f"not judged: {error}")

    def judge_all(self, rules: Iterable[Rule]) -> list[Outcome]:
        """All rules in order, and a failed one for each damaged record file: what it held was not judged."""
        outcomes = [self.judge(rule) for rule in rules]
        return [*outcomes, *(Outcome("records", "failed", str(e)) for e in self.judged.run.damaged.values())]


def _name(subject: str, rule: Rule) -> str:
    limits = ", ".join(f"{key} {rule[key]}" for key in SUBJECTS[subject].limits if key in rule)
    split = f" ({rule['split']})" if "split" in rule else ""
    of = " gap" if rule.get("of") == "gap" else ""
    return f"{subject} {rule[subject]}{of}{split}{': ' + limits if limits else ''}"


def _limited(name: str, rule: Rule, quantity: Quantity) -> Outcome:
    """Hold a quantity against the rule's limits; each limit gives its reason."""
    limits = []
    for key in LIMITS:
        if key not in rule:
            continue
        estimate = quantity.change if key in RELATIVE else quantity.value
        if estimate is None or not math.isfinite(estimate.value):
            raise Missing("there is no baseline value")
        decide = str(rule.get("decide") or next(iter(DECIDE)))
        if estimate.method == TOO_FEW and decide != "point":
            raise Missing(f"n = {estimate.n}: {TOO_FEW} (decide: point would judge the number alone)")
        limits.append(_held(estimate, key, float(rule[key]), decide))
    status = "failed" if any(limit.verdict == "failed" for limit in limits) else "passed"
    reason = "; ".join(limit.reason for limit in limits)
    shown = _shown(limits)
    low, high = (shown and shown.interval) or (None, None)
    n = quantity.value.n or None
    return Outcome(name, status, reason, quantity.value.value, quantity.before, low, high, n, tuple(limits))


def _shown(limits: Sequence[Limit]) -> Limit | None:
    """The limit whose numbers stand for the rule."""
    return next((limit for limit in limits if limit.verdict == "failed"), limits[0] if limits else None)


def _held(estimate: Interval, key: str, limit: float, decide: str) -> Limit:
    """One estimate against one limit."""
    edge = -limit if key == "max_drop" else limit
    below = key in ("min", "max_drop")
    beyond = estimate.value < edge if below else estimate.value > edge
    relative = key in RELATIVE
    sign = signed if relative else number
    told = f"{'change ' if relative else ''}{sign(estimate.value, 3)} ({_interval(estimate, sign)}) is"
    broken, why = beyond, f" (decide: {decide})"
    if not beyond or estimate.bounds is None:
        why = ""
    elif decide == "interval" or (decide == "significant" and not relative):
        broken = estimate.high < edge if below else estimate.low > edge
        why = f"{', its whole interval too' if broken else ', but its interval reaches within the limit'}{why}"
    elif decide == "significant":
        broken = estimate.above or estimate.below
        held = ", and its interval excludes no change" if broken else ", but inside its noise: the interval includes 0"
        why = f"{held}{why}"
    reason = f"{told} {'beyond' if beyond else 'within'} {key} {limit:g}{why}"
    return Limit(key, limit, estimate.value, estimate.bounds, decide, "failed" if broken else "passed", reason)


def _interval(estimate: Interval, write: Any) -> str:
    """ "99 % interval +0.1 to +0.3, clustered in 100 prompts", or "no interval"."""
    clustered = f", {estimate.method.partition(', ')[2]}" if estimate.bounds and estimate.clusters else ""
    return f"{interval(estimate.bounds, estimate.level, write)}{clustered}"


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
