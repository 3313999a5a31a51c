"""Runs of a sweep with a task score and the chosen answers' cross-entropy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dpo_diag import RunWriter


def scored_run(folder: Path, score: Sequence[float], ce: float, *overrides: str) -> None:
    """A run whose score over 100 questions goes from the first to the second, the cross-entropy from 1 to `ce`."""
    writer = RunWriter(folder)
    writer.write("history", [
        {"step": step, "split": split, "name": name, "value": value, "weight": 100}
        for step, right, value_of in zip((0, 9), score, (1.0, ce), strict=True)
        for split, name, value in (("held_out", "score/acc", right), ("eval", "ce/chosen", value_of),
                                   ("eval", "rewards/accuracies", 0.5), ("eval", "loss", 0.5))
    ])  # fmt: skip
    writer.update(data={"fingerprint": "one"}, splits={"eval": {"role": "held_out"}})
    writer.finish()
    (folder / ".hydra").mkdir()
    (folder / ".hydra" / "overrides.yaml").write_text("".join(f"- {t}\n" for t in overrides))
