"""How far a policy lies from its reference on the data: read at both steps, said in the explanation where measured."""

from __future__ import annotations

from pathlib import Path

import pytest

from dpo_diag import Run
from dpo_diag.diagnosis import explain
from dpo_diag.diagnosis.drift import data_kl
from dpo_diag.diagnosis.short import short_lines
from dpo_diag.translated import catalogue
from tests.diagnosis.builders import build_run

STEPS = {10: ([-9.0, -8.0], [-12.0, -9.0]), 20: ([-8.0, -8.5], [-13.0, -9.5])}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Both ways of chosen at steps 10 and 20, of rejected one way at 20 alone."""
    values = {("kl_reverse/chosen", 10): 0.1, ("kl_reverse/chosen", 20): 0.25, ("kl_forward/chosen", 10): 0.15,
              ("kl_forward/chosen", 20): 0.4, ("kl_reverse/rejected", 20): 0.5}  # fmt: skip
    rows = [{"step": step, "split": "eval", "name": name, "value": value} for (name, step), value in values.items()]
    return build_run(tmp_path / "run", STEPS, history=rows)


def test_both_ends_of_both_ways(run: Run) -> None:
    assert data_kl(run, "eval", 10, 20) == {
        "chosen": {"reverse": {"from": 0.1, "to": 0.25}, "forward": {"from": 0.15, "to": 0.4}},
        "rejected": {"reverse": {"from": None, "to": 0.5}},
    }
    assert data_kl(run, "eval", "ref", 20)["chosen"]["forward"] == {"from": 0.0, "to": 0.4}
    assert data_kl(run, "eval", 10, 15) == {} and data_kl(run, None, None, None) == {}


def test_the_explanation_says_it_in_a_row_and_in_sentences(run: Run) -> None:
    document = explain(run, from_step=10)
    row = next(line.plain.split() for line in short_lines(document) if "KL" in line.plain)
    assert row == ["chosen", "KL(policy", "||", "ref)", "0.1000", "0.2500", "+0.150"]
    said = [s["text"] for part in document["narrative"] for s in part["sentences"] if "KL" in s["text"]]
    assert said == [
        "KL from the reference, chosen tokens: KL(policy || reference) 0.1000 → 0.2500, KL(reference || policy) "
        "0.1500 → 0.4000 nats per token.",
        "KL from the reference, rejected tokens: KL(policy || reference) 0.5000 nats per token.",
    ]
    assert catalogue("zh").has(said[0])


def test_a_run_that_measured_none_says_nothing_of_it(tmp_path: Path) -> None:
    document = explain(build_run(tmp_path / "run", STEPS))
    assert "kl" not in document and not any("KL" in line.plain for line in short_lines(document))
