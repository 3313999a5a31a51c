"""A training ends where its evaluations bring nothing better: patience counted in evaluations, beyond their noise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from dpo_diag.checkpoint_choice import Curve, curve_of, without_gain
from dpo_diag.config_keep import KeepConfig
from dpo_diag.errors import DiagError
from dpo_diag.models.processes import everyones
from dpo_diag.records import load_run
from dpo_diag.records.run_info import EARLY_STOP
from dpo_diag.text import number, plural
from dpo_diag.training.guards.watch import Said


class EarlyStopping(TrainerCallback):
    """Reads the run's own records after each evaluation. Add it behind what writes them: the fixed prompts' callback.

    Args:
        trainer: a trainer that records (`run.Recording`).
        config: the metric and the patience.
    """

    def __init__(self, trainer: Any, config: KeepConfig) -> None:
        self.trainer, self.config = trainer, config
        self._stopped = False

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """End the run where so many evaluations brought no gain; all processes decide by what the main one reads."""
        writer, patience = self.trainer.run_writer, self.config.patience
        if writer is None or patience is None or not self.trainer.is_in_train or self._stopped:
            return
        self.trainer.accelerator.wait_for_everyone()  # each has written its pairs
        found = everyones(self._since(Path(writer.path)) if state.is_world_process_zero else None)[0]
        if found is None or found[1] < patience:
            return
        self._stopped = control.should_training_stop = True
        best, n, name, value = found
        guards = self.trainer.monitor.guards
        guards.stopped = guards.speak(EARLY_STOP, Said(
            f"{name} gained nothing beyond its noise in {plural(n, 'evaluation')} since step {best} ({number(value)}): "
            f"the run ends at step {state.global_step}",
            {"metric": name, "best_step": best, "value": value, "evaluations": n, "patience": patience},
        ), state.global_step, "warn")  # fmt: skip

    def _since(self, folder: Path) -> tuple[int, int, str, float] | None:
        try:
            curve: Curve = curve_of(load_run(folder), self.config.metric)
        except DiagError:
            return None  # of the set that was evaluated first there may be nothing yet
        best, n = without_gain(curve, self.trainer.monitor.guards.limits["keep.band"])
        return best, n, curve.name, float(curve.values[curve.steps.index(best)])
