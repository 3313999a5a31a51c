"""The dataclasses behind conf/: every key of the configuration, its type, unit and default.

Hydra merges conf/*.yaml into these, so that a misspelt key or a wrong type stops before anything runs; what no field
knows alone is checked in `config_checks`. No torch and no hydra import here: the analyst's commands read conf/ too.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dpo_diag.config_guards import GuardsConfig
from dpo_diag.config_keep import KeepConfig
from dpo_diag.config_schedule import ScheduleConfig
from dpo_diag.config_sft import LOSS_ON, SftConfig
from dpo_diag.errors import DiagError
from dpo_diag.losses import LossSpec


@dataclass
class ModelConfig:
    """Which model: `kind` task (made by the task), smollm2 (dpo-diag fetch smollm2), hub (a hub id or local folder)."""

    kind: str = "task"
    name: str | None = None
    revision: str | None = None
    tokenizer: str | None = None
    dtype: str = "auto"
    attn_implementation: str | None = None
    device: str = "auto"
    trust_remote_code: bool = False
    allow_pickle: bool = False
    chat_template: str | None = None
    reference: str | None = None


@dataclass
class ColumnsConfig:
    """What a column is where its name does not say so, or says it wrongly: a column's name; false: not to be read.

    `prompt` may be a list of names, which are joined line under line. `better` says which of two answers is better.
    """

    prompt: Any = None
    chosen: Any = None
    rejected: Any = None
    system: Any = None
    better: Any = None


@dataclass
class DataConfig:
    """Which preference pairs: `kind` task, jsonl, sharegpt or hub; the share held out; the share of bad rows borne.

    `path`, `eval_path`: a file, several, a glob, or a list. `config`: a configuration of the hub's data set. `form`:
    how the rows are written (a name of `dpo_diag.rows.form.FORMS`), auto: their columns say. `chat`: whether a prompt
    of text is a user's turn; null: as the form has it. `implicit_prompt`: whole or any; see `rows.implicit`.
    """

    kind: str = "task"
    path: Any = None
    eval_path: Any = None
    name: str | None = None
    config: str | None = None
    revision: str | None = None
    form: str = "auto"
    columns: ColumnsConfig = field(default_factory=ColumnsConfig)
    chat: bool | None = None
    implicit_prompt: str = "whole"
    split: str = "train"
    eval_split: str | None = None
    eval_share: float = 0.2
    max_train_pairs: int | None = None
    max_eval_pairs: int | None = 256
    max_bad_share: float = 0.05
    max_truncated_share: float = 0.5


@dataclass
class FilterConfig:
    """Which of the training pairs are trained on: `kind` none (all), ln_ches (those with the lowest ln-CHES before
    training, arXiv 2410.08847) or random (as a control); `keep`: their share."""

    kind: str = "none"
    keep: float = 1.0


@dataclass
class TrainerConfig:
    """How to train: `method` dpo or sft; batch sizes in examples per device; intervals in optimizer steps.

    `args` is handed on to TRL's DPOConfig or SFTConfig as it is, for whatever has no key here. `shared_prefix`: auto
    computes the prompt that chosen and rejected share once where loss and gradient were proved to be those of TRL's
    padded batch before the first step, and as TRL does elsewhere; on insists; off: as TRL does. `reference_store`: a
    folder where the reference's sums, computed before training (`precompute_ref_log_probs`, which naming a store turns
    on), are kept, and taken from where model, adapter, tokenizer, template and cut are the same; null:
    OUTPUT_ROOT/cache/references. `logits_sam`: rho of logits-SAM (arXiv 2603.18258); 0: none.

    A checkpoint is written after the last step (`save_at_end`), where the last one is `save_minutes` old, and every
    `save_steps`. Those of `save_steps` all stay, of the others the last 2; with `save_total_limit` the last so many of
    all, and the best where one is sought.
    """

    method: str = "dpo"
    learning_rate: float = 1e-6
    lr_scheduler_type: str = "cosine"
    warmup_steps: float = 0
    max_steps: int = -1
    num_train_epochs: float = 1.0
    batch_size: int = 8
    eval_batch_size: int = 8
    gradient_accumulation_steps: int = 1
    max_grad_norm: float = 1.0
    max_length: int | None = 1024
    truncation_mode: str = "keep_start"
    optim: str = "adamw_torch"
    weight_decay: float = 0.0
    disable_dropout: bool = True
    precompute_ref_log_probs: bool = False
    reference_store: str | None = None
    shared_prefix: str = "auto"
    logits_sam: float = 0.0
    gradient_checkpointing: bool | None = None
    bf16: bool | None = None
    logging_steps: int = 1
    eval_steps: int = 10
    save_steps: int | None = None
    save_minutes: float | None = 30.0
    save_at_end: bool = True
    save_total_limit: int | None = None
    args: dict[str, Any] = field(default_factory=dict)

    @property
    def precomputes_reference(self) -> bool:
        """Whether the reference's sums are computed before training, or read from a store."""
        asked = self.args.get("precompute_ref_log_probs", self.precompute_ref_log_probs)
        return bool(asked) or self.reference_store is not None

    @property
    def assistant_only(self) -> bool:
        """Whether TRL's assistant_only_loss is asked for."""
        return bool(self.args.get("assistant_only_loss"))


@dataclass
class PeftConfig:
    """Adapters: `kind` none, lora or qlora."""

    kind: str = "none"
    r: int = 16
    alpha: int = 32
    dropout: float = 0.0
    target_modules: Any = "all-linear"
    bits: int = 4


@dataclass
class ProbesConfig:
    """What is measured beyond the loss. Per-token records are kept for evaluation sets, up to `record_tokens` pairs.

    `extra` may hold top5 and greedy_logp: a reduction inside the LM head, whose price dpo_diag.training states.
    `train_pairs` of the training set are measured at every evaluation as a set of their own (eval_train_probe).
    `prompt_ce`: SFT scores the prompt's tokens too; null: on a CPU, where that is cheap. `kl`: evaluations measure the
    KL from the reference at each of these tokens, both ways, for the product of both heads; SFT for a forward of the
    reference (`model.reference`, a frozen copy of the start, or the model without its adapter) besides.
    """

    record_tokens: int = 256
    train_pairs: int = 0
    prompt_ce: bool | None = None
    extra: list[str] = field(default_factory=lambda: ["top5", "greedy_logp"])
    kl: bool = False


@dataclass
class PromptsConfig:
    """Fixed prompts answered at step 0, at every evaluation and at the end; `kind` none, task or file (jsonl).

    A greedy answer always, and `n_samples` seeded samples. `early`: at steps 1, 2, 4, 8, ... too. `kl`: the KL from the
    reference on the answers, for one forward of policy and reference over prompts and answers each time.
    """

    kind: str = "task"
    path: str | None = None
    max_new_tokens: int = 64
    n_samples: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0
    batch_size: int = 128
    reference: bool = True
    early: bool = False
    kl: bool = False


@dataclass
class TrackingConfig:
    """Mirror of the records.

    Attributes:
        kind: none, wandb, mlflow, swanlab, tensorboard, trackio, webhook, a plugin's, or several: [wandb,mlflow].
        mode: offline (files in the run folder), online or disabled.
        group, job_type: of a sweep's runs; null takes the sweep's folder and the experiment.
        start_timeout, finish_timeout: seconds that a service may take before the run goes on without it.
    """

    kind: Any = "none"
    mode: str = "offline"
    project: str = "dpo_diag"
    entity: str | None = None
    group: str | None = None
    job_type: str | None = None
    name: str | None = None
    tags: list[str] = field(default_factory=list)
    start_timeout: float = 10.0
    finish_timeout: float = 30.0


@dataclass
class TaskConfig:
    """The embedded text-to-SQL case; `kind` none or sql. Sizes are counts of questions or pairs.

    `sft_seed` and not the run's seed decides the SFT model and the pairs, so that a sweep over `seed` shares them.

    Attributes:
        data_seed: which questions are drawn, in every set.
        sft_seed: initial weights and the order of SFT batches.
        sft_steps, sft_batch_size, sft_learning_rate: SFT sees steps x batch questions once; AdamW, cosine to 0.
        sft_warmup_steps, sft_adam_beta2: linear warm-up; AdamW's second decay.
        planted_error: share of the SFT answers with `>=` that say `>` instead (0 none, 1 all): a systematic mistake
            for DPO to correct.
        vocab_size, hidden_size, layers, heads, intermediate_size, initializer_range: tokenizer and model.
        n_pairs, n_train_pairs: how many pairs to collect, and how many of them train; the rest are held out.
        n_questions: fresh questions answered first; more are asked, as many again, while pairs are missing.
        max_questions: where asking ends with an error.
        n_held_out, n_paraphrased: fixed prompts in the wording of training, and in unseen wording.
        cache: folder of what SFT and collecting made.
    """

    kind: str = "none"
    sft_seed: int = 0
    data_seed: int = 0
    sft_steps: int = 220
    sft_batch_size: int = 32
    sft_learning_rate: float = 4e-3
    sft_warmup_steps: int = 10
    sft_adam_beta2: float = 0.999
    planted_error: float = 0.0
    vocab_size: int = 768
    hidden_size: int = 128
    layers: int = 2
    heads: int = 4
    intermediate_size: int = 320
    initializer_range: float = 0.06
    n_pairs: int = 620
    n_train_pairs: int = 496
    n_questions: int = 2000
    max_questions: int = 8000
    n_held_out: int = 300
    n_paraphrased: int = 300
    cache: str = "${output_root}/cache"


@dataclass
class SweepConfig:
    """What a sweeper that searches (hydra/sweeper=optuna) is told of each run.

    `objective`: a metric's name as the records have it (score/execution_accuracy), `@SPLIT` behind it for one split,
    `change:` before it for its change since the start; several in a list. `direction`: maximize or minimize, one for
    each; null: whichever the metric table calls better.
    """

    objective: Any = None
    direction: Any = None


@dataclass
class Config:
    """The whole configuration of dpo-train.

    `resume`: a run folder, which goes on from its last whole checkpoint, or from that of step `checkpoint`;
    `fresh_optimizer`: with that checkpoint's weights alone. `replay`: a step that a guard kept, RUN/alerts/step-N, is
    computed again and told; nothing is trained.
    """

    name: str = "run"
    seed: int = 0
    output_root: str = "runs"
    resume: str | None = None
    replay: str | None = None
    checkpoint: int | None = None
    fresh_optimizer: bool = False
    explain: bool = True
    report: bool = True
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    filter: FilterConfig = field(default_factory=FilterConfig)
    loss: LossSpec = field(default_factory=LossSpec)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    sft: SftConfig = field(default_factory=SftConfig)
    peft: PeftConfig = field(default_factory=PeftConfig)
    probes: ProbesConfig = field(default_factory=ProbesConfig)
    prompts: PromptsConfig = field(default_factory=PromptsConfig)
    guards: GuardsConfig = field(default_factory=GuardsConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    keep: KeepConfig = field(default_factory=KeepConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    task: TaskConfig = field(default_factory=TaskConfig)
    sweep: SweepConfig = field(default_factory=SweepConfig)
    checks: dict[str, Any] = field(default_factory=dict)


CHOICES: dict[str, tuple[str, ...]] = {
    "model.kind": ("task", "smollm2", "hub"),
    "model.dtype": ("auto", "float32", "bfloat16", "float16"),
    "data.kind": ("task", "jsonl", "sharegpt", "hub"),
    "data.implicit_prompt": ("whole", "any"),
    "filter.kind": ("none", "ln_ches", "random"),
    "trainer.method": ("dpo", "sft"),
    "trainer.truncation_mode": ("keep_start", "keep_end"),
    "trainer.shared_prefix": ("auto", "on", "off"),
    "sft.loss_on": LOSS_ON,
    "peft.kind": ("none", "lora", "qlora"),
    "prompts.kind": ("none", "task", "file"),
    "tracking.mode": ("offline", "online", "disabled"),
    "task.kind": ("none", "sql"),
}
PROMPT_SETS = Path(__file__).resolve().parent / "inference" / "prompt_sets"
"""Prompt sets that the package ships, by the name of the file."""
EXTRA_METRICS = ("top5", "greedy_logp")
"""What can be read inside the LM head beyond what TRL returns; see training.head_probe."""


def conf_dir() -> Path:
    """The folder of Hydra groups: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent
    for candidate in (package / "conf", package.parent / "conf"):
        if candidate.is_dir():
            return candidate
    raise DiagError("conf/ is missing", where=f"{package} and the folder beside it", hint="reinstall dpo-diag")
