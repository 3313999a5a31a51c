"""One pair has one id: in the drop-in trainer, in data/ (dpo-train, dpo-score), and in an imported table."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image

from dpo_diag import load_run
from dpo_diag.data.pairs import collect, to_dataset
from dpo_diag.data.tokens import with_ids
from dpo_diag.importers import Options, import_path
from dpo_diag.records.pair_id import pair_id_of
from dpo_diag.training.pair_ids import KEY, add_pair_ids, attach_ids, decode_ids, ids_from_tokens, unpack_id

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
    "thinking alone": {"prompt": [USER], "chosen": [YES | {"thinking": "Summer."}],
                       "rejected": [YES | {"thinking": "Winter."}]},
    "parallel calls": {"prompt": [USER], "chosen": [CALL | {"tool_calls": [*CALL["tool_calls"], *CALL["tool_calls"]]}],
                       "rejected": [CALL]},
    "a key of one family's template": {"prompt": [USER], "chosen": [CALL | {"tool_plan": "Ask."}], "rejected": [CALL]},
    "template options": {"prompt": [USER], "chosen": [YES], "rejected": [NO],
                         "chat_template_kwargs": {"enable_thinking": False}},
    "other template options": {"prompt": [USER], "chosen": [YES], "rejected": [NO],
                               "chat_template_kwargs": {"enable_thinking": True}},
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
    """One data set of all of them, whose messages have all keys of all others, filled with null."""
    columns: dict[str, Any] = {"tools": None, "chat_template_kwargs": None}  # from_list takes the first row's
    # A column of Arrow holds no text beside lists.
    rows = [columns | row for kind, row in PAIRS.items() if kind not in ("text", "parts")]
    ids = [with_ids([row])[0]["pair_id"] for row in rows]
    assert len(set(ids)) == len(rows)
    assert [unpack_id(row[KEY][0]) for row in add_pair_ids(Dataset.from_list(rows))] == ids
    collected = collect(enumerate(rows), {})
    assert [row["pair_id"] for row in collected.rows] == ids
    assert [unpack_id(row[KEY][0]) for row in add_pair_ids(to_dataset(collected.rows).remove_columns("pair_id"))] == ids
    assert list(to_dataset(collected.rows)["chosen"]) == [row["chosen"] for row in collected.rows]


def _image(value: int) -> Image.Image:
    return Image.fromarray(np.full((4, 6, 3), value, dtype=np.uint8))


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "png")
    return file.getvalue()


def test_an_image_is_its_values_whoever_holds_it(tmp_path: Path) -> None:
    """Decoded, encoded, as an array, in a placeholder or in a column of its own: one picture, one pair."""
    image, text = _image(7), {"type": "text", "text": "Where?"}
    shown, asked = [{"role": "user", "content": [{"type": "image"}, text]}], [{"role": "user", "content": "Where?"}]
    bare = {"prompt": asked, "chosen": [YES], "rejected": [NO]}
    url = "data:image/png;base64," + base64.b64encode(_png(image)).decode()
    same = [
        bare | {"images": [image]}, bare | {"image": image}, bare | {"images": [np.asarray(image)]},
        bare | {"images": [{"bytes": _png(image), "path": "a.png"}]}, bare | {"prompt": shown, "images": [image]},
        bare | {"prompt": [{"role": "user", "content": [{"type": "image", "image": image}, text]}]},
        bare | {"prompt": [{"role": "user", "content": [{"type": "image", "image": None, "text": None}, text]}],
                "images": [url]},
    ]  # fmt: skip
    ids = {pair_id_of(row) for row in same}
    assert len(ids) == 1
    others = [bare, bare | {"images": [_image(8)]}, bare | {"images": [image, image]}, bare | {"images": ["a.png"]},
              bare | {"images": [{"bytes": None, "path": "b.png"}]}]  # fmt: skip
    assert len(ids | {pair_id_of(row) for row in others}) == 1 + len(others)
    # The drop-in trainer gets its examples with decoded images, an imported table their bytes as text.
    batch: dict[str, Any] = {"input_ids": torch.zeros(4, 3)}
    attach_ids(batch, [dict(row) for row in Dataset.from_list([same[0], others[1]])])
    assert set(decode_ids(batch[KEY].numpy())[0]) == ids | {pair_id_of(others[1])}
    table = tmp_path / "pairs.jsonl"
    sums = {"step": 0, "chosen_sum_logp": -1.0, "rejected_sum_logp": -2.0}
    table.write_text(json.dumps(bare | {"images": [url]} | sums) + "\n", encoding="utf-8")
    assert set(load_run(import_path(table, tmp_path / "run", "pairs", Options())["run"]).pairs["pair_id"]) == ids


def test_a_batch_without_texts_is_identified_by_its_pixels_too() -> None:
    """Two pairs of equal tokens: image placeholders are equal. An array of several images a row counts whole."""
    ids = np.array([[5, 6, 7]] * 4)
    seen, completion = np.ones_like(ids), np.array([[0, 0, 1]] * 4)
    pixels = np.zeros((4, 3, 2, 2))
    assert len(set(ids_from_tokens(ids, seen, completion))) == 1
    assert len(set(ids_from_tokens(ids, seen, completion, {"pixel_values": pixels}))) == 1
    pixels[1] = 1
    assert len(set(ids_from_tokens(ids, seen, completion, {"pixel_values": pixels}))) == 2
    assert len(set(ids_from_tokens(ids, seen, completion, {"pixel_values": np.zeros((8, 5))}))) == 2
