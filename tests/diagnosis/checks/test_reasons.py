"""Reasons that a reader could misread: each says what happened in this run, with the word that its number asks for."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from dpo_diag.diagnosis.checks import CheckContext, all_checks, run_checks

WRONG = (
    r"\d%",
    r"(fell|rose|improved|dropped) by -",
    r" -> ",
    r"\bat 1 steps",
    r"\b1 (pairs|rows|steps) (are|have)",
)
"""A share without its blank, a word against its sign, an arrow of ASCII, a plural of one."""


@pytest.mark.parametrize("code", [check.code for check in all_checks()])
def test_no_reason_of_an_example_has_a_wrong_word(code: str, tmp_path: Path) -> None:
    (check,) = (c for c in all_checks() if c.code == code)
    for name, example in (("bad", check.bad), ("good", check.good)):
        for found in run_checks(CheckContext.from_run(example.write(tmp_path / name))):
            for wrong in () if found["code"] in ("DVG001", "DVG002", "DVG004", "DVG005", "DVG009") else WRONG:
                assert not re.search(wrong, found["reason"]), (found["code"], found["reason"])


def test_an_overfit_that_starts_at_once_has_no_minimum_to_stop_at(pairs) -> None:
    """The held-out loss rises from step 0 on: 10 of 10 pairs lose 5 nats of margin."""
    c, r = np.full(10, -20.0), np.full(10, -22.0)
    run = pairs({0: (c, r), 5: (c - 5 - np.arange(10) / 10, r)}, ref=(c, r))
    (found,) = (f for f in run_checks(CheckContext.from_run(run)) if f["code"] == "DVG022")
    assert found["outcome"] == "speaks"
    assert found["try"] == ["lower the learning rate: the held-out loss rose from its start on"]


def test_two_tokenizers_are_named_and_two_counts_are_counted(pairs, finding) -> None:
    sums = {0: ([-10.0] * 4, -10.0), 5: ([-9.0] * 4, -12.0)}
    counted = finding(pairs(sums, columns={"n_tokens": {5: ([10, 10, 13, 13], 10)}}), "DVG015")
    assert counted["reason"].startswith("25 % of the responses have another number of tokens at another step")
