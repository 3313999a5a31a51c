"""Callbacks: the trainer's own bookkeeping, and fixed prompts that are answered while training.

Whatever they run (an evaluation before the first step, generation) leaves no trace in training: random states,
train/eval modes, padding side and cache settings are as before, so that losses are bit for bit the same with and
without them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from accelerate.logging import get_logger
from transformers import TrainerCallback

from dpo_diag.models.adapters import reference_adapter
from dpo_diag.models.borrowed import borrowed
from dpo_diag.records import RunWriter
from dpo_diag.records.schemas import TABLES
from dpo_diag.stopping import Terminated

logger = get_logger(__name__)

Rows = Sequence[Mapping[str, Any]]
GenerateFn = Callable[..., Rows]
"""(model, tokenizer, prompts, step=, model_name=) -> rows of outputs/ (see `FixedPromptCallback`)."""
Scores = Mapping[tuple[str, str], tuple[float, float]]
ScoreFn = Callable[[Rows], Scores]
"""rows -> {(split, name): (value, n)}."""
KLFn = Callable[[Any, Any, Any, Sequence[Any], Rows], Scores]
"""(policy, reference or None for the policy without its adapter, tokenizer, prompts, rows) -> as `ScoreFn`."""


def _accepted(function: GenerateFn, step: int, name: str) -> dict[str, Any]:
    """Those of `step` and `model_name` that a generate function accepts."""
    parameters = inspect.signature(function).parameters.values()
    anything = any(p.kind is p.VAR_KEYWORD for p in parameters)
    names = {p.name for p in parameters}
    return {k: v for k, v in {"step": step, "model_name": name}.items() if anything or k in names}


class BoundCallback(TrainerCallback):
    """A callback that needs its trainer: DiagDPOTrainer and DiagSFTTrainer bind it to themselves."""

    trainer: Any = None

    def bind(self, trainer: Any) -> None:
        """With any other trainer call it yourself."""
        self.trainer = trainer


class FixedPromptCallback(BoundCallback):
    """Answers a fixed list of prompts at step 0, at every evaluation and at the end, and writes them to outputs/.

    Args:
        generate_fn: `generate_fn(model, tokenizer, prompts, step=..., model_name=...) -> rows` (a DataFrame or
            mappings); the two keywords only where it takes them. The model is unwrapped, in evaluation mode and
            without gradients. A row has at least `prompt_id`, `sample` and `text`; other columns of the outputs
            table are taken as they are, `step` and `model` are set here. Bind decoding settings with
            `functools.partial(dpo_diag.inference.generation.generate, decoding=...)`.
        prompts: handed to `generate_fn` as they are.
        recorder: a RunWriter; None takes the trainer's own (nothing is written where there is none).
        schedule: when to answer: any of "start", "eval", "end", and integers (every so many optimizer steps).
        also_at: single optimizer steps, e.g. 1, 2, 4, 8: the first answers come long before the first evaluation.
        with_reference: also answer once by the reference, `model` = "ref" (a reference model, or the adapter
            disabled; skipped with a warning where log-probs were precomputed and no model is kept).
        score_fn: `score_fn(rows) -> {(split, name): (value, n)}`, e.g. ("held_out", "execution_accuracy"); written
            to history as `score/NAME` in that split with weight n, and handed to the trainer's other callbacks
            (trackers, progress) as `eval_SPLIT_score/NAME`. TRL's own running averages are not touched.
        kl_fn: likewise of the policy's answers, e.g. `answer_scores.kl_by_tag`, as `kl/NAME`; where there is neither a
            reference model nor an adapter to switch off, one line says so and there is none.

    Only rank 0 answers; a model that is sharded over processes (FSDP, ZeRO-3) is not asked. A failure of `score_fn` or
    `kl_fn` warns and goes on; a failure of `generate_fn` is raised.
    """

    def __init__(
        self,
        generate_fn: GenerateFn,
        prompts: Sequence[Any],
        recorder: RunWriter | None = None,
        *,
        schedule: Iterable[str | int] = ("start", "eval", "end"),
        also_at: Iterable[int] = (),
        with_reference: bool = True,
        score_fn: ScoreFn | None = None,
        kl_fn: KLFn | None = None,
    ) -> None:
        self.generate_fn, self.prompts, self.writer = generate_fn, prompts, recorder
        self.schedule, self.also_at = frozenset(schedule), frozenset(also_at)
        self.with_reference, self.score_fn, self.kl_fn = with_reference, score_fn, kl_fn
        self.rows: dict[tuple[str, int], list[dict[str, Any]]] = {}
        """(model, step) -> rows, as written."""

    # ---- when ----

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Step 0, and the reference."""
        if self.with_reference and not any(model == "ref" for model, _ in self.rows) and self._may():
            self._answer_reference(state.global_step)
        if "start" in self.schedule and state.global_step == 0:
            self.answer(state.global_step)

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """At every evaluation; several sets at one step are answered once."""
        if "eval" in self.schedule:
            self.answer(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Every so many steps, where the schedule names a number."""
        due = any(isinstance(every, int) and state.global_step % every == 0 for every in self.schedule)
        if due or state.global_step in self.also_at:
            self.answer(state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """After the last step; not where the best checkpoint's weights, of another step, are back in the model."""
        if "end" in self.schedule and not (args.load_best_model_at_end and state.best_model_checkpoint):
            self.answer(state.global_step)

    # ---- what ----

    def _may(self) -> bool:
        if self.trainer is None:
            logger.warning("FixedPromptCallback has no trainer: call callback.bind(trainer)")
            return False
        plugin = getattr(self.trainer.accelerator.state, "deepspeed_plugin", None)
        if self.trainer.is_fsdp_enabled or (plugin is not None and plugin.zero_stage == 3):
            logger.warning_once("fixed prompts are not answered while training: the model is sharded over processes")
            return False
        return bool(self.trainer.is_world_process_zero())

    @property
    def _tokenizer(self) -> Any:
        return getattr(self.trainer, "_tokenizer", None) or self.trainer.processing_class

    @property
    def _policy(self) -> Any:
        return self.trainer.accelerator.unwrap_model(self.trainer.model)

    @property
    def _reference(self) -> Any:
        """The reference model; None where the trainer holds none."""
        reference = getattr(self.trainer, "ref_model", None)
        return None if reference is None else self.trainer.accelerator.unwrap_model(reference)

    def _generate(self, model: torch.nn.Module, name: str, step: int) -> list[dict[str, Any]]:
        tokenizer = self._tokenizer
        with borrowed(model, tokenizer), self.trainer.accelerator.autocast():
            rows = self.generate_fn(model, tokenizer, self.prompts, **_accepted(self.generate_fn, step, name))
        if hasattr(rows, "to_dict"):
            rows = rows.to_dict("records")
        return [dict(row) for row in rows]

    def answer(self, step: int) -> list[dict[str, Any]]:
        """Answer now by the policy; a step that was answered is not answered again."""
        if ("policy", step) in self.rows or not self._may():
            return []
        return self._keep(self._generate(self._policy, "policy", step), "policy", step)

    def _answer_reference(self, step: int) -> None:
        policy, reference = self._policy, self._reference
        if reference is not None:
            rows = self._generate(reference, "ref", 0)
        elif hasattr(policy, "disable_adapter"):
            with reference_adapter(policy):
                rows = self._generate(policy, "ref", 0)
        elif not hasattr(self.trainer, "precompute_ref_logps"):
            return  # SFT has no reference
        elif step == 0:
            rows = self._generate(policy, "ref", 0)  # before the first step the policy is the reference
        else:
            logger.warning("the reference is no longer in memory: its answers to the fixed prompts are left out")
            return
        self._keep(rows, "ref", 0)

    def _keep(self, rows: list[dict[str, Any]], model: str, step: int) -> list[dict[str, Any]]:
        known = TABLES["outputs"].names
        kept = [{k: v for k, v in row.items() if k in known} | {"step": step, "model": model} for row in rows]
        self.rows[model, step] = kept
        writer = self.writer or getattr(self.trainer, "run_writer", None)
        if writer is not None and kept:
            writer.write("outputs", kept, split=model)
        if model == "policy":
            scores = self._scored(self.score_fn, "score", step, kept) | self._scored(self._kl, "kl", step, kept)
            if scores:
                self._log(scores, step, writer)
        return kept

    def _kl(self, rows: Rows) -> Scores:
        """What `kl_fn` says of policy and reference; {}, and a line, where there is nothing to compare with."""
        if self.kl_fn is None:
            return {}
        policy, reference, why = self._policy, self._reference, None
        if reference is None and not hasattr(policy, "disable_adapter"):
            why = "the trainer holds no reference model, and the model no adapter to switch off"
        elif getattr(getattr(policy, "active_peft_config", None), "is_prompt_learning", False):
            why = "the adapter adds virtual tokens to each sequence"
        if why is not None:
            logger.warning_once(f"KL from the reference on the answers: not applicable, {why}")
            return {}
        with self.trainer.accelerator.autocast():
            return self.kl_fn(policy, reference, self._tokenizer, self.prompts, rows)

    def _scored(
        self, function: ScoreFn | None, kind: str, step: int, rows: Rows
    ) -> dict[tuple[str, str], tuple[float, float]]:
        """{(split, KIND/NAME): (value, n)}; {} where there is no function, or it failed."""
        if function is None:
            return {}
        try:
            return {(split, f"{kind}/{name}"): value for (split, name), value in function(rows).items()}
        except Exception as error:
            # A scorer that trips over one odd answer must not end hours of training.
            logger.warning(f"{kind}_fn failed at step {step}: {type(error).__name__}: {error}")
            return {}

    def _log(self, scores: Scores, step: int, writer: RunWriter | None) -> None:
        trainer = self.trainer
        epoch = trainer.state.epoch
        history = [
            {"step": step, "epoch": epoch, "split": split, "name": name, "value": value, "weight": n}
            for (split, name), (value, n) in scores.items()
        ]
        if writer is not None and history:
            writer.write("history", history, split="score")
        logs = {
            f"{'' if split.startswith('eval') else 'eval_'}{split}_{name}": float(value)
            for (split, name), (value, _) in scores.items()
        }
        # Not trainer.log(): that would close TRL's running averages early.
        trainer.control = trainer.callback_handler.on_log(trainer.args, trainer.state, trainer.control, logs)


class RunCallback(TrainerCallback):
    """The trainer's own: starting a training loop, saving by the clock, ending where a guard was asked to, or where it
    was told to end (SIGTERM): then behind this step's checkpoint, and without the answers of a training's end."""

    def __init__(self, trainer: Any) -> None:
        self.trainer, self._ends = trainer, False

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Rows of an earlier try at this loop are forgotten."""
        self.trainer.begin_run()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """What a guard asked for at an evaluation."""
        self.trainer.after_step()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """What a guard asked for at the last evaluation: no step begins any more."""
        self.trainer.after_step()

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        """The guards judge the evaluation; the run ends where one of them says so and was asked to."""
        self.trainer.after_evaluation(metrics or {})
        if self.trainer.should_stop:
            control.should_training_stop = True

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The gradient is there: the guards judge the step."""
        self.trainer.before_update()

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The update was made, or left out."""
        self.trainer.after_update()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """End the run where a guard says so and was asked to; save where the clock says so."""
        self.trainer.after_step()
        if self.trainer.should_stop:
            control.should_training_stop = True
        if self.trainer.checkpoint_due():
            control.should_save = True
        if self.trainer.is_told_to_end:
            self._ends = control.should_save = True

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The checkpoint is whole: a training that was told to end ends."""
        self.trainer.clock = None
        if self._ends:
            raise Terminated
