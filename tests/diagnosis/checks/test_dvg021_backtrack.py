"""DVG021: steps or epochs run backwards."""

from __future__ import annotations

import numpy as np

LOSS = {"loss": np.linspace(0.69, 0.5, 10)}


def test_the_importer_says_so(means, finding):
    run = means(LOSS, source={"backtracks": [{"line": 7, "from": 30, "to": 5}], "skipped": []})
    found = finding(run, "DVG021")
    assert found["outcome"] == "speaks" and found["evidence"]["backtracks"][0]["to"] == 5


def test_the_epoch_falls_while_the_step_grows(means, finding):
    run = means(LOSS, epochs=[0.1, 0.2, 0.3, 0.4, 0.5, 0.1, 0.2, 0.3, 0.4, 0.5])
    found = finding(run, "DVG021")
    assert found["outcome"] == "speaks" and found["evidence"]["backtracks"][0]["step"] == 30


def test_rounded_epochs_are_no_backtrack(means, finding):
    run = means(LOSS, epochs=[0.01, 0.01, 0.02, 0.02, 0.03, 0.03, 0.04, 0.04, 0.05, 0.05], source={"backtracks": []})
    assert finding(run, "DVG021")["outcome"] == "silent"
