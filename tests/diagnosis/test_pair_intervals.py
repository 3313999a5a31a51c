"""Intervals over pairs: cluster robust where pairs share prompts, by hand; the same as without where none does."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from builders import SIGMOID, pair_rows

from dpo_diag import Run, RunWriter, load_run
from dpo_diag.diagnosis import explain
from dpo_diag.diagnosis.pair_intervals import PairIntervals, counted, counted_about
from dpo_diag.diagnosis.pair_rows import PairRows
from dpo_diag.gate.judge import Gate
from dpo_diag.stats import Interval, t_interval

IDS = [f"p{i:02d}" for i in range(16)]
TWINS = [1.0, 1, 0, 0] * 4
"""16 changes: the two pairs of a prompt moved alike."""


def of(prompts: list[object] | None, level: float = 0.99, least: float = 8) -> PairIntervals:
    return PairIntervals(level, least, None if prompts is None else pd.Series(prompts, index=IDS[: len(prompts)]))


def test_a_clustered_mean_by_hand() -> None:
    """8 prompts of two pairs, changes 1 1, 0 0, ...: mean .5, each prompt's deviations add to +-1, variance
    8/7 (8) / 16^2 = 1/28, t(7, 99 %) = 3.4995: half .6613. Taken apart: s^2 = 16/15 (1/4), variance 1/60, t(15) =
    2.9467: half .3804."""
    together = of([i // 2 for i in range(16)]).mean(TWINS, IDS)
    assert (together.value, together.n, together.clusters) == (0.5, 16, 8)
    assert together.high - 0.5 == pytest.approx(3.49948 / math.sqrt(28), abs=1e-4)
    assert together.method == "t, clustered in 8 prompts" and together.level == 0.99
    apart = of(None).mean(TWINS, IDS)
    assert apart.high - 0.5 == pytest.approx(2.94671 / math.sqrt(60), abs=1e-4)
    assert apart == t_interval(TWINS, 0.99) and apart.clusters == 0


def test_each_pair_with_its_own_prompt_is_as_unclustered() -> None:
    """Also where it is not known of some pairs: what is not known to share a prompt stands alone."""
    assert of(list(range(16))).mean(TWINS, IDS) == of(None).mean(TWINS, IDS)
    half = of([0, 0, *range(1, 7)])  # p08 to p15 are not known
    assert half.n_prompts(IDS) == 15 and half.mean(TWINS, IDS).clusters == 15
    assert half.n_prompts(IDS[1:]) is None and half.mean(TWINS[1:], IDS[1:]) == of(None).mean(TWINS[1:], IDS[1:])
    statistic = lambda counts: counts @ np.array(TWINS) / counts.sum(axis=1)  # noqa: E731
    assert of(list(range(16))).of_statistic(statistic, IDS) == of(None).of_statistic(statistic, IDS)


def test_a_statistic_draws_whole_prompts() -> None:
    """The bootstrap of a mean of 8 twins is wider than that of 16 pairs by about sqrt(2)."""
    twins = np.array(TWINS)
    apart, together = (
        o.of_statistic(lambda counts: counts @ twins / counts.sum(axis=1), IDS)
        for o in (of(None), of([i // 2 for i in range(16)]))
    )
    assert (together.high - together.low) / (apart.high - apart.low) == pytest.approx(math.sqrt(2), rel=0.2)
    assert (together.n, together.clusters, together.method) == (16, 8, "bootstrap, clustered in 8 prompts")


def test_few_prompts_are_too_few() -> None:
    """16 pairs of 4 prompts: 4 units, below the least of 8; three values that are not finite are no pairs."""
    few = of([i // 4 for i in range(16)]).mean(TWINS, IDS)
    assert few.bounds is None and (few.n, few.clusters, few.value) == (16, 4, 0.5)
    assert of(None).mean([math.nan, math.inf, -math.inf, *TWINS[3:]], IDS).n == 13


def test_a_ratio_of_sums_by_hand() -> None:
    """Per token 0 before; then sums 1, 2, 3 over 1, 2, 1 tokens: 6/4. Parts 1.5 + (v - 1.5 n) / (4/3): 1.125, .75,
    2.625; variance .984375, t(2, 95 %) = 4.3027: half 4.3027 sqrt(.984375 / 3) = 2.4647."""
    n, after = np.array([1.0, 2, 1]), np.array([1.0, 2, 3])
    change = of(None, 0.95, 3).ratio_change(0 * n, n, after, n, IDS[:3])
    assert change.value == pytest.approx(1.5) and change.high - 1.5 == pytest.approx(2.4647, abs=1e-4)


def test_pairs_in_words() -> None:
    assert (counted(1, None), counted(400, 100)) == ("1 pair", "400 pairs of 100 prompts")
    assert of([i // 2 for i in range(16)]).counted(IDS) == "16 pairs of 8 prompts"
    assert of(None).counted(IDS) == "16 pairs"
    assert counted_about(81, Interval(0.1, -1, 1, 16, clusters=8)) == "81 pairs of 41 prompts"
    assert counted_about(81, Interval(0.1, -1, 1, 16)) == "81 pairs"


# --- a run ------------------------------------------------------------------------------------------------------------


def run_of(path: Path, prompts: list[str | None], beside: list[str | None] | None = None) -> Run:
    """40 pairs measured at steps 0 and 10; pairs 4k to 4k + 3 move alike, by a number of nats that is k's own."""
    writer = RunWriter(path)
    n, rng = len(prompts), np.random.default_rng(0)
    ids = [f"p{i:02d}" for i in range(n)]
    start = -rng.uniform(20, 30, n)
    moved = np.repeat(rng.normal(-1, 1, n // 4), 4) + rng.normal(0, 0.05, n)
    for step in (0, 10):
        chosen, rejected = start + moved * (step > 0), start - 2.0 * (step > 0) + moved * (step > 0)
        rows = [pair_rows(step, list(chosen), list(rejected), ids=ids)]
        if step == 0:
            rows.append(pair_rows(0, list(start), list(start), ids=ids, role="ref"))
        writer.write("pairs", pd.concat(rows, ignore_index=True), split="eval")
    writer.write("texts", [
        {"split": "eval", "pair_id": i, "prompt": prompt, "chosen": f"c{i}", "rejected": f"r{i}", "beside": other}
        for i, prompt, other in zip(ids, prompts, beside or [None] * n, strict=True)
    ])  # fmt: skip
    writer.write("history", [{"step": s, "split": "eval", "name": "ce/chosen", "value": v, "weight": n}
                             for s, v in ((0, 2.5), (10, 2.6))])  # fmt: skip
    writer.update(loss=SIGMOID)
    writer.finish()
    return load_run(path)


def width(bounds: list[float]) -> float:
    return bounds[1] - bounds[0]


def test_pairs_of_one_prompt_that_move_together_widen_the_interval(tmp_path: Path) -> None:
    """Ten prompts of four pairs that move alike hold ten numbers, not forty: about twice the standard error."""
    own = run_of(tmp_path / "own", [f"q{i}" for i in range(40)])
    shared = run_of(tmp_path / "shared", [f"q{i // 4}" for i in range(40)])
    apart, together = explain(own), explain(shared)
    assert (apart["n_prompts"], together["n_prompts"]) == (None, 10)
    for name in ("ppl_token", "ppl_seq_geomean", "ppl_seq_mean"):
        ends = (d["perplexity"]["chosen"][name] for d in (apart, together))
        old, new = (width(e["interval"]) for e in ends)
        assert 1.7 < new / old < 3.0, name
    fell = {c["code"]: c["evidence"].get("chosen_change") for c in together["checks"]}["DVG001"]
    assert (fell["n"], fell["prompts"], fell["level"]) == (40, 10, 0.99)
    told = [s["text"] for block in together["narrative"] for s in block["sentences"]]
    assert any("on eval (40 pairs of 10 prompts)" in text for text in told)
    assert any("over the pairs of this set (40 pairs of 10 prompts, clustered by prompt, " in text for text in told)
    reason = Gate(shared).judge({"metric": "ce/chosen", "max_rise": 9.0}).reason
    assert "99 % interval" in reason and "clustered in 10 prompts" in reason


def test_an_unknown_or_empty_prompt_is_shared_by_none(tmp_path: Path) -> None:
    """The interval is that of pairs that stand alone; what else the model is shown tells prompts apart."""
    apart = explain(run_of(tmp_path / "own", [f"q{i}" for i in range(40)]))
    for name, prompts, beside in (
        ("empty", [""] * 40, None), ("null", [None] * 40, None), ("beside", ["q"] * 40, [str(i) for i in range(40)]),
    ):  # fmt: skip
        other = explain(run_of(tmp_path / name, prompts, beside))
        assert other["loss"] == apart["loss"] and other["perplexity"] == apart["perplexity"]
        assert PairRows(load_run(tmp_path / name)).prompts is None


def test_a_set_of_one_prompt_has_no_interval_and_says_so(tmp_path: Path) -> None:
    document = explain(run_of(tmp_path / "run", ["q"] * 40))
    assert document["n_prompts"] == 1 and document["loss"]["interval"] is None
    told = [s["text"] for block in document["narrative"] for s in block["sentences"]]
    assert "n = 40 pairs of 1 prompt: too few for an interval." in told
    assert document["verdict"]["label"] == "cannot_tell" or document["verdict"]["confidence"] != "high"


def test_the_estimate_keeps_its_clusters() -> None:
    estimate = Interval(1.0, 0.5, 1.5, 40, "t", 0.99, 10)
    assert estimate.scaled(-2.0).clusters == estimate.shifted(1.0).clusters == 10
    assert estimate.with_least(8) is estimate and estimate.with_least(11).clusters == 10
