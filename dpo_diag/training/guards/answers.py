"""What is done where a guard speaks: by code, as the configuration says."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields

from dpo_diag.config_guards import GuardsConfig
from dpo_diag.errors import DiagError, did_you_mean
from dpo_diag.text import plural
from dpo_diag.training.guards.watch import WATCHES

ACTIONS: Mapping[str, str] = {
    "warn": "an alert, and nothing else",
    "skip": "the step's update is left out: weights and optimizer state stay bit for bit, schedule and data go on",
    "scale_lr": "the learning rate of this and the next steps is multiplied (guards.lr_factor, guards.lr_steps)",
    "restore": "the step's update is left out; weights, optimizer and schedule of the last good checkpoint are back",
    "stop": "the step's update is left out, and the run ends: finished, and explained",
}
DROPS = ("skip", "restore", "stop")
"""Actions that leave out the update of a step that was judged before it."""
_TOLD = {
    "skip": "this update is left out", "restore": "the last checkpoint from before it comes back",
    "stop": "the run ends here",
}  # fmt: skip
_WHERE = "guards.actions"


@dataclass(frozen=True)
class Answers:
    """code -> action, and how far an action may go; see `config_guards.GuardsConfig`."""

    actions: Mapping[str, str] = field(default_factory=dict)
    lr_factor: float = GuardsConfig.lr_factor
    lr_steps: int = GuardsConfig.lr_steps
    max_skips: int = GuardsConfig.max_skips
    max_restores: int = GuardsConfig.max_restores
    dumps: int = GuardsConfig.dumps
    weights_mb: float = GuardsConfig.weights_mb

    @classmethod
    def of(cls, config: GuardsConfig, stop_on: Iterable[str] = ()) -> Answers:
        """Those of a configuration.

        Raises:
            DiagError: an unknown code or action, an action that this code cannot have, a number out of range.
        """
        given = config.actions or {}
        if not isinstance(given, Mapping):
            raise DiagError(
                "configuration does not fit", where=_WHERE, got=given, expected="{CODE: ACTION}", usage=True
            )
        actions = dict(given) | dict.fromkeys((*config.stop, *stop_on), "stop")
        for code, action in actions.items():
            if code not in WATCHES:
                raise DiagError(
                    "unknown guard", where=_WHERE if code in given else "guards.stop", got=code,
                    expected=f"some of {', '.join(WATCHES)}", hint=did_you_mean(code, WATCHES), usage=True,
                )  # fmt: skip
            if action not in ACTIONS:
                expected = f"one of {', '.join(WATCHES[code].actions)}"
                raise DiagError("unknown action", where=f"{_WHERE}.{code}", got=action, expected=expected, usage=True)
            if action not in WATCHES[code].actions:
                raise DiagError(
                    f"{action} is no answer to {code}", where=_WHERE, got=action,
                    expected=f"one of {', '.join(WATCHES[code].actions)}", usage=True,
                )  # fmt: skip
        if not 0 <= config.lr_factor < 1:
            raise DiagError("configuration does not fit", where="guards.lr_factor", got=config.lr_factor,
                            expected="0 or more, below 1", usage=True)  # fmt: skip
        for name in ("lr_steps", "max_skips", "max_restores"):
            if getattr(config, name) < 1:
                raise DiagError("configuration does not fit", where=f"guards.{name}", got=getattr(config, name),
                                expected="at least 1", usage=True)  # fmt: skip
        numbers = {f.name: getattr(config, f.name) for f in fields(cls) if f.name != "actions"}
        return cls(actions, **numbers)

    def to(self, code: str) -> str:
        """What is done where `code` speaks."""
        return self.actions.get(code, "warn")

    def told(self, action: str) -> str:
        """What is done, in the words of an alert."""
        if action == "scale_lr":
            return f"the learning rate is {self.lr_factor:g} of the schedule's for {plural(self.lr_steps, 'step')}"
        return _TOLD[action]

    @property
    def acts(self) -> set[str]:
        """Actions that are asked for anywhere, beyond warning."""
        return set(self.actions.values()) - {"warn"}
