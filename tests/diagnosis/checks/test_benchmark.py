"""A reduced benchmark of truthfulness: some planted causes and healthy runs, simulated."""

from __future__ import annotations

from benchmarks.diagnosis.plans import CAUSES, HEALTHY
from benchmarks.diagnosis.score import simulated, summarise, table
from benchmarks.diagnosis.simulate import Plan

SOME_HEALTHY = ("full records", "training means only", "ten rows", "rewards without logps", "falls fast",
                "four epochs, stairs")  # fmt: skip
SOME_CAUSES = ("displacement", "dead", "aggregator", "length", "spikes", "displacement + NaN")


def test_clear_causes_are_found_and_healthy_runs_stay_silent() -> None:
    plans: list[Plan] = [HEALTHY[name].but(name=name, seed=7) for name in SOME_HEALTHY]
    plans += [CAUSES[name][0].but(name=name, seed=7) for name in SOME_CAUSES]
    results = simulated(plans)
    summary = summarise(results)
    assert summary.recall == 1.0, table(results)
    assert summary.alarmed == 0, [(r.name, r.extra) for r in results if r.strength == "healthy"]
    assert summary.healthy == len(SOME_HEALTHY) and summary.clear == 7
