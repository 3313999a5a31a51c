"""In which tokens did the log-prob move? Sums by role of the token, exact, and the level of a perplexity by token.

Level of the log-perplexities over tokens: a token of pair i adds -(logp_to - logp_from) / (n_i N), so that a pair's
tokens add up to its share of the level and all of them to the level itself. Token rows are stored in float32: their
sums differ from the pair rows' float64 sums by rounding. That difference is shown apart (`records_gap`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from dpo_diag.diagnosis.aligned import Aligned
from dpo_diag.diagnosis.decompose.alignment import END, FIRST, PREFIX, ROLE_NAMES
from dpo_diag.diagnosis.pair_rows import FloatArray
from dpo_diag.diagnosis.token_rows import TokenChange, token_values
from dpo_diag.records.schemas import SIDES

ROLES = len(ROLE_NAMES)
NO_TOKENS = {"not_applicable": "the run holds no token rows of these pairs at both steps"}


def by_role(change: TokenChange) -> pd.DataFrame:
    """One row per side and role that occurs: what its tokens did.

    Columns: `side`, `role`, `n_tokens`, `logp_from`, `logp_to`, `delta` (nats, summed over all usable answers),
    `share` (of the side's delta; NaN if that is 0), `mean_delta` (nats per token), `level` (part of the change of the
    side's mean cross-entropy, nats), `residual` (side's delta minus the sum over roles, on each of the side's rows).
    """
    rows: list[dict[str, Any]] = []
    values = {"before": change.before, "after": change.after, "level": level_by_token(change)}
    for side in SIDES:
        places = change.side(side)
        roles = change.roles[places]
        count = np.bincount(roles, minlength=ROLES)
        sums = {n: np.bincount(roles, weights=v[places], minlength=ROLES) for n, v in values.items()}
        delta = sums["after"] - sums["before"]
        total = float(change.after[places].sum()) - float(change.before[places].sum())
        for role in np.flatnonzero(count):
            rows.append(
                {
                    "side": side,
                    "role": ROLE_NAMES[role],
                    "n_tokens": int(count[role]),
                    "logp_from": float(sums["before"][role]),
                    "logp_to": float(sums["after"][role]),
                    "delta": float(delta[role]),
                    "share": float(delta[role] / total) + 0.0 if total else np.nan,
                    "mean_delta": float(delta[role] / count[role]),
                    "level": float(sums["level"][role]),
                    "residual": total - float(delta.sum()),
                }
            )
    return pd.DataFrame(rows)


def follow_roles(aligned: Aligned, change: TokenChange) -> pd.DataFrame:
    """The whole run by role, one step read at a time: `step`, `side`, `role`, `n_tokens`, `mean_logp` (nats per token).

    Only answers usable at the two compared steps; at a step where one of them lacks rows, its tokens are left out
    there (`n_tokens` shows it). Steps without token rows give no rows.
    """
    groups = change.roles.astype(np.int64) + ROLES * (change.layout.response % 2)
    places = change.places
    known_steps = {aligned.from_step: change.before, aligned.to_step: change.after}
    rows: list[dict[str, Any]] = []
    for step, model in aligned.path():
        logp = known_steps.get(model)
        if logp is None:
            logp = token_values(aligned.run, change.layout, aligned.split, model, ["logp"])["logp"]
        known = places & np.isfinite(logp)
        count = np.bincount(groups[known], minlength=2 * ROLES)
        total = np.bincount(groups[known], weights=logp[known], minlength=2 * ROLES)
        for group in np.flatnonzero(count):
            side, role = SIDES[group // ROLES], ROLE_NAMES[group % ROLES]
            mean = float(total[group] / count[group])
            rows.append({"step": step, "side": side, "role": role, "n_tokens": int(count[group]), "mean_logp": mean})
    return pd.DataFrame(rows, columns=["step", "side", "role", "n_tokens", "mean_logp"])


def level_by_token(change: TokenChange) -> FloatArray:
    """Each token's part of the change of its side's mean cross-entropy, (T,): -(after - before) / (n_i N); 0 for tokens
    of responses that are not usable. Sums over a side to the change of its level."""
    layout = change.layout
    result = np.zeros(layout.size)
    for parity in range(2):
        responses = change.usable & (np.arange(layout.lengths.size) % 2 == parity)
        count = int(responses.sum())
        if not count:
            continue
        places = responses[layout.response]
        n = layout.lengths[layout.response[places]]
        result[places] = -(change.after[places] - change.before[places]) / (n * count)
    return result


def token_rows(change: TokenChange, pair_ids: list[str] | None = None) -> pd.DataFrame:
    """Token by token, for the given pairs (default all): `pair_id`, `side`, `position`, `token_id`, `role`,
    `logp_from`, `logp_to`, `delta`, `level`. Only usable answers."""
    layout = change.layout
    places = change.places
    if pair_ids is not None:
        wanted = np.isin(np.asarray(layout.pair_ids), pair_ids)
        places = places & wanted[layout.response // 2]
    response = layout.response[places]
    return pd.DataFrame(
        {
            "pair_id": np.asarray(layout.pair_ids, dtype=object)[response // 2],
            "side": np.asarray(SIDES, dtype=object)[response % 2],
            "position": np.flatnonzero(places) - layout.starts[response],
            "token_id": layout.token_ids[places],
            "role": np.asarray(ROLE_NAMES, dtype=object)[change.roles[places]],
            "logp_from": change.before[places],
            "logp_to": change.after[places],
            "delta": change.after[places] - change.before[places],
            "level": level_by_token(change)[places],
        }
    )


def after_first_difference(change: TokenChange, side: str = "chosen") -> dict[str, Any]:
    """DPOP's claim as a number: the share of a side's log-prob change that sits at and after the first difference.

    Returns: {"delta_before", "delta_at", "delta_after" (nats), "share" (at and after, of the whole; None if that is 0),
        "token_share", "share_at", "share_after"}; the end token counts as after unless the answers are equal.
    """
    places = change.side(side)
    layout = change.layout
    differs = np.bincount(layout.response, weights=change.roles == FIRST, minlength=layout.lengths.size) > 0
    delta = (change.after - change.before)[places]
    role = change.roles[places]
    # The end token of an answer that has no first difference belongs to the shared part.
    before = (role == PREFIX) | ((role == END) & ~differs[layout.response[places]])
    at = role == FIRST
    total = float(delta.sum())
    delta_at, delta_after = float(delta[at].sum()), float(delta[~before & ~at].sum())
    return {
        "delta_before": float(delta[before].sum()),
        "delta_at": delta_at,
        "delta_after": delta_after,
        "token_share": float((~before).mean()) if delta.size else None,
        "share": (delta_at + delta_after) / total if total else None,
        "share_at": delta_at / total if total else None,
        "share_after": delta_after / total if total else None,
    }


def summarise_tokens(aligned: Aligned, change: TokenChange) -> dict[str, Any]:
    """The explanation's token section: roles, DPOP's claim, coverage, and the gap between token and pair records."""
    layout = change.layout
    result: dict[str, Any] = {
        "n_tokens": int(change.places.sum()),
        "answers": int((layout.lengths > 0).sum()),
        "answers_used": int(change.usable.sum()),
        "answers_infinite": int(change.infinite.sum()),
        "pairs_used": {side: int(change.usable[i::2].sum()) for i, side in enumerate(SIDES)},
        "by_role": by_role(change),
        "chosen_after_first_difference": after_first_difference(change),
        "records_gap": {},
    }
    pairs = aligned.pairs.set_index("pair_id")
    for side in aligned.sides:
        places = change.side(side)
        if not places.any():
            continue
        used = change.usable[SIDES.index(side) :: 2]
        ids = np.asarray(layout.pair_ids, dtype=object)[used]
        sums = pairs.loc[ids, [f"{side}_sum_logp_0", f"{side}_sum_logp_1"]].sum()
        gap = float(sums.iloc[1] - sums.iloc[0]) - float((change.after - change.before)[places].sum())
        result["records_gap"][side] = gap
    return result
