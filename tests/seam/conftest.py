"""The model folder and the pairs of tests/commands."""

from __future__ import annotations

from tests.commands.conftest import pair_file, tiny_folder

__all__ = ["pair_file", "tiny_folder"]
