"""Whether a configuration can work, as far as that shows before any long work; the checks raise, they never edit."""

from __future__ import annotations

from pathlib import Path

from dpo_diag.config import (
    CHOICES,
    EXTRA_METRICS,
    PROMPT_SETS,
    Config,
    DataConfig,
    PromptsConfig,
    TaskConfig,
)
from dpo_diag.config_schedule import check_schedule
from dpo_diag.errors import DiagError


def check(config: Config) -> None:
    """Everything that one field cannot know alone; raises the first DiagError, before any long work."""
    for key, choices in CHOICES.items():
        group, name = key.split(".")
        value = getattr(getattr(config, group), name)
        if value not in choices:
            raise _wrong(key, value, f"one of {', '.join(choices)}")
    config.loss.check_trainable()
    check_schedule(config)
    _check_sources(config)
    check_task(config.task)
    if not 0 < config.filter.keep <= 1:
        raise _wrong("filter.keep", config.filter.keep, "a share above 0, at most 1")
    if config.filter.kind != "none" and config.trainer.method != "dpo":
        raise _wrong("filter.kind", config.filter.kind, f"none: {config.trainer.method} has no pairs to compare")
    t = config.trainer
    for key in ("batch_size", "eval_batch_size", "gradient_accumulation_steps", "logging_steps", "eval_steps"):
        if getattr(t, key) < 1:
            raise _wrong(f"trainer.{key}", getattr(t, key), "at least 1")
    if t.save_steps is not None and t.save_steps < 1:
        raise _wrong("trainer.save_steps", t.save_steps, "at least 1, or null")
    if t.save_minutes is not None and t.save_minutes <= 0:
        raise _wrong("trainer.save_minutes", t.save_minutes, "more than 0, or null")
    if config.resume is None and (config.checkpoint is not None or config.fresh_optimizer):
        key = "checkpoint" if config.checkpoint is not None else "fresh_optimizer"
        raise _wrong(key, getattr(config, key), "resume=RUN beside it: it belongs to a run that goes on")
    if t.max_steps < 0 and t.num_train_epochs <= 0:
        raise _wrong("trainer.num_train_epochs", t.num_train_epochs, "more than 0, or trainer.max_steps")
    if t.reference_store is not None and t.method == "sft":
        raise _wrong("trainer.reference_store", t.reference_store, "nothing: SFT has no reference")
    if t.method != "sft" and config.loss.has_pair_beta and t.precomputes_reference:
        key = "reference_store" if t.reference_store is not None else "precompute_ref_log_probs"
        given, expected = t.reference_store or True, "null" if t.reference_store is not None else "false"
        why = f"{expected}: {', '.join(config.loss.types)} asks for the reference's distributions, not its sums"
        raise _wrong(f"trainer.{key}", given, why)
    if t.method != "sft" and config.sft.changed:
        key = config.sft.changed[0]
        raise _wrong(f"sft.{key}", getattr(config.sft, key), f"0: {t.method} has a loss of its own (loss=...)")
    if t.assistant_only and config.sft.loss_on != "assistant":
        raise _wrong("sft.loss_on", config.sft.loss_on, "assistant, as trainer.args.assistant_only_loss=true says")
    if not 0 <= config.sft.label_smoothing < 1:
        raise _wrong("sft.label_smoothing", config.sft.label_smoothing, "0 or more, below 1")
    if config.sft.infonce_temperature <= 0:
        raise _wrong("sft.infonce_temperature", config.sft.infonce_temperature, "more than 0")
    if t.learning_rate < 0:
        raise _wrong("trainer.learning_rate", t.learning_rate, "0 or more")
    if t.max_length is not None and t.max_length < 2:
        raise _wrong("trainer.max_length", t.max_length, "at least 2 tokens, or null for no limit")
    if config.peft.kind != "none" and config.peft.r < 1:
        raise _wrong("peft.r", config.peft.r, "at least 1")
    for extra in config.probes.extra:
        if extra not in EXTRA_METRICS:
            raise _wrong("probes.extra", extra, f"some of {', '.join(EXTRA_METRICS)}")
    if config.probes.kl and t.method == "dpo":
        if not config.loss.needs_reference:
            raise _wrong("probes.kl", "true", f"false: {'+'.join(config.loss.types)} looks at no reference")
        if t.precomputes_reference:
            raise _wrong("probes.kl", "true", "false: precomputed sums hold no distributions to compare with")
    kind = config.tracking.kind
    if not (isinstance(kind, str) or (isinstance(kind, list) and all(isinstance(k, str) for k in kind))):
        raise _wrong("tracking.kind", kind, "a tracker's name, or several: [wandb,mlflow]")
    for key in ("start_timeout", "finish_timeout"):
        if getattr(config.tracking, key) <= 0:
            raise _wrong(f"tracking.{key}", getattr(config.tracking, key), "seconds, more than 0")
    if config.keep.patience is not None and config.keep.patience < 1:
        raise _wrong("keep.patience", config.keep.patience, "at least 1 evaluation, or null")
    check_prompts(config.prompts)


def _check_sources(config: Config) -> None:
    uses_task = [name for name in ("model", "data", "prompts") if getattr(config, name).kind == "task"]
    if config.task.kind == "none" and uses_task:
        raise DiagError(
            f"{uses_task[0]}.kind is task but there is no task",
            expected=f"task=sql, or another {uses_task[0]}",
            hint="dpo-train experiment=sql_dpo, or model=hub model.name=... data=jsonl data.path=... prompts=none",
            usage=True,
        )
    if config.model.kind == "task" and config.data.kind != "task":
        raise DiagError(
            "the task's model trains on the task's own pairs", where="model.kind", got=f"data={config.data.kind}",
            expected="data=task", usage=True,
            hint="model=hub model.name=FOLDER; a run of the task leaves its model in OUTPUT_ROOT/cache/sql-sft-*/model",
        )  # fmt: skip
    if config.model.kind == "hub" and not config.model.name:
        raise _wrong("model.name", "nothing", "a hub id or a local folder")
    check_data(config.data)


def check_task(t: TaskConfig) -> None:
    """The sizes of the embedded case can work."""
    for name in ("sft_steps", "sft_batch_size", "layers", "heads", "n_questions"):
        if getattr(t, name) < 1:
            raise _wrong(f"task.{name}", getattr(t, name), "at least 1")
    if t.sft_learning_rate <= 0:
        raise _wrong("task.sft_learning_rate", t.sft_learning_rate, "more than 0")
    if not 0 <= t.planted_error <= 1:
        raise _wrong("task.planted_error", t.planted_error, "a share from 0 to 1")
    if t.vocab_size < 258:
        raise _wrong("task.vocab_size", t.vocab_size, "at least 258: the bytes and two special tokens")
    if t.hidden_size % (2 * t.heads):
        raise _wrong("task.hidden_size", t.hidden_size, f"a multiple of {2 * t.heads}, twice the heads")
    if not 0 < t.n_train_pairs < t.n_pairs:
        raise _wrong("task.n_train_pairs", t.n_train_pairs, f"1 to {t.n_pairs - 1}: some pairs are held out")


def check_data(d: DataConfig) -> None:
    """The pairs are named and there; shares are shares."""
    for share in ("eval_share", "max_bad_share", "max_truncated_share"):
        if not 0 <= getattr(d, share) <= 1:
            raise _wrong(f"data.{share}", getattr(d, share), "a share from 0 to 1")
    if d.implicit_prompt not in CHOICES["data.implicit_prompt"]:
        raise _wrong("data.implicit_prompt", d.implicit_prompt, f"one of {', '.join(CHOICES['data.implicit_prompt'])}")
    if d.kind in ("jsonl", "sharegpt"):
        for key in ("path", "eval_path"):
            value = getattr(d, key)
            if value is None and key == "path":
                raise _wrong("data.path", "nothing", "a file of preference pairs")
            # Several files and globs are looked for where they are read.
            if isinstance(value, str) and not set(value) & set(",*?[") and not Path(value).expanduser().exists():
                raise _wrong(f"data.{key}", value, "an existing file")
    if d.kind == "hub" and not d.name:
        raise _wrong("data.name", "nothing", "a datasets id or a local dataset folder")


def check_prompts(p: PromptsConfig) -> None:
    """The prompt file is there, the decoding possible."""
    if p.kind == "file":
        if not p.path:
            raise _wrong("prompts.path", "nothing", "a jsonl file of prompts")
        shipped = sorted(f.stem for f in PROMPT_SETS.glob("*.jsonl"))
        if not Path(p.path).is_file() and p.path not in shipped:
            raise _wrong("prompts.path", p.path, f"an existing jsonl file, or one of {', '.join(shipped)}")
    if p.n_samples < 0 or (p.n_samples and p.temperature <= 0):
        raise _wrong("prompts.n_samples", p.n_samples, "0, or more with prompts.temperature above 0")
    if p.max_new_tokens < 1:
        raise _wrong("prompts.max_new_tokens", p.max_new_tokens, "at least 1")


def _wrong(key: str, got: object, expected: str) -> DiagError:
    return DiagError("configuration does not fit", where=key, got=got, expected=expected, usage=True)
