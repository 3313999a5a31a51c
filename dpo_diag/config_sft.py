"""The dataclass behind conf/sft: what a supervised training (trainer=sft) counts, and what it adds to its loss."""

from __future__ import annotations

from dataclasses import dataclass

LOSS_ON = ("assistant", "last", "all")


@dataclass
class SftConfig:
    """What supervised training counts.

    Attributes:
        loss_on: assistant (every turn of the assistant; of a text prompt its completion), last (the last turn alone) or
            all (the whole sequence). `trainer.args.assistant_only_loss` or `completion_only_loss` leave it to TRL.
    """

    loss_on: str = "assistant"
