"""DVG006: cut responses, an end token that carries the change, answers that never end."""

from __future__ import annotations

from pathlib import Path

import pytest

from dpo_diag.records import RunWriter, load_run


def test_a_fifth_of_the_responses_are_cut(pairs, finding):
    cut = [7.0 if i < 4 else 0.0 for i in range(20)]
    run = pairs({0: ([-10.0] * 20, -10.0), 5: (-9.0, -12.0)}, columns={"n_truncated": {0: (cut, cut), 5: (cut, cut)}})
    found = finding(run, "DVG006")
    assert found["outcome"] == "speaks" and found["evidence"]["share_of_responses_cut"] == pytest.approx(0.2)
    assert found["evidence"]["tokens_cut"] == 56


def test_nothing_cut(pairs, finding):
    run = pairs({0: ([-10.0] * 20, -10.0), 5: (-9.0, -12.0)}, columns={"n_truncated": {0: (0, 0), 5: (0, 0)}})
    assert finding(run, "DVG006")["outcome"] == "silent"


def test_the_end_token_carries_the_fall(pairs, finding, tmp_path: Path):
    """Three tokens a response: -0.1, -0.1, -2.0: the end token holds 2.0 of 2.2 nats."""
    run = pairs({0: ([-10.0] * 6, -10.0), 5: (-12.2, -12.0)}, n_c=3)
    writer = RunWriter(run.path, resume_step=5)
    for step, logps in ((0, (-1.0, -1.0, -1.0)), (5, (-1.1, -1.1, -3.0))):
        writer.write("tokens", [
            {"step": step, "split": "eval", "role": "policy", "pair_id": f"pair{i:03d}", "side": "chosen",
             "position": k, "token_id": k, "logp": v}
            for i in range(6) for k, v in enumerate(logps)
        ])  # fmt: skip
    found = finding(load_run(run.path), "DVG006")
    assert found["outcome"] == "speaks"
    assert found["evidence"]["end_token"]["change"] == pytest.approx(-2.0, abs=1e-6)
    assert found["evidence"]["end_token"]["share"] == pytest.approx(2.0 / 2.2, abs=1e-6)


def test_answers_that_run_into_the_limit(pairs, finding):
    run = pairs({0: ([-10.0] * 6, -10.0), 5: (-12.2, -12.0)})
    writer = RunWriter(run.path, resume_step=5)
    for step, long in ((0, 1), (5, 30)):
        writer.write("outputs", [
            {"step": step, "model": "policy", "prompt_id": f"q{i}", "sample": 0, "text": "x",
             "finish_reason": "length" if i < long else "stop"}
            for i in range(60)
        ])  # fmt: skip
    found = finding(load_run(run.path), "DVG006")
    assert found["outcome"] == "speaks" and found["evidence"]["answers_cut_by_length"]["shares"] == [1 / 60, 0.5]


def test_unknown(means, finding):
    assert finding(means({"loss": [0.6] * 9}), "DVG006")["outcome"] == "not_applicable"
