"""No secret reaches a file, a tracker, a report or a printed line: the one home for what a secret is.

A value is one by the words of its key (`hubToken`, `aws_secret_access_key`, `x-api-key`), whatever its type, or by its
own form: the password in a URL, a key in PEM, the prefixes of known services. Counts and ids of tokens are none
(`num_tokens`, `pad_token_id`, `max_tokens`), nor are special tokens.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

REDACTED = "[redacted]"
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_SECRET_WORDS = frozenset(
    ("secret", "secrets", "password", "passwords", "passwd", "passphrase", "passcode", "credential", "credentials")
    + ("authorization", "cookie", "cookies", "webhook")
)
_LAST = frozenset(("auth", "pwd", "pass"))
"""Secret as the last of several words."""
_KEY = re.compile(
    r"(api|access|private|secret|signing|encryption|ssh|master|account|auth|client|service|license|storage|kaggle)"
    r"_?keys?(?:_|$)"
)
"""In a key's words, joined by "_"; not the start of a longer word (keyword)."""
_OWNER = frozenset(
    """
    hf hub huggingface access auth api bearer user git github gitlab wandb session refresh security csrf oauth jwt
    personal deploy bot slack discord telegram mlflow swanlab comet neptune clearml aws sts gcp azure sas login registry
    tracking client service pypi npm docker private vault openai anthropic replicate modal jupyter
    """.split()  # noqa: SIM905
)
_OWNED = re.compile("(?:^|_)(?:" + "|".join(sorted(_OWNER)) + ")_?tokens?$")
"""Whose a token is that lets someone in: no vocabulary has such."""
_SPECIAL = re.compile(r"<.*>|\[[A-Z_]+\]|\d*")
"""A special token of a vocabulary, or its id: no token that lets someone in."""
_SHAPES = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{30,}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|glpat-[\w-]{16,}"
    r"|sk-(?:(?:proj|ant|or|svcacct|admin)-[\w-]{16,}|[A-Za-z0-9]{20,})|xox[abprs]-[\w-]{10,}|(?:AKIA|ASIA)[0-9A-Z]{16}|AIza[\w-]{30,}|eyJ(?:(?!-eyJ)[\w-]){10,}\.[\w-]{10,}\.[\w-]*)"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)",
    re.DOTALL,
)
_IN_URL = re.compile(r"(\b[a-z][a-z0-9+.-]{1,20}://[^\s/:@]*):(?P<password>[^\s/]+)@", re.IGNORECASE)
_SHORTEST = 8
_BEARER = re.compile(
    r"(authorization\W{1,4}\w+\s+)[\w.~+/=-]{8,}"
    r"|(\bbearer\s+)(?=\S*\d)[\w.~+/=-]{16,}|(\bbasic\s+)(?=\S*[\d=])[a-z0-9+/]{12,}={0,2}(?![\w.-])",
    re.IGNORECASE,
)
"""Outside of a header only what is no word: "a basic tokenizer" stays."""


_KEY_AND_SIGN = re.compile(r"(?<![\w.-])(?P<key>[\w.+~-]{0,80}\w)(?P<sign>['\"]?\s?[=:]\s?)")
_VALUE = re.compile(r"\"[^\"]*\"|'[^']*'|[^\s,;&\"'\])}]+")
_PARTS = re.compile(r"(?<=[\[{(:,=\s])(?:\"[^\"]*\"|'[^']*')|[\[\]{}]")
"""Of a list or an object: a text in it, whose brackets do not count, or a bracket."""


_OF_A_SENTENCE = frozenset(
    """
    must should may might can cannot could would will shall do does did is are was were be been has have had need needs
    needed not no none neither never missing required optional expected unexpected invalid wrong incorrect empty expired
    unknown unset the a an this that these it its your our please see set use give given pass enter type too at least
    """.split()  # noqa: SIM905
)
"""Words with which a sentence about a secret goes on: "password: must be set", "expected token: a text"."""
_ALONE = frozenset(
    ("missing", "required", "optional", "expected", "unexpected", "invalid", "incorrect", "empty", "expired", "unknown")
    + ("unset",)
)
"""Those that are the whole of one; any other at the end is a secret that is such a word."""
_GOES_ON = re.compile(r" [a-z]")


def is_secret(key: str, value: Any = REDACTED) -> bool:
    """Whether what stands under a key is kept from every file: by the key's words; dots part keys, the last counts.

    >>> [is_secret(k) for k in ("hubToken", "db.password", "x-api-key", "num_tokens", "pad_token_id", "keyword")]
    [True, True, True, False, False, False]
    """
    if value is None or isinstance(value, bool) or _is_reference(value):
        return False
    if isinstance(value, (str, list, dict, tuple)) and not value:
        return False
    words = [word.lower() for word in _WORD.findall(key.rpartition(".")[2])]
    joined = "_".join(words)
    if not _SECRET_WORDS.isdisjoint(words) or _KEY.search(joined):
        return True
    if len(words) > 1 and words[-1] in _LAST:
        return not (words[-1] == "pass" and _is_number(value))  # forward_pass: 2
    if words == ["token"] or _OWNED.search(joined) or (words[-1:] in (["token"], ["tokens"]) and _OWNER & set(words)):
        counts = words[-1] == "tokens" and all(map(_is_number, value if isinstance(value, (list, tuple)) else [value]))
        return not counts and not (isinstance(value, str) and _SPECIAL.fullmatch(value))
    return False


def _is_number(value: Any) -> bool:
    # A longer text of digits may be a password.
    return isinstance(value, (int, float)) or (
        isinstance(value, str) and re.fullmatch(r"[\d.]{1,4}", value) is not None
    )


def _is_reference(value: Any) -> bool:
    """Whether a value only says where the secret stands: `${oc.env:HF_TOKEN}`."""
    return isinstance(value, str) and re.fullmatch(r"\$\{[^},]*\}", value) is not None


def redacted(text: str) -> str:
    """A text without the secrets in it: `KEY=VALUE` and `KEY: VALUE` of secret keys, passwords in URLs, known forms."""
    if not any(sign in text for sign in "=:_-. "):
        return text
    text = _SHAPES.sub(REDACTED, text)
    text = _IN_URL.sub(rf"\1:{REDACTED}@", text)
    text = _BEARER.sub(lambda m: f"{m[1] or m[2] or m[3]}{REDACTED}", text)
    kept, at = [], 0
    while (found := _KEY_AND_SIGN.search(text, at)) is not None:
        kept.append(text[at : found.end()])
        at = found.end()
        if (end := _end_of_value(text, found)) is not None:
            kept.append(REDACTED)
            at = end
    return "".join((*kept, text[at:]))


def _end_of_value(text: str, found: re.Match[str]) -> int | None:
    """Where the secret ends that stands behind a key and its sign; None for no secret. What else stands there may hold
    a pair itself: `overrides: hub_token=...`, `{a: {password: x}}`."""
    key, sign, start = found["key"], found["sign"], found.end()
    colon = sign.strip() == ":"
    if (colon and key.lower() == "token") or not is_secret(key) or text.startswith(("//", REDACTED), start):
        return None
    if text[start : start + 1] in ("[", "{"):
        end = _end_of_brackets(text, start)
    elif (match := _VALUE.match(text, start)) is not None:
        end = match.end()
    else:
        return None
    value = text[start:end]
    of_a_sentence = colon and sign[-1] == " " and _is_of_a_sentence(value, text, end)
    return None if of_a_sentence or not is_secret(key, value.strip("\"'")) else end


def _is_of_a_sentence(value: str, text: str, end: int) -> bool:
    word = value.lower()
    return word in _ALONE or (word in _OF_A_SENTENCE and _GOES_ON.match(text, end) is not None)


def _end_of_brackets(text: str, start: int) -> int:
    """Where the list or object ends that begins here; the text's end where it does not, as in a line that was cut."""
    depth = 0
    for part in _PARTS.finditer(text, start):
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(part[0], 0)
        if depth == 0:
            return part.end()
    return len(text)


def without_secrets(value: Any) -> Any:
    """The same structure without secrets: what stands under a secret key becomes "[redacted]", every other text goes
    through `redacted`. Keys become text. In a list of arguments the one behind `--secret-key` is its value."""
    if isinstance(value, str):
        return redacted(value)
    if isinstance(value, Mapping):
        return {str(k): REDACTED if is_secret(str(k), v) else without_secrets(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return _items(value)
    return value


def _items(values: Sequence[Any]) -> list[Any]:
    found: list[Any] = []
    for before, value in zip([None, *values], values, strict=False):
        named = isinstance(before, str) and before.startswith("--") and "=" not in before
        key, equals, given = value.partition("=") if isinstance(value, str) else ("", "", "")
        if named and is_secret(str(before), value):
            found.append(REDACTED)
        elif equals and is_secret(key.lstrip("+~-"), given):
            found.append(f"{key}={REDACTED}")  # whatever stands in it: an override's value may hold blanks
        else:
            found.append(without_secrets(value))
    return found


def redacted_words(words: Sequence[str]) -> tuple[str, ...]:
    """A command's arguments or overrides, KEY=VALUE, as they may be written down."""
    return tuple(_items(words))


def secrets_given(words: Sequence[str], environment: Mapping[str, str]) -> frozenset[str]:
    """The secrets among a command's words and in its environment, to be kept from what it prints.

    Those of fewer than `_SHORTEST` characters are left out: they would be found in other words; and so are paths in the
    environment (`ORIG_PWD`, a credentials file), which stand in what is printed by right.
    """
    found = {value for name, value in environment.items() if is_secret(name, value) and not os.path.exists(value)}
    for before, word in zip(["", *words], words, strict=False):
        key, _, value = word.partition("=")
        found |= {value.strip("'\"")} if is_secret(key.lstrip("+~-"), value) else set()
        found |= {word} if before.startswith("--") and "=" not in before and is_secret(before, word) else set()
        found |= {m["password"] for m in _IN_URL.finditer(word)}
    return frozenset(value for value in found if len(value) >= _SHORTEST)


@contextmanager
def arguments_without_secrets() -> Iterator[None]:
    """Inside, `sys.argv` holds no secret: trackers write it down."""
    before = sys.argv
    sys.argv = [*before[:1], *redacted_words(before[1:])]
    try:
        yield
    finally:
        sys.argv = before
