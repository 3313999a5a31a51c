"""A loader for a worker that is given one task after the other: the model stays until another is asked for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dpo_diag.models.checkpoints import REFERENCE, Checkpoint, Loader
from dpo_diag.models.packed.verify import Proofs

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
    proofs: Proofs = field(default_factory=Proofs)
    """How shared prompts may be computed by the models that were loaded."""
    _stack: ExitStack = field(default_factory=ExitStack)
    _value: Any = None

    def tokenizer_of(self, checkpoint: Checkpoint) -> PreTrainedTokenizerBase:
        """As `Loader`'s; the reference's is the policy's."""
        return super().tokenizer_of(self.policy if checkpoint.model == REFERENCE and self.policy else checkpoint)

    @contextmanager
    def open(
        self, checkpoint: Checkpoint, *, keep: bool = True
    ) -> Iterator[tuple[PreTrainedModel, PreTrainedTokenizerBase]]:
        """(model, tokenizer); on leaving they stay, until another checkpoint is opened, and as its base even then."""
        if checkpoint != self.held:
            self._leave()
            self._value = self._stack.enter_context(super().open(checkpoint, keep=True))
            self.held = checkpoint
        yield self._value

    def _leave(self) -> None:
        self._value = self.held = None
        self._stack.close()

    def release(self) -> None:
        """Free the model."""
        self._leave()
        self.drop()
