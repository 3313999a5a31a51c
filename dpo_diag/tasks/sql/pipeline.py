"""From nothing to preference pairs: SFT from scratch, greedy answers to fresh questions, the wrong ones as pairs.

The setting is h2oai/h2o-llmstudio issue 594's: 620 SQL pairs "that the model got wrong after SFT, with the corrected
output". Two cache entries, so that another number of pairs does not train the SFT model again.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpo_diag.errors import DiagError
from dpo_diag.tasks.sql.cache import build_once
from dpo_diag.tasks.sql.case_config import SqlCaseConfig
from dpo_diag.tasks.sql.execute import is_correct
from dpo_diag.tasks.sql.questions import Question, generate_questions
from dpo_diag.tasks.sql.stream import Stream

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

# Raise when a change here, in the generator, the rows, the tokenizer or the model changes what is built.
CODE_VERSION = 1
Row = dict[str, Any]


@dataclass(frozen=True)
class SqlCase:
    """What `prepare_sql_case` hands over.

    Attributes:
        model_dir: the SFT model and its tokenizer, one folder that AutoModelForCausalLM and AutoTokenizer load.
        pairs_dir: train.jsonl and held_out.jsonl.
        train, held_out: rows {"id", "prompt", "chosen", "rejected", "tags", "db", "template"}; chosen and rejected
            start with one space.
        facts: accuracy of the SFT model on the fresh questions ("n_questions", "n_correct"), what was dropped,
            seconds; all from the build, so the same on a hit.
        sft_hit, pairs_hit: whether the cache had it.
    """

    model_dir: Path
    pairs_dir: Path
    train: list[Row]
    held_out: list[Row]
    facts: dict[str, Any]
    sft_hit: bool
    pairs_hit: bool
    config: SqlCaseConfig = field(default_factory=SqlCaseConfig)


def prompt_rows(n_held_out: int = 300, n_paraphrased: int = 300, *, seed: int = 0) -> list[Row]:
    """The fixed prompts: fresh questions of two sets, neither in SFT nor in the pairs.

    Returns:
        n_held_out rows in the wording of training and n_paraphrased in unseen wording, each {"id", "prompt",
        "reference" (gold SQL), "db", "checker": "sql", "template", "tags" (the set's name first, then clauses)}.
    """
    out = []
    for name, n in (("held_out", n_held_out), ("paraphrased", n_paraphrased)):
        for q in generate_questions(name, n, seed=seed):
            out.append(
                {"id": q.id, "prompt": q.prompt, "reference": q.gold, "db": q.db, "checker": "sql",
                 "template": q.template, "tags": list(q.tags)}
            )  # fmt: skip
    return out


def execution_accuracy(rows: Sequence[Mapping[str, Any]], answers: Sequence[str]) -> list[bool]:
    """Per row, whether the answer's result equals the reference's; see `execute.is_correct`.

    Args:
        rows: with "db" and "reference"; as `prompt_rows` gives them.
        answers: what the model wrote after each prompt, without special tokens. Hostile text is fine.

    Raises:
        ValueError: another number of answers than rows.
    """
    return [is_correct(row["db"], answer, row["reference"]) for row, answer in zip(rows, answers, strict=True)]


def sft_rows(config: SqlCaseConfig) -> list[Row]:
    """The SFT set, in the order of generation: {"prompt", "completion"} rows, steps x batch of them."""
    questions = generate_questions("sft", config.sft_steps * config.sft_batch_size, seed=config.data_seed, unique=False)
    stream = Stream("planted error", config.data_seed)
    rows = []
    for q in questions:
        gold = q.gold
        if ">=" in gold and stream.below(10_000) < round(config.planted_error * 10_000):
            gold = gold.replace(">=", ">")
        rows.append({"prompt": q.prompt, "completion": " " + gold})
    return rows


def build_tokenizer(config: SqlCaseConfig) -> PreTrainedTokenizerFast:
    """The task's tokenizer, trained on the SFT set."""
    from dpo_diag.tasks.sql.tokenizer import train_tokenizer

    return train_tokenizer((r["prompt"] + r["completion"] for r in sft_rows(config)), vocab_size=config.vocab_size)


def build_sft_model(config: SqlCaseConfig, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """The untrained model of the case."""
    from dpo_diag.tasks.sql.model import build_model

    assert tokenizer.pad_token_id is not None and tokenizer.eos_token_id is not None
    return build_model(
        vocab_size=len(tokenizer),
        pad_token_id=int(tokenizer.pad_token_id),
        eos_token_id=int(tokenizer.eos_token_id),
        hidden_size=config.hidden_size,
        layers=config.layers,
        heads=config.heads,
        intermediate_size=config.intermediate_size,
        initializer_range=config.initializer_range,
        seed=config.sft_seed,
    )


def sft_arguments(config: SqlCaseConfig, output_dir: str | os.PathLike[str], **overrides: Any) -> Any:
    """The SFTConfig of the case. On a CPU bf16 and activation (gradient) checkpointing, which TRL
    has on, are off: 10 times slower."""
    import torch
    from trl import SFTConfig

    settings: dict[str, Any] = {
        "output_dir": str(output_dir),
        "max_steps": config.sft_steps,
        "per_device_train_batch_size": config.sft_batch_size,
        "learning_rate": config.sft_learning_rate,
        "lr_scheduler_type": "cosine",
        "warmup_steps": config.sft_warmup_steps,
        "weight_decay": 0.01,
        "adam_beta2": config.sft_adam_beta2,
        "max_grad_norm": 1.0,
        "completion_only_loss": True,
        "max_length": 256,
        "seed": config.sft_seed,
        "data_seed": config.sft_seed,
        "bf16": False,
        "activation_checkpointing": False,
        "use_cpu": not torch.cuda.is_available(),
        "report_to": [],
        "save_strategy": "no",
        "logging_steps": 20,
        "dataloader_pin_memory": False,
    }
    return SFTConfig(**{**settings, **overrides})


def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("torch", "transformers", "trl", "tokenizers")}


def _write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def _read_rows(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@contextlib.contextmanager
def _aside() -> Iterator[None]:
    """Leave the random states as they were (a cache miss must not change what the caller draws next), and keep the
    trainer's printed rows off standard output, which belongs to the command."""
    import random

    import numpy as np
    import torch

    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(), contextlib.redirect_stdout(sys.stderr):
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)  # noqa: NPY002


def _train_sft(
    folder: Path,
    config: SqlCaseConfig,
    trainer_class: type | None,
    trainer_kwargs: Mapping[str, Any],
    progress: bool,
) -> Row:
    """Train from scratch and save model and tokenizer under folder/model; returns facts."""
    import tempfile

    from datasets import Dataset

    if trainer_class is None:
        from trl import SFTTrainer as trainer_class
    started, cpu_started = time.monotonic(), time.process_time()
    tokenizer = build_tokenizer(config)
    model = build_sft_model(config, tokenizer)
    quiet: dict[str, Any] = {} if progress else {"disable_tqdm": True, "logging_strategy": "no"}
    with tempfile.TemporaryDirectory() as scratch, _aside():
        trainer = trainer_class(
            model=model,
            args=sft_arguments(config, scratch, **quiet),
            train_dataset=Dataset.from_list(sft_rows(config)),
            processing_class=tokenizer,
            **trainer_kwargs,
        )
        result = trainer.train()
    model = trainer.model
    model.to("cpu")
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    return {
        "train_loss": float(result.training_loss),
        "n_parameters": sum(p.numel() for p in model.parameters()),
        "n_tokens": len(tokenizer),
        "wall_seconds": round(time.monotonic() - started, 2),
        "cpu_seconds": round(time.process_time() - cpu_started, 2),
    }


def load_sft(model_dir: str | os.PathLike[str]) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """Model and tokenizer of a saved folder, float32, on the CPU; never from the hub."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32, local_files_only=True)
    return model, AutoTokenizer.from_pretrained(model_dir, local_files_only=True)


def _collect_pairs(folder: Path, config: SqlCaseConfig, model_dir: Path, progress: bool) -> Row:
    """Answer fresh questions until enough are wrong; write train.jsonl and held_out.jsonl; returns facts."""
    import torch

    from dpo_diag.tasks.sql.answering import greedy_answers

    started, cpu_started = time.monotonic(), time.process_time()
    model, tokenizer = load_sft(model_dir)
    if torch.cuda.is_available():
        model.to("cuda")
    pairs: list[Row] = []
    facts = {"n_questions": 0, "n_correct": 0, "dropped_empty": 0, "dropped_unfinished": 0, "dropped_boundary": 0}
    asked = 0
    while len(pairs) < config.n_pairs:
        if asked >= config.max_questions:
            raise DiagError(
                "the SFT model made too few mistakes to collect the pairs",
                where="task sql",
                got=f"{len(pairs)} pairs from {asked} questions",
                expected=config.n_pairs,
                hint="fewer pairs (n_pairs), fewer sft_steps, or more max_questions",
            )
        upto = min(asked + config.n_questions, config.max_questions)
        # The stream is a prefix of itself: asking for more gives the same first questions.
        questions = generate_questions("pairs", upto, seed=config.data_seed)[asked:]
        asked = upto
        answers = greedy_answers(model, tokenizer, [q.prompt for q in questions], progress=progress, title="answering")
        for q, answer in zip(questions, answers, strict=True):
            facts["n_questions"] += 1
            if is_correct(q.db, answer.text, q.gold):
                facts["n_correct"] += 1
            elif not answer.text.strip():
                facts["dropped_empty"] += 1
            elif not answer.finished:
                facts["dropped_unfinished"] += 1  # a cut answer with an end mark is not what the model wrote
            elif not answer.text.startswith(" "):
                facts["dropped_boundary"] += 1  # would merge with the prompt's last token
            elif answer.text.strip() != q.gold:
                pairs.append(_pair(q, answer.text))
    # Which 620 of the mistakes, and which of them are held out, is drawn, not the first ones asked.
    pairs = Stream("pairs", config.data_seed).shuffled(pairs)[: config.n_pairs]
    _write_rows(folder / "train.jsonl", pairs[: config.n_train_pairs])
    _write_rows(folder / "held_out.jsonl", pairs[config.n_train_pairs :])
    seconds = {"wall_seconds": round(time.monotonic() - started, 2)}
    return {**facts, **seconds, "cpu_seconds": round(time.process_time() - cpu_started, 2)}


def _pair(q: Question, rejected: str) -> Row:
    return {"id": q.id, "prompt": q.prompt, "chosen": " " + q.gold, "rejected": rejected, "tags": list(q.tags),
            "db": q.db, "template": q.template}  # fmt: skip


def prepare_sql_case(
    cache_root: str | os.PathLike[str],
    config: SqlCaseConfig | None = None,
    *,
    trainer_class: type | None = None,
    trainer_kwargs: Mapping[str, Any] | None = None,
    progress: bool = True,
    say: Callable[[str], None] | None = None,
) -> SqlCase:
    """The SFT model and its mistakes as preference pairs, from the cache or built (about a minute on two cores).

    Args:
        cache_root: folder of the cache entries, e.g. runs/cache.
        config: what to build.
        trainer_class: SFTTrainer or a subclass with its constructor; None for TRL's. Its name is part of the key.
            Under a multi-process launcher it must be importable by its name, and trainer_kwargs are not used: what
            is missing is built by one process apart, since SFT spread over the ranks would be another SFT.
        trainer_kwargs: further constructor arguments (callbacks, a recorder); not part of the key, since they watch
            and must not change what is trained. On a cache hit nothing is trained and they are not used.
        progress: progress bars on standard error, for SFT and for answering.
        say: receives one line before each long step.

    Raises:
        DiagError: a value that cannot work, too few mistakes, an unwritable cache.
    """
    config = config or SqlCaseConfig()
    config.check()
    say = say or (lambda line: None)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from dpo_diag.tasks.sql.build import build_in_one_process

        build_in_one_process(cache_root, config, trainer_class)
    settings = asdict(config)
    pair_keys = ("n_pairs", "n_train_pairs", "n_questions", "max_questions")
    trainer_name = f"{trainer_class.__module__}.{trainer_class.__qualname__}" if trainer_class else "trl"
    sft_determinants = {
        "config": {k: v for k, v in settings.items() if k not in pair_keys},
        "code": CODE_VERSION,
        "versions": _versions(),
        "trainer": trainer_name,
    }

    def build_sft(folder: Path) -> Row:
        say(f"SFT from scratch: {config.sft_steps} steps of {config.sft_batch_size}")
        return _train_sft(folder, config, trainer_class, trainer_kwargs or {}, progress)

    sft_dir, sft_meta, sft_hit = build_once(cache_root, "sql-sft", sft_determinants, build_sft)
    pair_determinants = {
        "config": {k: settings[k] for k in (*pair_keys, "data_seed")},
        "code": CODE_VERSION,
        "sft": {"key": sft_dir.name, "files": sft_meta["files"]},
    }

    def build_pairs(folder: Path) -> Row:
        say(f"collecting {config.n_pairs} pairs from the model's own mistakes")
        return _collect_pairs(folder, config, sft_dir / "model", progress)

    pairs_dir, pairs_meta, pairs_hit = build_once(cache_root, "sql-pairs", pair_determinants, build_pairs)
    facts = {**pairs_meta["facts"], "sft": sft_meta["facts"]}
    return SqlCase(
        model_dir=sft_dir / "model",
        pairs_dir=pairs_dir,
        train=_read_rows(pairs_dir / "train.jsonl"),
        held_out=_read_rows(pairs_dir / "held_out.jsonl"),
        facts=facts,
        sft_hit=sft_hit,
        pairs_hit=pairs_hit,
        config=config,
    )
