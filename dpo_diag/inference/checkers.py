"""Is an answer right? Each checker gives 1.0, 0.0, or None where it cannot tell. No torch."""

from __future__ import annotations

import re
from collections.abc import Callable

from dpo_diag.documents import parse_json
from dpo_diag.errors import DiagError
from dpo_diag.inference.prompts import Prompt

Checker = Callable[[Prompt, str], float | None]


def _squeezed(text: str) -> str:
    return " ".join(text.split())


def _exact(prompt: Prompt, text: str) -> float | None:
    """Equal to the reference, blanks aside."""
    return None if prompt.reference is None else float(_squeezed(text) == _squeezed(prompt.reference))


def _contains(prompt: Prompt, text: str) -> float | None:
    """The answer contains the reference, case and blanks aside."""
    if prompt.reference is None:
        return None
    return float(_squeezed(prompt.reference).casefold() in _squeezed(text).casefold())


def _regex(prompt: Prompt, text: str) -> float | None:
    """The answer matches the row's `pattern` somewhere."""
    pattern = prompt.extra.get("pattern")
    if not isinstance(pattern, str):
        raise DiagError("checker regex needs a pattern", where=f"prompt {prompt.id}")
    try:
        return float(re.search(pattern, text) is not None)
    except re.error as error:
        raise DiagError("the pattern is not a regular expression", where=f"prompt {prompt.id}", got=error) from error


def _json(prompt: Prompt, text: str) -> float | None:
    """The whole answer is one JSON document."""
    try:
        parse_json(text)
    except ValueError:
        return 0.0
    return 1.0


def _sql(prompt: Prompt, text: str) -> float | None:
    """Execution accuracy in the embedded text-to-SQL case: the result equals the reference query's."""
    from dpo_diag.tasks.sql.execute import is_correct

    db = prompt.extra.get("db")
    if not isinstance(db, str) or prompt.reference is None:
        raise DiagError("checker sql needs db and reference", where=f"prompt {prompt.id}")
    try:
        return float(is_correct(db, text, prompt.reference))
    except (KeyError, ValueError) as error:
        raise DiagError("checker sql cannot run the reference", where=f"prompt {prompt.id}", got=error) from error


CHECKERS: dict[str, Checker] = {"exact": _exact, "contains": _contains, "regex": _regex, "json": _json, "sql": _sql}


def require_known(prompts: list[Prompt]) -> None:
    """Raise DiagError for a checker that does not exist: raised before any model runs."""
    for prompt in prompts:
        if prompt.checker is not None and prompt.checker not in CHECKERS:
            raise DiagError(
                "unknown checker",
                where=f"prompt {prompt.id}",
                got=repr(prompt.checker),
                expected=f"one of {sorted(CHECKERS)}",
            )


def check(prompt: Prompt, text: str) -> float | None:
    """The verdict on one answer, None without a checker (or where the checker cannot tell)."""
    return None if prompt.checker is None else CHECKERS[prompt.checker](prompt, text)
