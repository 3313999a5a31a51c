"""What a training needs, from the configuration: model, tokenizer, reference, pairs, fixed prompts. All doubts are
raised here, before long work; nothing is trained here but the embedded task's own SFT model (cached)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dpo_diag.config import Config
from dpo_diag.data.pairs import Row
from dpo_diag.data.source import REPORT_FILE, PreferenceData, load_data
from dpo_diag.inference.prompts import Prompt, load_prompts, to_prompts
from dpo_diag.models.policy import Policy, check_device, load_policy
from dpo_diag.models.tokenizers import require_chat_template
from dpo_diag.records import make_pair_id
from dpo_diag.records.writer import write_json

TRAIN_PROBE = "train_probe"


@dataclass
class Material:
    """What the job trains on.

    Attributes:
        policy: model, tokenizer, adapter configuration, reference and what run.json says of them.
        train: rows of the training set; prompt/chosen/rejected, for SFT prompt/completion.
        evals: evaluation sets by name; empty for none.
        prompts: the fixed prompts.
        data: for run.json's `data`.
        source: what was read from a file or the hub, with its list of bad rows; None for a task.
        notes: what was decided for the user, a line each.
    """

    policy: Policy
    train: list[Row]
    evals: dict[str, list[Row]]
    prompts: list[Prompt]
    data: dict[str, Any] = field(default_factory=dict)
    source: PreferenceData | None = None
    notes: list[str] = field(default_factory=list)


def assemble(config: Config, say: Callable[[str], None], report_to: Path | None = None) -> Material:
    """Everything that the configuration names, loaded and checked; `say` gets one line before each long step.

    `report_to`: run folder that gets the list of bad rows before they are judged: a run that they stop keeps it.
    """
    check_device(config.model.device)
    if config.data.kind == "task":
        train, evals, data, policy = _from_task(config, say)
        source, notes = None, list(policy.notes)
    else:
        source = load_data(config.data, seed=config.seed)
        if report_to is not None:
            report_to.mkdir(parents=True, exist_ok=True)
            source.write_report(report_to)
        source.check(config.data.max_bad_share)
        say(f"loading {config.model.name or config.model.kind}")
        policy = load_policy(config.model, config.peft, with_reference=_keeps_reference(config))
        notes = policy.notes + require_chat_template(policy.tokenizer, source.kind)
        notes += source.tokenise(policy.tokenizer, config.trainer.max_length, config.trainer.truncation_mode)
        notes = [*dict.fromkeys(notes), *source.notes()]
        train, evals, data = source.train, {"": source.held_out} if source.held_out else {}, source.summary()
    if config.trainer.method == "sft" and config.data.kind != "task":
        train = [as_sft(row) for row in train]
        evals = {name: [as_sft(row) for row in rows] for name, rows in evals.items()}
    if config.probes.train_pairs:
        probe = sorted(train, key=lambda row: str(row.get("pair_id", "")))[: config.probes.train_pairs]
        evals = {**evals, TRAIN_PROBE: probe}
    return Material(policy, train, evals, _prompts(config), data, source, notes)


def as_sft(row: Row) -> Row:
    """A preference pair as an SFT example: its chosen answer."""
    return {"prompt": row["prompt"], "completion": row["chosen"]}


def _keeps_reference(config: Config) -> bool:
    return config.trainer.method == "dpo"


def _from_task(
    config: Config, say: Callable[[str], None]
) -> tuple[list[Row], dict[str, list[Row]], dict[str, Any], Policy]:
    from dpo_diag.tasks.sql.pipeline import prepare_sql_case

    case_config = sql_case_config(config)
    if config.trainer.method == "sft":
        return _sql_sft(config)
    case = prepare_sql_case(config.task.cache, case_config, say=say)
    if not case.pairs_hit:
        say(f"{len(case.train) + len(case.held_out)} pairs collected")
    model = replace(config.model, kind="hub", name=str(case.model_dir))
    policy = load_policy(model, config.peft, with_reference=_keeps_reference(config))
    # The cache's folder is this machine's; the name is the same everywhere.
    for part in ("model", "tokenizer", "reference"):
        policy.meta[part] = policy.meta.get(part, {}) | {"name": "sql_tiny (SFT)"}
    train, held_out = ([_with_id(row) for row in rows] for rows in (case.train, case.held_out))
    data = {
        "source": {"task": "sql", "sft_seed": case_config.sft_seed, "data_seed": case_config.data_seed},
        "n_pairs": len(train) + len(held_out), "n_train": len(train), "n_eval": len(held_out), "sft": case.facts,
    }  # fmt: skip
    return train, {"": held_out}, data, policy


def _with_id(row: Row) -> Row:
    kept = {name: row[name] for name in ("prompt", "chosen", "rejected")}
    return kept | {"pair_id": make_pair_id(row["prompt"], row["chosen"], row["rejected"])}


def sql_case_config(config: Config) -> Any:
    """The task's own configuration from ours."""
    from dpo_diag.tasks.sql.pipeline import SqlCaseConfig

    t = config.task
    return SqlCaseConfig(
        data_seed=t.data_seed,
        sft_seed=t.sft_seed,
        sft_steps=t.sft_steps,
        sft_batch_size=t.sft_batch_size,
        sft_learning_rate=t.sft_learning_rate,
        planted_error=t.planted_error,
        n_pairs=t.n_pairs,
        n_train_pairs=t.n_train_pairs,
        n_questions=t.n_questions,
    )


def _sql_sft(config: Config) -> tuple[list[Row], dict[str, list[Row]], dict[str, Any], Policy]:
    """The SFT stage itself as a run: an untrained model, the task's SFT set, held-out questions with gold answers."""
    from dpo_diag.models.policy import describe_model
    from dpo_diag.models.tokenizers import describe_tokenizer
    from dpo_diag.tasks.sql.pipeline import build_sft_model, build_tokenizer, prompt_rows, sft_rows

    case_config = sql_case_config(config)
    tokenizer = build_tokenizer(case_config)
    model = build_sft_model(case_config, tokenizer)
    train = sft_rows(case_config)
    rows = prompt_rows(config.task.n_held_out, 0, seed=config.task.data_seed)
    held_out = [{"prompt": row["prompt"], "completion": " " + row["reference"]} for row in rows]
    policy = Policy(
        model, tokenizer, None, None, check_device(config.model.device),
        meta={"model": describe_model(model, "sql_tiny (untrained)"), "tokenizer": describe_tokenizer(tokenizer)},
    )  # fmt: skip
    data = {"source": {"task": "sql", "stage": "sft"}, "n_train": len(train), "n_eval": len(held_out)}
    return train, {"": held_out}, data, policy


def _prompts(config: Config) -> list[Prompt]:
    if config.prompts.kind == "none":
        return []
    if config.prompts.kind == "file":
        return load_prompts(str(config.prompts.path))
    from dpo_diag.tasks.sql.pipeline import prompt_rows

    t = config.task
    return to_prompts(prompt_rows(t.n_held_out, t.n_paraphrased, seed=t.data_seed))


def write_data_report(material: Material, folder: Path, max_truncated_share: float) -> None:
    """data_report.json: counts, and every row that was dropped or looked at; then judge what tokenising cut.

    Raises:
        DiagError: more than `max_truncated_share` of a set is cut or dropped; the report is written all the same.
    """
    if material.source is None:
        write_json(folder / REPORT_FILE, material.data)
        return
    material.source.write_report(folder)
    material.source.check_tokens(max_truncated_share)
