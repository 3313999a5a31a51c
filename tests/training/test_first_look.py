"""Before the first step: the tokens that a trainer is about to learn from, with a sample, said and kept in the run."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from transformers import PreTrainedTokenizerFast

from dpo_diag.data.trained_tokens import DOUBLE_END, EMPTY_THINK, END_OUTSIDE, NO_END, NOTHING, UNSEEN
from dpo_diag.training import DiagDPOTrainer, DiagSFTTrainer
from dpo_diag.training.first_look import first_look

from .test_sft import arguments as sft_arguments
from .tiny import arguments, make_model, make_pairs, make_tokenizer

CHAT = "{% for m in messages %}{{ '<' + m['role'] + '>' + m['content'] + '<eos>' }}{% endfor %}"
GENERATION = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}INSIDE"
    "{% endgeneration %}OUTSIDE{% else %}{{ m['content'] }}:{% endif %}{% endfor %}"
)
TALK = [{"messages": [
    {"role": "user", "content": "cat"}, {"role": "assistant", "content": "red"},
    {"role": "user", "content": "dog"}, {"role": "assistant", "content": "blue"},
]}] * 4  # fmt: skip


def dpo(tmp_path: Path, tokenizer: Any, rows: list[dict[str, Any]], **options: Any) -> DiagDPOTrainer:
    return DiagDPOTrainer(
        model=make_model(1), ref_model=make_model(2), args=arguments(tmp_path / "out", max_steps=1, **options),
        train_dataset=Dataset.from_list(rows), processing_class=tokenizer, recorder=tmp_path / "run",
    )  # fmt: skip


def sft(tmp_path: Path, tokenizer: Any, rows: list[dict[str, Any]], **options: Any) -> DiagSFTTrainer:
    known = {"eval_strategy": "no", "max_steps": 1} | options
    return DiagSFTTrainer(
        model=make_model(1), args=sft_arguments(tmp_path / "out", **known), train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer, recorder=tmp_path / "run",
    )  # fmt: skip


def whys(trainer: Any) -> list[str]:
    look = first_look(trainer)
    assert look is not None
    return [finding.why for finding in look.findings]


def test_a_pair_is_shown_with_its_trained_tokens_and_kept(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [{"prompt": "1 cat:", "chosen": " red", "rejected": " dog\ndog<eos> "}, *make_pairs(3)]
    trainer = dpo(tmp_path, tokenizer, rows)
    look = first_look(trainer)
    assert look is not None and look.lines()[1:] == [
        "  chosen    1 cat:⟦ red<eos>⟧", "  rejected  1 cat:⟦ dog\\ndog<eos> <eos>⟧",
    ]  # fmt: skip
    assert "⟦\x1b[4m red<eos>\x1b[24m⟧" in look.lines(underline=True)[1]
    with caplog.at_level(logging.INFO):
        trainer.train()
    said = [r.getMessage() for r in caplog.records if "training tokens" in r.getMessage()]
    assert said == [
        "[RANK 0] training tokens: 1 of 4 rows (25 %): a trained answer ends with two end tokens, first in row 0: "
        "rejected: '<eos> <eos>'; leave it out of the answers' text, white space behind it included"
    ]
    assert "⟦ red<eos>⟧" in caplog.text
    report = json.loads((tmp_path / "run" / "data_report.json").read_text(encoding="utf-8"))
    assert report["sample"]["chosen"] == [{"text": "1 cat:", "trained": False}, {"text": " red<eos>", "trained": True}]
    assert [f["why"] for f in report["first_look"]["findings"]] == [DOUBLE_END] and report["first_look"]["rows"] == 4


def test_what_fills_max_length_is_counted(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    """TRL drops such a pair without a word; the answers of the others are cut, which is no missing end token."""
    rows = [{"prompt": "cat " * 9, "chosen": " red", "rejected": " dog"}, *make_pairs(3, seed=4)]
    trainer = dpo(tmp_path, tokenizer, rows, max_length=6)
    assert "train dataset: TRL leaves out 1 of 4 rows (25 %): the prompt fills max_length" in caplog.text
    assert whys(trainer) == []


def test_every_trained_span_of_a_conversation_is_shown(tmp_path: Path) -> None:
    """The template's generation block holds the end token, or leaves it outside, or there is none."""
    tokenizer = make_tokenizer()
    for inside, outside, expected in (("<eos>", "", []), ("", "<eos>", [END_OUTSIDE]), ("", "", [NO_END])):
        tokenizer.chat_template = GENERATION.replace("INSIDE", inside).replace("OUTSIDE", outside)
        trainer = sft(tmp_path / (inside + outside or "none"), tokenizer, TALK, assistant_only_loss=True)
        assert whys(trainer) == expected
        look = first_look(trainer)
        assert look is not None
        assert look.lines()[1] == f"  sequence  cat:⟦red{inside}⟧{outside}dog:⟦blue{inside}⟧{outside}"


def test_an_answer_and_a_conversation_without_a_mask(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = CHAT
    whole = first_look(sft(tmp_path / "whole", tokenizer, TALK))
    assert whole is not None and whole.findings == []
    assert whole.lines()[1] == "  sequence  ⟦<user>cat<eos><assistant>red<eos><user>dog<eos><assistant>blue<eos>⟧"
    one = first_look(sft(tmp_path / "one", tokenizer, [{"prompt": "cat ", "completion": "red"}] * 4))
    assert one is not None and one.findings == [] and one.lines()[1] == "  sequence  cat ⟦red<eos>⟧"


def test_rows_without_anything_to_train(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    """Labels that mask a whole row, one of two: TRL leaves it out."""
    rows = [{"input_ids": [5, 6, 1], "labels": [-100, 6, 1]}, {"input_ids": [5, 6, 1], "labels": [-100] * 3}]
    assert whys(sft(tmp_path, tokenizer, rows)) == []
    assert f"train dataset: TRL leaves out 1 of 2 rows (50 %): {NOTHING}" in caplog.text


def test_a_think_block_is_the_template_s_or_the_data_s_own(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    block = "<think></think>"
    plain = "{% for m in messages %}{{ m['role'] + ':' }}{{ THINK }}{{ m['content'] + '<eos>' }}{% endfor %}"
    user = {"role": "user", "content": "cat"}
    for name, own, template in (("template", "", block), ("data", block, "")):
        tokenizer.chat_template = plain.replace("{{ THINK }}", template)
        turn = {"role": "assistant", "content": own + "red", "reasoning_content": "Hm."}
        expected = [EMPTY_THINK, UNSEEN] if template else [UNSEEN]
        talk = {"prompt": [user], "completion": [turn]}
        assert sorted(whys(sft(tmp_path / name / "sft", tokenizer, [talk] * 3))) == sorted(expected), name
        pair = {"prompt": [user], "chosen": [turn], "rejected": [turn | {"content": own + "blue"}]}
        assert sorted(whys(dpo(tmp_path / name / "dpo", tokenizer, [pair] * 3))) == sorted(expected), name


def test_a_stream_is_looked_at_and_stays_whole(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    rows = make_pairs(4)
    trainer = DiagDPOTrainer(
        model=make_model(1), ref_model=make_model(2), args=arguments(tmp_path / "out", max_steps=1),
        train_dataset=Dataset.from_list(rows).to_iterable_dataset(), processing_class=tokenizer,
    )  # fmt: skip
    look = first_look(trainer)
    assert look is not None and (look.rows, look.findings) == (4, [])
    assert len(list(trainer.train_dataset)) == 4
