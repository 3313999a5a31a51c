"""Doubts about what a training needs are told before anything long."""

from __future__ import annotations

from pathlib import Path

import pytest

from dpo_diag.config import Config
from dpo_diag.errors import DiagError
from dpo_diag.training import inputs
from dpo_diag.training.arguments import sft_arguments


def test_a_mistake_in_the_prompts_is_told_before_data_or_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, loaded = Config(), list[str]()
    config.data.kind, config.prompts.kind, config.prompts.path = "jsonl", "file", str(tmp_path / "none.jsonl")
    config.model.device = "cpu"
    for name in ("load_data", "load_policy"):
        monkeypatch.setattr(inputs, name, lambda *_, name=name, **__: loaded.append(name))
    with pytest.raises(DiagError, match=r"none\.jsonl"):
        inputs.load_inputs(config, lambda _: None)
    assert loaded == []


@pytest.mark.parametrize(
    ("args", "counted"),
    [
        ({}, "last"),
        ({"assistant_only_loss": True}, "assistant"),
        ({"assistant_only_loss": False}, None),
        ({"completion_only_loss": False}, None),
    ],
)
def test_trls_assistant_only_loss_is_taken_over(tmp_path: Path, args: dict[str, bool], counted: str | None) -> None:
    """TRL's swaps the chat template, and ends in a traceback where it does not know it."""
    config = Config()
    config.trainer.method, config.model.device = "sft", "cpu"
    config.sft.loss_on, config.trainer.args = "last", dict(args)
    assert inputs.loss_on(config) == counted
    assert not sft_arguments(config, tmp_path).assistant_only_loss
