"""When a training saves, and how: a checkpoint is written aside and renamed; by the clock too, and at the end."""

from __future__ import annotations

import copy
import os
import shutil
import time
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast, is_peft_model
from torch.optim.lr_scheduler import LambdaLR
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from dpo_diag.checkpoint_choice import choose, curve_of
from dpo_diag.errors import DiagError
from dpo_diag.models.processes import together
from dpo_diag.records import load_run
from dpo_diag.records.secrets import is_secret
from dpo_diag.text import number, size, some
from dpo_diag.training.checkpoint_folders import (
    ASIDE,
    KEPT,
    PASSED_OVER,
    Resumed,
    at_checkpoint,
    checkpoints_in,
    choose_checkpoint,
    clear_leftovers,
    put_in_place,
    remove,
    set_aside_after,
    superfluous,
)
from dpo_diag.training.window import TrainersOwn, save_window


@dataclass(frozen=True)
class Keep:
    """What a training saves beyond what the trainer's own arguments ask for.

    Attributes:
        minutes: a checkpoint at the step by which the last one is so old; None: none by the clock.
        at_end: one after the last step.
        best: of those that would go, the one that `dpo-diag keep` would choose stays.
        metric: by which that is judged (`checkpoint_choice.curve_of`).
    """

    minutes: float | None = None
    at_end: bool = False
    best: bool = False
    metric: str | None = None


class Saving:
    """Mixin in front of a TRL trainer, a part of `run.Recording`.

    Attributes:
        keep: what is saved beyond TRL's own arguments; of a script nothing.
        fresh_optimizer: a checkpoint is gone on from without its optimizer and random states.
    """

    keep = Keep()
    fresh_optimizer = False
    _resumed: Resumed | None = None
    _aside: str | None = None
    _to_push: str | None = None
    _saved_step: int | None = None
    _saved_at = 0.0
    _losses_before: float | None = None
    """What the trainer summed of its losses before the checkpoint that is resumed; None where it is not known."""

    # ---- which checkpoint a training goes on from ----

    def _checkpoint_of(self: Any, named: Any) -> Resumed | None:
        """What `train(resume_from_checkpoint=...)` means, looked at on the main process; all processes call it.

        Raises:
            DiagError: it is not whole, or True and there is no whole one.
        """
        if named is None or named is False or isinstance(named, Resumed):
            return named or None

        def look() -> Resumed:
            fresh = self.fresh_optimizer
            if named is True:
                return choose_checkpoint(self.args.output_dir, fresh_optimizer=fresh)
            return at_checkpoint(named, fresh_optimizer=fresh)

        found = together(lambda: look() if self.is_world_process_zero() else None)[0]
        assert found is not None
        if found.passed_over and self.is_world_process_zero():
            self.tell(found.line())
        return found

    def _begin_saving(self: Any) -> None:
        """Before a training: what a killed one was writing goes."""
        self._saved_step = None if self._resumed is None else self._resumed.step
        self._saved_at = time.monotonic()
        if self.args.should_save:
            clear_leftovers(Path(self.args.output_dir))

    def _set_aside_after(self: Any, step: int | None) -> None:
        """Before rows beyond the checkpoint go: a run that is killed in between goes on from no later one."""
        folder = Path(self.args.output_dir)
        if step is None or not self.args.should_save or Path(self._resumed.folder).resolve().parent != folder.resolve():
            return
        if names := set_aside_after(folder, step):
            self.tell(f"{some(names)}: beyond step {step}, moved to {folder / PASSED_OVER}")

    # ---- when ----

    def checkpoint_due(self: Any) -> bool:
        """Whether the clock asks for one now, the main process's; all processes call it, at every step."""
        if self.keep.minutes is None:
            return False
        due: bool = time.monotonic() - self._saved_at >= 60 * self.keep.minutes
        if self.accelerator.num_processes > 1:
            told = broadcast(torch.tensor([int(due)], device=self.accelerator.device))
            due = bool(told.item())
        return due

    def _finalize_training(self: Any, trial: Any, *args: Any, **kwargs: Any) -> Any:
        """As transformers', behind what is still to be done at the last step: evaluate, where a run that goes on from
        there was not evaluated; save. Its way to keep one checkpoint alone would remove the last."""
        step, evaluates = self.state.global_step, self.args.eval_strategy != "no"
        if self._resumed is not None and step == self._resumed.step:
            if evaluates and self._lacks_evaluation():
                self._evaluate(trial, None, skip_scheduler=True)
            else:
                # As a run that was not killed comes here: TRL's log call takes the metrics of the model's mode.
                self.model.train(not evaluates)
        if self.keep.at_end and 0 < step != self._saved_step:
            self._save_checkpoint(self.model, trial)
            self.control = self.callback_handler.on_save(self.args, self.state, self.control)
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            return super()._finalize_training(trial, *args, **kwargs)  # type: ignore[misc]
        finally:
            self.args.save_total_limit = limit

    def _lacks_evaluation(self: Any) -> bool:
        state = self.state
        last = [row for row in state.log_history if row.get("step") == state.global_step]
        return not any(key.startswith("eval_") for row in last for key in row)

    def _run_epoch(self: Any, *args: Any, **kwargs: Any) -> None:
        """As transformers', which trains a step more where a resumed training has done its last one."""
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
        else:
            super()._run_epoch(*args, **kwargs)  # type: ignore[misc]

    # ---- how ----

    def _get_output_dir(self: Any, trial: Any) -> str:
        return self._aside or str(super()._get_output_dir(trial))  # type: ignore[misc]

    def _save_checkpoint(self: Any, model: Any, trial: Any) -> None:
        # Rows first: a run that is killed after this can resume from here without a gap.
        self.monitor.flush()
        self._sum_window()
        parent = Path(self._get_output_dir(trial))
        folder = parent / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        aside = parent / ASIDE / folder.name
        saves = self.args.should_save
        if saves:
            shutil.rmtree(aside, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self._aside, self._to_push = str(aside.parent), None
        try:
            save_window(self.monitor.window, aside, self.accelerator.process_index)
            super()._save_checkpoint(model, trial)  # type: ignore[misc]
            self.accelerator.wait_for_everyone()  # each process has written its part
            self._name_best(aside, folder)
            if saves:
                put_in_place(aside, folder)
        except BaseException:
            if saves:
                shutil.rmtree(aside, ignore_errors=True)  # a full disk needs the room
            raise
        finally:
            self._aside = None
        self.accelerator.wait_for_everyone()
        if self.args.local_process_index == 0 and aside.exists():
            aside.rename(folder)  # a machine without the main process, and with a disk of its own: its random states
        if saves:
            self._rotate(parent)
            with suppress(OSError):
                aside.parent.rmdir()
        if self._to_push is not None:
            super()._push_from_checkpoint(str(folder))  # type: ignore[misc]
        self._saved_step, self._saved_at = self.state.global_step, time.monotonic()

    def _save(self: Any, *args: Any, **options: Any) -> None:
        # training_args.bin is the arguments pickled: without what lets someone in.
        whole = self.args
        self.args = copy.copy(whole)
        for name, value in vars(whole).items():
            if is_secret(name, value):
                vars(self.args)[name] = None
        try:
            super()._save(*args, **options)  # type: ignore[misc]
        finally:
            self.args = whole

    def _push_from_checkpoint(self: Any, checkpoint_folder: str) -> None:
        if self._aside is None:
            super()._push_from_checkpoint(checkpoint_folder)  # type: ignore[misc]
        else:
            self._to_push = checkpoint_folder

    def _name_best(self: Any, aside: Path, folder: Path) -> None:
        """Where the best checkpoint is the one that is being written, say so by the name that it will have."""
        if self.state.best_model_checkpoint == os.fspath(aside):
            self.state.best_model_checkpoint = os.fspath(folder)
            if self.args.should_save:
                self.state.save_to_json(os.fspath(aside / TRAINER_STATE_NAME))

    def _rotate(self: Any, parent: Path) -> None:
        args, known = self.args, checkpoints_in(parent)
        best = self.state.best_model_checkpoint
        asked = args.save_strategy == "steps"
        which = partial(
            superfluous, known, limit=args.save_total_limit, every=int(self.state.save_steps) if asked else None,
            by_clock=self.keep.minutes is not None and args.save_strategy in ("no", "steps"),
        )  # fmt: skip
        protected = {self.state.global_step, *(s for s, p in known.items() if best and p.name == Path(best).name)}
        if (gone := which(protected=protected)) and self.keep.best:
            gone = which(protected=protected | self._choice(known))
        for step in gone:
            remove(known[step])

    def _choice(self: Any, on_disk: Collection[int]) -> set[int]:
        """The step that `dpo-diag keep` would name now, none where nothing was measured yet."""
        if self.run_writer is None:
            return set()
        try:
            curve = curve_of(load_run(self.run_writer.path), self.keep.metric)
        except (DiagError, OSError):
            return set()
        step, _ = choose(curve, on_disk, self.monitor.guards.limits["keep.band"])
        return set() if step is None else {step}

    def _sum_window(self: Any) -> None:
        """What the trainer has summed since its last log call belongs to the checkpoint."""
        window = self.monitor.window
        window.tokens_seen, window.guards = self._total_train_tokens, self.monitor.guards.memory()
        window.theirs = TrainersOwn(
            {name: [float(v) for v in values] for name, values in self._metrics["train"].items()},
            float(self._tr_loss), (self._losses_before or 0.0) + self._total_loss_scalar, self._globalstep_last_logged,
            self.accelerator.num_processes,
        )  # fmt: skip

    # ---- an optimizer that begins anew ----

    def _load_optimizer_and_scheduler(self: Any, checkpoint: str | None) -> None:
        """As transformers'; without the optimizer the learning rate still is that of the step."""
        resumed = self._resumed
        if checkpoint is None or resumed is None or not resumed.fresh_optimizer:
            super()._load_optimizer_and_scheduler(checkpoint)  # type: ignore[misc]
        elif isinstance(schedule := self.lr_scheduler, LambdaLR):
            pairs = zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)
            rates = [rate * factor(resumed.step) for rate, factor in pairs]
            schedule.last_epoch, schedule._last_lr = resumed.step, rates
            for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
                group["lr"] = rate

    def _load_rng_state(self: Any, checkpoint: str | None) -> None:
        if self._resumed is None or not self._resumed.fresh_optimizer:
            super()._load_rng_state(checkpoint)  # type: ignore[misc]

    # ---- what is said of it ----

    @property
    def saves_anything(self: Any) -> bool:
        """Whether a checkpoint may be written."""
        return bool(self.args.save_strategy != "no" or self.keep.minutes is not None or self.keep.at_end)

    def saves(self: Any) -> str:
        """One line: what this training saves, how much of it stays, how large each is."""
        args, every = self.args, []
        if args.save_strategy == "steps":
            every.append("every step" if args.save_steps == 1 else f"every {args.save_steps:g} steps")
        elif args.save_strategy != "no":
            every.append({"epoch": "after every epoch"}.get(str(args.save_strategy.value), "where it is best"))
        if self.keep.minutes is not None:
            every.append(f"every {number(self.keep.minutes)} minutes")
        if self.keep.at_end or args.save_strategy == "steps":
            every.append("at the end")
        if not self.saves_anything:
            return "keeps no model: trainer.save_at_end=true, trainer.save_minutes=30 or trainer.save_steps=N would"
        limit = args.save_total_limit or (KEPT if self.keep.minutes is not None else None)
        if limit is None:
            stay = "all stay"
        elif not self.keep.best:
            stay = f"the last {limit} stay"
        else:
            stay = f"{max(limit, 2)} stay, the last and the best measured one among them"
        if limit is not None and not args.save_total_limit and args.save_strategy != "no":
            stay = f"of those by the clock {stay}"
        *before, last = every
        when = f"{', '.join(before)} and {last}" if before else last
        return f"saves {when}: {stay}, up to {size(self.checkpoint_size())} each"

    def checkpoint_size(self: Any) -> int:
        """Bytes of a checkpoint: the weights that are saved and, of those that train, two moments."""
        model = self.accelerator.unwrap_model(self.model)
        trained: int = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
        whole: int = sum(p.numel() * p.element_size() for p in model.parameters())
        saved = trained if is_peft_model(model) else whole
        return saved + (0 if self.args.save_only_model else 2 * trained)
