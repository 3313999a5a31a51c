"""A run with tiny checkpoints, made here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dpo_diag.records import RunWriter
from tests.inference.conftest import make_model, make_tokenizer

HOSTILE = '<img src=x onerror="window.hacked=1"><script>window.hacked=2</script>\u202e\u200b${window.hacked=3}{{x}}'


@pytest.fixture(scope="session")
def played_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Reference and checkpoints of steps 10 and 20 with random weights of their own; two answers to show prompts."""
    root = tmp_path_factory.mktemp("played")
    tokenizer = make_tokenizer(chat=False)
    for name, seed in (("base", 0), ("run/checkpoints/checkpoint-10", 10), ("run/checkpoints/checkpoint-20", 20)):
        folder = root / name
        make_model(seed=seed).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    for step in (10, 20):
        state = root / f"run/checkpoints/checkpoint-{step}/trainer_state.json"
        state.write_text(json.dumps({"global_step": step}))
    writer = RunWriter(root / "run", kind="trained")
    rows = [{"step": 0, "model": "policy", "prompt_id": f"p{i}", "sample": 0, "prompt": prompt, "text": "x"}
            for i, prompt in enumerate(("Question one?", HOSTILE))]  # fmt: skip
    writer.write("outputs", rows, split="policy")
    writer.update(reference={"kind": "frozen copy", "name": "base"})
    writer.finish()
    return root / "run"
