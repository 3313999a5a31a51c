"""Refusals and hedges by a list of phrases that a user can read and edit; every hit names the phrase behind it."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from dpo_diag.documents import read_yaml
from dpo_diag.errors import DiagError
from dpo_diag.outputs.words import UNSPACED

SHIPPED = Path(__file__).resolve().parent / "phrase_lists" / "stances.yaml"


def _folded(text: str) -> str:
    return text.casefold().replace("’", "'").replace("‘", "'")


@dataclass(frozen=True)
class Stances:
    """Kind of stance (refusal, hedge, ...) -> its phrases, folded."""

    phrases: dict[str, tuple[str, ...]]

    def hits(self, text: str) -> dict[str, list[str]]:
        """kind -> phrases found in the text, in the order of the list; [] for none."""
        folded = " ".join(_folded(text).split())
        return {
            kind: [p for p in phrases if p in folded and _pattern(p).search(folded)]
            for kind, phrases in self.phrases.items()
        }


def _is_phrases(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(p, str) and p.strip() for p in value)


@lru_cache(maxsize=4_096)
def _pattern(phrase: str) -> re.Pattern[str]:
    left = "" if re.match(f"[{UNSPACED}]|\\W", phrase) else r"\b"
    right = "" if re.search(f"[{UNSPACED}]$|\\W$", phrase) else r"\b"
    return re.compile(left + re.escape(phrase) + right)


def load_stances(path: str | os.PathLike[str] | None = None) -> Stances:
    """The phrases of a YAML file {kind: {language: [phrase, ...]}}; None for the shipped one.

    Raises:
        DiagError: no such file, no YAML, or another shape.
    """

    file = SHIPPED if path is None else Path(path)
    document = read_yaml(file, "the phrase list")
    shape = "{kind: {language: [phrase, ...]}}"
    if not document:
        raise DiagError("the phrase list has another shape", where=file, expected=shape)
    phrases: dict[str, tuple[str, ...]] = {}
    for kind, by_language in document.items():
        lists = list(by_language.values()) if isinstance(by_language, dict) else [by_language]
        if not isinstance(by_language, dict) or not all(map(_is_phrases, lists)):
            raise DiagError("the phrase list has another shape", where=f"{file}, {kind}", expected=shape)
        phrases[str(kind)] = tuple(dict.fromkeys(" ".join(_folded(p).split()) for x in lists for p in x))
    return Stances(phrases)
