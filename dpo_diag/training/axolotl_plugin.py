"""The callback as an axolotl plugin: `plugins: [dpo_diag.training.axolotl_plugin.DiagPlugin]` in the yaml, and a block
`dpo_diag` whose keys are the callback's arguments. Only axolotl imports this."""

from __future__ import annotations

from typing import Any

from axolotl.integrations.base import BasePlugin
from pydantic import BaseModel

from dpo_diag.errors import DiagError
from dpo_diag.training.diag_callback import DiagCallback


class DiagArgs(BaseModel):  # type: ignore[misc, unused-ignore]
    """What the plugin adds to axolotl's yaml."""

    dpo_diag: dict[str, Any] | None = None


class DiagPlugin(BasePlugin):  # type: ignore[misc, unused-ignore]
    """Adds a `DiagCallback` to whatever trainer axolotl makes."""

    def get_input_args(self) -> str:
        """Where axolotl finds the keys."""
        return f"{DiagArgs.__module__}.{DiagArgs.__name__}"

    def add_callbacks_post_trainer(self, cfg: Any, trainer: Any) -> list[DiagCallback]:
        """The callback, with the tokenizer that trains.

        Raises:
            DiagError: no block `dpo_diag`, or one that does not fit: before anything trains.
        """
        given = cfg.dpo_diag
        if not given:
            expected = "dpo_diag: {pairs: probe.jsonl, out: runs/mine}"
            raise DiagError("the plugin has no settings", where="axolotl yaml", got="no dpo_diag", expected=expected)
        settings = given.to_dict() if hasattr(given, "to_dict") else dict(given)
        return [DiagCallback(**({"tokenizer": trainer.processing_class} | settings))]
