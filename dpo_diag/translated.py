"""What a person reads in another language, from a catalogue beside the English.

The explanation's document stays English: it is a record that tools read, and its sentences are made where their numbers
are. A catalogue (`locale/LANG/LC_MESSAGES/dpo_diag.po`, gettext's format) holds each sentence as a template: names in
braces stand for what a run fills in. A sentence that fits a template is said in the other language, its pieces in turn;
one that fits none stays English whole, so that nothing is said half.
"""

from __future__ import annotations

import ast
import os
import re
from functools import cache
from pathlib import Path

from dpo_diag.errors import DiagError
from dpo_diag.text import capital

LOCALE = Path(__file__).parent / "locale"
ENGLISH = "en"
VARIABLE = "DPO_DIAG_LANG"
_NAME = re.compile(r"\{(\w+)\}")
_ENTRY = re.compile(r'^(msgid|msgstr) |^"')
_SENTENCE = re.compile(r"(?<=[.])\s+(?=[A-Z])")
_PROSE = re.compile(r"[A-Za-z]'*+ [a-z]{2}")
"""Two words of English: a piece that holds them and has no translation is a sentence left behind."""
_QUOTED = re.compile(r'"[^"]*"|`[^`]*`|\[[^\[\]]*\]|\([^()=]*+=[^()]*\)')
"""What a run or a shell says, not we."""
_NUMBER = re.compile(r"[-+~]?(?:\d[\d.]*(?<!\.)(?:e[-+]?\d+)?|NaN|∞|–|\?)(?: %)?")
"""What a name of one letter holds."""
OWN, WORD = "own", "word"
"""A name that begins so holds a run's own words, or one of them: they are not translated."""


class Catalogue:
    """The templates of one language; called with a text, it gives the text in that language, or as it was."""

    def __init__(self, entries: dict[str, str], language: str = ENGLISH) -> None:
        self.entries, self.language = entries, language
        self._plain = {k: v for k, v in entries.items() if not _NAME.search(k)}
        templates = [_Template(k, v) for k, v in entries.items() if _NAME.search(k)]
        # The one that says most itself first: the others would take its words for a run's.
        self._templates = sorted(templates, key=lambda t: -sum(map(len, t.words)))
        self._known: dict[str, str | None] = {}

    def __call__(self, text: str) -> str:
        """The text as one sentence, else sentence by sentence; what has no translation stays."""
        whole = self._said(text) if self.entries else text
        if whole is not None:
            return whole
        said = ""
        for part in (self._said(part) or part for part in _SENTENCE.split(text)):
            said += f" {part}" if said and not said.endswith("。") else part
        return said

    def has(self, text: str) -> bool:
        """Whether every sentence of the text is said in the language."""
        return self._said(text) is not None or all(self._said(part) is not None for part in _SENTENCE.split(text))

    def begin(self, text: str) -> str:
        """The text where a sentence begins: only English has large letters there."""
        return text if self.entries else capital(text)

    def _said(self, text: str) -> str | None:
        if text not in self._known:
            forms = [(text[:-1], "。")] if text.endswith(".") else []
            said = (self._make(form, end) for form, end in [*forms, (text, "")])
            self._known[text] = next((s for s in said if s is not None), None)
        return self._known[text]

    def _make(self, text: str, end: str) -> str | None:
        for form in dict.fromkeys((text, text[:1].lower() + text[1:])):
            if form in self._plain:
                return self._plain[form] + end
            for template in self._templates:
                pieces = self._fill(template, form) if template.may_be(form) else None
                if pieces is not None:
                    return _NAME.sub(lambda m, p=pieces: p[m.group(1)], template.said) + end  # type: ignore[misc]
        return None

    def _fill(self, template: _Template, text: str) -> dict[str, str] | None:
        """What stands at the names, in the language, by the first way to cut the text that leaves no English behind."""

        def rest(i: int, at: int) -> dict[str, str] | None:
            if i == len(template.names):
                return {} if at == len(text) else None
            name, words = template.names[i], template.words[i + 1]
            last = i == len(template.names) - 1
            end = len(text) - len(words) if last else text.find(words, at + 1)
            while end > at:
                piece = self._piece(name, text[at:end])
                after = None if piece is None else rest(i + 1, end + len(words))
                if after is not None:
                    return {**after, name: str(piece)}
                end = -1 if last else text.find(words, end + 1)
            return None

        return rest(0, len(template.words[0]))

    def _piece(self, name: str, piece: str) -> str | None:
        """What stands at a name, in the language; None where it cannot be what the name says."""
        if len(name) == 1:
            return piece if _NUMBER.fullmatch(piece) else None
        if name.startswith(OWN):
            return piece
        if name.startswith(WORD):
            return piece if " " not in piece else None
        said = self._said(piece)
        return piece if said is None and not _PROSE.search(_QUOTED.sub("", piece)) else said


class _Template:
    """An English sentence: its words around the names, and how it is said."""

    def __init__(self, english: str, said: str) -> None:
        parts = _NAME.split(english)
        self.words, self.names, self.said = parts[::2], parts[1::2], said

    def may_be(self, text: str) -> bool:
        """Whether all of its words stand in the text."""
        return text.startswith(self.words[0]) and text.endswith(self.words[-1]) and all(w in text for w in self.words)


def read_po(text: str) -> dict[str, str]:
    """msgid -> msgstr of a .po file, without those that are not translated."""
    entries: dict[str, str] = {}
    key, said, what = "", "", ""
    for line in [*text.splitlines(), 'msgid ""']:
        if not _ENTRY.match(line):
            continue
        if line.startswith("msgid "):
            if key and said:
                entries[key] = said
            key, said, what = "", "", "msgid"
        elif line.startswith("msgstr "):
            what = "msgstr"
        value = str(ast.literal_eval(line.removeprefix("msgid ").removeprefix("msgstr ")))
        key, said = (key + value, said) if what == "msgid" else (key, said + value)
    return entries


def languages() -> list[str]:
    """English and what has a catalogue."""
    return [ENGLISH, *sorted(file.parent.parent.name for file in LOCALE.glob("*/LC_MESSAGES/dpo_diag.po"))]


def catalogue(language: str | None = None) -> Catalogue:
    """The catalogue of a language (zh, zh_CN.UTF-8); None: that of DPO_DIAG_LANG, or English, which says every text as
    it is.

    Raises:
        DiagError: a language without a catalogue.
    """
    named = language or os.environ.get(VARIABLE) or ENGLISH
    wanted = re.split(r"[-_.]", named)[0].lower()
    if wanted not in languages():
        where = "--lang" if language else VARIABLE
        raise DiagError("no such language", where=where, got=named, expected=", ".join(languages()), usage=True)
    return _read(wanted)


@cache
def _read(language: str) -> Catalogue:
    if language == ENGLISH:
        return Catalogue({})
    return Catalogue(read_po((LOCALE / language / "LC_MESSAGES" / "dpo_diag.po").read_text(encoding="utf-8")), language)
