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
from dpo_diag.data.token_report import Look
from dpo_diag.errors import DiagError
from dpo_diag.inference.generation import begin_note
from dpo_diag.inference.prompts import Prompt, load_prompts, to_prompts
from dpo_diag.models.decoding import Decoding, stop_ids
from dpo_diag.models.loading import check_device
from dpo_diag.models.policy import Policy, load_policy
from dpo_diag.models.tokenizers import require_chat_template
from dpo_diag.records import make_pair_id
from dpo_diag.records.files import write_json
from dpo_diag.records.schemas import SIDES
from dpo_diag.records.secrets import without_secrets
from dpo_diag.rows.pair import WHOLE
from dpo_diag.thresholds import load_thresholds
from dpo_diag.training.pair_filter import keep_pairs

TRAIN_PROBE = "train_probe"


@dataclass
class Inputs:
    """What the job trains on.

    Attributes:
        policy: model, tokenizer, adapter configuration, reference and what run.json says of them.
        train: rows of the training set; prompt/chosen/rejected, for SFT prompt/completion or text.
        evals: evaluation sets by name; empty for none.
        prompts: the fixed prompts.
        data: for run.json's `data`.
        source: what was read from a file or the hub, with its list of bad rows; None for a task.
        notes: what was decided for the user, a line each.
    """

    policy: Policy
    train: list[Row]
    evals: dict[str, list[Row]]
    data: dict[str, Any]
    prompts: list[Prompt] = field(default_factory=list)
    source: PreferenceData | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def said(self) -> set[str]:
        """What `notes` say of the tokens already."""
        reports = self.source.tokens.values() if self.source is not None else ()
        return {finding.why for report in reports for finding in report.findings}

    def write_data_report(self, folder: Path, max_truncated_share: float) -> None:
        """data_report.json: counts, and every row that was dropped or cut; then judge what tokenising cut.

        Raises:
            DiagError: more than `max_truncated_share` of a set is cut or dropped; the report is written all the same.
        """
        if self.source is None:
            write_json(folder / REPORT_FILE, without_secrets(self.data))
            return
        self.source.write_report(folder)
        self.source.check_tokens(max_truncated_share)


def load_inputs(config: Config, say: Callable[[str], None], report_to: Path | None = None) -> Inputs:
    """Everything that the configuration names, loaded and checked; `say` gets one line before each long step.

    `report_to`: run folder that gets the list of bad rows before they are judged: a run that they stop keeps it.
    """
    check_device(config.model.device)
    prompts = _prompts(config)  # a mistake in them is told before anything is loaded
    if config.data.kind == "task":
        inputs = _task_sft(config) if config.trainer.method == "sft" else _task_dpo(config, say)
    else:
        inputs = _from_source(config, say, report_to)
    limits = config.trainer.max_length, config.trainer.truncation_mode
    inputs.train, filtered = keep_pairs(config.filter, inputs.policy, inputs.train, limits, say=say, folder=report_to)
    if filtered:
        inputs.data |= {"filter": filtered, "n_train": len(inputs.train)}
    if config.probes.train_pairs:
        by_id = sorted(inputs.train, key=lambda row: str(row.get("pair_id", "")))
        inputs.evals[TRAIN_PROBE] = by_id[: config.probes.train_pairs]
    inputs.prompts = prompts
    if note := begin_note(inputs.policy.tokenizer, inputs.prompts):
        inputs.notes.append(note)
    return inputs


def has_reference(config: Config) -> bool:
    """Whether the training looks at a reference: SFT and losses such as SimPO do not."""
    return config.trainer.method == "dpo" and config.loss.needs_reference


def _loads_reference(config: Config) -> bool:
    """Whether a reference is loaded: for the loss, or for the KL from it alone."""
    return has_reference(config) or (config.trainer.method == "sft" and config.probes.kl)


def _from_source(config: Config, say: Callable[[str], None], report_to: Path | None) -> Inputs:
    """Pairs of a file or of the hub."""
    dpo = config.trainer.method == "dpo"
    source = load_data(config.data, seed=config.seed, thresholds=config.checks, supervised=not dpo)
    for line in source.readings():
        say(line)
    if report_to is not None:
        report_to.mkdir(parents=True, exist_ok=True)
        source.write_report(report_to)
    source.check(config.data.max_bad_share)
    counted = "last" if dpo else loss_on(config)
    if source.kind == WHOLE and counted in ("assistant", "last"):
        raise DiagError(
            "the rows are texts without turns", where=config.data.path or config.data.name,
            got=f"sft.loss_on={counted}", expected="messages, or prompt and completion",
            hint="sft=whole_sequence trains on all of it, or give the answer a column of its own",
        )  # fmt: skip
    say(f"loading {config.model.name or config.model.kind}")
    policy = load_policy(
        config.model, config.peft, with_reference=_loads_reference(config),
        precomputed=config.trainer.precomputes_reference,
    )  # fmt: skip
    notes = policy.notes + require_chat_template(policy.tokenizer, source.kind)
    ends, sides = stop_ids(policy.model, policy.tokenizer, Decoding()), SIDES if dpo else SIDES[:1]
    look = Look(policy.tokenizer, ends, sides, load_thresholds(config.checks), counted or "last")
    notes += source.tokenise(policy.tokenizer, config.trainer.max_length, config.trainer.truncation_mode, look)
    train, held_out = source.train, source.held_out
    if not dpo:
        train, held_out = ([as_sft(row) for row in rows] for rows in (train, held_out))
    return Inputs(
        policy, train, {"": held_out} if held_out else {}, source.summary(), source=source,
        notes=[*dict.fromkeys(notes), *source.notes()],
    )  # fmt: skip


def loss_on(config: Config) -> str | None:
    """What a supervised training counts; None where TRL's own arguments say it, but for TRL's assistant_only_loss: its
    turns are ours, which need no template of TRL's."""
    by_trl = {"assistant_only_loss", "completion_only_loss"} & set(config.trainer.args)
    return "assistant" if config.trainer.assistant_only else None if by_trl else config.sft.loss_on


def as_sft(row: Row) -> Row:
    """A preference pair, or a row of one answer, as an SFT example: its (chosen) answer, and what the chat template
    takes; of a whole text that text."""
    if row["prompt"] == "":
        return {"text": row["chosen"]}
    options: Row = {name: row[name] for name in ("tools", "chat_template_kwargs") if name in row}
    return {"prompt": row["prompt"], "completion": row["chosen"]} | options


def _task_dpo(config: Config, say: Callable[[str], None]) -> Inputs:
    """The embedded case: the SFT model's own mistakes as pairs."""
    from dpo_diag.tasks.sql.case import prepare_sql_case

    task = config.task
    case = prepare_sql_case(task.cache, task, say=say)
    if not case.pairs_hit:
        say(f"{len(case.train) + len(case.held_out)} pairs collected")
    model = replace(config.model, kind="hub", name=str(case.model_dir))
    policy = load_policy(
        model, config.peft, with_reference=has_reference(config), precomputed=config.trainer.precomputes_reference
    )
    # The cache's folder is this machine's; the name is the same everywhere.
    models = ("model", "reference") if has_reference(config) else ("model",)
    for part in (*models, "tokenizer"):
        policy.meta[part] = policy.meta.get(part, {}) | {"name": "sql_tiny (SFT)"}
    for part in models:
        policy.meta[part]["folder"] = str(case.model_dir)
    train, held_out = ([_with_id(row) for row in rows] for rows in (case.train, case.held_out))
    data = {
        "source": {"task": "sql", "sft_seed": task.sft_seed, "data_seed": task.data_seed},
        "n_pairs": len(train) + len(held_out), "n_train": len(train), "n_eval": len(held_out), "sft": case.facts,
    }  # fmt: skip
    return Inputs(policy, train, {"": held_out}, data, notes=list(policy.notes))


def _with_id(row: Row) -> Row:
    pair = {name: row[name] for name in ("prompt", "chosen", "rejected")}
    return pair | {"pair_id": make_pair_id(**pair)}


def _task_sft(config: Config) -> Inputs:
    """The SFT stage itself as a run: an untrained model, the task's SFT set, held-out questions with gold answers."""
    from dpo_diag.models.loading import describe_model, frozen_copy
    from dpo_diag.models.tokenizers import describe_tokenizer
    from dpo_diag.tasks.sql.model import build_model
    from dpo_diag.tasks.sql.questions import prompt_rows
    from dpo_diag.tasks.sql.sft import build_tokenizer, sft_rows

    tokenizer = build_tokenizer(config.task)
    model = build_model(config.task, tokenizer)
    train = sft_rows(config.task)
    rows = prompt_rows(config.task.n_held_out, 0, seed=config.task.data_seed)
    held_out = [{"prompt": row["prompt"], "completion": " " + row["reference"]} for row in rows]
    policy = Policy(
        model, tokenizer, None, frozen_copy(model) if config.probes.kl else None, check_device(config.model.device),
        meta={"model": describe_model(model, "sql_tiny (untrained)"), "tokenizer": describe_tokenizer(tokenizer)},
    )  # fmt: skip
    data = {"source": {"task": "sql", "stage": "sft"}, "n_train": len(train), "n_eval": len(held_out)}
    return Inputs(policy, train, {"": held_out}, data)


def _prompts(config: Config) -> list[Prompt]:
    if config.prompts.kind == "none":
        return []
    if config.prompts.kind == "file":
        return load_prompts(str(config.prompts.path))
    from dpo_diag.tasks.sql.questions import prompt_rows

    t = config.task
    return to_prompts(prompt_rows(t.n_held_out, t.n_paraphrased, seed=t.data_seed))
