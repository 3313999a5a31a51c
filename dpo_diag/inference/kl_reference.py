"""The reference that a scoring's policies are compared with over the whole vocabulary."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING

from dpo_diag.errors import DiagError
from dpo_diag.models.checkpoints import Checkpoint, Loader, adapter_base

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from dpo_diag.models.kl import Reference


class Against:
    """The reference of a scoring's KL: a model that stays in memory while its context is open, or the policy without
    its adapter, where the reference is what lies under it.

    Args:
        reference: of the models that are scored.

    Raises:
        DiagError: there is none.
    """

    def __init__(self, reference: Checkpoint | None, loader: Loader) -> None:
        if reference is None:
            raise DiagError(
                "no reference to take the KL from", where="kl", expected="a reference model",
                hint="reference=MODEL names it; adapters of one base have that", usage=True,
            )  # fmt: skip
        self._reference, self._loader = reference, replace(loader, _shared=None)
        self._open = ExitStack()
        self._model: PreTrainedModel | None = None

    def __enter__(self) -> Against:
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()

    def reference(self, checkpoint: Checkpoint, policy: PreTrainedModel) -> Reference:
        """What the policy is compared with."""
        from dpo_diag.models.kl import Reference

        if checkpoint.is_adapter and adapter_base(checkpoint) == self._reference.path:
            return Reference(policy, None)
        if self._model is None:
            self._model, _ = self._open.enter_context(self._loader.open(self._reference))
        return Reference(policy, self._model)
