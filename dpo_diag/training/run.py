"""What both trainers share: opening the run, closing it, and the places where a log call becomes records."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Collection, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate.logging import get_logger

from dpo_diag.command_lines import say_next
from dpo_diag.errors import DiagError
from dpo_diag.models.borrowed import untouched_random_state
from dpo_diag.next_steps import after_import, after_stopped_script
from dpo_diag.records import RunWriter
from dpo_diag.records.metric_table import TRAINERS_OWN
from dpo_diag.records.run_info import Status, ended_by
from dpo_diag.records.schemas import EVAL_SPLIT
from dpo_diag.records.splits import Role
from dpo_diag.stopping import StepEnd, sigterm_is_late, undisturbed
from dpo_diag.text import takes_styles
from dpo_diag.training.batch import Batch
from dpo_diag.training.callbacks import BoundCallback, RunCallback
from dpo_diag.training.carrying import Attach, CarryingCollator, mark_padding, remainder_of
from dpo_diag.training.checkpoint_folders import checkpoints_in
from dpo_diag.training.describe import describe_trainer
from dpo_diag.training.first_look import first_look
from dpo_diag.training.guarded import Guarded
from dpo_diag.training.half_batches import evaluated
from dpo_diag.training.measure import ROUNDING
from dpo_diag.training.monitor import Monitor
from dpo_diag.training.recorder import Recorder
from dpo_diag.training.roles import EvalRoles
from dpo_diag.training.saving import Saving
from dpo_diag.training.window import load_window

logger = get_logger(__name__)

Recorded = RunWriter | str | os.PathLike[str] | None
"""Where a trainer records: a writer, or the path of a run folder; None for nowhere."""


class Recording(Guarded, Saving):
    """Mixin in front of a TRL trainer; expects `self.monitor` before `start_recording`.

    Attributes:
        carried: columns of ours that ride from the data set to the batch, and `attach`, which lays them there.
        tell, show: take one line about what is wrong with the data, and one of the sample that shows what is trained;
            the job lets its own console print them.
        said: reasons (`data.trained_tokens.HINTS`) that somebody has told already, of all rows.
        step_end: says that the training is to end with its step, behind a checkpoint.
    """

    monitor: Monitor
    carried: tuple[str, ...]
    attach: Attach
    says_next: bool = True
    tell: Callable[[str], None] = staticmethod(logger.warning)
    show: Callable[[str], None] = staticmethod(logger.info)
    said: Collection[str] = ()
    step_end: StepEnd | None = None
    _looked = False
    has_half_batches = False

    # ---- from the data set to the measurement ----

    def _set_signature_columns_if_needed(self: Any) -> None:
        super()._set_signature_columns_if_needed()  # type: ignore[misc]
        missing = [name for name in self.carried if name not in self._signature_columns]
        self._signature_columns = [*self._signature_columns, *missing]

    def _get_dataloader(self: Any, *args: Any, **kwargs: Any) -> Any:
        own = self.data_collator
        self.data_collator = CarryingCollator(own, self.carried, self.attach)
        try:
            return super()._get_dataloader(*args, **kwargs)  # type: ignore[misc]
        finally:
            self.data_collator = own

    def get_batch_samples(self: Any, *args: Any, **kwargs: Any) -> Any:
        """As transformers', with the examples marked that only fill the epoch's last batch."""
        state = self.accelerator.gradient_state
        before = state.active_dataloader
        samples, items = super().get_batch_samples(*args, **kwargs)  # type: ignore[misc]
        loader = before if state.active_dataloader is None else state.active_dataloader  # a stream's has no truth value
        if samples and self.accelerator.num_processes > 1 and loader.end_of_dataloader and remainder_of(loader) > 0:
            entry = samples[-1].get(self.carried[0])
            if torch.is_tensor(entry):
                mark_padding(entry, self.accelerator.process_index * len(entry), remainder_of(loader))
        self._samples = samples, items
        return samples, items

    @property
    def measures(self: Any) -> bool:
        """Whether a training or evaluation loop runs; a loss that is computed outside of both belongs to no step."""
        return bool(self.monitor.evaluating or self.is_in_train)

    def observe(self: Any, batch: Batch | None) -> None:
        """Take what one loss computation did; None where TRL's fused forward was not used."""
        if batch is None:
            self.monitor.warn_once("no output", "TRL's fused forward was not used: nothing is measured")
        else:
            self.monitor.observe(batch, self.state.global_step + (0 if self.monitor.evaluating else 1))

    # ---- the run folder ----

    def start_recording(
        self: Any, recorder: Recorded, at_start: bool | None, facts: Mapping[str, Any] | None,
        eval_roles: Mapping[str, Role] | None,
    ) -> None:  # fmt: skip
        """Take the recorder and add the callbacks; called at the end of `__init__`."""
        self._facts = dict(facts or {})
        self.monitor.roles = EvalRoles(eval_roles, lambda: self.train_dataset)
        self._recorder_path = None if recorder is None or isinstance(recorder, RunWriter) else Path(recorder)
        self.run_writer: RunWriter | None = None
        self._evaluation_is_ours = False
        own = self.eval_dataset
        if own is not None:
            names = {f"{EVAL_SPLIT}_{name}" for name in own} if isinstance(own, dict) else {EVAL_SPLIT}
            self.monitor.own_splits = names
        wanted = (recorder is not None and self.args.eval_strategy != "no") if at_start is None else at_start
        self.evaluates_at_start = bool(wanted and own is not None and not self.args.eval_on_start)
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, BoundCallback):
                callback.bind(self)
        self.callback_handler.add_callback(RunCallback(self))
        if isinstance(recorder, RunWriter):
            # Scripts open the writer before they know their rank: every process writes its own files.
            recorder.rank = self.accelerator.process_index
            self._attach(recorder)

    def add_callback(self: Any, callback: Any) -> None:
        """As the trainer's own; one that needs its trainer gets it."""
        super().add_callback(callback)  # type: ignore[misc]
        for known in self.callback_handler.callbacks:
            if isinstance(known, BoundCallback):
                known.bind(self)

    def _open(self: Any, resume_step: int | None) -> None:
        """Open the folder that was named, rank 0 first (it removes what a killed run wrote beyond the checkpoint)."""
        if self._recorder_path is None or self.run_writer is not None:
            return
        rank = self.accelerator.process_index
        for turn in (rank == 0, rank != 0):
            if turn:
                writer = RunWriter(self._recorder_path, rank=rank, resume_step=resume_step)
            self.accelerator.wait_for_everyone()
        self._attach(writer)

    def _attach(self: Any, writer: RunWriter) -> None:
        self.run_writer = writer
        self.monitor.recorder = Recorder(writer)
        self.monitor.fingerprints |= {name: split.fingerprint for name, split in writer.info.splits.items()}
        writer.update(**self.describe())
        writer.update(**self._facts)
        self.monitor.describe_training_ids()

    def describe(self: Any) -> dict[str, Any]:
        """Fields of run.json that this trainer knows."""
        return describe_trainer(self)

    def begin_run(self: Any) -> None:
        """At the start of every training loop; the first says what is wrong with the tokens that it trains on."""
        window, state = None, self.state
        if self._resumed is not None and state.global_step == self._resumed.step:
            accelerator = self.accelerator
            window = load_window(self._resumed.folder, accelerator.process_index, accelerator.num_processes)
            self._total_train_tokens = window.tokens_seen or self._total_train_tokens
            self.monitor.guards.recall(window.guards)
            if (own := window.theirs) is not None:
                self._metrics["train"].update({name: [*values] for name, values in own.means.items()})
                self._tr_loss += own.loss
                self._losses_before, self._globalstep_last_logged = own.losses, own.logged_at
        self.monitor.begin(state.global_step, window)
        if self._looked or not self.is_world_process_zero():
            return
        self._looked = True
        with untouched_random_state():  # a data set may draw when it is read
            look = first_look(self)
        if look is None:
            return
        for finding in look.findings:
            if finding.why not in self.said:
                self.tell(f"training tokens: {finding.line()}")
        for line in look.lines(underline=takes_styles(sys.stderr)):
            self.show(line)
        if self.run_writer is not None:
            look.add_to_report(self.run_writer.path)

    @property
    def is_told_to_end(self: Any) -> bool:
        """Whether any process was told to end with the step; every one must ask."""
        asked = self.step_end is not None and self.step_end.asked
        if self.step_end is None or self.accelerator.num_processes == 1:
            return asked
        return bool(self.accelerator.reduce(torch.tensor(float(asked), device=self.accelerator.device), "sum") > 0)

    # ---- the trainer's own methods ----

    def train(self: Any, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        """As TRL's; opens the run, and closes it as finished, interrupted or failed."""
        self._resumed = self._checkpoint_of(resume_from_checkpoint)
        self._losses_before = None
        resume_from_checkpoint = None if self._resumed is None else self._resumed.folder
        self.refuse_actions()
        self._begin_saving()
        step = self._resume_step()
        self._set_aside_after(step)
        self._open(step)
        # TRL's own switch puts the evaluation where it belongs: after every callback has begun, before the first step.
        added = self._evaluation_is_ours = self.evaluates_at_start and not resume_from_checkpoint
        if added:
            self.args.eval_on_start = True
        try:
            output = super().train(resume_from_checkpoint, *args, **kwargs)  # type: ignore[misc]
        except BaseException as error:
            self._close_after(error)
            if isinstance(error, KeyboardInterrupt) and self._says_next_here():
                # A note is printed behind the traceback, and by nobody who catches it.
                known = [os.fspath(path) for path in checkpoints_in(self.args.output_dir).values()]
                for line in after_stopped_script(self.run_writer.path, known[-1] if known else None):
                    error.add_note(f"next: {line}")
            raise
        finally:
            if added:
                self.args.eval_on_start = False
        self._close("finished")
        if self._says_next_here():
            say_next(after_import(self.run_writer.path), sys.stderr)
        return output

    def _says_next_here(self: Any) -> bool:
        return bool(self.says_next and self.run_writer is not None and self.args.process_index == 0)

    def _resume_step(self: Any) -> int | None:
        """The step of the checkpoint that is resumed; None for a fresh start, or where nothing is recorded.

        Raises:
            DiagError: the writer that was handed in resumes at another step.
        """
        writer: RunWriter | None = self.run_writer
        if self._resumed is None or (self._recorder_path is None and writer is None):
            return None
        folder, step = self._resumed.folder, self._resumed.step
        if writer is not None and writer.resume_step != step:
            raise DiagError(
                f"the recorder resumes at step {writer.resume_step}", where=writer.path,
                expected=f"step {step} of {folder}",
                hint=f"RunWriter(path, resume_step={step}), or hand the trainer the path alone",
            )  # fmt: skip
        return int(step)

    def _evaluate(self: Any, trial: Any, ignore_keys_for_eval: Any, skip_scheduler: bool = False) -> Any:
        # Before the first step, and not asked for by the user: it must not move any random state.
        silent = skip_scheduler and self._evaluation_is_ours
        with untouched_random_state() if silent else nullcontext():
            return super()._evaluate(trial, ignore_keys_for_eval, skip_scheduler)  # type: ignore[misc]

    def _close(self: Any, status: Status, error: str | None = None) -> None:
        self.monitor.guards.end()
        self.monitor.flush()
        if self._alerts is not None:
            self._alerts.close()
        if self.run_writer is not None:
            self.run_writer.finish(status, error, self.stopped_by)

    def _close_after(self: Any, error: BaseException) -> None:
        """As far as that can be done still: what ended the run may be a full disk."""

        sigterm_is_late()
        status, why = ended_by(error)  # first: it gives back the memory that was kept for this

        def finished() -> None:
            if self.run_writer is not None:
                self.run_writer.finish(status, why)

        closing = [
            self.monitor.guards.end,
            self.monitor.flush,
            *([self._alerts.close] if self._alerts else []),
            finished,
        ]
        with undisturbed():
            for step in closing:
                try:
                    step()
                except Exception as again:
                    logger.warning(f"at the run's end: {type(again).__name__}: {again}")

    def evaluate(self: Any, eval_dataset: Any = None, *args: Any, **kwargs: Any) -> Any:
        """As TRL's; a set that is handed in gets a split of its own in the records."""
        self._open(None)
        own = self.eval_dataset.values() if isinstance(self.eval_dataset, dict) else [self.eval_dataset]
        foreign = eval_dataset is not None and not isinstance(eval_dataset, str)
        foreign = foreign and eval_dataset is not self.eval_dataset and not any(eval_dataset is d for d in own)
        several = isinstance(self.eval_dataset if eval_dataset is None else eval_dataset, dict)
        with self.monitor.foreign(foreign):
            # super() knows its class only here.
            ask = super().evaluate  # type: ignore[misc]
            return evaluated(self, lambda: ask(eval_dataset, *args, **kwargs), several=several)

    def evaluation_loop(
        self: Any,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> Any:
        """As TRL's, with the set's exact metrics behind its prefix, in the place of TRL's means where both have one."""
        monitor = self.monitor
        with monitor.evaluation():
            output = super().evaluation_loop(  # type: ignore[misc]
                dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
            )
            theirs = _means(self._metrics["eval"])
            if (loss := f"{metric_key_prefix}_loss") in output.metrics:
                theirs["loss"] = output.metrics[loss]
            values = monitor.close_evaluation(
                metric_key_prefix, self.state.global_step, theirs, record=description != "Prediction"
            )
        _replace(self._metrics["eval"], values)
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in values.items()})
        return output

    def log(self: Any, logs: dict[str, float], start_time: float | None = None) -> None:
        """As TRL's, with training's exact metrics in the place of TRL's means; what was logged is recorded.

        A call that is about neither training nor an evaluation does not take away TRL's means of the running window.
        """
        scope, waiting = self.monitor.scope(logs), self._metrics
        if scope == "":
            own = {"loss": logs["loss"]} if "loss" in logs else {}
            values = self.monitor.close_train(_means(waiting["train"]) | own)
            _replace(waiting["train"], values)
            logs.update({name: value for name, value in values.items() if name != "loss" or own})
            self._whole_loss(logs)
        elif scope is None:
            self._metrics = {mode: type(lists)(list) for mode, lists in waiting.items()}
        try:
            super().log(logs, start_time)
        finally:
            self._metrics = waiting
        self.monitor.record_log(logs, scope, self.state.global_step, self.state.epoch)

    def _whole_loss(self: Any, logs: dict[str, float]) -> None:
        """The summary's `train_loss`: transformers' is a mean of step means, and forgets the steps before a resume."""
        mean = self.monitor.mean_loss
        if "train_loss" in logs and math.isfinite(mean):
            state, theirs = self.state, logs["train_loss"]
            if self._losses_before is not None:
                # The divisor of transformers before it knew its own first step is the whole training's.
                here = theirs * max(state.global_step - getattr(self, "_initial_global_step", 0), 0.001)
                theirs = (self._losses_before + here) / state.global_step
            logs["train_loss"] = mean
            if abs(theirs - mean) > ROUNDING * max(1.0, abs(mean)):
                logs[f"{TRAINERS_OWN}train_loss"] = theirs


def _means(lists: Mapping[str, list[float]]) -> dict[str, float]:
    """TRL's means of what it collected since its last log call: each batch weighs the same."""
    return {name: sum(values) / len(values) for name, values in lists.items() if values}


def _replace(lists: dict[str, list[float]], values: Mapping[str, float]) -> None:
    """Let TRL log our value of each metric that it collected."""
    lists.update({name: [values[name]] for name in lists.keys() & values.keys()})
