"""Every threshold of the answers' groups decides something, and no other number of theirs is asked for."""

from __future__ import annotations

import re
from pathlib import Path

from dpo_diag.thresholds import load_thresholds

PACKAGE = Path(__file__).resolve().parents[2] / "dpo_diag"


def test_every_threshold_of_answers_is_used_and_every_used_one_declared() -> None:
    folders = ("outputs", "review", "gate")
    source = "\n".join(p.read_text(encoding="utf-8") for f in folders for p in (PACKAGE / f).rglob("*.py"))
    used = set(re.findall(r'\["((?:answers|gaming|phrases)\.[a-z_0-9]+)"\]', source))
    assert used == {n for n in load_thresholds() if n.split(".")[0] in ("answers", "gaming", "phrases")}
