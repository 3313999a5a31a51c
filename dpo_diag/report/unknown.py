"""What a run cannot tell: the sections that it has nothing for, each with its reason, and the commands that would."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from dpo_diag.next_steps import that_would_tell
from dpo_diag.report.section import Context


@dataclass(frozen=True)
class Unknown:
    """The box.

    Attributes:
        missing: (titles of sections, the reason that they share).
        commands: (what it would tell, the command line).
    """

    missing: tuple[tuple[tuple[str, ...], str], ...]
    commands: tuple[tuple[str, str], ...]


def unknown(context: Context, missing: Iterable[tuple[str, str]]) -> Unknown:
    """The box for sections (title, reason) that could not be drawn; each reason once."""
    titles: dict[str, list[str]] = {}
    for title, reason in missing:
        titles.setdefault(reason, []).append(title)
    return Unknown(
        tuple((tuple(of), reason) for reason, of in titles.items()),
        tuple(that_would_tell(context.run)) if titles else (),
    )
