"""The few pieces of Markdown that the generated pages are made of."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence


def joined(*parts: str) -> str:
    """Parts as one page, one blank line between them."""
    return re.sub(r"\n{3,}", "\n\n", "\n\n".join(parts)).rstrip() + "\n"


def head(title: str, source: str) -> str:
    """The title, and where to edit instead of here."""
    return f"<!-- made from {source} by python -m docs.make: edit that, not this page -->\n\n# {title}\n"


def table(names: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table; cells are shown as they are, with `|` escaped."""
    lines = [names, ["---"] * len(names), *([_cell(value) for value in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def code(value: object) -> str:
    """The value as inline code; nothing for None and an empty text."""
    text = "" if value is None else str(value)
    return f"`{text}`" if text else ""


def _cell(value: object) -> str:
    """One line; a `<` outside of code would begin a tag."""
    parts = " ".join(str(value).split()).replace("|", "\\|").split("`")
    return "`".join(part if i % 2 else part.replace("<", "&lt;") for i, part in enumerate(parts))
