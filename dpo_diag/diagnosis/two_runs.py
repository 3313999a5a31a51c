"""Two runs at their ends: the same pairs and the same questions, so that every difference has a paired interval."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from dpo_diag.diagnosis.aligned import Aligned
from dpo_diag.diagnosis.decompose.loss import loss_spec
from dpo_diag.diagnosis.decompose.perplexity import perplexity_section
from dpo_diag.diagnosis.differences import Difference, Parting, differences, partings
from dpo_diag.diagnosis.evidence import score_curves
from dpo_diag.diagnosis.measure import Measure, corrected
from dpo_diag.diagnosis.pair_intervals import PairIntervals
from dpo_diag.diagnosis.pair_rows import PairRows, column_at, pair_loss
from dpo_diag.errors import DiagError
from dpo_diag.outputs.answers import POLICY, alike
from dpo_diag.records import Run, load_run
from dpo_diag.records.metrics import PERPLEXITIES, ce
from dpo_diag.stats import Interval
from dpo_diag.text import plain
from dpo_diag.thresholds import Thresholds, load_thresholds

OUTCOMES = ("lost", "won", "right", "wrong", "other", "alike")
"""Of one question in b against a: right before and wrong now; the reverse; another text and as right, as wrong; another
text that nothing judged; the same text."""


@dataclass(frozen=True)
class Change:
    """One quantity over the pairs of both runs.

    Attributes:
        name: as in the metric table; `unit`: its unit.
        a, b: its value in each run.
        change: b - a, paired; of a perplexity log b - log a.
    """

    name: str
    unit: str
    a: float
    b: float
    change: Interval


@dataclass(frozen=True, eq=False)
class TwoRuns:
    """Two runs, b against a.

    Attributes:
        steps: the step of each that is compared; None where it has no pairs of the split.
        split: the set; None where they share none, with the reason in `notes`.
        thresholds: levels of the intervals, least numbers.
        notes: what cannot be compared, and why.
    """

    rows: tuple[PairRows, PairRows]
    split: str | None
    steps: tuple[int | None, int | None]
    thresholds: Thresholds
    notes: tuple[str, ...] = ()

    @cached_property
    def runs(self) -> tuple[Run, Run]:
        return self.rows[0].run, self.rows[1].run

    @cached_property
    def differences(self) -> list[Difference]:
        return differences(*self.runs)

    @cached_property
    def partings(self) -> list[Parting]:
        return partings(*self.rows)

    @cached_property
    def aligned(self) -> Aligned | None:
        """The pairs that both runs measured: a's rows are the earlier ones; None where there are none."""
        (one, two), (step_a, step_b) = self.rows, self.steps
        if self.split is None or step_a is None or step_b is None:
            return None
        sides = tuple(s for s in one.sides(self.split, step_a) if s in two.sides(self.split, step_b))
        frames = [one.at(self.split, step_a, sides), two.at(self.split, step_b, sides)]
        if other_tokenizer(*self.runs):  # tokens of one are no tokens of the other: bytes count for both
            frames = [f.assign(**{f"{side}_n_tokens": np.nan for side in sides}) for f in frames]
        before, after = frames
        both = len(before.index.intersection(after.index))
        coverage = {"aligned": both, "only_from": len(before) - both, "only_to": len(after) - both}
        if not both:
            return None
        # A step of another run is no step of this one; nothing that is asked of it here reads it.
        return Aligned(two, self.split, step_a, step_b, two.steps[self.split], sides, before, after, coverage)

    @cached_property
    def intervals(self) -> PairIntervals:
        return PairIntervals.of(next((r for r in self.rows if r.prompts is not None), self.rows[0]), self.thresholds)

    # --- pairs ------------------------------------------------------------------------------------------------------

    @cached_property
    def changes(self) -> list[Change]:
        """The loss where both have the same, log-ratios and accuracy where both have the same reference,
        cross-entropies, perplexities; empty without shared pairs."""
        return [] if self.aligned is None else list(self._changes(self.aligned))

    def _changes(self, aligned: Aligned) -> Iterator[Change]:
        pairs, ids = aligned.pairs, list(aligned.pairs["pair_id"])
        spec = self._shared_loss
        if spec is not None:
            try:
                loss = [pair_loss(spec, pairs, w, w) for w in (0, 1)]
            except DiagError:  # coupled over a batch, or not recorded
                loss = []
            if loss:
                yield self._mean("loss", "nats", loss[0], loss[1], ids)
        if self.same_reference and len(aligned.sides) == 2:
            (a0, a1), (b0, b1) = ([pairs[column_at(n, w)].to_numpy(float) for w in (0, 1)] for n in "ab")
            right0, right1 = (np.where(np.isnan(m), np.nan, m > 0) for m in (a0 - b0, a1 - b1))
            yield self._mean("log-ratio/chosen", "nats", a0, a1, ids)
            yield self._mean("log-ratio/rejected", "nats", b0, b1, ids)
            yield self._mean("log-ratio/margin", "nats", a0 - b0, a1 - b1, ids)
            yield self._mean("rewards/accuracies", "share", right0, right1, ids)
        unit, section = aligned.unit, perplexity_section(aligned, self.intervals)
        for side, arrays in aligned.responses.items():
            ends = ce(arrays.sum_from, arrays.n_from), ce(arrays.sum_to, arrays.n_to)
            yield self._mean(f"ce/{side}", f"nats/{unit}", ends[0], ends[1], list(arrays.pair_ids))
            for name in PERPLEXITIES:
                row = section[side][name]
                low, high = row["interval"] or (math.nan, math.nan)
                log = Interval(row["dlog"], low, high, len(arrays.pair_ids), level=self.intervals.level)
                yield Change(f"{name}/{side}", f"per {unit}, change of its log", row["from"], row["to"], log)

    def _mean(self, name: str, unit: str, a: Any, b: Any, ids: list[str]) -> Change:
        a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
        known = np.isfinite(a) & np.isfinite(b)
        ids = [i for i, k in zip(ids, known, strict=True) if k]
        means = [float(v[known].mean()) if known.any() else math.nan for v in (a, b)]
        return Change(name, unit, means[0], means[1], self.intervals.mean((b - a)[known], ids))

    @property
    def _shared_loss(self) -> Any:
        specs = [loss_spec(run)[0] for run in self.runs]
        return specs[0] if specs[0] is not None and specs[0] == specs[1] and self.same_reference else None

    @cached_property
    def same_reference(self) -> bool:
        """Whether both measured the shared pairs under the same reference, up to rounding."""
        if self.aligned is None:
            return False
        sums = [
            of.at(str(self.split), step, self.aligned.sides).reindex(self.aligned.pairs["pair_id"])
            for of, step in zip(self.rows, self.steps, strict=True)
            if step is not None
        ]
        columns = [f"{side}_ref" for side in self.aligned.sides]
        one, two = (frame[columns].to_numpy(float) for frame in sums)
        known = np.isfinite(one) & np.isfinite(two)
        return bool(known.any()) and bool(np.allclose(one[known], two[known], rtol=1e-5, atol=1e-2))

    @cached_property
    def pairs(self) -> pd.DataFrame:
        """One row per shared pair, the largest change of the chosen answer's cross-entropy first: `pair_id`,
        `{side}_ce_a`, `{side}_ce_b`, `{side}_change`, `chosen` (its text); empty without shared pairs."""
        if self.aligned is None or not self.aligned.responses:
            return pd.DataFrame(columns=["pair_id", "chosen"])
        table = pd.DataFrame({"pair_id": self.aligned.pairs["pair_id"].astype(str)})
        for side, arrays in self.aligned.responses.items():
            ends = ce(arrays.sum_from, arrays.n_from), ce(arrays.sum_to, arrays.n_to)
            own = pd.DataFrame({"pair_id": arrays.pair_ids, f"{side}_ce_a": ends[0], f"{side}_ce_b": ends[1],
                                f"{side}_change": ends[1] - ends[0]}).astype({"pair_id": str})  # fmt: skip
            table = table.merge(own, on="pair_id", how="left")
        texts = self.runs[1].texts if self.runs[1].has("texts") else self.runs[0].texts
        table = table.merge(texts[["pair_id", "chosen"]].astype({"pair_id": str}), on="pair_id", how="left")
        first = f"{next(iter(self.aligned.responses))}_change"
        order = table[first].abs().argsort(kind="stable")[::-1]
        return table.iloc[order].reset_index(drop=True)

    # --- the task ---------------------------------------------------------------------------------------------------

    @cached_property
    def scores(self) -> list[Measure]:
        """Every task score that both runs have of the same split, at the end of each; paired where both recorded the
        answers, and corrected for how many there are."""
        of_a = {(c.name, c.split): c for c in score_curves(self.runs[0])}
        found = []
        for curve in score_curves(self.runs[1]):
            earlier = of_a.get((curve.name, curve.split))
            if earlier is not None:
                found.append(curve.since(earlier, len(earlier.steps) - 1, len(curve.steps) - 1, self.thresholds))
        return corrected(found)

    @cached_property
    def answers(self) -> pd.DataFrame:
        """What the policy of each wrote at its last answered step, of prompts that both answered with the same
        decoding: `prompt_id`, `prompt`, `text_a`, `text_b`, `correct_a`, `correct_b`, `outcome` (one of OUTCOMES),
        in that order of outcomes. The first sample of each prompt; empty where there is nothing to compare."""
        sides = []
        for run in self.runs:
            rows = alike(run.outputs) if run.has("outputs") else run.outputs
            rows = rows.loc[rows["model"] == POLICY]
            rows = rows.loc[rows["step"] == rows["step"].max()].sort_values("sample")
            columns = ["prompt_id", "decoding_hash", "prompt", "text", "correct"]
            sides.append(rows[columns].astype(object).drop_duplicates("prompt_id"))
        table = sides[0].merge(sides[1].drop(columns="prompt"), on=["prompt_id", "decoding_hash"],
                               suffixes=("_a", "_b"))  # fmt: skip
        right = [table[f"correct_{x}"].astype(float) for x in "ab"]
        same = table["text_a"] == table["text_b"]
        unjudged = right[0].isna() | right[1].isna()
        table["outcome"] = np.select(
            [same, unjudged, right[1] < right[0], right[1] > right[0], right[1] > 0],
            ["alike", "other", "lost", "won", "right"], "wrong",
        ) if len(table) else pd.Series(dtype=object)  # fmt: skip
        order = table["outcome"].map(OUTCOMES.index)
        ordered: pd.DataFrame = table.drop(columns="decoding_hash").iloc[order.argsort(kind="stable")]
        return ordered.reset_index(drop=True)

    def document(self) -> dict[str, Any]:
        """The whole comparison; NaN is null."""
        document: dict[str, Any] = plain({
            "a": str(self.runs[0].path), "b": str(self.runs[1].path), "split": self.split, "steps": list(self.steps),
            "differences": [asdict(d) for d in self.differences],
            "parts": [asdict(p) for p in self.partings],
            "level": self.intervals.level if self.aligned is not None else None,
            "changes": [
                {"name": c.name, "unit": c.unit, "a": c.a, "b": c.b, "change": c.change.value,
                 "interval": c.change.bounds, "n": c.change.n} for c in self.changes
            ],
            "scores": [m.document(self.thresholds) for m in self.scores],
            "pairs": self.pairs, "answers": self.answers, "notes": list(self.notes),
        })  # fmt: skip
        return document


def other_tokenizer(a: Run, b: Run) -> bool:
    """Whether the runs are known to have different tokenizers: their tokens and perplexities are not the same thing."""
    one, two = (run.info.tokenizer.fingerprint for run in (a, b))
    return one is not None and two is not None and one != two


def compare_runs(
    a: Run | str, b: Run | str, split: str | None = None, step: int | None = None, thresholds: Thresholds | None = None
) -> TwoRuns:
    """Two runs beside each other.

    Args:
        split: default the best set that both measured (`PairRows.steps`).
        step: of both; default the last of each.

    Raises:
        DiagError: no run, no such split or step.
    """
    rows = tuple(PairRows(r if isinstance(r, Run) else load_run(r)) for r in (a, b))
    one, two = rows
    shared = [s for s in one.steps if s in two.steps and "train" not in (one.run.role(s), two.run.role(s))]
    if split is not None and split not in shared:
        raise DiagError("no such set in both runs", got=split, expected=f"one of {shared or 'none'}", usage=True)
    split = split or next(iter(shared), None)
    found = TwoRuns((one, two), None, (None, None), thresholds or load_thresholds())
    if split is None:
        return replace(found, notes=("the runs share no measured set of pairs",))
    if step is not None:
        for of in rows:
            if step not in of.steps[split]:
                raise DiagError("no pair records at this step", where=of.run.path, got=step,
                                expected=f"one of {of.steps[split]}", usage=True)  # fmt: skip
    steps = tuple(of.steps[split][-1] if step is None else step for of in rows)
    found = replace(found, split=split, steps=(steps[0], steps[1]))
    return replace(found, notes=tuple(_notes(found)))


def _notes(found: TwoRuns) -> Iterator[str]:
    if found.aligned is None:
        yield f"the two sets {found.split} share no pair"
        return
    left = found.aligned.coverage["only_from"] + found.aligned.coverage["only_to"]
    if left:
        yield f"{left} pairs are measured in one of the two runs only and are left out"
    if other_tokenizer(*found.runs):
        yield "the tokenizers differ: cross-entropies and perplexities are per UTF-8 byte"
    if not found.same_reference:
        yield "no common reference: log-ratios and losses are not compared"
