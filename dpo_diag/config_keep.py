"""The dataclass behind `keep`: which checkpoint is worth keeping, and when a training ends for want of better ones."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class KeepConfig:
    """How checkpoints are judged while training, as `dpo-diag keep` does afterwards.

    Attributes:
        metric: a metric of the records (`rewards/accuracies`, `ce/chosen`, `score/NAME`), `@SPLIT` behind it for one
            set; null: the task's score where answers are checked, else the reward accuracy, else chosen's
            cross-entropy.
        patience: evaluations in a row that may bring nothing better, beyond the noise (`checks.keep.band`), before the
            run ends; null: it never does.
    """

    metric: str | None = None
    patience: int | None = None
