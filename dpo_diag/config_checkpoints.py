"""The dataclasses behind conf/score.yaml and conf/generate.yaml: finished checkpoints instead of a training."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from dpo_diag.config import CHOICES, DataConfig, PromptsConfig
from dpo_diag.config_checks import check_data, check_prompts
from dpo_diag.errors import DiagError
from dpo_diag.extras import require
from dpo_diag.losses import LossSpec

LAUNCHERS = ("auto", "none", "rank", "ray")
SHARED_PREFIX = ("auto", "on", "off")


@dataclass
class LoaderConfig:
    """How checkpoints are loaded; their own folders say what they are."""

    device: str = "auto"
    dtype: str = "auto"
    tokenizer: str | None = None
    attn_implementation: str | None = None
    trust_remote_code: bool = False
    allow_pickle: bool = False


@dataclass
class CheckpointsConfig:
    """What dpo-score and dpo-generate share.

    `checkpoints`: paths, globs, hub ids or NAME=PATH, a string or a list; `out`: the run folder, made or added to, or a
    URL that fsspec opens. `launcher`: auto (several processes where a launcher started them), none, rank, ray;
    `shard_size`: rows in one part of shared work; `workers`, `worker_cpus`, `ray_address`: see `inference.by_ray`.
    """

    name: str = "scored"
    output_root: str = "runs"
    seed: int = 0
    checkpoints: Any = None
    out: str | None = None
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    batch_size: int = 16
    launcher: str = "auto"
    shard_size: int = 256
    workers: int | None = None
    worker_cpus: float = 1.0
    ray_address: str | None = None

    @property
    def takes_one_process(self) -> bool:
        """Whether something is asked for that several processes cannot share."""
        return False


@dataclass
class ScoreConfig(CheckpointsConfig):
    """dpo-score: checkpoints x preference pairs. `hold_out=false` scores every pair, not only the held-out share.

    `shared_prefix`: auto computes a prompt once for its responses, in rows of `row_tokens` tokens, where the model was
    proved to allow it before the first batch; on insists; off computes it with each response. `reference_store`: a
    folder where the reference's rows are kept, and taken from where model, adapter, tokenizer, template and cut are the
    same. `kl`: the KL from the reference at every response token, both ways, for a forward of it with each checkpoint.
    """

    data: DataConfig = field(default_factory=DataConfig)
    loss: LossSpec = field(default_factory=LossSpec)
    reference: str | None = None
    reference_store: str | None = None
    split: str = "eval"
    hold_out: bool = False
    max_length: int | None = 1024
    truncation_mode: str = "keep_start"
    tokens: bool = True
    no_prompt: bool = False
    ches: bool = False
    kl: bool = False
    shared_prefix: str = "auto"
    row_tokens: int = 2048
    explain: bool = True
    report: bool = True
    checks: dict[str, Any] = field(default_factory=dict)

    @property
    def takes_one_process(self) -> bool:
        """See `CheckpointsConfig.takes_one_process`."""
        return self.kl or self.reference_store is not None


@dataclass
class GenerateConfig(CheckpointsConfig):
    """dpo-generate: checkpoints x fixed prompts. `across`: also old answers under new models, and the reverse."""

    prompts: PromptsConfig = field(default_factory=PromptsConfig)
    across: bool = False
    batch_size: int = 32


def checkpoint_names(config: CheckpointsConfig) -> list[str]:
    """`checkpoints` as a list; raises DiagError for nothing."""
    value = config.checkpoints
    names = [value] if isinstance(value, str) else [str(v) for v in value or []]
    if not names:
        raise DiagError(
            "no checkpoint named", where="checkpoints", expected="paths, globs or hub ids",
            hint="checkpoints='runs/sql_dpo/*/checkpoints/*'", usage=True,
        )  # fmt: skip
    return names


def check_launch(config: CheckpointsConfig) -> None:
    """How the work is shared."""
    if config.launcher not in LAUNCHERS:
        expected = ", ".join(LAUNCHERS)
        raise DiagError("unknown launcher", where="launcher", got=config.launcher, expected=expected, usage=True)
    if config.shard_size < 1:
        raise DiagError("too few rows in a part", where="shard_size", got=config.shard_size, usage=True)
    if config.launcher == "ray":
        require("ray", "launcher=ray")


def check_score(config: ScoreConfig) -> None:
    """Everything that one field cannot know alone, before any model is loaded."""
    checkpoint_names(config)
    check_launch(config)
    if config.data.kind == "task" or config.data.kind not in CHOICES["data.kind"]:
        raise DiagError(
            "name the pairs to score", where="data", got=config.data.kind, expected="jsonl, sharegpt or hub", usage=True
        )
    if config.shared_prefix not in SHARED_PREFIX:
        raise DiagError(
            "configuration does not fit", where="shared_prefix", got=config.shared_prefix,
            expected=", ".join(SHARED_PREFIX), usage=True,
        )  # fmt: skip
    if config.row_tokens < 1:
        raise DiagError("a row holds at least a token", where="row_tokens", got=config.row_tokens, usage=True)
    check_data(config.data)


def check_generate(config: GenerateConfig) -> None:
    """Everything that one field cannot know alone, before any model is loaded."""
    checkpoint_names(config)
    check_launch(config)
    if config.prompts.kind != "file":
        raise DiagError("name the prompts", where="prompts.path", expected="prompts.path=FILE.jsonl", usage=True)
    if config.prompts.kl:
        raise DiagError("nothing to take it from", where="prompts.kl", expected="dpo-train", usage=True)
    check_prompts(config.prompts)
