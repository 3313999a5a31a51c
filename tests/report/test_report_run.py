"""What the report says of the run itself: its experiment with beta and learning rate on top, and run.json in order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dpo_diag.diagnosis import Explanation, explain_run
from dpo_diag.report.headline import headline
from dpo_diag.report.run_page import render
from dpo_diag.report.section import Context
from dpo_diag.report.sections import run as section
from tests.diagnosis.builders import build_run

SUMS = {0: ([-18.0], [-24.0]), 7: ([-20.0], [-30.0])}


def context(folder: Path, facts: dict[str, Any]) -> Context:
    run = build_run(folder, SUMS, facts=facts)
    found: Explanation = explain_run(run)
    return Context(run, found, {})


@pytest.mark.parametrize(
    ("facts", "title", "was_set"),
    [
        (
            {"name": "sql_dpo", "training": {"learning_rate": 2e-4}}, "sql_dpo",
            ("loss sigmoid", "β 0.1", "lr 0.0002"),
        ),
        ({}, "2026-01-02", ("loss sigmoid", "β 0.1")),
    ],
)  # fmt: skip
def test_the_experiment_and_what_was_set_are_on_top(
    facts: dict[str, Any], title: str, was_set: tuple[str, ...], tmp_path: Path
) -> None:
    """The folder is named too where it is not the title."""
    made = context(tmp_path / "2026-01-02", facts)
    top = headline(made)
    assert (top.run, top.set) == (title, was_set)
    assert top.about[0] == "trained"
    assert top.about.count("2026-01-02") == ("name" in facts)
    page = render(made.run, made.explanation, {"not_applicable": "the run has no outputs"})
    assert f"<title>{title} · {' · '.join(was_set)}: dpo-diag report</title>" in page
    assert page.index("<h1") < page.index(was_set[0], page.index("<h1")) < page.index('class="verdict"')


def test_the_run_opens_with_loss_data_rate_and_what_was_trained(tmp_path: Path) -> None:
    facts = {
        "packages": {"torch": "2", "trl": "1.16.0"}, "name": "sql_dpo", "trainer": "DPOTrainer",
        "model": {"name": "m", "n_trainable": 10, "n_parameters": 1000, "dtype": "float32",
                  "adapter": {"type": "LORA", "r": 64, "lora_alpha": 256.0, "lora_dropout": 0.05}},
        "training": {"learning_rate": 2e-4, "lr_scheduler_type": "cosine", "warmup_steps": 5,
                     "per_device_train_batch_size": 8, "gradient_accumulation_steps": 2, "max_steps": 80},
        "data": {"path": "pairs.jsonl", "n_pairs": 620, "n_train": 496, "n_eval": 124},
        "reference": {"kind": "adapter switched off"},
    }  # fmt: skip
    built = section.build(context(tmp_path, facts))
    assert built["facts"] == [
        ("Loss", "sigmoid, β 0.1"),
        ("Data", "pairs.jsonl: 620 pairs, 496 to train on, 124 to evaluate"),
        ("Learning rate", "0.0002, cosine, 5 warm-up steps"),
        ("Trained", "m, LORA, r 64, α 256, dropout 0.05, 10 of 1,000 parameters, float32"),
        ("Reference", "adapter switched off"),
        ("Batch", "8 pairs × 2 accumulated, 80 steps"),
        ("Trainer", "DPOTrainer, trl 1.16.0"),
    ]
    answers = {**facts, "method": "sft"}
    answers["training"] = {**facts["training"], "loss_terms": {"label_smoothing": 0.1}}  # type: ignore[dict-item]
    told = dict(section.build(context(tmp_path / "sft", answers))["facts"])
    assert told["Loss"] == "negative log-likelihood, label smoothing 0.1"
    assert told["Data"] == "pairs.jsonl: 620 rows, 496 to train on, 124 to evaluate"
    assert told["Batch"] == "8 rows × 2 accumulated, 80 steps"
    keys = [row[0].text for row in built["fields"].rows]
    assert keys[-1] == "schema_version"
    assert keys.index("loss.types") < keys.index("packages.torch")
