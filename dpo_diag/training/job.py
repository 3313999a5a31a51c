"""One training from a configuration to a finished run folder: `train(config, folder)`, what dpo-train calls."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list

from dpo_diag.config import Config
from dpo_diag.config_checks import check
from dpo_diag.data.pairs import to_dataset
from dpo_diag.errors import DiagError
from dpo_diag.inference.generation import decoding_from, generate
from dpo_diag.models.decoding import Decoding
from dpo_diag.models.processes import together
from dpo_diag.records import load_run
from dpo_diag.stopping import with_the_step
from dpo_diag.text import plural, size
from dpo_diag.tracking import TRACKERS, live_kinds
from dpo_diag.training import DiagDPOTrainer, DiagSFTTrainer, FixedPromptCallback
from dpo_diag.training.answer_scores import kl_by_tag, score_by_tag
from dpo_diag.training.arguments import dpo_arguments, sft_arguments
from dpo_diag.training.batch_dump import read_dump
from dpo_diag.training.checkpoint_folders import KEPT, Resumed, choose_checkpoint
from dpo_diag.training.early_stopping import EarlyStopping
from dpo_diag.training.guards.answers import Answers
from dpo_diag.training.inputs import TRAIN_PROBE, Inputs, has_reference, load_inputs, loss_on
from dpo_diag.training.progress import end_progress, shorten_progress
from dpo_diag.training.replay import replay
from dpo_diag.training.saving import Keep
from dpo_diag.training.schedule import schedule_of
from dpo_diag.training.tracker_callback import TrackerCallback
from dpo_diag.training.vocabulary import write_vocabulary
from dpo_diag.training.whole_checkpoint import state_of

EARLY_STEPS = (1, 2, 4, 8, 16, 32, 64)


def train(
    config: Config, folder: Path, say: Callable[[str], None] | None = None, read: Callable[[Path], None] | None = None
) -> Path:
    """Train, measure, answer the fixed prompts; returns the run folder (rank 0's, on every rank).

    Args:
        config: checked here before anything is loaded.
        folder: the run folder; with `config.resume` one that holds checkpoints.
        say: gets one line before each long step; None prints to standard error.
        read: what reads the finished records (explain, report), on rank 0; before the trackers close, which mirror what
            it wrote, and whose services may be slow.

    Raises:
        DiagError: anything that cannot work, in one line, before long work where it can be known.
    """
    check(config)
    Answers.of(config.guards)
    kinds = live_kinds(config.tracking.kind)
    for kind in kinds:
        TRACKERS[kind]  # a tracker that nobody registered ends the run here, not after the model is loaded
    say = say or (lambda line: print(line, file=sys.stderr, flush=True))
    # The arguments bring up the process group, which tells every rank where rank 0 writes.
    arguments = (dpo_arguments if config.trainer.method == "dpo" else sft_arguments)(config, folder)
    folder = Path(broadcast_object_list([str(folder)])[0])
    arguments.output_dir = str(folder / "checkpoints")
    main = arguments.process_index == 0
    resumed = together(lambda: _resumed(config, folder, arguments) if main and config.resume else None)[0]
    if resumed is not None and main:
        say(resumed.line())
    inputs = load_inputs(config, say, folder if main else None)
    if not inputs.evals:
        arguments.eval_strategy = "no"
    for note in inputs.notes:
        say(f"note: {note}")
    if main:
        folder.mkdir(parents=True, exist_ok=True)
        inputs.write_data_report(folder, config.data.max_truncated_share)
    trainer = _trainer(config, folder, inputs, arguments)
    trainer.tell, trainer.show = (lambda line: say(f"note: {line}")), say
    trainer.said, trainer.says_next = inputs.said, False
    trainer.answer_guards(config.guards)
    shorten_progress(trainer)
    if inputs.prompts:
        trainer.add_callback(_prompt_callback(config, inputs))
    if config.schedule.kind != "none":
        trainer.add_callback(schedule_of(config))
    if config.keep.patience is not None:
        trainer.add_callback(EarlyStopping(trainer, config.keep))
    tracker = TrackerCallback(config, folder, trainer) if kinds and main else None
    if tracker is not None:
        trainer.add_callback(tracker)
        trainer.also_alert = tracker.alert
    trainer.keep = Keep(config.trainer.save_minutes, config.trainer.save_at_end, best=True, metric=config.keep.metric)
    say(f"{config.trainer.method.upper()} on {len(inputs.train)} examples, run folder {folder}")
    if main:
        say(trainer.saves())
        if short := _short_of_room(trainer, folder):
            say(f"note: {short}")
    status = "failed"
    try:
        with with_the_step() as trainer.step_end:
            trainer.train(resume_from_checkpoint=resumed)
        status = "finished"
        if main:
            write_vocabulary(folder, inputs.policy.tokenizer)
            if read is not None:
                read(folder)
    finally:
        end_progress(trainer)
        if tracker is not None:
            tracker.close(status)
    return folder


def replay_step(config: Config, dump: Path, folder: Path) -> Path:
    """Print what a step that a guard kept computes, again; returns its run folder.

    Args:
        config: the run's own.
        dump: RUN/alerts/step-N.
        folder: for whatever a trainer may write; the run's records stay as they are.

    Raises:
        DiagError: no such step, or another model.
    """
    read_dump(dump)  # what is mistyped is answered before a model is loaded
    run = dump.absolute().parent.parent
    check(config)
    config.filter.kind, config.resume = "none", None
    arguments = (dpo_arguments if config.trainer.method == "dpo" else sft_arguments)(config, folder)
    arguments.output_dir, arguments.eval_strategy = str(run / "checkpoints"), "no"
    inputs = load_inputs(config, lambda line: print(line, file=sys.stderr, flush=True))
    inputs.train, inputs.evals = inputs.train[:8], {}  # the batch is in the dump: a trainer wants some rows
    trainer = _trainer(config, folder, inputs, arguments)
    for line in replay(trainer, dump).lines():
        print(line)
    return run


def _trainer(config: Config, folder: Path, inputs: Inputs, arguments: Any) -> DiagDPOTrainer | DiagSFTTrainer:
    policy, dpo = inputs.policy, config.trainer.method == "dpo"
    evals = {name or "held_out": to_dataset(rows) for name, rows in inputs.evals.items()}
    only = set(inputs.evals) == {""}
    common: dict[str, Any] = {
        "model": policy.model,
        "args": arguments,
        "processing_class": policy.tokenizer,
        "peft_config": policy.peft_config,
        "train_dataset": to_dataset(inputs.train),
        # TRL's way: none, the only set (then it has no name), or a dict.
        "eval_dataset": evals["held_out"] if only else evals or None,
        "recorder": folder,
        "thresholds": {"guards": config.checks.get("guards", {})},
        "facts": _facts(config, inputs),
        "eval_roles": {"" if only else n: TRAIN_PROBE if n == TRAIN_PROBE else "held_out" for n in evals},
    }
    if not dpo:
        tiled = config.trainer.shared_prefix != "off"
        return DiagSFTTrainer(
            prompt_metrics=config.probes.prompt_ce, tiled_head=tiled,
            loss_on=loss_on(config), label_smoothing=config.sft.label_smoothing,
            auxiliary=config.sft.auxiliary, infonce_temperature=config.sft.infonce_temperature,
            extra_metrics=config.probes.extra, record_tokens=config.probes.record_tokens,
            ref_model=policy.reference, kl=config.probes.kl, **common,
        )  # fmt: skip
    store = None
    if config.trainer.precomputes_reference:
        store = config.trainer.reference_store or Path(config.output_root) / "cache" / "references"
    return DiagDPOTrainer(
        ref_model=policy.reference, record_tokens=config.probes.record_tokens, extra_metrics=config.probes.extra,
        reference_is_start=None if config.model.reference else True, shared_prefix=config.trainer.shared_prefix,
        loss_coefficients=config.loss.coefficients, reference_store=store,
        logits_sam=config.trainer.logits_sam, kl=config.probes.kl, **common,
    )  # fmt: skip


def _facts(config: Config, inputs: Inputs) -> dict[str, Any]:
    """What the trainer cannot know itself, for run.json."""
    return {
        **inputs.policy.meta,
        "name": config.name,
        "seed": config.seed,
        "data": inputs.data,
        "notes": inputs.notes,
        "git_commit": git_commit(),
        "prompts": {"kind": config.prompts.kind, "path": config.prompts.path, "n": len(inputs.prompts)},
        "decoding": decoding_from(config.prompts).to_dict() if inputs.prompts else {},
        "task": config.task.kind,
    }


def _prompt_callback(config: Config, inputs: Inputs) -> FixedPromptCallback:
    p = config.prompts
    return FixedPromptCallback(
        partial(_answer, decoding=decoding_from(p), batch_size=p.batch_size),
        inputs.prompts,
        also_at=EARLY_STEPS if p.early else (),
        with_reference=p.reference and has_reference(config),
        score_fn=partial(score_by_tag, name="execution_accuracy" if config.task.kind == "sql" else "accuracy"),
        kl_fn=kl_by_tag if p.kl else None,
    )


def _answer(model: Any, tokenizer: Any, prompts: Sequence[Any], *, decoding: Decoding, batch_size: int) -> Any:
    return generate(model, tokenizer, prompts, decoding, step=0, batch_size=batch_size, progress=False)


def _resumed(config: Config, folder: Path, arguments: Any) -> Resumed:
    """The checkpoint that the run goes on from.

    Raises:
        DiagError: none is whole, the one that was named is not, or the run has nothing left to do.
    """
    found = choose_checkpoint(folder / "checkpoints", config.checkpoint, fresh_optimizer=config.fresh_optimizer)
    state, steps, epochs = state_of(found.folder), arguments.max_steps, arguments.num_train_epochs
    trained = found.step >= steps if steps > 0 else float(state.get("epoch") or 0) >= epochs
    wanted = (("findings.json", config.explain), ("report.html", config.explain and config.report))
    closed = all((folder / name).is_file() for name, yes in wanted if yes)
    if trained and closed and load_run(folder).info.status == "finished":
        more = f"trainer.max_steps=N above {found.step}" if steps > 0 else "a larger trainer.num_train_epochs"
        raise DiagError(
            "the run is finished", where=folder, got=f"step {found.step}, its last",
            hint=f"dpo-diag explain reads it; {more} trains on, checkpoint=N goes back", usage=True,
        )  # fmt: skip
    return found


def _short_of_room(trainer: Any, folder: Path) -> str | None:
    """What is said where the disk has no room for the checkpoints that stay and for one that is being written."""
    stay = trainer.args.save_total_limit or KEPT
    needed, free = (stay + 1) * trainer.checkpoint_size(), shutil.disk_usage(folder).free
    if trainer.saves_anything and needed > free:
        return f"{size(free)} are free in {folder}, {plural(stay + 1, 'checkpoint')} may take {size(needed)}"
    return None


def git_commit() -> str | None:
    """The commit of the working directory, "+" behind it where files were changed; None outside a repository."""
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=True)
        # A repository may name a program that watches its files: whoever cloned it did not ask for that.
        status = ["git", "-c", "core.fsmonitor=false", "status", "--porcelain", "-uno"]
        changed = subprocess.run(status, capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.SubprocessError):
        return None
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "")
