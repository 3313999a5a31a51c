"""Rules over a run for CI: what must hold at its last step against a baseline, with intervals.

A rule fails only if the whole 95 % interval of what it looks at lies beyond the limit: a change inside its own noise
is no failure. Where no interval can be told (a metric without a count), the number itself decides and the table says
so. A rule whose quantity is absent fails too, unless it says `missing: skip`: a gate that cannot see must not pass.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pandas as pd

from dpo_diag.errors import DiagError
from dpo_diag.gate.rules import LIMITS, SUBJECTS
from dpo_diag.outputs.behaviours import primary_score
from dpo_diag.outputs.compare import Comparison, comparison
from dpo_diag.outputs.looks import POLICY, SFT, answers
from dpo_diag.outputs.sanitize import visible
from dpo_diag.outputs.stats import SEED, bootstrap_means, mean_interval, paired_change
from dpo_diag.outputs.words import sentences
from dpo_diag.records import Run, load_run, metrics
from dpo_diag.records.metrics import newcombe_interval


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


class _Missing(Exception):
    """What the rule looks at is not there."""


@dataclass(frozen=True)
class _Seen:
    """A quantity at the judged step, and its change since the baseline, each with an interval (None: unknown)."""

    value: float
    interval: tuple[float, float] | None
    before: float | None = None
    change: tuple[float, float] | None = None
    n: int | None = None


class Gate:
    """A run and its baseline, ready to be asked.

    Args:
        run: the run to judge, at its last step.
        baseline: a step of the same run, another run's folder (its last step), or None for the run's first step.
    """

    def __init__(self, run: Run | str | os.PathLike[str], baseline: str | None = None) -> None:
        self.run = run if isinstance(run, Run) else load_run(run)
        self.step: int | None = None
        self.other = self.run
        if baseline is not None and baseline.isdigit() and not Path(baseline).is_dir():
            self.step = int(baseline)
        elif baseline is not None:
            self.other = load_run(baseline)
        self._comparison: Comparison | None = None
        self._findings: dict[str, dict[str, Any]] | None = None

    @property
    def same_run(self) -> bool:
        return self.other is self.run

    # ---- metrics ----

    def _history(self, run: Run, name: str, split: str | None) -> pd.DataFrame:
        rows = run.history[run.history["name"] == name]
        if split is not None:
            rows = rows[rows["split"] == split]
        if rows.empty:
            known = sorted(set(run.history["name"]))
            others = f"there are {', '.join(known[:8])}" if known else "the run has no metrics at all"
            raise _Missing(f"no metric {name}{f' in split {split}' if split else ''}; {others}")
        splits = sorted(set(rows["split"]))
        if len(splits) > 1:
            raise _Missing(f"metric {name} stands in splits {', '.join(splits)}: the rule must name one")
        return rows.sort_values("step")

    def _at_baseline(self, rows: pd.DataFrame) -> pd.Series:
        if not self.same_run:
            return rows.iloc[-1]
        if self.step is None:
            return rows.iloc[0]
        own = rows[rows["step"] == self.step]
        if own.empty:
            raise _Missing(f"the metric was not measured at step {self.step}; it was at {_few(rows['step'])}")
        return own.iloc[0]

    def metric(self, rule: Mapping[str, Any]) -> _Seen:
        name = str(rule["metric"])
        rows = self._history(self.run, name, rule.get("split"))
        now = rows.iloc[-1]
        split = str(now["split"])
        before = self._at_baseline(rows if self.same_run else self._history(self.other, name, split))
        value, old = float(now["value"]), float(before["value"])
        if not math.isfinite(value):
            raise _Missing(f"the metric is {value} at step {int(now['step'])}")
        paired = self._paired(name, split, int(before["step"]), int(now["step"]))
        if paired is not None:
            return _Seen(value, paired[0], old, paired[1], paired[2])
        n0, n1 = before["weight"], now["weight"]
        if name.startswith("score/") and 0 <= value <= 1 and 0 <= old <= 1 and n0 >= 1 and n1 >= 1:
            interval = metrics.wilson_interval(value * n1, int(n1))
            return _Seen(value, interval, old, newcombe_interval(old, float(n0), value, float(n1)), int(n1))
        return _Seen(value, None, old, None, None if pd.isna(n1) else int(n1))

    def _paired(
        self, name: str, split: str, from_step: int, to_step: int
    ) -> tuple[tuple[float, float], tuple[float, float], int] | None:
        """Intervals of a metric that is a mean over pairs, and of its change, from the pairs themselves."""
        base, _, side = name.partition("/")
        computed = _RESAMPLED.get(base)
        if computed is None or side not in ("chosen", "rejected"):
            return None
        columns = ["step", "pair_id", "side", "sum_logp", "n_tokens", "n_bytes"]

        def rows(run: Run, step: int) -> pd.DataFrame:
            own = run.read("pairs", columns, steps=[step], splits=[split], roles=[POLICY])
            return own[own["side"] == side].drop_duplicates("pair_id").set_index("pair_id")

        old, new = rows(self.other, from_step), rows(self.run, to_step)
        common = old.index.intersection(new.index)
        if len(common) < 2:
            return None
        old, new = old.loc[common], new.loc[common]
        rng = np.random.default_rng(SEED)
        counts = rng.multinomial(len(common), np.full(len(common), 1 / len(common)), size=1_000).astype(float)
        with np.errstate(all="ignore"):
            a, b = computed(old, counts), computed(new, counts)
        if not (np.isfinite(a).all() and np.isfinite(b).all()):
            return None
        value, change = np.quantile(b, (0.025, 0.975)), np.quantile(b - a, (0.025, 0.975))
        return (float(value[0]), float(value[1])), (float(change[0]), float(change[1])), len(common)

    # ---- answers ----

    @property
    def comparison(self) -> Comparison:
        """The answers of the run's last look against the baseline's; DiagError if they cannot be compared."""
        if self._comparison is None:
            if self.same_run:
                baseline: str | int | None = self.step if self.step is not None else self._first_look()
                self._comparison = comparison(self.run, baseline=baseline)
            else:
                # The other run's last answers stand in the place of an SFT column: what changes are measured from.
                last = answers(self.other).policy_looks()[-1]
                theirs = self.other.outputs
                theirs = theirs[(theirs["model"] == last.model) & (theirs["step"] == last.step)].assign(model=SFT)
                own = self.run.outputs
                both = pd.concat([theirs, own[own["model"] == POLICY]], ignore_index=True)
                self._comparison = comparison(both, texts=self.run.texts)
        return self._comparison

    def _first_look(self) -> str | int | None:
        first = answers(self.run).policy_looks()[0]
        return first.step if first.model == POLICY else first.model

    def _scores(self, tag: str) -> tuple[pd.Series, pd.Series, list[str]]:
        c = self.comparison
        metric = primary_score(c.measured)
        if metric is None:
            raise _Missing("no reference or checker gives the answers a score")
        values = c.measured[metric]
        found = []
        for look in (c.baseline, c.look):
            rows = c.answers.of(look)
            frame = c.answers.frame
            mine = frame[(frame["model"] == look.model) & (frame["step"] == look.step)]
            found.append(pd.Series(values.loc[mine.index].to_numpy(float), index=mine["prompt_id"]).reindex(rows.index))
        common = found[0].index.intersection(found[1].index)
        found = [scores.loc[common] for scores in found]
        first = c.answers.frame.drop_duplicates("prompt_id").set_index("prompt_id")["tags"]
        inside = [i for i in first.index if first[i] is not None and tag in list(first[i])]
        if not inside:
            raise _Missing(f"no prompt has the tag {tag}")
        return found[0], found[1], inside

    def tag(self, rule: Mapping[str, Any]) -> _Seen:
        gap = rule.get("of") == "gap"
        before, after, inside = self._scores(str(rule["tag"]))
        a, b = before[before.index.isin(inside)].dropna(), after[after.index.isin(inside)].dropna()
        if a.empty or b.empty:
            raise _Missing(f"the answers with tag {rule['tag']} have no score")
        if not gap:
            value, change = mean_interval(b), paired_change(a.reindex(b.index), b)
            return _Seen(value.value, (value.low, value.high), float(a.mean()), (change.low, change.high), value.n)
        x, y = before[~before.index.isin(inside)].dropna(), after[~after.index.isin(inside)].dropna()
        if x.empty or y.empty:
            raise _Missing(f"all prompts have the tag {rule['tag']}: no gap to the rest")
        a, b = a.loc[kept := a.index.intersection(b.index)], b.loc[kept]
        x, y = x.loc[kept := x.index.intersection(y.index)], y.loc[kept]
        # One resampling of prompts for both looks: the change of the gap is paired, as the prompts are.
        ours = {k: bootstrap_means(v.to_numpy(float), seed=SEED) for k, v in (("a", a), ("b", b))}
        rest = {k: bootstrap_means(v.to_numpy(float), seed=SEED + 1) for k, v in (("x", x), ("y", y))}
        now, old = ours["b"] - rest["y"], ours["a"] - rest["x"]
        return _Seen(
            float(b.mean() - y.mean()),
            _quantiles(now),
            float(a.mean() - x.mean()),
            _quantiles(now - old),
            len(b) + len(y),
        )

    def phrase(self, rule: Mapping[str, Any]) -> _Seen:
        from dpo_diag.outputs.phrases import contains

        c = self.comparison
        before, after = c.answers.of(c.baseline)["text"], c.answers.of(c.look)["text"]
        if not sentences(str(rule["phrase"])):
            raise _Missing("the phrase has no word")
        a = before.map(lambda t: float(contains(t, str(rule["phrase"]))))
        b = after.map(lambda t: float(contains(t, str(rule["phrase"]))))
        value, change = mean_interval(b), paired_change(a.reindex(b.index), b)
        return _Seen(value.value, (value.low, value.high), float(a.mean()), (change.low, change.high), value.n)

    def review(self, rule: Mapping[str, Any]) -> _Seen:
        from dpo_diag.review.results import last_comparison  # it reads outputs/ in its turn

        found = last_comparison(self.run, self.step) if self.same_run else None
        if found is None:
            raise _Missing("nobody has judged its answers against this baseline: dpo-diag review RUN")
        return _Seen(found["win_rate"], (found["low"], found["high"]), n=found["n"])

    # ---- what speaks ----

    def finding(self, code: str) -> tuple[str, str]:
        """(outcome, reason) of a check of `explain` between baseline and last step."""
        if self._findings is None:
            from dpo_diag.diagnosis import explain

            if not self.same_run:
                raise _Missing("findings compare steps of one run: give a step as baseline")
            document = explain(self.run, from_step=self.step)
            self._findings = {str(check["code"]): check for check in document["checks"]}
        if code not in self._findings:
            raise _Missing(f"no check {code}; there are {', '.join(sorted(self._findings))}")
        check = self._findings[code]
        return str(check["outcome"]), f"{check['title']}: {check['reason']}"

    # ---- rules ----

    def judge(self, rule: Mapping[str, Any]) -> Outcome:
        """One rule; never raises for what the run lacks."""
        subject = next(s for s in SUBJECTS if s in rule)
        limits = ", ".join(f"{k} {rule[k]}" for k in SUBJECTS[subject] if k in rule)
        split = f" ({rule['split']})" if "split" in rule else ""
        of = " gap" if rule.get("of") == "gap" else ""
        name = str(rule.get("name") or f"{subject} {rule[subject]}{of}{split}{': ' + limits if limits else ''}")
        try:
            if subject in ("metric", "tag", "phrase", "review"):
                return _limited(name, rule, getattr(self, subject)(rule))
            return self._spoken(name, subject, rule)
        except (_Missing, DiagError) as error:
            status = "skipped" if rule.get("missing") == "skip" else "failed"
            return Outcome(name, status, f"cannot be told: {error}")

    def _spoken(self, name: str, subject: str, rule: Mapping[str, Any]) -> Outcome:
        if subject == "finding":
            outcome, reason = self.finding(str(rule["finding"]))
        elif subject == "gaming":
            known = {f.name: f for f in self.comparison.gaming}
            if rule["gaming"] not in known:
                raise _Missing(f"no such check; there are {', '.join(known)}")
            found = known[str(rule["gaming"])]
            outcome, reason = found.outcome, found.reason
        elif subject == "behaviour":
            table = self.comparison.behaviours
            look = self.comparison.look
            rows = table[(table["behaviour"] == rule["behaviour"]) & (table["step"] == look.step)]
            if rows.empty:
                raise _Missing(f"not measured here; there are {', '.join(sorted(set(table['behaviour'])))}")
            away = rows[rows["verdict"] == "away"]
            outcome = "speaks" if len(away) else "silent"
            shown = (away if len(away) else rows).iloc[0]
            reason = (
                f"{shown['tag']}: {shown['before']:.3f} -> {shown['after']:.3f} (n {shown['n']}, q {shown['q']:.2g})"
            )
        else:
            phrases = self.comparison.phrases
            outcome = "speaks" if len(phrases) > rule["phrases"] else "silent"
            told = "; ".join(
                f"{p!r} {b} -> {a}" for p, b, a in phrases[["phrase", "before", "after"]].head(3).to_numpy()
            )
            reason = f"{len(phrases)} inflated phrases{': ' + told if told else ''}"
            return Outcome(name, "failed" if outcome == "speaks" else "passed", reason, value=float(len(phrases)))
        if outcome == "not_applicable":
            raise _Missing(reason)
        return Outcome(name, "failed" if outcome == "speaks" else "passed", reason)

    def judge_all(self, rules: list[dict[str, Any]]) -> list[Outcome]:
        """All rules in order."""
        return [self.judge(rule) for rule in rules]


def _limited(name: str, rule: Mapping[str, Any], seen: _Seen) -> Outcome:
    """Hold a quantity against the rule's limits; the first limit that is broken names the reason."""
    change = None if seen.before is None else seen.value - seen.before
    reasons, failed = [], False
    for key in LIMITS:
        if key not in rule:
            continue
        limit = float(rule[key])
        relative = key in ("max_drop", "max_rise")
        point, interval = (change, seen.change) if relative else (seen.value, seen.interval)
        if point is None or not math.isfinite(point):
            raise _Missing("there is no baseline value")
        low, high = interval if interval is not None else (point, point)
        broken, inside = {
            "min": (high < limit, point >= limit),
            "max": (low > limit, point <= limit),
            "max_drop": (high < -limit, point >= -limit),
            "max_rise": (low > limit, point <= limit),
        }[key]
        told = f"{'change ' if relative else ''}{point:+.4g}" if relative else f"{point:.4g}"
        told += f" [{low:.4g}, {high:.4g}]" if interval is not None else " (no interval)"
        verdict = "beyond" if broken else "within" if inside else "beyond, but inside its noise:"
        reasons.append(f"{told} {verdict} {key} {limit:g}")
        failed |= broken
    shown = seen.change if any(k in rule for k in ("max_drop", "max_rise")) else seen.interval
    low_high = shown if shown is not None else (None, None)
    return Outcome(
        name, "failed" if failed else "passed", "; ".join(reasons), seen.value, seen.before, *low_high, seen.n
    )


def _quantiles(draws: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(draws, (0.025, 0.975))
    return float(low), float(high)


def _few(steps: pd.Series) -> str:
    known = sorted({int(s) for s in steps})
    return ", ".join(map(str, known[:10])) + (", ..." if len(known) > 10 else "")


def _resampled_ce(rows: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    n = rows["n_tokens"].to_numpy(float)
    return metrics.ce(rows["sum_logp"], n), n


def _mean_ce(rows: pd.DataFrame, counts: np.ndarray) -> np.ndarray:
    values, _ = _resampled_ce(rows)
    return counts @ values / counts.sum(1)


def _seq_mean(rows: pd.DataFrame, counts: np.ndarray) -> np.ndarray:
    values, _ = _resampled_ce(rows)
    return counts @ np.exp(values) / counts.sum(1)


def _per(rows: pd.DataFrame, counts: np.ndarray, column: str) -> np.ndarray:
    return (counts @ -rows["sum_logp"].to_numpy(float)) / (counts @ rows[column].to_numpy(float))


_RESAMPLED: dict[str, Callable[[pd.DataFrame, np.ndarray], np.ndarray]] = {
    "ce": _mean_ce,
    "ppl_seq_geomean": lambda rows, counts: np.exp(_mean_ce(rows, counts)),
    "ppl_seq_mean": _seq_mean,
    "ppl_token": lambda rows, counts: np.exp(_per(rows, counts, "n_tokens")),
    "bits_per_byte": lambda rows, counts: _per(rows, counts, "n_bytes") / math.log(2),
}
"""Metrics over pairs -> their value in each resample; rows of one side, counts (draws, pairs)."""


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
