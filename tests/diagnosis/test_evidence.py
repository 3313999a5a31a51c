"""Evidence that is not likelihood, and what may be concluded from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import build_run

from dpo_diag.diagnosis import explain, explain_run
from dpo_diag.diagnosis.evidence import best_and_last, measures
from dpo_diag.diagnosis.measure import Measure
from dpo_diag.diagnosis.sweep import sweep
from dpo_diag.gate.judge import Gate
from dpo_diag.outputs import compare
from dpo_diag.paired import paired_proportion_change
from dpo_diag.report.headline import facts
from dpo_diag.report.section import Context
from dpo_diag.stats import Interval
from dpo_diag.thresholds import defaults

LIMITS = {**defaults(), "verdict.benign_margin": 0.05, "verdict.least_harm": 0.02}
STEPS = {0: ([-5.0], [-6.0]), 10: ([-6.0], [-9.0])}


def answers(step: int, correct: list[float | None], model: str = "policy", **columns: Any) -> list[dict[str, Any]]:
    return [
        {"step": step, "model": model, "prompt_id": f"q{i}", "sample": 0, "text": "SELECT 1", "finish_reason": "stop",
         "correct": value, "decoding_hash": "h", **columns}
        for i, value in enumerate(correct)
    ]  # fmt: skip


def scored(path: Path, values: list[float], n: float | None, **more: Any) -> Any:
    """A run whose held-out accuracy was measured at step 0, 10, ..."""
    history = [
        {"step": 10 * i, "split": "held_out", "name": "score/accuracy", "value": v, **({"weight": n} if n else {})}
        for i, v in enumerate(values)
    ]
    return build_run(path, STEPS, history=history, **more)


def test_scores_carry_their_n_and_interval(tmp_path: Path) -> None:
    (measure,) = measures(scored(tmp_path / "run", [0.7, 0.4], 300.0), 0, 10)
    assert (measure.what, measure.split, measure.change.n) == ("accuracy", "held_out", 300)
    assert measure.change.value == pytest.approx(-0.3) and measure.change.method == "Newcombe, unpaired"
    assert measure.direction(LIMITS) == "worse"


def test_a_score_without_n_gives_no_verdict(tmp_path: Path) -> None:
    (measure,) = measures(scored(tmp_path / "run", [0.9, 0.1], None), 0, 10)
    assert measure.change.bounds is None and measure.direction(LIMITS) == "unclear"
    assert str(measure) == (
        "accuracy (held_out) 0.900 → 0.100 (change -0.800, no interval: how many questions it is the "
        "mean of is not recorded)"
    )


def test_answers_are_paired_by_prompt(tmp_path: Path) -> None:
    """40 prompts: 15 lost, 2 won: McNemar p = 2 (1 + 17 + 136) / 2^17 = .00235."""
    before, after = [1.0] * 30 + [0.0] * 10, [1.0] * 15 + [0.0] * 15 + [1.0] * 2 + [0.0] * 8
    run = build_run(tmp_path / "run", STEPS, outputs=answers(0, before) + answers(10, after))
    measure = next(m for m in measures(run, 0, 10) if m.kind == "correct")
    assert (measure.flips, measure.change.n, measure.change.value) == ((15, 2), 40, -13 / 40)
    assert measure.p == pytest.approx(2 * 154 / 2**17) and measure.direction(LIMITS) == "worse"


def test_a_score_whose_answers_are_recorded_is_paired(tmp_path: Path) -> None:
    """20 of 40 right at both steps, 2 lost and 2 won. Paired: half width 1.96 sqrt(2.5 + 2.5) / 42 = .104;
    as two independent samples it would be .21. A score of other questions (n 41) stays unpaired."""
    before, after = [1.0] * 20 + [0.0] * 20, [1.0] * 18 + [0.0] * 2 + [1.0] * 2 + [0.0] * 18
    rows = [{**r, "tags": ["held_out", "join"]} for r in answers(0, before) + answers(10, after)]
    paired = measures(scored(tmp_path / "a", [0.5, 0.5], 40.0, outputs=rows), 0, 10)[0]
    assert (paired.kind, paired.flips, paired.paired) == ("score", (2, 2), True)
    assert paired.change.high == pytest.approx(1.959964 * np.sqrt(5.0) / 42, abs=1e-6)
    other = measures(scored(tmp_path / "b", [0.5, 0.5], 41.0, outputs=rows), 0, 10)[0]
    assert other.flips is None and other.change.high > 0.2 and not other.paired
    assert str(other).endswith("n = 41, p = 1; unpaired: per-question answers are not recorded)")


def test_answers_under_other_decoding_are_not_compared(tmp_path: Path) -> None:
    rows = answers(0, [1.0] * 9) + [{**r, "decoding_hash": "other"} for r in answers(10, [0.0] * 9)]
    assert measures(build_run(tmp_path / "run", STEPS, outputs=rows), 0, 10) == []


def test_answers_that_no_longer_end_are_evidence(tmp_path: Path) -> None:
    """No checker: the share cut off by the length limit goes from 0 to 30 of 40."""
    after = answers(10, [None] * 40)
    for row in after[:30]:
        row["finish_reason"] = "length"
    run = build_run(tmp_path / "run", STEPS, outputs=answers(0, [None] * 40) + after)
    by_kind = {m.kind: m for m in measures(run, 0, 10)}
    assert set(by_kind) == {"unfinished", "empty"}
    assert by_kind["unfinished"].change.value == 0.75 and by_kind["unfinished"].direction(LIMITS) == "worse"
    assert by_kind["empty"].direction(LIMITS) == "no_worse"


def test_the_reference_answers_stand_in_for_a_missing_start(tmp_path: Path) -> None:
    rows = answers(0, [1.0] * 20, model="ref") + answers(10, [0.0] * 20)
    found = measures(build_run(tmp_path / "run", STEPS, outputs=rows), "ref", 10)
    assert next(m for m in found if m.kind == "correct").change.value == -1.0


def test_graded_answers_use_paired_means(tmp_path: Path) -> None:
    """Every one of 12 grades falls by .2: no scatter, and a sign-flip p of 2 / 2^12."""
    grades = np.linspace(0.5, 0.9, 12)
    rows = answers(0, list(grades)) + answers(10, list(grades - 0.2))
    run = build_run(tmp_path / "run", STEPS, outputs=rows)
    measure = next(m for m in measures(run, 0, 10) if m.kind == "correct")
    assert measure.change.value == pytest.approx(-0.2) and measure.change.n == 12
    assert measure.p == pytest.approx(2 / 2**12) and measure.direction(LIMITS) == "worse"


def measure(
    delta: float, bounds: tuple[float, float] | None, better: str = "higher", p: float | None = None
) -> Measure:
    low, high = bounds or (np.nan, np.nan)
    return Measure("accuracy", "held_out", "score", 0, 9, 0.5, 0.5 + delta, Interval(delta, low, high, 99), "m", p,
                   better=better)  # fmt: skip


@pytest.mark.parametrize(
    ("delta", "interval", "better", "expected"),
    [
        (-0.10, (-0.15, -0.05), "higher", "worse"),
        (-0.10, (-0.25, 0.05), "higher", "unclear"),
        (-0.01, (-0.03, 0.01), "higher", "no_worse"),
        (0.10, (0.05, 0.15), "higher", "better"),
        (0.10, (0.05, 0.15), "lower", "worse"),
        (-0.01, (-0.015, -0.005), "higher", "no_worse"),
        (-0.5, None, "higher", "unclear"),
    ],
)
def test_judgement(delta: float, interval: tuple[float, float] | None, better: str, expected: str) -> None:
    """A significant fall of one point is smaller than `least_harm` .02 and inside `benign_margin` .05: no worse."""
    assert measure(delta, interval, better).direction(LIMITS) == expected


def test_a_verdict_needs_the_exact_test_too() -> None:
    """Interval and test disagree (p = 0.071 beside -0.180 to -0.001, as a real small run gave): unclear."""
    assert measure(-0.092, (-0.180, -0.001), p=0.071).direction(LIMITS) == "unclear"
    assert measure(-0.092, (-0.180, -0.001), p=0.049).direction(LIMITS) == "worse"
    assert measure(0.092, (0.001, 0.180), p=0.071).direction(LIMITS) == "no_worse"


@pytest.mark.parametrize("n", [1000.0, 1500.0])
def test_the_verdict_and_the_checks_judge_a_score_alike(tmp_path: Path, n: float) -> None:
    """0.70 -> 0.70 while chosen lost 1 nat in each of 30 pairs. Newcombe's half width at 70 % is 1.96 sqrt(.42 / n),
    .040 and .033: a fall of 5 points is excluded, of 3 points it is not. One margin for both."""
    rng = np.random.default_rng(0)
    start = -rng.uniform(9, 11, 30)
    history = [{"step": s, "split": "held_out", "name": "score/accuracy", "value": 0.7, "weight": n} for s in (0, 10)]
    steps = {0: (start, start), 10: (start - 1.0 - 0.1 * rng.random(30), start - 9.0)}
    document = explain(build_run(tmp_path / "run", steps, history=history))
    assert document["verdict"]["label"] == "likelihood_displacement"
    assert document["verdict"]["harm"] == "benign"
    outcomes = {c["code"]: c["outcome"] for c in document["checks"]}
    assert (outcomes["DVG018"], outcomes["DVG025"]) == ("speaks", "silent")
    assert [e["direction"] for e in document["evidence"]] == ["no_worse"]


def test_the_best_checkpoint_by_a_corrected_test(tmp_path: Path) -> None:
    """Four evaluations: three are compared with the last one, so p counts three times; the interval stays that of the
    change wherever else it is printed."""
    (best,) = best_and_last(scored(tmp_path / "run", [0.5, 0.7, 0.6, 0.4], 900.0))
    assert (best.from_step, best.to_step, best.before, best.after) == (10, 30, 0.7, 0.4)
    assert best.change.level == 0.95 and best.direction(LIMITS) == "worse"
    assert best.q == pytest.approx(3 * best.p) and best.corrected == "the best of 4 checkpoints"


def test_a_score_that_is_best_at_the_end_has_not_changed(tmp_path: Path) -> None:
    (best,) = best_and_last(scored(tmp_path / "run", [0.5, 0.6, 0.7], 900.0))
    assert (best.from_step, best.to_step, best.change.value) == (20, 20, 0.0)


def test_several_measures_are_corrected_together(tmp_path: Path) -> None:
    """Scores of 20 questions each: a fall of .3 beside two that stay. Benjamini-Hochberg over three: the smallest p
    times three. A measure in which no answer changed (empty answers) tests nothing and does not count."""
    values = {"a": (0.7, 0.4), "b": (0.5, 0.5), "c": (0.6, 0.6)}
    history = [{"step": s, "split": "held_out", "name": f"score/{name}", "value": v, "weight": 20.0}
               for name, both in values.items() for s, v in zip((0, 10), both, strict=True)]  # fmt: skip
    rows = answers(0, [None] * 20) + answers(10, [None] * 20)
    found = {m.what: m for m in measures(build_run(tmp_path / "run", STEPS, history=history, outputs=rows), 0, 10)}
    assert found["a"].q == pytest.approx(3 * found["a"].p) and found["a"].corrected == "3 measures"
    assert found["empty answers"].q is None and "no answer changed" in str(found["empty answers"])


def test_samples_of_one_question_are_one_question(tmp_path: Path) -> None:
    """20 prompts, three seeded samples each: right in all before, in one of three after. n is 20, not 60."""
    rows = [{**row, "sample": k, "seed": k} for step, right in ((0, 3), (10, 1)) for k in range(3)
            for row in answers(step, [float(k < right)] * 20)]  # fmt: skip
    found = next(m for m in measures(build_run(tmp_path / "run", STEPS, outputs=rows), 0, 10) if m.kind == "correct")
    assert (found.before, found.change.n) == (1.0, 20) and found.after == pytest.approx(1 / 3)
    greedy = [{**row, "seed": None} if row["sample"] == 0 else row for row in rows]
    run = build_run(tmp_path / "greedy", STEPS, outputs=greedy)
    assert next(m for m in measures(run, 0, 10) if m.kind == "correct").after == 1.0  # the greedy answer stands alone


def test_prompts_of_one_source_are_clustered(tmp_path: Path) -> None:
    """Ten sources of four paraphrases; in three sources all turn wrong: 12 of 40 answers, but 3 of 10 sources."""
    lost = [1.0 - float(i < 12) for i in range(40)]
    rows = [{**row, "tags": [f"source=s{i // 4}"]} for step, values in ((0, [1.0] * 40), (10, lost))
            for i, row in enumerate(answers(step, values))]  # fmt: skip
    found = next(m for m in measures(build_run(tmp_path / "run", STEPS, outputs=rows), 0, 10) if m.kind == "correct")
    assert (found.change.n, found.p) == (40, 2 / 2**3) and "clustered in 10 sources" in found.method
    assert found.direction(LIMITS) == "unclear"


def test_too_few_questions_have_no_interval(tmp_path: Path) -> None:
    run = build_run(tmp_path / "run", STEPS, outputs=answers(0, [1.0] * 4) + answers(10, [0.0] * 4))
    found = next(m for m in measures(run, 0, 10) if m.kind == "correct")
    assert str(found).endswith("1.000 → 0.000 (change -1.000, n = 4: too few for an interval)")
    assert found.direction(LIMITS) == "unclear" and found.needed(LIMITS) is None
    assert next(
        m for m in measures(run, 0, 10, {**LIMITS, "least_for_interval": 3}) if m.kind == "correct"
    ).change.bounds


def test_an_unclear_fall_says_how_many_questions_would_tell(tmp_path: Path) -> None:
    """.70 -> .64 of 150, two shares: Newcombe's interval has a standard error of about .053, so
    150 (2.80 x .053 / .06)^2, about 930. A rise of the same size needs as many to exclude a fall of .05 at +.11."""
    fall = measures(scored(tmp_path / "a", [0.70, 0.64], 150.0), 0, 10)[0]
    n, what = fall.needed(LIMITS) or (0, "")
    assert n == pytest.approx(930, rel=0.05) and what == "to tell a change of this size from none"
    assert fall.told(LIMITS).endswith(f"; about 950 questions are needed {what} (power 80 %)")
    level = measures(scored(tmp_path / "b", [0.70, 0.70], 150.0), 0, 10)[0]
    n, what = level.needed(LIMITS) or (0, "")
    assert n == pytest.approx(1320, rel=0.05) and what == "to exclude a worsening of 0.05"


def test_a_score_measured_elsewhere_says_where(tmp_path: Path) -> None:
    history = [{"step": s, "split": "held_out", "name": "score/accuracy", "value": v, "weight": 300.0}
               for s, v in ((40, 0.7), (80, 0.5))]  # fmt: skip
    run = build_run(tmp_path / "run", {40: STEPS[0], 80: STEPS[10]}, history=history)
    assert "0.700 → 0.500 (steps 40 to 80: change -0.200" in str(measures(run, "ref", 80)[0])
    assert "steps" not in str(measures(run, 40, 80)[0])


def test_one_change_has_one_interval_wherever_it_is_printed(tmp_path: Path) -> None:
    """60 questions, 14 lost and 2 won: explain, gate, outputs, sweep and the report's headline agree."""
    before = [1.0] * 40 + [0.0] * 20
    after = [1.0] * 26 + [0.0] * 14 + [1.0] * 2 + [0.0] * 18
    history = [{"step": s, "split": "held_out", "name": "score/accuracy", "value": sum(v) / 60, "weight": 60.0}
               for s, v in ((0, before), (10, after))]  # fmt: skip
    rows = [{**r, "tags": ["held_out"]} for r in answers(0, before) + answers(10, after)]
    pairs = {step: (sides[0] * 9, sides[1] * 9) for step, sides in STEPS.items()}
    run = build_run(tmp_path / "run", pairs, history=history, outputs=rows)
    document = explain(run)
    bounds = next(e for e in document["evidence"] if e["kind"] == "score")["interval"]
    assert bounds == pytest.approx(paired_proportion_change(14, 2, 60).bounds)
    outcome = Gate(run).judge({"metric": "score/accuracy", "split": "held_out", "max_drop": 0.0})
    assert [outcome.low, outcome.high] == pytest.approx(bounds)
    moved = next(b for b in compare(run)["behaviours"] if b["behaviour"] == "right answers")
    assert [moved["low"], moved["high"]] == pytest.approx(bounds)
    swept = sweep(run.path).runs.iloc[0]
    assert [swept[f"accuracy[held_out]_change_{end}"] for end in ("low", "high")] == pytest.approx(bounds)
    note = next(f.note for f in facts(Context(run, explain_run(run), {})) if f.kind == "score")
    assert f"paired 95 % interval {bounds[0]:+.3g} to {bounds[1]:+.3g}" in note
