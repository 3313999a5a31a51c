"""The dataclass behind conf/sft: what a supervised training (trainer=sft) counts, and what it adds to its loss."""

from __future__ import annotations

from dataclasses import dataclass

LOSS_ON = ("assistant", "last", "all")


@dataclass
class SftConfig:
    """What supervised training counts.

    Attributes:
        loss_on: assistant (every turn of the assistant; of a text prompt its completion), last (the last turn alone) or
            all (the whole sequence). A turn of the assistant with `weight: 0` is not trained, but by `all`.
            `trainer.args.assistant_only_loss=true` is `assistant`, `completion_only_loss` leaves it to TRL.
        label_smoothing: the target has 1 - this + this / |V|, each other token this / |V|; the loss is smoothed,
            cross-entropies and perplexities stay plain.
        confidence_penalty, z_loss, infonce: weights of what is added to the loss, 0 for nothing: minus the entropy
            (below 0 a penalty on it), the squared log of the normaliser (PaLM has 1e-4), InfoNCE of prompts against
            responses in a micro-batch.
        infonce_temperature: cosines are divided by it; 0.05 is SimCSE's.
    """

    loss_on: str = "assistant"
    label_smoothing: float = 0.0
    confidence_penalty: float = 0.0
    z_loss: float = 0.0
    infonce: float = 0.0
    infonce_temperature: float = 0.05

    @property
    def auxiliary(self) -> dict[str, float]:
        """Term -> its weight."""
        return {"confidence_penalty": self.confidence_penalty, "z_loss": self.z_loss, "infonce": self.infonce}

    @property
    def changed(self) -> list[str]:
        """Keys that add something to the loss."""
        return [name for name, value in {"label_smoothing": self.label_smoothing, **self.auxiliary}.items() if value]
