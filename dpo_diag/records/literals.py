"""A printed value to the value: JSON, Python's repr, or what numpy prints of an array of objects (without commas).

That is what `DataFrame.to_csv` makes of lists and dictionaries. Nothing is evaluated: literals alone are read.
"""

from __future__ import annotations

import ast
import re
import warnings
from typing import Any

from dpo_diag.documents import parse_json, whole_characters

_TOKEN = re.compile(
    r"""(?P<string>'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")"""
    r"""|(?P<call>\b(?:np\.|numpy\.)?(?:array|str_|bool_|float\d*|int\d*)\()|(?P<dtype>,\s*dtype=[^,)]+(?=\)))"""
    r"""|(?P<open>[\[({])|(?P<close>[\])}])|(?P<atom>[\w.+-]+)|(?P<space>\s+)|(?P<other>.)""",
    re.DOTALL,
)
_WORDS = {"null": "None", "true": "True", "false": "False", "nan": "None", "NaN": "None", "NaT": "None"}
_CLOSING = {"[": "]", "(": ")", "{": "}"}


def read_literal(text: str) -> Any:
    """The value that `text` prints.

    Raises:
        ValueError: it is no literal, or is nested too deeply.
    """
    try:
        return parse_json(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    except ValueError:
        return python_literal(_with_commas(text))


def python_literal(text: str) -> Any:
    """The value of a Python literal.

    Raises:
        ValueError: it is none, or is nested too deeply.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # a stray backslash in foreign text
            return whole_characters(ast.literal_eval(text), text)
    except (SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise ValueError("not a literal") from error


def _with_commas(text: str) -> str:
    """Numpy's print as Python's: commas between neighbours in a list, no `array(...)`, Python's words.

    Two strings side by side are two entries here; to Python they would be one.
    """
    parts: list[str] = []
    stack: list[str] = []
    value_ended = False
    for match in _TOKEN.finditer(text):
        kind, token = match.lastgroup, match.group()
        if kind in ("space", "dtype"):
            parts.append(" ")
            continue
        begins = kind in ("string", "call", "open", "atom")
        if begins and value_ended and stack and stack[-1] == "[":
            parts.append(",")
        if kind == "call":
            stack.append("(")
            parts.append("(")
        elif kind == "open":
            stack.append(token)
            parts.append(token)
        elif kind == "close":
            if not stack or _CLOSING[stack.pop()] != token:
                raise ValueError("not a literal")
            parts.append(token)
        else:
            if not token.strip("."):
                raise ValueError("numpy left entries out")
            parts.append(_WORDS.get(token, token) if kind == "atom" else token)
        value_ended = kind in ("string", "close", "atom")
    return "".join(parts)
