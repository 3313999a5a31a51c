"""Text to words and scripts, the same for every comparison: words for spaced scripts, characters for unspaced ones."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from sys import intern
from typing import NamedTuple

UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u31f0-\u31ff"
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
"""Thai, Lao, Myanmar, Khmer, kana, Han: written without spaces, so that a character is the unit."""

_TOKEN = re.compile(
    rf"(?P<cjk>[{UNSPACED}])|(?P<word>[^\W_{UNSPACED}]+(?:['’\-][^\W_{UNSPACED}]+)*)|(?P<end>[.!?。！？\n]+)"
)
_DIFF_TOKEN = re.compile(rf"\s+|[{UNSPACED}]|[^\W{UNSPACED}]+|.", re.DOTALL)

_SCRIPTS = {
    "Latin": "A-Za-z\u00c0-\u024f\u1e00-\u1eff",
    "Han": "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff",
    "Kana": "\u3040-\u30ff\u31f0-\u31ff",
    "Hangul": "\u1100-\u11ff\u3130-\u318f\uac00-\ud7af",
    "Cyrillic": "\u0400-\u052f",
    "Greek": "\u0370-\u03ff",
    "Arabic": "\u0600-\u06ff\u0750-\u077f",
    "Hebrew": "\u0590-\u05ff",
    "Devanagari": "\u0900-\u097f",
    "Thai": "\u0e00-\u0e7f",
}
_SCRIPT_RE = {name: re.compile(f"[{chars}]") for name, chars in _SCRIPTS.items()}


class Word(NamedTuple):
    """One word (or one character of an unspaced script): its comparison form and where it stands in the text."""

    form: str
    start: int
    end: int
    unspaced: bool


def sentences(text: str) -> list[list[Word]]:
    """Words by sentence; case folded, curly apostrophes straightened, punctuation dropped; [] for no words."""
    out: list[list[Word]] = [[]]
    for match in _TOKEN.finditer(text):
        if match.lastgroup == "end":
            out.append([])
            continue
        form = match.group().casefold().replace("’", "'")
        out[-1].append(Word(form, match.start(), match.end(), match.lastgroup == "cjk"))
    return [sentence for sentence in out if sentence]


@lru_cache(maxsize=100_000)
def words(text: str) -> tuple[str, ...]:
    """The comparison forms of all words, in order. Cached: most answers stay the same from checkpoint to checkpoint."""
    return tuple(intern(word.form) for sentence in sentences(text) for word in sentence)


def diff_tokens(text: str) -> list[str]:
    """The text in pieces that join to the text again: words, blanks, single characters. For diffs."""
    return _DIFF_TOKEN.findall(text)


def join(forms: Sequence[str]) -> str:
    """Forms as text: blanks between words, none beside characters of unspaced scripts."""
    out = ""
    for form in forms:
        spaced = bool(out) and not re.match(f"[{UNSPACED}]", form) and not re.search(f"[{UNSPACED}]$", out)
        out += (" " if spaced else "") + form
    return out


def ngrams(forms: Sequence[str], n: int) -> list[tuple[str, ...]]:
    """All n-grams in order; [] for fewer than n forms."""
    return [tuple(forms[i : i + n]) for i in range(len(forms) - n + 1)]


def scripts(text: str) -> Counter[str]:
    """Letters per script; Han beside kana counts as Japanese with it, so that a Japanese text has one script."""
    patterns = {"Latin": _SCRIPT_RE["Latin"]} if text.isascii() else _SCRIPT_RE
    counts = Counter({name: n for name, pattern in patterns.items() if (n := len(pattern.findall(text)))})
    if counts.get("Kana", 0) > 0.05 * (counts.get("Kana", 0) + counts.get("Han", 0)):
        counts["Japanese"] = counts.pop("Kana") + counts.pop("Han", 0)
    return counts


def main_script(text: str, at_least: int = 3) -> str | None:
    """The script of most letters (ties: the earlier name in the table); None under `at_least` letters."""
    counts = scripts(text)
    # A Han character says about as much as a short word, so that a few Latin names do not make a text Latin.
    weighted = {name: n * (3 if name in ("Han", "Japanese") else 1) for name, n in counts.items()}
    if sum(weighted.values()) < at_least:
        return None
    return max(weighted, key=lambda name: weighted[name])
