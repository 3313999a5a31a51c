"""Which knob moved what, and the runs that no other one beats in everything."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dpo_diag.commands.sweep_text import lines
from dpo_diag.diagnosis.sweep import sweep
from dpo_diag.diagnosis.sweep_effects import effects, pareto
from tests.diagnosis.sweep_runs import scored_run


@pytest.fixture
def grid(tmp_path: Path) -> Path:
    """beta 0.1 and 1 over three seeds: the score rises by 0.1, 0.2 and 0.3, the cross-entropy by 0.5 less each time."""
    for seed in range(3):
        scored_run(tmp_path / f"a{seed}", (0, 0.4), 2.0, "beta=0.1", f"seed={seed}")
        scored_run(tmp_path / f"b{seed}", (0, 0.5 + 0.1 * seed), 1.5, "beta=1", f"seed={seed}")
    return tmp_path


def test_a_knob_is_judged_over_runs_that_differ_in_nothing_else(grid: Path) -> None:
    """Mean 0.2, standard deviation 0.1, over sqrt(3) 0.057735; t(2) at 95 % is 4.3027: give or take 0.24842. The other
    outcome moved alike each time. The seed is no knob."""
    found = {e.outcome: e for e in effects(sweep(grid / "*"))}
    score = found["acc[held_out]"]
    assert (score.knob, score.a, score.b, score.matched) == ("beta", "0.1", "1", True)
    assert (score.before, score.after, score.change.value) == pytest.approx((0.4, 0.6, 0.2))
    assert score.change.bounds == pytest.approx([0.2 - 0.24842, 0.2 + 0.24842], abs=1e-4)
    assert found["chosen_ce_change"].change.bounds == pytest.approx([-0.5, -0.5])
    assert set(found) == {"acc[held_out]", "reward_accuracy", "chosen_ce_change"}


def test_the_terminal_shows_effects_and_the_front_in_80_cells(grid: Path) -> None:
    """What was moved for certain before what was not; what nothing moved is left out; long names are cut at one place
    wherever they stand. The best of b's three runs beats every other one in both."""
    for place in grid.iterdir():
        place.rename(place.with_name(f"experiment=sql_dpo,trainer.learning_rate=1e-6,{place.name}"))
    shown = lines(sweep(grid / "*"), 80)
    assert max(map(len, shown)) <= 80
    at = next(i for i, line in enumerate(shown) if line.startswith("knob"))
    assert [re.split(r"  +", line) for line in shown[at : at + 3]] == [
        ["knob", "values", "moved", "change", "95 %"],
        ["beta", "0.1 → 1", "rise of chosen CE", "-0.500", "[-0.500, -0.500]"],
        ["beta", "0.1 → 1", "acc, held out", "+0.200", "[-0.0484, +0.448]"],
    ]
    assert shown[at + 3] == ""
    told, best = " ".join(shown), "…" + "trainer.learning_rate=1e-6,b2"[-23:]
    assert f"no run beats these in both acc, held out and rise of chosen CE: {best}" in told
    assert {line.split()[1] for line in shown if line.startswith("   1  ")} == {best}


def test_without_matched_runs_two_groups_are_compared(tmp_path: Path) -> None:
    """Welch of 10, 20, 30 against 40, 50, 60 of 100: 0.3; both variances 0.01, error 0.08165, t(4) 2.7764: 0.22669."""
    for i, right in enumerate((10, 20, 30, 40, 50, 60)):
        scored_run(tmp_path / str(i), (0, right / 100), 1.0, f"beta={0.1 if i < 3 else 1}", f"lr={i}")
    (found,) = [e for e in effects(sweep(tmp_path / "*")) if (e.knob, e.outcome) == ("beta", "acc[held_out]")]
    assert not found.matched and found.change.bounds == pytest.approx([0.3 - 0.22669, 0.3 + 0.22669], abs=1e-4)


def test_the_front_holds_what_nothing_beats_in_both(tmp_path: Path) -> None:
    """(score, cross-entropy): a (60, 3) and b (50, 2) are on it, c (40, 2.5) is beaten by b, d is b again."""
    for name, right, ce in (("a", 60, 3.0), ("b", 50, 2.0), ("c", 40, 2.5), ("d", 50, 2.0)):
        scored_run(tmp_path / name, (0, right / 100), ce, f"x={name}")
    assert [Path(r).name for r in pareto(sweep(tmp_path / "*"))] == ["a", "b", "d"]
    assert pareto(sweep(tmp_path / "a")) == [str(tmp_path / "a")]
