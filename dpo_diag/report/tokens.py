"""Which tokens carry a pair's change: Δ log-prob of each response token between the two steps, and its text.

Records hold token ids, not their texts. Texts come from a vocabulary (see `vocabulary`); else from the response itself
where its characters or words align with the ids in every shown response without contradiction; else ids are shown.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd

from dpo_diag.records import Run
from dpo_diag.report.text import clean
from dpo_diag.report.vocabulary import load_vocabulary
from dpo_diag.text import number, signed

MAX_TOKENS = 160
"""Tokens of one response that are shown; of a longer one, the stretch that holds the largest change."""
END = "⟨end⟩"
LEVELS = (0.1, 0.5, 1.5, 4.0)
"""|Δ| in nats at which the colour gets one step stronger: -10 %, -40 %, -78 %, -98 % of the token's probability."""
LEAST_SHOWN = 0.05
"""|Δ| in nats below which a token stands over a dot."""


@dataclass(frozen=True)
class Token:
    """One token as it is drawn: `style` is its colour (see `level`), `is_glued` that no space comes before it."""

    text: str
    change: str
    style: str
    is_id: bool
    is_glued: bool


@dataclass(frozen=True)
class TokenLine:
    """The tokens of one response that are shown, and how many were left out before and after them."""

    tokens: tuple[Token, ...] = ()
    before: int = 0
    after: int = 0


def token_texts(run: Run, frame: pd.DataFrame, answers: dict[tuple[str, str], str]) -> pd.Series[str]:
    """Text of each row's token, null where neither the vocabulary nor the response tells.

    Args:
        frame: token rows with pair_id, side, token_id, in the order of positions.
        answers: (pair_id, side) -> the response.
    """
    vocabulary = load_vocabulary(run)
    if vocabulary is not None:
        return frame["token_id"].map(vocabulary).astype(object)
    for split in (list, _words):
        texts = _aligned(frame, answers, split)
        if texts is not None:
            return pd.Series(texts, index=frame.index, dtype=object)
    return pd.Series(None, index=frame.index, dtype=object)


def _words(text: str) -> list[str]:
    return re.findall(r"(?<!\s)\s*+\S++(?:\s++\Z)?", text)


def _aligned(
    frame: pd.DataFrame, answers: dict[tuple[str, str], str], split: Callable[[str], list[str]]
) -> list[str] | None:
    """The responses' pieces as token texts, if piece <-> id is one-to-one everywhere; one extra token may end each."""
    by_id: dict[int, str] = {}
    column: list[str] = []
    for (pair_id, side), rows in frame.groupby(["pair_id", "side"], sort=False, observed=True):
        pieces = split(answers.get((str(pair_id), str(side)), ""))
        extra = len(rows) - len(pieces)
        if not pieces or extra not in (0, 1):
            return None
        for token, piece in zip(rows["token_id"], [*pieces, *[END] * extra], strict=True):
            if by_id.setdefault(int(token), piece) != piece:
                return None
            column.append(piece)
    return column if column and len(set(by_id.values())) == len(by_id) else None


def level(delta: float) -> str:
    """The style of a change: z (under 0.1 nats), d1 to d4 (fell), u1 to u4 (rose)."""
    strength = sum(abs(delta) >= bound for bound in LEVELS)
    return "z" if strength == 0 else f"{'d' if delta < 0 else 'u'}{strength}"


def token_line(tokens: pd.DataFrame) -> TokenLine:
    """One response's tokens in order, each over its change in nats, so that it reads without colour too.

    Args:
        tokens: token_id, delta (nats, finite), text (null where unknown); empty without token records.
    """
    start = 0
    if len(tokens) > MAX_TOKENS:
        top = int(tokens["delta"].abs().to_numpy().argmax())
        start = min(max(0, top - MAX_TOKENS // 3), len(tokens) - MAX_TOKENS)
    drawn = []
    shown = tokens.iloc[start : start + MAX_TOKENS]
    for token_id, delta, text in zip(shown["token_id"], shown["delta"], shown["text"], strict=True):
        known = isinstance(text, str)
        change = signed(round(delta, 2), 2) if abs(delta) >= LEAST_SHOWN else "·"
        is_glued = known and not text[:1].isspace()
        drawn.append(Token(_one_token(text) if known else f"#{token_id}", change, level(delta), not known, is_glued))
    return TokenLine(tuple(drawn), start, len(tokens) - start - len(drawn))


def _one_token(text: str) -> str:
    """A token on one line; spaces around a word are left to the layout, blanks alone are named."""
    safe = clean(text, 40)
    safe = safe.strip(" ") if safe.strip(" ") else safe.replace(" ", "␣")
    return safe.replace("\n", "⏎").replace("\t", "⇥")


def tokens_text(tokens: pd.DataFrame) -> str:
    """Where in one response the change lies: total, and the token with the largest fall; "" for no tokens."""
    if tokens.empty:
        return ""
    worst = tokens.iloc[int(tokens["delta"].to_numpy().argmin())].to_dict()
    total = f"{signed(tokens['delta'].sum())} nats over {number(len(tokens))} tokens"
    if not worst["delta"] < 0:
        return f"{total}; no token fell"
    name = f"“{clean(worst['text'], 24).strip()}”" if isinstance(worst["text"], str) else f"id {worst['token_id']}"
    return f"{total}; largest fall {signed(worst['delta'])} at token {number(worst['position'] + 1)}, {name}"
