"""run.json as typed records: every field with its type, meaning, unit; what a source does not know is null.

The annotations are the schema (see typed_json). `RunWriter` writes nothing else, `Run.info` reads it, and a run.json of
schema 1.0 becomes this in `run_upgrade.upgrade`.
"""

# ruff: noqa: RUF009 (`declared` is dataclasses.field, and frozen dataclasses are safe defaults)

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

from dpo_diag.losses import LossSpec
from dpo_diag.records.model_info import ModelInfo, ReferenceInfo, TokenizerInfo
from dpo_diag.records.secrets import redacted
from dpo_diag.records.splits import Role, role_from_name
from dpo_diag.records.typed_json import declared, hints
from dpo_diag.shortages import shortage

Kind = Literal["trained", "scored", "imported"]
Status = Literal["running", "finished", "failed", "interrupted"]
Reduction = Literal["sum", "mean"]
StepsSource = Literal["stated", "bar", "epochs", "interval", "counted"]
"""What an imported row's step is: its own, the progress bar's beside it, its epoch times the steps of an epoch, its
number times a known logging interval; or its number alone, where the log states none of these."""


@dataclass(frozen=True)
class SharedPrefixInfo:
    """How training computes prompts, which chosen and rejected share and no loss looks at."""

    way: Literal["packed", "head", "plain"] | None = declared(
        "packed: a pair's prompt once | head: not in the output embedding | plain: all of every sequence, as TRL does"
    )
    reason: str | None = declared("why plain, or with what reservation packed")
    max_loss_diff: float | None = declared("of this way against plain, in float32", "nats")
    max_grad_diff: float | None = declared("the same for the gradient", "share of its largest element")


@dataclass(frozen=True)
class TrainingInfo:
    """The trainer's arguments, under their names in transformers and TRL."""

    seed: int | None = declared("seed of the training")
    data_seed: int | None = declared("seed of the sampler")
    learning_rate: float | None = declared("peak learning rate")
    lr_scheduler_type: str | None = declared("schedule")
    optim: str | None = declared("optimizer")
    weight_decay: float | None = declared("weight decay")
    warmup_steps: float | None = declared("steps, or below 1 a share of all steps")
    max_grad_norm: float | None = declared("gradients are clipped to this norm")
    per_device_train_batch_size: int | None = declared("pairs in a micro-batch", "pairs")
    per_device_eval_batch_size: int | None = declared("pairs in an evaluation batch", "pairs")
    gradient_accumulation_steps: int | None = declared("micro-batches in a step", "count")
    max_steps: int | None = declared("-1: num_train_epochs decides", "optimizer steps")
    num_train_epochs: float | None = declared("passes over the training set")
    max_length: int | None = declared("prompt and response are cut to this", "tokens")
    truncation_mode: str | None = declared("which end of a prompt is kept")
    bf16: bool | None = declared("bfloat16 autocast")
    fp16: bool | None = declared("float16 autocast")
    gradient_checkpointing: bool | None = declared("activations are computed twice")
    disable_dropout: bool | None = declared("dropout is off, in adapters too")
    logging_steps: float | None = declared("steps, or below 1 a share of all steps")
    eval_steps: float | None = declared("steps, or below 1 a share of all steps")
    save_steps: float | None = declared("steps, or below 1 a share of all steps")
    world_size: int | None = declared("processes", "count")
    shared_prefix: SharedPrefixInfo | None = declared("how prompts are computed")
    logits_sam: float | None = declared("rho of logits-SAM: the length of the step that the output layer is moved by")
    loss_on: str | None = declared("SFT: assistant | last | all; null: as TRL's arguments say")
    loss_terms: Mapping[str, float] = declared("SFT: what is added to the NLL -> its weight", factory=dict)


@dataclass(frozen=True)
class SplitInfo:
    """A split of the records: rows of one origin."""

    role: Role = declared("train | train_probe | held_out | other, see records.splits", default="other")
    role_from: str | None = declared("what says the role: given by the caller | pairs (those trained on) | name")
    in_training: int | None = declared("different pairs that the training set holds too", "pairs")
    n_pairs: int | None = declared("different pairs", "pairs")
    n_duplicates: int | None = declared("pairs beyond the first of each id", "pairs")
    n_same_id: int | None = declared("different pairs that came under an id of another one", "pairs")
    told_apart_by: str | None = declared("content | order: what gave those pairs ids of their own")
    fingerprint: str | None = declared("hash of the sorted pair_ids")
    handed_to_evaluate: bool | None = declared("a set that was passed to evaluate(), not the trainer's own")


@dataclass(frozen=True)
class PromptsInfo:
    """The fixed prompts that outputs/ answers."""

    kind: str | None = declared("none | task | file")
    path: str | None = declared("file")
    n: int | None = declared("prompts", "count")
    hash: str | None = declared("hash over the prompts")


@dataclass(frozen=True)
class DecodingInfo:
    """How the answers in outputs/ were written; see inference.generation.Decoding."""

    max_new_tokens: int | None = declared("the end token included", "tokens")
    greedy: bool | None = declared("sample 0 is the greedy answer")
    n_samples: int | None = declared("seeded samples for each prompt", "count")
    temperature: float | None = declared("of the samples")
    top_p: float | None = declared("nucleus of the samples")
    top_k: int | None = declared("0: all tokens", "tokens")
    seed: int | None = declared("of the samples")
    stop_token_ids: tuple[int, ...] | None = declared("null: the model's and the tokenizer's end tokens")
    hash: str | None = declared("hash over all of these")


@dataclass(frozen=True)
class DroppedPair:
    """A pair that could not be scored."""

    pair_id: str | None = declared("its id")
    why: str | None = declared("reason")


@dataclass(frozen=True)
class SourceInfo:
    """Where an imported run comes from and how it was read."""

    files: tuple[str, ...] = declared("files that were read", default=())
    format: str | None = declared("format of the first source, as --as takes it")
    formats: tuple[str, ...] = declared("format of each source", default=())
    trainer: str | None = declared("who wrote the log")
    trainer_version: str | None = declared("its version or range of versions")
    steps_from: Mapping[str, str] = declared("file -> what gave its rows their step", factory=dict)
    steps: StepsSource | None = declared(
        "what a row's step is: stated by the log | read from the progress bar | from epochs | row number times a known "
        "interval | counted: the log states no steps, and `step` is the row's number"
    )
    logps_why: str | None = declared("what decided whether logps are sums or means")
    said: Mapping[str, str] = declared("fact -> file and line that says it", factory=dict)
    options: Mapping[str, Any] = declared("options of the import", factory=dict)
    names: Mapping[str, tuple[str, ...]] = declared("the log's name -> our split and name", factory=dict)
    kept_under_own_name: tuple[str, ...] = declared("names that no table knows", default=())
    left_out: tuple[str, ...] = declared("names of timing and bookkeeping", default=())
    summary: Mapping[str, Any] | None = declared("the log's final summary row")
    duplicates: int | None = declared("rows that repeat a step", "rows")
    backtracks: tuple[Mapping[str, Any], ...] = declared("split, from, to where steps run backwards", default=())
    read: int | None = declared("rows that were read", "rows")
    skipped: tuple[Mapping[str, Any], ...] = declared("line and why; empty where more than can be listed", default=())
    skipped_count: int | None = declared("rows that were not read", "rows")
    beta_check: Mapping[str, Any] | None = declared("whether the reference derived with beta is constant")
    nll_weight: float | None = declared("weight of the NLL term in the loss")
    notes: tuple[str, ...] = declared("what a reader of the log should know", default=())
    details: Mapping[str, Any] = declared("what only this format says", factory=dict)


EARLY_STOP, GAVE_UP = "early_stop", "guards_gave_up"
"""What ends a training besides a guard that was asked to: `keep.patience`; skips or restores that do not help."""
RESTORED = "restored"
"""Alert behind one that was answered by `restore`: its `from_step` is the checkpoint's, absent where there was none."""


@dataclass(frozen=True)
class StoppedBy:
    """What ended a training before its last step."""

    guard: str | None = declared("code of the live guard; early_stop: keep.patience; guards_gave_up: nothing helped")
    step: int | None = declared("in which it spoke", "optimizer steps")
    of: int | None = declared("how many were asked for", "optimizer steps")

    @property
    def line(self) -> str:
        """ "Stopped by the guard non_finite_loss at step 3 of 12."""
        who = {EARLY_STOP: "early, by keep.patience,", GAVE_UP: "because skipping and restoring did not help,"}
        of = f" of {self.of}" if self.of and self.of > 0 else ""
        return f"Stopped {who.get(str(self.guard), f'by the guard {self.guard}')} at step {self.step}{of}."


@dataclass(frozen=True)
class CallInfo:
    """The command that measured into a run, so that an unfinished one can go on."""

    words: tuple[str, ...] = declared("the command and its arguments, secrets left out", default=())
    cwd: str | None = declared("where it was called: relative paths in it begin there")


@dataclass(frozen=True)
class RunInfo:
    """run.json. Times are ISO 8601 in UTC."""

    schema_version: str = declared("major.minor", default="")
    kind: Kind = declared("trained | scored | imported", default="trained")
    status: Status | None = declared("running | finished | failed | interrupted")
    error: str | None = declared("what ended a failed run")
    stopped_by: StoppedBy | None = declared("what ended a finished training early")
    created: str | None = declared("when the folder was made")
    ended: str | None = declared("when the status became final")
    name: str | None = declared("the run's name in its configuration")
    seed: int | None = declared("seed of everything")
    checkpoints_asked: int | None = declared("how many checkpoints a scoring or a generation was last asked for")
    call: CallInfo | None = declared("what was last called to score or generate into it, until it was finished")
    task: str | None = declared("embedded task, or none")
    method: str | None = declared("sft for supervised runs")
    trainer: str | None = declared("class of the trainer")
    git_commit: str | None = declared("commit of the working directory, + where files were changed")
    packages: Mapping[str, str] = declared("versions of the packages that decide what is computed", factory=dict)
    notes: tuple[str, ...] = declared("what was decided for the user", default=())

    model: ModelInfo = declared("the policy", default=ModelInfo())
    tokenizer: TokenizerInfo = declared("the policy's tokenizer", default=TokenizerInfo())
    other_tokenizers: tuple[TokenizerInfo, ...] = declared("of checkpoints scored under another one", default=())
    reference: ReferenceInfo = declared("the reference", default=ReferenceInfo())
    training: TrainingInfo = declared("the trainer's arguments", default=TrainingInfo())

    loss: LossSpec | None = declared("the loss, where its formula is known")
    loss_reason: str | None = declared("why `loss` is null")
    loss_names: tuple[str, ...] = declared("the loss as the source names it, where `loss` is null", default=())
    loss_like: str | None = declared(
        "where nothing names the loss: the formula that the logged means follow (sigmoid, hinge, ipo)"
    )
    beta: float | None = declared("the loss's; where `loss` is null: named by the source, or inferred from its means")
    logps: Reduction | None = declared("whether history's logps/* are sums or means over a response's tokens")
    reference_free: bool | None = declared("rewards are beta times the log-prob itself: no reference in them")

    splits: Mapping[str, SplitInfo] = declared("every split of the records", factory=dict)
    data: Mapping[str, Any] = declared("sources, counts and reasons, as in data_report.json", factory=dict)
    prompts: PromptsInfo = declared("the fixed prompts", default=PromptsInfo())
    decoding: DecodingInfo = declared("how answers were written", default=DecodingInfo())
    dropped_pairs: tuple[DroppedPair, ...] = declared("the first 100 pairs that could not be scored", default=())
    source: SourceInfo = declared("imports: where the run comes from", default=SourceInfo())
    tracking: Mapping[str, Any] = declared("where a tracker shows the run", factory=dict)
    other: Mapping[str, Any] = declared("fields of run.json that this version does not know", factory=dict)

    def __post_init__(self) -> None:
        if self.loss is not None:
            object.__setattr__(self, "beta", self.loss.beta)

    @property
    def steps_are_stated(self) -> bool:
        """False where an imported log states no steps: `step` then is a row's number, and its distance from the start
        and from the next row is unknown."""
        return self.source.steps != "counted"

    @property
    def step_word(self) -> str:
        """What a number of the column `step` is called: "step", or "row" where rows were only counted."""
        return "step" if self.steps_are_stated else "row"

    def at(self, step: float) -> str:
        """A number of the column `step` with what it is: "step 80", "row 8"."""
        return f"{self.step_word} {step:.0f}"

    def role(self, split: str) -> Role:
        """What the split's pairs are to the training; by its name where the run does not say."""
        known = self.splits.get(split)
        return known.role if known is not None else role_from_name(split)


def ended_by(error: BaseException) -> tuple[Status, str | None]:
    """The status of a run that the exception ended, and its line for `RunInfo.error`.

    >>> ended_by(ValueError("no room\\nleft"))
    ('failed', 'ValueError: no room')
    """
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", None
    told = shortage(error)
    return "failed", redacted((f"{type(error).__name__}: {error}" if told is None else str(told)).splitlines()[0])[:300]


class DeclaredField(NamedTuple):
    """One line of the schema of run.json."""

    name: str
    type: str
    unit: str | None
    meaning: str


def declared_fields(kind: type = RunInfo, prefix: str = "") -> Iterator[DeclaredField]:
    """Every field of run.json with a dotted name, depth first, those of a list's or a mapping's entries included; a
    loss's fields are those of LossSpec."""
    for field in dataclasses.fields(kind):
        annotation = hints(kind)[field.name]
        name = f"{prefix}{field.name}"
        shown = annotation.__name__ if isinstance(annotation, type) else str(annotation).replace("typing.", "")
        yield DeclaredField(name, shown, field.metadata["unit"], field.metadata["meaning"])
        for record in get_args(annotation) or (annotation,):
            if isinstance(record, type) and dataclasses.is_dataclass(record) and record is not LossSpec:
                yield from declared_fields(record, f"{name}.")
