"""DVG027: pairs under one id. Its examples, and what they do not show."""

from __future__ import annotations

import pytest

from dpo_diag.diagnosis.checks.shared.example import Example


def test_values_within_reach_lose_nothing_and_beyond_it_they_do(tmp_path, finding):
    """Two recorded pairs with ce 1 and 2, four evaluated: their mean is that of 1, 2 and two values of these, so it
    lies between (1 + 2 + 1 + 1) / 4 = 1.25 and (1 + 2 + 2 + 2) / 4 = 1.75."""
    pairs = {0: ([-10.0, -20.0], [-10.0, -20.0])}
    for i, (value, outcome) in enumerate(((1.25, "silent"), (1.75, "silent"), (1.24, "speaks"), (1.8, "speaks"))):
        run = Example(fixed={"ce/rejected": [value]}, answers=4, pairs=pairs).write(tmp_path / str(i))
        found = finding(run, "DVG027")
        assert found["outcome"] == outcome, value
        assert found["evidence"]["more_rows_than_ids"] == {"eval": 2}
        if outcome == "speaks":
            lost = found["evidence"]["lost"][0]
            assert (lost["rows"], lost["ids"]) == (4, 2)
            assert (lost["low"], lost["high"]) == pytest.approx((1.25, 1.75))
            assert found["severity"] == "error" and "evaluate again" in found["try"][1]


def test_every_pair_recorded_or_not_counted(tmp_path, finding):
    pairs = {0: ([-10.0, -20.0], [-10.0, -20.0])}
    run = Example(fixed={"ce/chosen": [9.0]}, answers=2, pairs=pairs).write(tmp_path / "as many")
    assert finding(run, "DVG027")["outcome"] == "silent"  # another check's matter
    run = Example(fixed={"ce/chosen": [9.0]}, pairs=pairs).write(tmp_path / "unknown")
    assert finding(run, "DVG027")["outcome"] == "silent"
    run = Example(fixed={"ce/chosen": [9.0]}, answers=4, pairs=pairs, tokens=(0, 0)).write(tmp_path / "no tokens")
    assert finding(run, "DVG027")["outcome"] == "silent"


@pytest.mark.parametrize(("how", "severity"), [("content", "info"), ("order", "warning")])
def test_shared_ids_are_said_where_they_were_told_apart(tmp_path, finding, how, severity):
    splits = {"eval": {"role": "held_out", "n_same_id": 5, "told_apart_by": how}}
    run = Example(pairs={0: ([-10.0] * 5, -12.0)}, run={"splits": splits}).write(tmp_path)
    found = finding(run, "DVG027")
    assert (found["outcome"], found["severity"]) == ("speaks", severity)
    assert not any("evaluate again" in line for line in found["try"])  # nothing is lost
    assert found["reason"].startswith("5 pairs of eval came under ids that other pairs had too: their " + how)
