"""Token ids to texts without a tokenizer library: from the run's vocab.json, or from a tokenizer.json on this disk.

Records hold ids only. `vocab.json` in the run folder ({"id": "text"}, the ids that occur suffice) comes first; then the
tokenizer.json beside a checkpoint of the run; then the one in the folder that run.json names as the tokenizer.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from dpo_diag.documents import parse_json
from dpo_diag.errors import DiagError
from dpo_diag.records import Run
from dpo_diag.records.checksums import read_json

VOCAB_FILE = "vocab.json"
VOCAB_MEND = "remove the file: token ids are then shown"
TOKENIZER_FILE = "tokenizer.json"


def load_vocabulary(run: Run) -> dict[int, str] | None:
    """id -> text, or None where no vocabulary is on this disk.

    Raises:
        DiagError: vocab.json is there and cannot be read. A tokenizer.json that cannot be read is passed over.
    """
    file = run.path / VOCAB_FILE
    if file.is_file():
        try:
            return {int(k): str(v) for k, v in read_json(file, VOCAB_MEND).items()}
        except (ValueError, AttributeError) as error:
            raise DiagError(
                "the vocabulary cannot be read", where=file, got=error, expected='{"token id": "text"}',
                hint=VOCAB_MEND,
            ) from error  # fmt: skip
    paths = sorted((run.path / "checkpoints").glob(f"*/{TOKENIZER_FILE}"))
    if run.info.tokenizer is not None and run.info.tokenizer.name:
        paths.append(Path(run.info.tokenizer.name) / TOKENIZER_FILE)
    for path in paths:
        try:
            vocabulary = tokenizer_vocabulary(parse_json(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
        if vocabulary:
            return vocabulary
    return None


def tokenizer_vocabulary(document: dict[str, Any]) -> dict[int, str]:
    """id -> text from a Hugging Face tokenizer.json: BPE, WordPiece, WordLevel (a map) or Unigram (a list).

    Byte-level pieces are turned back into the bytes that they stand for; a piece that is part of a character shows as
    its bytes (⟨E4⟩). A leading space is kept. Empty if the model has no vocabulary.
    """
    vocab = document["model"].get("vocab") or {}
    pieces = (
        {int(i): p for p, i in vocab.items()} if isinstance(vocab, dict) else {i: p[0] for i, p in enumerate(vocab)}
    )
    kinds = json.dumps([document.get("pre_tokenizer"), document.get("decoder")])
    byte_level = '"ByteLevel"' in kinds
    texts = {i: _from_bytes(p) if byte_level else _from_marks(p) for i, p in pieces.items()}
    return texts | {int(t["id"]): str(t["content"]) for t in document.get("added_tokens") or []}


def _from_marks(piece: str) -> str:
    return piece[2:] if piece.startswith("##") else piece.replace("▁", " ").replace("</w>", " ")


def _from_bytes(piece: str) -> str:
    table = byte_letters()
    if any(letter not in table for letter in piece):
        return piece
    raw = bytes(table[letter] for letter in piece)
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return "".join(chr(b) if b < 0x80 else f"⟨{b:02X}⟩" for b in raw)


@cache
def byte_letters() -> dict[str, int]:
    """The letter that byte-level BPE (GPT-2) writes for each byte: printable ones themselves, the rest U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [b for b in range(256) if b not in set(printable)]
    return {chr(b): b for b in printable} | {chr(0x100 + i): b for i, b in enumerate(rest)}
