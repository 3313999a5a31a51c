"""What the report says of the run itself: its experiment with beta and learning rate on top, and run.json in order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dpo_diag.diagnosis import Explanation, explain_run
from dpo_diag.report.headline import headline
from dpo_diag.report.section import Context
from dpo_diag.report.sections import run as section
from tests.diagnosis.builders import build_run

SUMS = {0: ([-18.0], [-24.0]), 7: ([-20.0], [-30.0])}


def context(folder: Path, facts: dict[str, Any]) -> Context:
    run = build_run(folder, SUMS, facts=facts)
    found: Explanation = explain_run(run)
    return Context(run, found, {})


@pytest.mark.parametrize(
    ("facts", "title", "begins"),
    [
        ({"name": "sql_dpo", "training": {"learning_rate": 2e-4}}, "sql_dpo", "β 0.1 · learning rate 0.0002 · trained"),
        ({}, "2026-01-02", "β 0.1 · trained"),
    ],
)
def test_the_experiment_and_what_was_set_are_on_top(
    facts: dict[str, Any], title: str, begins: str, tmp_path: Path
) -> None:
    """The folder is named too where it is not the title."""
    top = headline(context(tmp_path / "2026-01-02", facts))
    assert top.run == title
    assert top.subtitle.startswith(begins)
    assert top.subtitle.count("2026-01-02") == ("name" in facts)


def test_the_run_opens_with_loss_and_training_and_ends_with_versions(tmp_path: Path) -> None:
    facts = {
        "packages": {"torch": "2"}, "model": {"name": "m"}, "training": {"learning_rate": 2e-4}, "name": "sql_dpo",
        "data": {"fingerprint": "f"},
    }  # fmt: skip
    rows = section.build(context(tmp_path, facts))["fields"].rows
    keys = [row[0].text for row in rows]
    wanted = [
        "name",
        "kind",
        "loss.types",
        "training.learning_rate",
        "data.fingerprint",
        "model.name",
        "packages.torch",
    ]
    assert [key for key in keys if key in wanted] == wanted
    assert keys[-1] == "schema_version"
