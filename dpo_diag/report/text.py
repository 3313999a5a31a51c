"""Text on its way into the page. Model text is hostile: hidden characters are made visible here, everything that is
not Markup is escaped by jinja2 or markupsafe, and the page's CSP lets no foreign script or style run.
"""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from dpo_diag.text import cut, visible

MAX_CHARS = 4_000
"""Characters of one text that the page shows."""


def clean(text: Any, max_chars: int | None = MAX_CHARS) -> str:
    """Text with its hidden and acting characters shown, at most `max_chars` of it; not yet escaped. "" for None."""
    return visible(cut("" if text is None else str(text), max_chars))


def finalize(value: Any) -> Any:
    """jinja2's last step on every `{{ expression }}`: no string reaches the page uncleaned, whoever forgot."""
    if isinstance(value, Markup):
        return value
    return clean(value, None) if isinstance(value, str) else ("" if value is None else value)


def capital(text: str) -> str:
    """The text with its first letter large."""
    return text[:1].upper() + text[1:]
