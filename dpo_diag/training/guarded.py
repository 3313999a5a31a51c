"""What a trainer does when a live guard speaks: leave the update out, scale the learning rate, take a checkpoint back.

A step is judged between its gradient (accumulated, unscaled, clipped) and its update, by the batches of all processes,
so that all of them do the same. Leaving it out means that no parameter has a gradient: torch's optimizers pass over
such parameters, with momentum, weight decay and step count; a gradient scaler and the schedule go on as they would.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from accelerate.logging import get_logger

from dpo_diag.config_guards import GuardsConfig
from dpo_diag.errors import DiagError
from dpo_diag.models.processes import everyones, together
from dpo_diag.records import RunWriter
from dpo_diag.records.kept_steps import kept_place
from dpo_diag.records.run_info import GAVE_UP, RESTORED, StoppedBy
from dpo_diag.text import plural
from dpo_diag.tracking import LiveAlerts
from dpo_diag.training.batch_dump import dump_batch
from dpo_diag.training.checkpoint_folders import Resumed, choose_checkpoint, set_aside_after
from dpo_diag.training.guards import Guards
from dpo_diag.training.guards.answers import DROPS, Answers
from dpo_diag.training.guards.guards import Raised
from dpo_diag.training.guards.watch import Said
from dpo_diag.training.memory_use import memory_use
from dpo_diag.training.monitor import Monitor
from dpo_diag.training.progress import evaluation_prefix
from dpo_diag.training.window import load_window

logger = get_logger(__name__)

_IN_BACKWARD = (
    "lomo", "adalomo", "galore_adamw_layerwise", "galore_adamw_8bit_layerwise", "galore_adafactor_layerwise",
)  # fmt: skip
"""Optimizers that update weights while the gradient is computed: no step can be left out."""


class Guarded:
    """Mixin in front of a TRL trainer, a part of `run.Recording`.

    Attributes:
        also_alert: takes the step, the code and the message of each alert of the live guards; None: the webhook of the
            environment, and the trackers' runs that are open in this process (`tracking.live_alerts`).
        clock: when the last update came, in seconds; None where something else than training was done since.
    """

    monitor: Monitor
    also_alert: Callable[[int, str, str], None] | None = None
    _alerts: LiveAlerts | None = None
    _grad_norm: float | None = None
    _rates: list[Any] | None = None
    _applied_rate: float | None = None
    clock: float | None = None
    _samples: tuple[Sequence[Mapping[str, Any]], Any] | None = None
    _to_restore: Raised | None = None
    _resumed: Resumed | None

    # ---- guards and their alerts ----

    def make_guards(self: Any, stop_on: Iterable[str], thresholds: Mapping[str, Any] | None) -> Guards:
        """Guards that write alerts into this trainer's run and warn on the console."""

        def alert(code: str, message: str, evidence: Mapping[str, Any]) -> None:
            logger.warning(f"{code}: {message}")
            step = int(evidence.get("step", self.state.global_step))
            if self.monitor.recorder is not None:
                self.monitor.recorder.alert(step, code, message, evidence)
            if self.also_alert is not None:
                self.also_alert(step, code, message)
            elif self.is_world_process_zero():
                self._live_alerts()(step, code, message)

        guards = Guards(alert, stop_on=stop_on, thresholds=thresholds)
        guards.main, guards.dump = self.is_world_process_zero(), self._dump
        return guards

    def _dump(self: Any, step: int, codes: Sequence[str], loss: float | None) -> str | None:
        """Keep the batch of the step, and its weights where they are small; where it is, as `replay=` takes it. Every
        process calls it. A disk that takes no more is no reason to end a training."""
        guards, writer = self.monitor.guards, self.run_writer
        if writer is None or self._samples is None or guards.dumps >= guards.answers.dumps:
            return None
        guards.dumps += 1
        samples, items = self._samples
        model = self.accelerator.unwrap_model(self.model)
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        small = sum(p.numel() * p.element_size() for p in trained.values()) <= guards.answers.weights_mb * 1e6
        own = small and self.is_world_process_zero() and not (self.is_fsdp_enabled or self.is_deepspeed_enabled)
        facts = {
            "step": step, "codes": [*codes], "loss": str(loss), "processes": self.accelerator.num_processes,
            "num_items": None if items is None else int(items), "coefficients": {**getattr(self, "_moved", {})},
            "beta_factor": self.monitor.window.beta_factor,
        }  # fmt: skip
        folder = Path(writer.path) / kept_place(step)
        try:
            dump_batch(
                folder, samples, rank=self.accelerator.process_index,
                facts=facts if self.is_world_process_zero() else None, weights=trained if own else None,
            )  # fmt: skip
        except OSError as error:
            logger.warning(f"the batch of step {step} is not kept: {error}")
            return None
        return str(folder)

    def answer_guards(self: Any, config: GuardsConfig) -> None:
        """What is done where a guard speaks, in the place of what `stop_on` said."""
        self.monitor.guards.answers = Answers.of(config)

    def _live_alerts(self: Any) -> LiveAlerts:
        """Where alerts go beside the records, unless the job says another place."""
        alerts: LiveAlerts | None = self._alerts
        if alerts is None:
            writer: RunWriter | None = self.run_writer
            alerts = self._alerts = LiveAlerts(self.args.output_dir if writer is None else writer.path)
        return alerts

    @property
    def should_stop(self: Any) -> bool:
        """Whether a guard that may end the run has spoken."""
        return bool(self.monitor.guards.should_stop)

    @property
    def stopped_by(self: Any) -> StoppedBy | None:
        """What ended the run before its last step, as its record says it; None: nothing."""
        raised = self.monitor.guards.stopped
        return None if raised is None else StoppedBy(raised.code, raised.step, self.state.max_steps)

    def refuse_actions(self: Any) -> None:
        """Before the first step: whether what the guards are answered with can be done here.

        Raises:
            DiagError: it cannot.
        """
        acts = self.monitor.guards.answers.acts - {"stop"}
        if not acts:
            return
        why, optim = None, str(getattr(self.args.optim, "value", self.args.optim))
        if self.is_deepspeed_enabled:
            why = "DeepSpeed keeps gradients, optimizer and its state to itself"
        elif self.is_fsdp_enabled:
            why = "the model is sharded over processes (FSDP)"
        elif optim in _IN_BACKWARD:
            why = f"{optim} updates weights while the gradient is computed"
        elif optim.startswith("schedule_free"):
            why = f"{optim} moves its averages without a gradient too"
        if why is not None:
            raise DiagError(
                f"guards cannot {' or '.join(sorted(acts))} here: {why}", where="guards.actions",
                expected="warn or stop", usage=True,
            )  # fmt: skip
        if "restore" in acts and (self.args.load_best_model_at_end or getattr(self.args, "sync_ref_model", False)):
            best = self.args.load_best_model_at_end
            raise DiagError(
                "guards cannot restore here: "
                + ("the best checkpoint may be one that is left behind" if best else "the reference moves on its own"),
                where="guards.actions", got="load_best_model_at_end" if best else "sync_ref_model",
                hint="keep.patience ends a training in time, and dpo-diag keep names the best" if best else None,
                expected="warn, skip, scale_lr or stop", usage=True,
            )  # fmt: skip
        if "restore" in acts and (not self.saves_anything or self.args.save_only_model):
            raise DiagError(
                "restore needs checkpoints to go back to", where="guards.actions",
                got="a training that saves no optimizer" if self.args.save_only_model else "a training that saves none",
                hint="trainer.save_steps=N", usage=True,
            )  # fmt: skip

    # ---- one step ----

    def _get_grad_norm(self: Any, model: Any, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm)  # type: ignore[misc]
        self._grad_norm = None if norm is None else float(norm)
        return norm

    def before_update(self: Any) -> None:
        """Between a step's gradient and its update; all processes call it."""
        guards, answers = self.monitor.guards, self.monitor.guards.answers
        step, scaler = self.state.global_step + 1, getattr(self.accelerator, "scaler", None)
        now, before, self.clock = time.perf_counter(), self.clock, time.perf_counter()
        samples = self._samples[0] if self._samples is not None else ()
        raised = guards.close(
            step, everyones, grad_norm=self._grad_norm, overflows=scaler is not None,
            seconds=None if before is None else now - before,
            positions=sum(s["input_ids"].numel() for s in samples if torch.is_tensor(s.get("input_ids"))),
            memory=memory_use(self.args.device),
        )  # fmt: skip
        self._grad_norm = None
        asked = {one.action: one for one in reversed(raised)}
        if asked.keys() & set(DROPS):
            drop_gradients(self.optimizer)
            guards.skips += 1
            if guards.skips >= answers.max_skips and not guards.should_stop:
                line = f"{plural(guards.skips, 'step')} in a row were left out, up to step {step}: the run ends"
                guards.speak(GAVE_UP, Said(line, {"skips": guards.skips}), step, "stop")
        else:
            guards.skips = 0
        self._to_restore = asked.get("restore")
        if "scale_lr" in asked:
            guards.rate_steps = answers.lr_steps
        if guards.rate_steps > 0:
            guards.rate_steps -= 1
            self._rates = scale_rates(self.optimizer, answers.lr_factor)

    def after_update(self: Any) -> None:
        """Behind a step's update, before the schedule moves on: the rates are the schedule's again."""
        self._applied_rate = None
        if self._rates is not None:
            self._applied_rate = float(self.optimizer.param_groups[0]["lr"])
            put_rates(self.optimizer, self._rates)
            self._rates = None

    def after_step(self: Any) -> None:
        """At the end of a step, and at the next one's beginning: a checkpoint that was asked for is taken back."""
        raised, self._to_restore = self._to_restore, None
        if raised is not None:
            self._restore(raised)

    def after_evaluation(self: Any, metrics: Mapping[str, Any]) -> None:
        """Behind an evaluation while training; all processes call it. What is to be restored is at the next step's
        beginning: another set may be evaluated yet, and the checkpoint of this step is one to leave behind."""
        self.clock = None
        prefix = evaluation_prefix(dict(metrics))
        if prefix is None or not self.is_in_train:
            return
        guards = self.monitor.guards
        values = {
            k.removeprefix(prefix): float(v) for k, v in metrics.items()
            if k.startswith(prefix) and isinstance(v, (int, float))
        }  # fmt: skip
        spec, began = self.monitor.spec, self.monitor.began_with
        if "rewards/margins" in values and spec is not None and began is not None:
            values["rewards/margins"] *= began.beta / spec.beta  # a schedule's beta is no gain
        for raised in guards.evaluated(prefix.rstrip("_"), values, self.state.global_step):
            if raised.action == "restore":
                self._to_restore = raised
            if raised.action == "scale_lr":
                guards.rate_steps = guards.answers.lr_steps

    def _restore(self: Any, raised: Raised) -> None:
        """Weights, optimizer, schedule, gradient scaler and running beta of the last whole checkpoint from before the
        step; data and step count go on."""
        guards = self.monitor.guards
        if guards.restores >= guards.answers.max_restores:
            line = (
                f"{raised.code} again in step {raised.step}, after {plural(guards.restores, 'restore')}: the run ends"
            )
            guards.speak(GAVE_UP, Said(line, {"restores": guards.restores}), raised.step, "stop")
            return
        guards.restores += 1
        parent = Path(self.args.output_dir)

        def look() -> Resumed | None:
            with suppress(DiagError):
                return choose_checkpoint(parent, before=raised.step)
            return None

        found = together(lambda: look() if self.is_world_process_zero() else None)[0]
        if found is None:
            done = "its update is left out, and " if guards.skips else ""  # an evaluation speaks behind it
            line = f"no whole checkpoint from before step {raised.step}: {done}nothing is restored"
            guards.speak(RESTORED, Said(line, {"because": raised.code}), raised.step, "warn")
            return
        resumed, self._resumed = self._resumed, None  # of which an optimizer that began anew is another matter
        try:
            self._load_from_checkpoint(found.folder)
            self._load_optimizer_and_scheduler(found.folder)
            if getattr(self.accelerator, "scaler", None) is not None:
                self._load_scaler(found.folder)
        finally:
            self._resumed = resumed
        there = load_window(found.folder, self.accelerator.process_index, self.accelerator.num_processes)
        self.monitor.window.beta_factor = there.beta_factor
        aside = set_aside_after(parent, found.step) if self.args.should_save else []
        line = (
            f"weights, optimizer and schedule of step {found.step} are back after step {raised.step} ({raised.code}), "
            f"restore {guards.restores} of {guards.answers.max_restores}"
        )
        evidence = {"because": raised.code, "from_step": found.step, "folder": found.folder, "set_aside": aside}
        guards.speak(RESTORED, Said(line, evidence), raised.step, "warn")

    def log(self: Any, logs: dict[str, float], start_time: float | None = None) -> None:
        """As transformers', with the learning rate that was applied where it was scaled."""
        if "learning_rate" in logs and self._applied_rate is not None:
            logs["learning_rate"] = self._applied_rate
        super().log(logs, start_time)  # type: ignore[misc]


def drop_gradients(optimizer: Any) -> None:
    """No parameter has a gradient: the next `step()` leaves weights and state as they are."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = None


def scale_rates(optimizer: Any, factor: float) -> list[Any]:
    """Multiply each group's learning rate; returns what they were."""
    rates = [group["lr"] for group in optimizer.param_groups]
    put_rates(optimizer, [rate * factor for rate in rates])
    return rates


def put_rates(optimizer: Any, rates: list[Any]) -> None:
    """Give each group its learning rate."""
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
