"""The reliability curve of the report: both steps over the diagonal, and the bins; nothing without tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from dpo_diag import RunWriter, load_run
from dpo_diag.diagnosis import Explanation
from dpo_diag.report.section import Context, NothingToSay
from dpo_diag.report.sections.calibration import build

BIN = {"low": 0.4, "high": 0.6, "n": 8, "confidence": 0.5, "accuracy": 0.75}


def context(tmp_path: Path, calibration: Any) -> Context:
    RunWriter(tmp_path / "run").finish("finished")
    document = {"calibration": calibration, "step_word": "step", "from_step": 0, "to_step": 9}
    return Context(load_run(tmp_path / "run"), Explanation(document, None, pd.DataFrame()), {})


def test_a_curve_is_drawn_over_the_diagonal(tmp_path: Path) -> None:
    found = {"side": "response", "n_tokens": 8, "ece": 0.25, "curve": [BIN]}
    shown = build(context(tmp_path, {"from": {"not_applicable": "none"}, "to": found}))
    assert shown["caption"] == "ECE 0.2500 over 8 tokens of response."
    assert "calibrated" in str(shown["plot"]) and "step 9" in str(shown["plot"]) and "step 0" not in str(shown["plot"])
    assert [cell.text for cell in shown["bins"].rows[0]] == ["0.4000", "0.6000", "8", "50 %", "75 %"]


def test_without_tokens_there_is_none(tmp_path: Path) -> None:
    with pytest.raises(NothingToSay, match="not recorded"):
        build(context(tmp_path, {"to": {"not_applicable": "the first choice is not recorded"}}))
