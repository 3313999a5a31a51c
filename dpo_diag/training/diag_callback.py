"""One callback for every trainer that takes transformers' callbacks: a probe set scored and fixed prompts answered
while the model trains, written as a normal run. It knows torch, transformers and the records, and nothing of TRL.
"""

from __future__ import annotations

import atexit
import gc
import logging
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from dpo_diag.command_lines import say_next
from dpo_diag.errors import DiagError
from dpo_diag.models.processes import place
from dpo_diag.next_steps import after_training
from dpo_diag.records import Run
from dpo_diag.records.run_info import Status, ended_by
from dpo_diag.records.schemas import EVAL_SPLIT, TRAIN_SPLIT
from dpo_diag.tracking import LiveAlerts
from dpo_diag.training.describe import describe_arguments
from dpo_diag.training.guards import Guards
from dpo_diag.training.loss_of_arguments import loss_facts
from dpo_diag.training.own_folder import continued, unused
from dpo_diag.training.probe import Pairs, Probe, Prompts
from dpo_diag.training.probe_reference import Reference
from dpo_diag.training.progress import evaluation_prefix
from dpo_diag.training.recorder import Recorder

logger = logging.getLogger(__name__)

_NOT_METRICS = ("epoch", "step")


class DiagCallback(TrainerCallback):
    """Scores a probe set and answers fixed prompts at the start, at every evaluation and at the end of a training.

        trainer = AnyTrainer(..., callbacks=[DiagCallback("probe.jsonl", prompts="prompts.jsonl", out="runs/mine")])

    Losses are bit for bit those of a training without it. Whatever fails in it while training warns once, stands among
    the run's alerts, and stops nothing. Under several processes all take part. A resumed training continues the run; a
    new one beside a run of that name gets a number behind its name.

    Args:
        pairs, prompts, reference: as for `Probe`.
        out: the run folder.
        every: measure every so many optimizer steps in place of every evaluation.
        tokenizer: for a trainer that does not hand its tokenizer to callbacks.
        loss: what is trained with, where the trainer's arguments do not tell (LossSpec or its fields).
        settings: the other arguments of `Probe`; max_length and truncation_mode are by default the trainer's, where its
            arguments have them.

    Raises:
        DiagError: pairs or prompts that cannot be read, an argument out of range: before anything trains.
    """

    def __init__(
        self,
        pairs: Pairs,
        prompts: Prompts | None = None,
        out: str | os.PathLike[str] = "runs/probe",
        *,
        every: int | None = None,
        reference: Reference = None,
        tokenizer: Any = None,
        loss: Any = None,
        **settings: Any,
    ) -> None:
        if every is not None and every < 1:
            raise DiagError("every counts optimizer steps", where="every", got=every, expected="at least 1, or None")
        self.out, self.every, self.tokenizer = Path(out), every, tokenizer
        self._given = {name for name in ("max_length", "truncation_mode", "autocast") if name in settings}
        self.probe = Probe(pairs, out=out, prompts=prompts, reference=reference, loss=loss, say=self._say, **settings)
        self._recorder: Recorder | None = None
        self._guards = Guards(self._alert)
        self._alerts: LiveAlerts | None = None
        self._active = False
        self._failed = False
        self._step = 0

    # ---- what the trainer calls ----

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Opens the run; measures where nothing is recorded yet."""
        self._step = int(state.global_step)
        self._try("open the run", lambda: self._begin(args, state, kwargs))
        if self._active and (self._step == 0 or not self.probe.steps):
            self._measure(kwargs)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Every so many steps, where that was asked for; and the last one, before other weights may be loaded."""
        self._step = int(state.global_step)
        self._before_save(control)
        last = control.should_training_stop or 0 < state.max_steps <= self._step
        if last or (self.every is not None and self._step % self.every == 0):
            self._measure(kwargs)

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """At every evaluation; several sets at one step are one."""
        if self.every is None:
            self._step = int(state.global_step)
            self._measure(kwargs)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """The trainer's own log, as history."""
        if logs and self._recorder is not None:
            self._step = int(state.global_step)
            self._try("keep a log row", lambda: self._log(dict(logs), state, force=control.should_save), once=False)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Likewise before the checkpoint of an epoch."""
        self._before_save(control)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Likewise where another callback asked for the checkpoint after this one was called."""
        self._before_save(control, done=True)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The end, unless the weights of an earlier checkpoint are back in the model."""
        if not self._active:
            return
        self._step = int(state.global_step)
        if not (args.load_best_model_at_end and state.best_model_checkpoint):
            self._measure(kwargs)
        self._active = False
        self._close("finished")
        if self.probe.writer is not None:
            path = self.probe.writer.path
            self._try("name the next command", lambda: say_next(after_training(Run(path)), sys.stderr), once=False)

    # ---- what it does ----

    def _before_save(self, control: Any, done: bool = False) -> None:
        """What waits is written before a checkpoint is: a training that is killed right behind it goes on from there.
        The log of the very step follows before it, too, see `_log`."""
        if (done or control.should_save) and self._recorder is not None:
            self._try("write the log", self._recorder.flush, once=False)

    def _begin(self, args: Any, state: Any, kwargs: Mapping[str, Any]) -> None:
        again = self._active  # a second loop of the same training: a smaller batch after running out of memory
        self._recorder, self._active = None, False
        probe, step = self.probe, int(state.global_step)
        for name in ("max_length", "truncation_mode"):
            if name not in self._given and getattr(args, name, None) is not None:
                setattr(probe, name, getattr(args, name))
        if "autocast" not in self._given:
            probe.autocast = _autocast_of(args)
        if not again and place()[0] == 0:
            probe.out = unused(self.out) if step == 0 else continued(self.out, state.log_history)
            if probe.out != self.out:
                self._say(f"{self.out} holds another run: this one is {probe.out}")
        facts = {"loss": probe.loss} if probe.loss is not None else loss_facts(args)
        probe.close()
        probe.open(
            step, again=again, trainer=f"{type(args).__module__.partition('.')[0]} {type(args).__name__}",
            training=describe_arguments(args) | {"world_size": place()[1]}, seed=getattr(args, "seed", None), **facts,
        )  # fmt: skip
        self._active = True
        if probe.writer is not None:
            self._recorder = Recorder(probe.writer)
            atexit.register(self._at_exit)

    def _measure(self, kwargs: Mapping[str, Any]) -> None:
        if not self._active or self._step in self.probe.steps:
            return

        def measure() -> None:
            tokenizer = self.tokenizer or kwargs.get("processing_class") or kwargs.get("tokenizer")
            tokenizer = getattr(tokenizer, "tokenizer", tokenizer)  # a processor's
            if tokenizer is None:
                raise DiagError("the trainer hands no tokenizer to its callbacks", hint="DiagCallback(tokenizer=...)")
            self.probe.score(kwargs["model"], tokenizer, self._step)

        self._try(f"measure step {self._step}", measure)

    def _log(self, logs: dict[str, Any], state: Any, *, force: bool) -> None:
        assert self._recorder is not None
        split, values = rows_of_log(logs)
        self._recorder.history(self._step, state.epoch, split, values, {})
        loss = values.get("loss")
        if split == TRAIN_SPLIT and isinstance(loss, (int, float)):
            norm = values.get("grad_norm")
            self._guards.logged(float(loss), self._step, float(norm) if isinstance(norm, (int, float)) else None)
        self._recorder.flush(force=force or split != TRAIN_SPLIT)

    def _close(self, status: Status, error: str | None = None) -> None:
        def close() -> None:
            if self._recorder is not None:
                self._guards.end()
                self._recorder.flush()
            self.probe.finish(status, error)
            if self._alerts is not None:
                self._alerts.close()

        atexit.unregister(self._at_exit)
        self._try("close the run", close, once=False)

    def _at_exit(self) -> None:
        """A training that an error or a signal ended never calls `on_train_end`."""
        if self._active:
            error = getattr(sys, "last_exc", None) or getattr(sys, "last_value", None)
            self._close(*(("interrupted", None) if error is None else ended_by(error)))

    # ---- what it says ----

    def _try(self, what: str, work: Callable[[], object], *, once: bool = True) -> None:
        """Do it; whatever goes wrong is said once and ends nothing."""
        try:
            work()
        except Exception as error:
            line = f"could not {what}: {type(error).__name__}: {error}".splitlines()[0]
            if not self._failed and place()[0] == 0:
                logger.warning(f"DiagCallback {line} (training goes on; later failures stand in the run's alerts)")
            self._failed = True
            del error
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            try:
                if once:
                    self._alert("probe_failed", line, {"step": self._step})
            except Exception:  # the disk may be what failed
                logger.debug("the alert could not be written", exc_info=True)

    def _alert(self, code: str, message: str, evidence: Mapping[str, Any]) -> None:
        if self._recorder is not None:
            if code != "probe_failed":
                logger.warning(f"{code}: {message}")
            step = int(evidence.get("step", self._step))
            self._recorder.alert(step, code, message, evidence)
            if self._alerts is None:
                self._alerts = LiveAlerts(self.probe.out)
            self._alerts(step, code, message)

    def _say(self, line: str) -> None:
        if place()[0] == 0:
            logger.warning(line)


def rows_of_log(logs: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The split that a log call is about, and its values under their names there.

    >>> rows_of_log({"loss": 0.5, "epoch": 1.0})
    ('train', {'loss': 0.5})
    >>> rows_of_log({"eval_loss": 0.5, "eval_rewards/margins": 0.1, "epoch": 1.0})
    ('eval', {'loss': 0.5, 'rewards/margins': 0.1})
    >>> rows_of_log({"eval_held_loss": 0.5, "eval_margins": 0.1})
    ('eval_held', {'loss': 0.5, 'margins': 0.1})
    """
    prefix = evaluation_prefix(dict(logs))
    named = [key for key in logs if key.startswith(f"{EVAL_SPLIT}_")]
    of_training = prefix is None and (not named or "loss" in logs or "train_runtime" in logs)
    split = TRAIN_SPLIT if of_training else (prefix or EVAL_SPLIT).rstrip("_")
    values: dict[str, Any] = {}
    for key, value in logs.items():
        if key in _NOT_METRICS or (of_training and key in named):  # leftovers of an evaluation describe no training
            continue
        # TRL names a set's metrics without the set once more.
        values.setdefault(key if of_training else key.removeprefix(prefix or "").removeprefix("eval_"), value)
    return split, values


def _autocast_of(args: Any) -> torch.dtype | None:
    """What the trainer's forward computes in; DeepSpeed's engine has weights of that type itself."""
    if getattr(args, "deepspeed", None):
        return None
    return torch.bfloat16 if getattr(args, "bf16", False) else torch.float16 if getattr(args, "fp16", False) else None
