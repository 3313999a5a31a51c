"""A tiny model folder and preference pairs on disk, as a user of dpo-train has them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama (17k parameters) and its tokenizer, saved."""
    from tests.training.tiny import make_model, make_tokenizer

    folder = tmp_path_factory.mktemp("model") / "tiny"
    make_model(seed=3).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def pair_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 good pairs, and one row with equal answers that must be listed and left out."""
    from tests.training.tiny import make_pairs

    path = tmp_path_factory.mktemp("data") / "pairs.jsonl"
    rows = [*make_pairs(40), {"prompt": "p:", "chosen": " same", "rejected": " same"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
