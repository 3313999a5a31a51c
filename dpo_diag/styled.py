"""Lines for a terminal: wrapped by cells (a Chinese letter takes two), coloured where the terminal takes it.

Colour never says anything alone: without it the lines are the same text.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from dpo_diag.text import terminal_width

_HAN = "\u3000-\u30ff\u3400-\u9fff\uff00-\uffef"
_PIECE = re.compile(rf"[{_HAN}]|[^\s{_HAN}]+|\s+")
_CLOSES = "，。；：、）》”！？"
"""What stands at no line's beginning."""
_PLAIN = Console(color_system=None)
_COLOURED = Console(color_system="standard", force_terminal=True, no_color=False)


def wrap(text: str, columns: int) -> list[str]:
    """Lines of at most `columns` cells; breaks at blanks where there are any, inside a long word where not.

    Newlines of the text stay; [""] for an empty text.
    """
    if not re.search(rf"[{_HAN}]", text):
        return [line.plain for line in wrapped(Text(text), columns)]
    return [line for paragraph in text.split("\n") for line in _wrap_han(paragraph, columns)]


def _wrap_han(text: str, columns: int) -> list[str]:
    """Chinese has no blanks: a line may end behind any letter, but none begins with a closing mark."""
    pieces: list[str] = []
    for piece in _PIECE.findall(text):
        if pieces and (piece in _CLOSES or pieces[-1].endswith("（")):
            pieces[-1] += piece
        else:
            pieces.append(piece)
    lines = [""]
    for piece in pieces:
        fits = cell_len(lines[-1]) + cell_len(piece.rstrip()) <= columns
        if not fits and cell_len(piece) > columns:  # a path or an id, longer than a line
            lines += [line.plain for line in Text(piece).wrap(_PLAIN, columns)]
        elif not fits:
            lines.append(piece.lstrip())
        else:
            lines[-1] += piece
    return [line.rstrip() for line in lines]


def hanging(line: str, width: int) -> list[str]:
    """A line that is too long as several, the further ones two cells further in."""
    indent = len(line) - len(line.lstrip(" "))
    if cell_len(line) <= width or not line.strip():
        return [line]
    first, *rest = wrap(line.strip(), width - indent - 2)
    return [" " * indent + first, *(" " * (indent + 2) + part for part in rest)]


def fitted(text: str) -> str:
    """Lines for standard output: of a terminal wrapped at its width, of a file whole."""
    if not sys.stdout.isatty():
        return text
    return "\n".join(part for line in text.splitlines() for part in hanging(line, terminal_width()))


def wrapped(text: Text, columns: int) -> list[Text]:
    """The same for a text with styles."""
    lines = list(text.wrap(_PLAIN, columns, tab_size=4)) or [Text()]
    for line in lines:
        line.rstrip()
    return lines


def rendered(lines: Sequence[Text], color: bool) -> list[str]:
    """The lines as they are printed, with their styles only for `color`."""
    if not color:
        return [line.plain.rstrip() for line in lines]
    with _COLOURED.capture() as capture:
        for line in lines:
            _COLOURED.print(line, soft_wrap=True)
    return capture.get().splitlines()
