"""One small finished run with what trackers show, and the example run with a verdict."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from dpo_diag import RunWriter

FINDINGS = {
    "from_step": 0, "to_step": 10, "n_pairs": 4,
    "loss": {"from": 0.693, "to": 0.5, "delta": -0.193, "chosen_part": 0.1, "rejected_part": -0.293},
    "perplexity": {"chosen": {"ppl_token": {"from": 2.0, "to": 3.0, "dlog": 0.405}}},
    "quadrants": {"both_fell": 0.75},
    "pairs": [{"pair_id": "p1", "share_of_rise": 0.6, "chosen_text": "2", "other": {"not": "shown"}}],
    "checks": [
        {"code": "DVG002", "title": "Dead run", "outcome": "silent", "reason": "", "severity": "error"},
        {"code": "DVG001", "title": "Displacement", "outcome": "speaks", "reason": "75 % fell", "severity": "warning"},
    ],
    "verdict": {"label": "displaced", "harm": "harmful", "headline": "Both fell", "text": "Accuracy fell \u202e too."},
}  # fmt: skip
"""What explain writes, in small."""


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """Steps 0 and 10 of two splits, answers at both, one NaN, a secret in the config, a verdict and a page."""
    folder = tmp_path / "runs" / "case" / "0"
    writer = RunWriter(folder)
    writer.write(
        "history",
        [
            {"step": 0, "split": "eval", "name": "loss", "value": 0.693, "weight": 4},
            {"step": 10, "split": "eval", "name": "loss", "value": 0.5, "weight": 4},
            {"step": 10, "split": "train", "name": "loss", "value": math.nan, "weight": 8, "epoch": 0.5},
            {"step": 10, "split": "held_out", "name": "score/accuracy", "value": 0.25, "weight": 4},
        ],
        "eval",
    )
    rows = [
        {"step": s, "model": "policy", "prompt_id": "q", "sample": 0, "prompt": "1+1?", "text": t}
        for s, t in ((0, "2"), (10, "3"))
    ]
    writer.write("outputs", rows, "outputs")
    writer.write(
        "texts", [{"split": "eval", "pair_id": "p1", "prompt": "1+1?", "chosen": "2", "rejected": "3"}], "eval"
    )
    writer.update(loss={"types": ["sigmoid"], "beta": 0.1}, data={"hub_token": "hf_secret"})
    writer.finish()
    (folder / ".hydra").mkdir()
    (folder / ".hydra" / "config.yaml").write_text("trainer:\n  learning_rate: 1.0e-05\nhub_token: hf_secret\n")
    (folder / "findings.json").write_text(json.dumps(FINDINGS), encoding="utf-8")
    (folder / "report.html").write_text("<h1>The report</h1>", encoding="utf-8")
    return folder
