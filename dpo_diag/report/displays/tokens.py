"""Which tokens carry a pair's change: Δ log-prob of each response token between the two steps.

Records hold token ids, not their texts. Texts come from a vocabulary (see `vocabulary`); else from the response itself
where its characters or words align with the ids in every shown response without contradiction; else ids are shown.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup, escape

from dpo_diag.records import Run
from dpo_diag.report.displays.vocabulary import load_vocabulary
from dpo_diag.report.numbers import number, signed
from dpo_diag.report.text import clean

MAX_TOKENS = 160
"""Tokens of one response that are shown; of a longer one, the stretch that holds the largest change."""
END = "⟨end⟩"
LEVELS = (0.1, 0.5, 1.5, 4.0)
"""|Δ| in nats at which the colour gets one step stronger: -10 %, -40 %, -78 %, -98 % of the token's probability."""


def tokens_frame(run: Run, explanation: dict[str, Any], pair_ids: list[str]) -> pd.DataFrame:
    """One row per token of the named pairs: pair_id, side, position, token_id, logp_from, logp_to, delta (nats), text
    (null where unknown). Empty where the run has no token records of both steps.
    """
    columns = ["pair_id", "side", "position", "token_id", "logp_from", "logp_to", "delta", "text"]
    first, last, split = (explanation.get(k) for k in ("from_step", "to_step", "split"))
    if first is None or last is None or not pair_ids or not run.has("tokens"):
        return pd.DataFrame(columns=columns)
    wanted = ["step", "pair_id", "side", "position", "token_id", "logp"]
    arrow = run.arrow("tokens", wanted, [first, last], None if split is None else [split], ["policy"])
    rows = arrow.to_pandas()
    rows = rows.loc[rows["pair_id"].isin(pair_ids)].astype({"pair_id": str, "side": str, "logp": "float64"})
    key = ["pair_id", "side", "position", "token_id"]
    rows = rows.drop_duplicates(["step", *key], keep="last")
    before = rows.loc[rows["step"] == first, [*key, "logp"]].rename(columns={"logp": "logp_from"})
    after = rows.loc[rows["step"] == last, [*key, "logp"]].rename(columns={"logp": "logp_to"})
    frame = before.merge(after, on=key, how="inner").sort_values(["pair_id", "side", "position"], ignore_index=True)
    frame["delta"] = frame["logp_to"] - frame["logp_from"]
    return frame.assign(text=token_texts(run, frame))


def token_texts(run: Run, frame: pd.DataFrame) -> pd.Series:
    """Text of each row's token, null where neither the vocabulary nor the response tells."""
    vocabulary = load_vocabulary(run)
    if vocabulary is not None:
        return frame["token_id"].map(vocabulary).astype(object)
    texts = run.texts.set_index("pair_id")
    answers: dict[tuple[str, str], str] = {
        (pair, side): str(texts.loc[pair, side])
        for pair, side in frame[["pair_id", "side"]].drop_duplicates().itertuples(index=False, name=None)
        if pair in texts.index and isinstance(texts.loc[pair, side], str)
    }
    for split in (list, lambda text: re.findall(r"\s*\S+\s*$|\s*\S+", text)):
        found = _aligned(frame, answers, split)
        if found is not None:
            return found
    return pd.Series([None] * len(frame), dtype=object)


def _aligned(frame: pd.DataFrame, answers: dict[tuple[str, str], str], split: Any) -> pd.Series | None:
    """The responses' pieces as token texts, if piece <-> id is one-to-one everywhere; one extra token may end each."""
    by_id: dict[int, str] = {}
    column: list[str | None] = []
    for key, rows in frame.groupby(["pair_id", "side"], sort=False):
        pieces = split(answers.get((str(key[0]), str(key[1])), ""))
        extra = len(rows) - len(pieces)
        if not pieces or extra not in (0, 1):
            return None
        for token, piece in zip(rows["token_id"], [*pieces, *[END] * extra], strict=True):
            if by_id.setdefault(int(token), piece) != piece:
                return None
            column.append(piece)
    return pd.Series(column, dtype=object) if column and len(set(by_id.values())) == len(by_id) else None


def level(delta: float) -> str:
    """The style of a change: z (under 0.1 nats), d1 to d4 (fell), u1 to u4 (rose), nan."""
    if not np.isfinite(delta):
        return "nan"
    strength = sum(abs(delta) >= bound for bound in LEVELS)
    return "z" if strength == 0 else f"{'d' if delta < 0 else 'u'}{strength}"


def draw_tokens(tokens: pd.DataFrame) -> Markup:
    """One response's tokens in order, each over its change in nats, so that it reads without colour too."""
    if tokens.empty:
        return Markup("")
    start = 0
    if len(tokens) > MAX_TOKENS:
        top = int(tokens["delta"].abs().to_numpy().argmax())
        start = min(max(0, top - MAX_TOKENS // 3), len(tokens) - MAX_TOKENS)
    shown = tokens.iloc[start : start + MAX_TOKENS]
    parts = []
    for row in shown.itertuples(index=False):
        known = isinstance(row.text, str)
        text = _one_token(row.text) if known else f"#{row.token_id}"
        change = signed(round(row.delta, 2), 2) if abs(row.delta) >= 0.05 or not np.isfinite(row.delta) else "·"
        parts.append(
            Markup('<span class="tok {}{}"><span class="{}">{}</span><b>{}</b></span>').format(
                level(row.delta),
                " glued" if known and not row.text[:1].isspace() else "",
                "t" if known else "t id",
                escape(text),
                change,
            )
        )
    before, after = start, len(tokens) - start - len(shown)
    left_out = [f"{n} tokens {where}" for n, where in ((before, "before"), (after, "after")) if n]
    note = Markup('<p class="small">Left out: {}.</p>').format(", ".join(left_out)) if left_out else ""
    return Markup('<div class="toks">{}</div>{}').format(Markup("").join(parts), note)


def _one_token(text: str) -> str:
    """A token on one line; spaces around a word are left to the layout, blanks alone are named."""
    safe = clean(text, 40)
    if safe.strip(" "):
        safe = safe.strip(" ")
    else:
        safe = safe.replace(" ", "␣")
    return safe.replace("\n", "⏎").replace("\t", "⇥")


def tokens_text(tokens: pd.DataFrame) -> str:
    """Where in one response the change lies: total, and the token with the largest fall."""
    if tokens.empty:
        return ""
    worst = tokens.loc[tokens["delta"].idxmin()]
    name = f"“{clean(worst['text'], 24).strip()}”" if isinstance(worst["text"], str) else f"id {worst['token_id']}"
    total = f"{signed(tokens['delta'].sum())} nats over {number(len(tokens))} tokens"
    if not worst["delta"] < 0:
        return f"{total}; no token fell"
    return f"{total}; largest fall {signed(worst['delta'])} at token {number(worst['position'] + 1)}, {name}"
