"""The one error that a user is meant to read: what, where, got, expected, hint, in one line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

LONGEST = 2000
"""Characters of a part in the line: a broken file's one column name or key can be all of the file."""


class DiagError(Exception):
    """A mistake in the input, the configuration or the environment, in one line: of a long part its first 2,000
    characters.

    Args:
        what: what went wrong, a clause without a full stop.
        where: file, row, column or option.
        got: what was found there.
        expected: what was wanted instead.
        hint: what the user can do about it.
        usage: True for a mistake in how a command was called (exit status 2 instead of 1).
    """

    def __init__(
        self,
        what: str,
        *,
        where: object = None,
        got: object = None,
        expected: object = None,
        hint: str | None = None,
        usage: bool = False,
    ) -> None:
        self.what, self.where, self.got, self.expected, self.hint = what, where, got, expected, hint
        self.usage = usage
        parts = [what]
        if where is not None:
            parts.append(f"in {where}")
        if got is not None:
            parts.append(f"got {got}")
        if expected is not None:
            parts.append(f"expected {expected}")
        if hint is not None:
            parts.append(f"hint: {hint}")
        lines = (" ".join(str(part).split()) for part in parts)
        super().__init__("; ".join(line if len(line) <= LONGEST + 4 else f"{line[: LONGEST + 4]}..." for line in lines))


class DamagedRecords(UserWarning):
    """A record file is damaged; its rows are left out, and the rest is read."""


def did_you_mean(word: str, choices: Iterable[str], prefix: str = "") -> str | None:
    """ "did you mean beta?" for a name that was mistyped; None where no choice is near. `prefix` stands before it."""
    near = difflib.get_close_matches(word, list(choices), n=1)
    return f"did you mean {prefix}{near[0]}?" if near else None
