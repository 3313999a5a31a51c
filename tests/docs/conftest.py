"""A folder in which every command that README and docs print finds the files that it names."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.docs.pages import ROOT, Page

INPUTS = ROOT / "tests" / "golden" / "inputs"


@pytest.fixture(scope="session")
def workbench(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log, pairs, prompts, gate rules, the example run and a multirun of two; two tiny checkpoints and their base."""
    from tests.training.tiny import make_model, make_pairs, make_tokenizer

    folder = tmp_path_factory.mktemp("workbench")
    shutil.copytree(ROOT / "runs" / "example", folder / "runs" / "example")
    for job in ("0", "1"):
        shutil.copytree(ROOT / "runs" / "example", folder / "runs" / "sql_dpo" / "2026-11-22" / job)
    shutil.copy(INPUTS / "trl_displaced" / "trainer_state.json", folder)
    shutil.copy(INPUTS / "pairs_displaced.jsonl", folder / "pairs_scored.jsonl")
    (rules,) = (block.text for block in Page("docs/asking.md").blocks if block.language == "yaml")
    (folder / "gate.yaml").write_text(rules, encoding="utf-8")

    pairs = make_pairs(12)
    _write_rows(folder / "pairs.jsonl", pairs)
    shared = [
        {"conversations": [{"from": "human", "value": row["prompt"]}]}
        | {side: {"from": "gpt", "value": row[side]} for side in ("chosen", "rejected")}
        for row in pairs
    ]
    (folder / "ranking.json").write_text(json.dumps(shared), encoding="utf-8")
    asked = [b.text for b in Page("docs/start/checkpoints.md").blocks if b.language == "json"]
    _write_rows(folder / "prompts.jsonl", [json.loads(text) for text in asked])

    for seed, name in enumerate(("org/base", "org/model", "out/checkpoint-1", "out/checkpoint-2")):
        make_model(seed=3, noise=0.05 * seed).save_pretrained(folder / name)
        make_tokenizer().save_pretrained(folder / name)
    return folder


def _write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
