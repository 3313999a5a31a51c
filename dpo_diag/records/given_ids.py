"""Ids that the data bring along: each stands for one pair, or the pairs get ids of their own and it is said."""

from __future__ import annotations

from typing import Any

from dpo_diag.records.pair_id import pair_id_of
from dpo_diag.text import plural


class GivenIds:
    """Which content each given id stands for: that of the first row that has it. Rows of another content under the same
    id keep the id of their content (`pair_id_of`), else their sums would overwrite one another."""

    def __init__(self) -> None:
        self._contents: dict[str, str] = {}
        self._shared: dict[str, set[str]] = {}

    def own(self, given: str, row: Any) -> str:
        """The id of a row that came with one.

        Raises:
            KeyError, TypeError: as `pair_id_of`.
        """
        return self.own_content(given, pair_id_of(row))

    def own_content(self, given: str, content: str) -> str:
        """`own`, for a row whose content's id is known."""
        first = self._contents.setdefault(given, content)
        if content == first:
            return given
        self._shared.setdefault(given, {first}).add(content)
        return content

    @property
    def n_pairs(self) -> int:
        """Different pairs that shared an id."""
        return sum(map(len, self._shared.values()))

    def note(self) -> str | None:
        """A line for the user; None where every id stands for one pair."""
        return same_id_note(list(self._shared), self.n_pairs, "those of another content than the first have its hash")

    def facts(self) -> dict[str, Any]:
        """Fields of run.json's SplitInfo."""
        return {"n_same_id": self.n_pairs, "told_apart_by": "content"} if self._shared else {}


def same_id_note(ids: list[str], n_pairs: int, what_now: str) -> str | None:
    """The one line that says that ids collapse; None for none."""
    if not ids:
        return None
    others = f" and {len(ids) - 1} more" if len(ids) > 1 else ""
    pairs = f"{plural(n_pairs, 'pair')} {'has' if n_pairs == 1 else 'have'}"
    return f"{pairs} {plural(len(ids), 'id')} ({ids[0]}{others}): {what_now}"
