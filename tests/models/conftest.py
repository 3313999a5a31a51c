"""The tiny tokenizer and model of tests/data."""

from __future__ import annotations

from tests.data.conftest import CHAT, byte_tokenizer, tiny_model, tokenizer

__all__ = ["CHAT", "byte_tokenizer", "tiny_model", "tokenizer"]
