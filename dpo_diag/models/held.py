"""A loader for a worker that is given one task after the other: the model stays until another is asked for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dpo_diag.models.checkpoints import REFERENCE, Checkpoint, Loader

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass
class HeldLoader(Loader):
    """Loads as `Loader` does.

    Args:
        policy: whose tokenizer the reference is given, as in training; None for the reference's own.
    """

    policy: Checkpoint | None = None
    held: Checkpoint | None = None
    """The checkpoint whose model is in memory."""
    _stack: ExitStack = field(default_factory=ExitStack)
    _value: Any = None

    def tokenizer_of(self, checkpoint: Checkpoint) -> PreTrainedTokenizerBase:
        """As `Loader`'s; the reference's is the policy's."""
        return super().tokenizer_of(self.policy if checkpoint.model == REFERENCE and self.policy else checkpoint)

    @contextmanager
    def open(self, checkpoint: Checkpoint, **options: Any) -> Iterator[tuple[PreTrainedModel, PreTrainedTokenizerBase]]:
        """(model, tokenizer); on leaving they stay, until another checkpoint is opened."""
        if checkpoint != self.held:
            self.release()
            self._value = self._stack.enter_context(super().open(checkpoint, **options))
            self.held = checkpoint
        yield self._value

    def release(self) -> None:
        """Free the model."""
        self._value = self.held = None
        self._stack.close()
