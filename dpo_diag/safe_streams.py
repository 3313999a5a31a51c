"""Standard output and error of a command: what is printed there acts on no terminal, whoever prints it.

One place for prints, log lines, warnings and progress bars: file names, answers, values of rules and messages of
libraries may hold escape sequences, C1 controls or marks that turn the direction of writing. They become `<U+XXXX>`
(see `text.visible`). Our own colours pass to a terminal, and what moves a progress bar passes on standard error.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from dpo_diag.records.secrets import REDACTED, secrets_given
from dpo_diag.text import takes_styles, visible

_CODE = r"(?:[0-4]|3[0-7]|9[0-7])"
_STYLE = re.compile(rf"(\x1b\[{_CODE}?(?:;{_CODE})*m)")
"""Colours, bold, dim, italic, underlined: nothing that hides a text."""
_MOVES = re.compile(r"(?:\n|\x1b\[A)*")
"""What tqdm writes alone to reach the line of a bar; a bar itself begins with a carriage return."""


class SafeStream:
    """A text stream that writes `visible` text; everything else is the stream's own.

    Args:
        stream: where to write.
        bars: whether progress bars may move on it.
        secrets: texts that are written as "[redacted]".
    """

    def __init__(self, stream: Any, bars: bool = False, secrets: Collection[str] = ()) -> None:
        self._stream, self._bars, self._secrets = stream, bars, secrets
        self.styles: bool | None = None
        """Whether our own styles pass; None: to a terminal."""

    def write(self, text: str) -> int:
        """Write a text; returns the length of what was given."""
        if self._bars and text.startswith("\r"):
            self._stream.write("\r" + self._shown(text[1:]))
        elif self._bars and _MOVES.fullmatch(text):
            self._stream.write(text)
        else:
            self._stream.write(self._shown(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write texts one after another."""
        for line in lines:
            self.write(line)

    def _shown(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, REDACTED)
        styles = takes_styles(self._stream) if self.styles is None else self.styles
        if "\x1b[" not in text or not styles:
            return visible(text)
        return "".join(part if i % 2 else visible(part) for i, part in enumerate(_STYLE.split(text)))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def show_styles(stream: Any) -> None:
    """Let our own styles pass on a command's stream, terminal or not: they were asked for."""
    if isinstance(stream, SafeStream):
        stream.styles = True


@contextmanager
def safe_streams() -> Iterator[None]:
    """Inside, `sys.stdout` and `sys.stderr` are safe, and show none of the secrets that the command was given; nothing
    is done a second time."""
    before, secrets = (sys.stdout, sys.stderr), secrets_given(sys.argv[1:], os.environ)
    if not isinstance(sys.stdout, SafeStream):
        sys.stdout = SafeStream(sys.stdout, secrets=secrets)
    if not isinstance(sys.stderr, SafeStream):
        sys.stderr = SafeStream(sys.stderr, bars=True, secrets=secrets)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
