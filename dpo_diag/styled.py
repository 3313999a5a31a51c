"""Lines for a terminal: wrapped by cells (a Chinese letter takes two), coloured where the terminal takes it.

Colour never says anything alone: without it the lines are the same text.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

_PLAIN = Console(color_system=None)
_COLOURED = Console(color_system="standard", force_terminal=True, no_color=False)


def wrap(text: str, columns: int) -> list[str]:
    """Lines of at most `columns` cells; breaks at blanks where there are any, inside a long word where not.

    Newlines of the text stay; [""] for an empty text.
    """
    return [line.plain for line in wrapped(Text(text), columns)]


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
