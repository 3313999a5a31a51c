"""The texts beside a table's log-probs: read as training reads them, so that a pair has one id everywhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dpo_diag.records.conversation import is_conversation, prompt_text, response_text
from dpo_diag.records.pair_id import make_pair_id, pair_id_of, texts_of
from dpo_diag.records.row_files import BadRow
from dpo_diag.rows.form import Reading, recognise

TEXTS = ("prompt", "chosen", "rejected")


class PairTexts:
    """How the rows of one table hold their texts, by its first rows."""

    def __init__(self, sample: Sequence[Mapping[str, Any]]) -> None:
        self._reading: Reading = recognise([_without_numbers(row) for row in sample])

    @property
    def note(self) -> str | None:
        """What was recognised, where it is not simply prompt, chosen and rejected, or nothing."""
        plain = self._reading.refused or self._reading.form == "trl"
        return None if plain else f"texts read as {self._reading.title}: {self._reading.says}"

    def of(self, row: Mapping[str, Any]) -> tuple[dict[str, str], str | None]:
        """(the texts that the row holds, the pair's id): no id without all three."""
        try:
            pair = self._reading.pair(row)
            found = texts_of({**{name: getattr(pair, name) for name in TEXTS}, **pair.extra})
            return {name: text for name, text in found.items() if text is not None}, pair.pair_id
        except BadRow:
            # A log is evidence: what one would not train on (equal answers, an image) was trained on all the same.
            texts = {name: text for name in TEXTS if (text := _text(name, row.get(name))) is not None}
        if len(texts) < len(TEXTS):
            return texts, None
        try:
            return texts, pair_id_of(row)
        except (TypeError, ValueError, AttributeError):
            return texts, make_pair_id(texts["prompt"], texts["chosen"], texts["rejected"])


def _without_numbers(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row without the table's own columns, which would make it a log."""
    return {name: value for name, value in row.items() if not str(name).endswith("sum_logp") and name != "pair_id"}


def _text(name: str, value: Any) -> str | None:
    """The prompt or a response as text; None where there is none."""
    if not (isinstance(value, str) and value) and not is_conversation(value):
        return None
    return prompt_text(value) if name == "prompt" else response_text(value)
