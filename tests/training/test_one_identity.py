"""One pair has one id: in the drop-in trainer, in data/ (dpo-train, dpo-score), and in an imported table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from dpo_diag import load_run
from dpo_diag.data.pairs import collect
from dpo_diag.data.tokens import with_ids
from dpo_diag.importers import Options, import_path
from dpo_diag.training.pair_ids import KEY, add_pair_ids, unpack_id

USER = {"role": "user", "content": "Weather in Oslo?"}
YES, NO = ({"role": "assistant", "content": text} for text in ("Sunny.", "Who knows?"))
CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}],
}
OTHER_CALL = CALL | {
    "tool_calls": [{"type": "function", "function": {"name": "weather", "arguments": {"town": "Bergen"}}}]
}
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
PAIRS: dict[str, dict[str, Any]] = {
    "text": {"prompt": "Why?", "chosen": " Because.", "rejected": " None"},
    "messages": {"prompt": [USER], "chosen": [YES], "rejected": [NO]},
    "system": {"prompt": [{"role": "system", "content": "Be kind."}, USER], "chosen": [YES], "rejected": [NO]},
    "tool calls": {"prompt": [USER], "chosen": [CALL], "rejected": [OTHER_CALL]},
    "tools": {"prompt": [USER], "chosen": [CALL], "rejected": [NO], "tools": json.dumps(TOOLS)},
    "answer of a tool": {
        "prompt": [USER, CALL, {"role": "tool", "content": "sun", "name": "weather", "tool_call_id": "1"}],
        "chosen": [YES], "rejected": [NO],
    },
    "parts": {"prompt": [{"role": "user", "content": [{"type": "text", "text": "Why?"}]}], "chosen": [YES],
              "rejected": [NO]},
    "reasoning": {"prompt": [USER], "chosen": [YES | {"reasoning_content": "Summer."}], "rejected": [NO]},
}  # fmt: skip


@pytest.mark.parametrize("kind", PAIRS)
def test_every_entrance_gives_a_pair_the_same_id(kind: str, tmp_path: Path) -> None:
    """The data set fills the keys of the other call in with null; the table is JSON as the trainer's data are."""
    row = PAIRS[kind]
    dropped_in = unpack_id(add_pair_ids(Dataset.from_list([row]))[0][KEY][0])
    trained = collect([(0, row)], {}).rows[0]["pair_id"]
    scored = with_ids([row])[0]["pair_id"]
    table = tmp_path / "pairs.jsonl"
    sums = {"step": 0, "chosen_sum_logp": -1.0, "rejected_sum_logp": -2.0}
    table.write_text(json.dumps(row | sums) + "\n", encoding="utf-8")
    imported = set(load_run(import_path(table, tmp_path / "run", "pairs", Options())["run"]).pairs["pair_id"])
    assert {dropped_in, trained, scored} == imported


def test_these_pairs_are_all_different() -> None:
    assert len({with_ids([row])[0]["pair_id"] for row in PAIRS.values()}) == len(PAIRS)
