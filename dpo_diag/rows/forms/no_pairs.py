"""Forms that hold no preference pairs: said so, with what to do, and never read as text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dpo_diag.rows.columns import Columns
from dpo_diag.rows.form import FORMS, Reading, RowForm, refusal

Match = Callable[[Columns], Reading | None]
_ANSWERS = ("completion", "response", "output", "answer", "messages", "conversations", "text")
_LABELS = ("label", "kto_tag", "is_good", "thumbs_up")


def _unpaired(columns: Columns) -> Reading | None:
    answer, label = columns.find(*_ANSWERS), columns.find(*_LABELS)
    if answer is None or label is None:
        return None
    return refusal(
        columns, "unpaired", FORMS["unpaired"].title, "unpaired answers, KTO's form",
        f"one answer a row ({answer}), judged by {label}",
        "train them with TRL's KTOTrainer, or write a good and a bad answer to one prompt into one row",
    )  # fmt: skip


def _stepwise(columns: Columns) -> Reading | None:
    if columns.find("completions", kinds=("texts",)) is None or columns.find("labels", kinds=("list", "texts")) is None:
        return None
    return refusal(
        columns, "stepwise", FORMS["stepwise"].title, "judged steps, no pairs", "completions, each with a label",
        "train them with TRL's PRMTrainer",
    )  # fmt: skip


def _log(columns: Columns) -> Reading | None:
    sums = columns.find("chosen_sum_logp")
    log = columns.find(
        "loss", "train_loss", "training_loss", "rewards_chosen", "train_rewards_chosen", kinds=("number",)
    )
    if sums:
        return refusal(
            columns,
            "log",
            FORMS["log"].title,
            "log-probs, no texts",
            f"the column {sums}",
            "dpo-diag import FILE reads them",
        )
    if log is None or any(columns.find(name) for name in ("chosen", "rejected", *_ANSWERS)):
        return None
    return refusal(
        columns,
        "log",
        FORMS["log"].title,
        "a training log, no pairs",
        f"the column {log}",
        "dpo-diag explain FILE reads it",
    )


def _add(name: str, title: str, columns: str, pair: str, match: Match, example: dict[str, Any], order: int) -> None:
    FORMS.add(name, RowForm(title, columns, f"refused: {pair}", match, example, order))


_add(
    "unpaired", "unpaired answers (KTO)", "prompt, completion (or messages, ...), label or kto_tag",
    "there is no pair; TRL's KTOTrainer trains them", _unpaired,
    {"prompt": "Where is Rome?", "completion": "In Italy.", "label": True}, 80,
)  # fmt: skip
_add(
    "stepwise", "judged steps (PRM)", "prompt, completions, labels", "there is no pair", _stepwise,
    {"prompt": "2 + 2?", "completions": ["It is 3", "So 3"], "labels": [False, False]}, 80,
)  # fmt: skip
_add(
    "log", "a training log", "step, loss, ... or *_sum_logp", "dpo-diag explain or dpo-diag import reads it", _log,
    {"step": 1, "loss": 0.69}, 85,
)  # fmt: skip
