"""From nothing to preference pairs: SFT from scratch, its mistakes on fresh questions as pairs, each paid for once.

The pairs are those of h2oai/h2o-llmstudio issue 594: "620 of the examples it got wrong after SFT, with the corrected
output". Two cache entries, so that another number of pairs does not train the SFT model again.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from dpo_diag.config import TaskConfig
from dpo_diag.config_checks import check_task
from dpo_diag.documents import parse_json
from dpo_diag.errors import DiagError
from dpo_diag.tasks.sql.apart import is_one_of_many, run_apart
from dpo_diag.tasks.sql.cache import build_once
from dpo_diag.tasks.sql.execute import is_correct
from dpo_diag.tasks.sql.questions import Question, generate_questions
from dpo_diag.tasks.sql.sft import Row, load_sft, train_sft
from dpo_diag.tasks.sql.stream import Stream
from dpo_diag.text import to_json

# Raise when a change here, in the generator, the rows, the tokenizer or the model changes what is built.
CODE_VERSION = 1
_PAIR_KEYS = ("n_pairs", "n_train_pairs", "n_questions", "max_questions")
_NOT_BUILT = ("kind", "cache", "n_held_out", "n_paraphrased")
"""Fields of TaskConfig that decide nothing of what is built here."""


@dataclass(frozen=True)
class SqlCase:
    """What `prepare_sql_case` hands over.

    Attributes:
        model_dir: the SFT model and its tokenizer, one folder that AutoModelForCausalLM and AutoTokenizer load.
        train, held_out: rows {"id", "prompt", "chosen", "rejected", "tags", "db", "template"}; chosen and rejected
            start with one space.
        facts: accuracy of the SFT model on the fresh questions ("n_questions", "n_correct"), what was dropped,
            seconds; all from the build, so the same on a hit.
        sft_hit, pairs_hit: whether the cache had it.
    """

    model_dir: Path
    train: list[Row]
    held_out: list[Row]
    facts: dict[str, Any]
    sft_hit: bool
    pairs_hit: bool


def prepare_sql_case(
    cache_root: str | os.PathLike[str],
    task: TaskConfig | None = None,
    *,
    trainer_class: type | None = None,
    trainer_kwargs: Mapping[str, Any] | None = None,
    progress: bool = True,
    say: Callable[[str], None] = lambda line: None,
) -> SqlCase:
    """The SFT model and its mistakes as preference pairs, from the cache or built (about a minute on two cores).

    Args:
        cache_root: folder of the cache entries, e.g. runs/cache.
        task: what to build.
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
    task = task or TaskConfig()
    check_task(task)
    if is_one_of_many():
        trainer = f"{trainer_class.__module__}:{trainer_class.__qualname__}" if trainer_class else ""
        run_apart(__name__, os.fspath(cache_root), json.dumps(asdict(task)), trainer)
    settings = {k: v for k, v in asdict(task).items() if k not in _NOT_BUILT}
    sft_determinants = {
        "config": {k: v for k, v in settings.items() if k not in _PAIR_KEYS},
        "code": CODE_VERSION,
        "versions": {name: version(name) for name in ("torch", "transformers", "trl", "tokenizers")},
        "trainer": f"{trainer_class.__module__}.{trainer_class.__qualname__}" if trainer_class else "trl",
    }

    def build_sft(folder: Path) -> Row:
        say(f"SFT from scratch: {task.sft_steps} steps of {task.sft_batch_size}")
        return train_sft(folder, task, trainer_class, trainer_kwargs or {}, progress)

    sft_dir, sft_meta, sft_hit = build_once(cache_root, "sql-sft", sft_determinants, build_sft)
    pair_determinants = {
        "config": {k: settings[k] for k in (*_PAIR_KEYS, "data_seed")},
        "code": CODE_VERSION,
        "sft": {"key": sft_dir.name, "files": sft_meta["files"]},
    }

    def build_pairs(folder: Path) -> Row:
        say(f"collecting {task.n_pairs} pairs from the model's own mistakes")
        return _collect_pairs(folder, task, sft_dir / "model", progress)

    pairs_dir, pairs_meta, pairs_hit = build_once(cache_root, "sql-pairs", pair_determinants, build_pairs)
    train, held_out = (_read_rows(pairs_dir / f"{name}.jsonl") for name in ("train", "held_out"))
    facts = {**pairs_meta["facts"], "sft": sft_meta["facts"]}
    return SqlCase(sft_dir / "model", train, held_out, facts, sft_hit, pairs_hit)


def _collect_pairs(folder: Path, task: TaskConfig, model_dir: Path, progress: bool) -> Row:
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
    while len(pairs) < task.n_pairs:
        if asked >= task.max_questions:
            raise DiagError(
                "the SFT model made too few mistakes to collect the pairs", where="task sql",
                got=f"{len(pairs)} pairs from {asked} questions", expected=task.n_pairs,
                hint="fewer pairs (n_pairs), fewer sft_steps, or more max_questions",
            )  # fmt: skip
        upto = min(asked + task.n_questions, task.max_questions)
        # The stream is a prefix of itself: asking for more gives the same first questions.
        questions = generate_questions("pairs", upto, seed=task.data_seed)[asked:]
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
    pairs = Stream("pairs", task.data_seed).shuffled(pairs)[: task.n_pairs]
    _write_rows(folder / "train.jsonl", pairs[: task.n_train_pairs])
    _write_rows(folder / "held_out.jsonl", pairs[task.n_train_pairs :])
    seconds = {"wall_seconds": round(time.monotonic() - started, 2)}
    return {**facts, **seconds, "cpu_seconds": round(time.process_time() - cpu_started, 2)}


def _pair(q: Question, rejected: str) -> Row:
    return {"id": q.id, "prompt": q.prompt, "chosen": " " + q.gold, "rejected": rejected, "tags": list(q.tags),
            "db": q.db, "template": q.template}  # fmt: skip


def _write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    path.write_text("".join(to_json(row) + "\n" for row in rows), encoding="utf-8")


def _read_rows(path: Path) -> list[Row]:
    return [parse_json(line) for line in path.read_text(encoding="utf-8").splitlines()]


def main(argv: list[str]) -> int:
    """What `apart` calls: cache_root, the task as JSON, and "module:class" of the trainer or ""."""
    root, settings, trainer = argv
    module, _, name = trainer.partition(":")
    trainer_class = getattr(importlib.import_module(module), name) if trainer else None
    try:
        prepare_sql_case(root, TaskConfig(**parse_json(settings)), trainer_class=trainer_class)
    except DiagError as error:
        print(error, file=sys.stderr)
        return 1
    return 0
