"""Messages with tools, calls and template options: what training sees is what was written, and what scoring sees."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from trl import SFTConfig

from dpo_diag.data.pairs import collect, to_dataset
from dpo_diag.data.tokens import encode_pairs
from dpo_diag.training import DiagDPOTrainer, DiagSFTTrainer
from dpo_diag.training.inputs import as_sft
from dpo_diag.training.pair_ids import KEY, add_pair_ids, decode_ids

from .tiny import arguments, make_model, make_tokenizer


def test_messages_reach_the_trainer_as_they_are_written(tmp_path: Path) -> None:
    """Calls of different arguments, one row with tools, one with template options, for DPO and for SFT: the template
    writes no null of another row, and training sees the tokens that scoring sees."""
    tokenizer = make_tokenizer()
    tokenizer.chat_template = (
        "{% if tools %}{{ tools | tojson }}{% endif %}{% if loud is defined %}LOUD{{ loud }}{% endif %}"
        "{% for m in messages %}{{ '<' + m['role'] + '>' }}{% for key in m if key not in ('role', 'content') %}"
        "{{ key + '=' + (m[key] | tojson) }}{% endfor %}{{ m['content'] + '<eos>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
    )

    def call(**given: Any) -> list[dict[str, Any]]:
        calls = [{"function": {"name": "f", "arguments": given}}]
        return [{"role": "assistant", "content": "", "tool_calls": calls}]

    user = [{"role": "user", "content": "cat"}]
    rows = [
        {"prompt": user, "chosen": call(a=1), "rejected": call(b="x"), "tools": '[{"name": "f"}]'},
        {"prompt": user, "chosen": call(a="one"), "rejected": [{"role": "assistant", "content": "dog", "plan": [1]}],
         "chat_template_kwargs": {"loud": False}},
    ]  # fmt: skip
    scored = list(encode_pairs(collect(enumerate(rows), {}).rows, tokenizer, None))
    pairs = DiagDPOTrainer(
        model=make_model(1), ref_model=make_model(2), args=arguments(tmp_path / "out", max_length=None),
        train_dataset=to_dataset(collect(enumerate(rows), {}).rows), processing_class=tokenizer,
    ).train_dataset  # fmt: skip
    for row, pair in zip(pairs, scored, strict=True):
        assert row["prompt_ids"] == pair.prompt["chosen"]
        assert (row["chosen_ids"], row["rejected_ids"]) == (pair.response["chosen"], pair.response["rejected"])
        assert "null" not in tokenizer.decode(row["prompt_ids"] + row["chosen_ids"] + row["rejected_ids"])
    assert tokenizer.decode(pairs[0]["prompt_ids"]).startswith('[{"name": "f"}]')
    assert tokenizer.decode(pairs[1]["prompt_ids"]).startswith("LOUDFalse")
    sft = DiagSFTTrainer(
        model=make_model(1), args=SFTConfig(str(tmp_path / "sft"), use_cpu=True, bf16=False, max_length=None),
        train_dataset=to_dataset([as_sft(row) for row in collect(enumerate(rows), {}).rows]),
        processing_class=tokenizer,
    ).train_dataset  # fmt: skip
    assert [row["input_ids"] for row in sft] == [p.prompt["chosen"] + p.response["chosen"] for p in scored]


def test_a_tool_call_has_one_id_in_training_and_in_scoring() -> None:
    """A data set gives every message the keys of all: calls without arguments in common come back filled with null.
    The reader of files, which dpo-score uses, sees the rows as they were written."""

    def call(name: str, **arguments: str) -> list[dict[str, Any]]:
        return [{"role": "assistant", "content": None, "tool_calls": [
            {"type": "function", "function": {"name": name, "arguments": arguments}}
        ]}]  # fmt: skip

    rows = [
        {"prompt": [{"role": "user", "content": "weather?"}], "chosen": call("f", city="A"), "rejected": call("g")},
        {
            "prompt": [{"role": "user", "content": "time?"}],
            "chosen": call("g", zone="B"),
            "rejected": call("f", at="C"),
        },
    ]
    dataset = Dataset.from_list(rows)
    assert dataset[0]["chosen"] != rows[0]["chosen"]  # filled with null
    packed = np.array([row[KEY] for row in add_pair_ids(dataset)])
    scored = collect(enumerate(rows), {}).rows
    assert decode_ids(packed)[0] == [row["pair_id"] for row in scored]
