"""Where the probability went, token by token, at the positions that lost most: from two models' whole distributions.

The records name the positions; somebody who can load both checkpoints supplies the next-token log-probs there (and, for
the single-token theory, W (w_chosen - w_rejected) of the unembedding W). Everything else is arithmetic on them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from dpo_diag.diagnosis.decompose.alignment import FIRST, ROLE_NAMES
from dpo_diag.diagnosis.pair_rows import FloatArray
from dpo_diag.diagnosis.token_rows import TokenChange
from dpo_diag.records.schemas import SIDES
from dpo_diag.stats import rank_correlation, t_interval

GAINERS_SHOWN = 10


def losing_positions(change: TokenChange, top: int) -> pd.DataFrame:
    """The `top` positions of each side whose target lost most probability, and as many first differences of chosen.

    The first differences are taken in the order of pair ids, which are hashes: taken by what happened there, they would
    speak against any theory of it.

    Returns: `pair_id`, `side`, `position`, `token_id`, `role`, `logp_from`, `logp_to`, `lost` (probability), `prefix`
        (the answer's tokens before it), `rival` (at a first difference the other answer's token there, else -1),
        `worst` (counts for where the mass went: lost > 0), `theory` (a first difference of chosen with a rival, for
        the single-token theory); chosen before rejected, worst before the rest. Empty if no answer is usable.
    """
    layout = change.layout
    lost = np.exp(change.before) - np.exp(change.after)
    rows: list[dict[str, Any]] = []
    for side in SIDES:
        places = np.flatnonzero(change.side(side))
        ordered = places[np.argsort(-lost[places], kind="stable")]
        worst = [int(p) for p in ordered[:top] if lost[p] > 0]
        differing = places[change.roles[places] == FIRST] if side == "chosen" else []
        first = [int(p) for p in differing if _rival(change, int(p)) >= 0][:top]
        for place in [*worst, *(p for p in first if p not in worst)]:
            response = int(layout.response[place])
            position = place - int(layout.starts[response])
            rows.append(
                {
                    "pair_id": layout.pair_ids[response // 2], "side": side, "position": position,
                    "token_id": int(layout.token_ids[place]), "role": ROLE_NAMES[change.roles[place]],
                    "logp_from": float(change.before[place]), "logp_to": float(change.after[place]),
                    "lost": float(lost[place]), "prefix": [int(t) for t in layout.tokens_of(response)[:position]],
                    "rival": _rival(change, place), "worst": place in worst, "theory": place in first,
                }
            )  # fmt: skip
    columns = ("pair_id", "side", "position", "token_id", "role", "logp_from", "logp_to", "lost", "prefix", "rival",
               "worst", "theory")  # fmt: skip
    return pd.DataFrame(rows, columns=list(columns))


def _rival(change: TokenChange, place: int) -> int:
    """The other answer's token at a first difference, which has the same position in both; -1 elsewhere."""
    layout = change.layout
    if change.roles[place] != FIRST:
        return -1
    response = int(layout.response[place])
    position = place - int(layout.starts[response])
    other = layout.tokens_of(response ^ 1)
    return int(other[position]) if position < other.size else -1


def gained_section(
    positions: pd.DataFrame,
    before: npt.ArrayLike,
    after: npt.ArrayLike,
    scores: npt.ArrayLike,
    text_of: Callable[[int], str],
    thresholds: Mapping[str, float],
) -> dict[str, Any]:
    """What the tokens of `losing_positions` lost, and who gained it.

    Args:
        positions: rows of `losing_positions`, (P,).
        before, after: next-token log-probs (nats) of both checkpoints there, (P, vocabulary).
        scores: W (w_target - w_rival) for the rows with `theory`, in their order, (number of them, vocabulary).
        text_of: token id -> text.
        thresholds: `gained.top`, `gained.max_disagreement`.

    Returns: {"agreement": {"from" | "to": {"median", "max"}} (nats, loaded model against records), "chosen" and
        "rejected": {"n_positions", "lost", "gained", "went_to": {"other_answer", "former_first_choice", "others"}
        (shares of all probability gained there), "gainers": [{"token", "text", "gained", "share", "positions"}],
        "positions": [...]}, "theory": see `_theory`}; or {"not_applicable": reason, "agreement"} where the loaded
        models are not those of the records.
    """
    if not len(positions):
        return {"not_applicable": "no token lost probability"}
    log0, log1 = np.asarray(before, dtype=np.float64), np.asarray(after, dtype=np.float64)
    rows = np.arange(len(positions))
    target = positions["token_id"].to_numpy(dtype=np.int64)
    agreement: dict[str, dict[str, float]] = {}
    for key, loaded, column in (("from", log0, "logp_from"), ("to", log1, "logp_to")):
        gap = np.abs(loaded[rows, target] - positions[column].to_numpy(dtype=np.float64))
        agreement[key] = {"median": float(np.median(gap)), "max": float(gap.max())}
    section: dict[str, Any] = {"agreement": agreement}
    for key, name in (("from", "earlier"), ("to", "later")):
        if not agreement[key]["median"] <= thresholds["gained.max_disagreement"]:
            why = f"the {name} checkpoint is not what the records measured: its log-probs differ from theirs by"
            return section | {"not_applicable": f"{why} {agreement[key]['median']:.3g} nats in the median"}
    top = int(thresholds["gained.top"])
    for side in SIDES:
        own = ((positions["side"] == side) & positions["worst"]).to_numpy()
        if own.any():
            section[side] = _side(positions[own].reset_index(drop=True), log0[own], log1[own], text_of, top)
    theory = positions["theory"].to_numpy(dtype=bool)
    section["theory"] = _theory(positions[theory], log0[theory], log1[theory], scores, text_of, top)
    return section


def _side(
    positions: pd.DataFrame, log0: FloatArray, log1: FloatArray, text_of: Callable[[int], str], top: int
) -> dict[str, Any]:
    target = positions["token_id"].to_numpy(dtype=np.int64)
    gains = np.maximum(np.exp(log1) - np.exp(log0), 0.0)
    total = float(gains.sum())
    rows = np.arange(len(positions))
    rival = positions["rival"].to_numpy(dtype=np.int64)
    first = log0.argmax(axis=1)
    to_rival = np.where(rival >= 0, gains[rows, np.maximum(rival, 0)], 0.0)
    to_first = np.where((first != target) & (first != rival), gains[rows, first], 0.0)
    by_token = gains.sum(axis=0)
    # Ties and tokens without any gain never make the list longer than what gained.
    best = [int(t) for t in np.argsort(-by_token, kind="stable")[:GAINERS_SHOWN] if by_token[t] > 0]
    each = gained_most(log0, log1, target, top)
    shown = []
    for i, row in enumerate(positions.itertuples()):
        own = each[each["position"] == i]
        gainers = [
            {"token": int(t), "text": text_of(int(t)), "gained": float(g), "share": float(s)}
            for t, g, s in zip(own["token"], own["gained"], own["share"], strict=True)
        ]
        shown.append({
            "pair_id": row.pair_id, "position": row.position, "role": row.role, "token": row.token_id,
            "text": text_of(int(target[i])), "logp_from": row.logp_from, "logp_to": row.logp_to,
            "lost": row.lost, "gainers": gainers,
        })  # fmt: skip
    share = (lambda v: float(v) / total) if total else (lambda v: None)
    return {
        "n_positions": len(positions), "lost": float(positions["lost"].sum()), "gained": total,
        "went_to": {
            "other_answer": share(to_rival.sum()), "former_first_choice": share(to_first.sum()),
            "others": share(total - to_rival.sum() - to_first.sum()),
        },
        "gainers": [
            {"token": t, "text": text_of(t), "gained": float(by_token[t]), "share": share(by_token[t]),
             "positions": int((gains[:, t] > 0).sum())}
            for t in best
        ],
        "positions": shown,
    }  # fmt: skip


def gained_most(before: npt.ArrayLike, after: npt.ArrayLike, targets: npt.ArrayLike, top: int = 5) -> pd.DataFrame:
    """The tokens that gained most at positions that lost most, from two models' whole next-token log-probs.

    Args:
        before, after: (positions, vocabulary), log-probs of both checkpoints at the same positions.
        targets: (positions,), the answer's token at each.

    Returns: `position`, `target`, `lost` (probability), `token`, `gained` (probability), `share` (gained over lost):
        for each position whose target lost probability, the `top` gainers, positions with the largest loss first.
    """
    p0, p1 = np.exp(np.asarray(before, dtype=np.float64)), np.exp(np.asarray(after, dtype=np.float64))
    target = np.asarray(targets, dtype=np.int64)
    rows = np.arange(target.size)
    lost = p0[rows, target] - p1[rows, target]
    found = []
    for position in np.argsort(-lost, kind="stable"):
        if lost[position] <= 0:
            break
        gain = p1[position] - p0[position]
        for token in np.argsort(-gain, kind="stable")[:top]:
            if gain[token] <= 0:
                break
            found.append((int(position), int(target[position]), lost[position], int(token), gain[token]))
    frame = pd.DataFrame(found, columns=["position", "target", "lost", "token", "gained"])
    return frame.assign(share=frame["gained"] / frame["lost"])


def _theory(
    positions: pd.DataFrame,
    log0: FloatArray,
    log1: FloatArray,
    scores: npt.ArrayLike,
    text_of: Callable[[int], str],
    top: int,
) -> dict[str, Any]:
    """Single-token theory (Razin et al. 2024, arXiv 2410.08847, Theorem 5) against what happened at first differences.

    Returns: {"n_positions", "rho": {"mean", "interval"} (rank correlation over the vocabulary of the prediction with
        the change of log-prob), "hits" (mean number of the `top` gainers among the `top` predicted), "hits_by_chance",
        "positions": [{"pair_id", "position", "rho", "predicted": [text]}]}.
    """
    if not len(positions):
        return {"not_applicable": "no pair's answers differ at a token of both"}
    predicted = np.asarray(scores, dtype=np.float64)
    if predicted.shape != log0.shape:
        raise ValueError(f"scores {predicted.shape} do not fit log-probs {log0.shape}")
    moved, gained = log1 - log0, np.exp(log1) - np.exp(log0)
    rhos, hits, shown = [], [], []
    for i, row in enumerate(positions.itertuples()):
        rho, _ = rank_correlation(predicted[i], moved[i])
        foretold = np.argsort(-predicted[i], kind="stable")[:top]
        best = [int(t) for t in np.argsort(-gained[i], kind="stable")[:top] if gained[i][t] > 0]
        rhos.append(rho)
        hits.append(len(set(foretold.tolist()) & set(best)))
        shown.append({"pair_id": row.pair_id, "position": row.position, "rho": rho,
                      "predicted": [text_of(int(t)) for t in foretold]})  # fmt: skip
    return {
        "n_positions": len(positions),
        "rho": {"mean": float(np.mean(rhos)), "interval": t_interval(rhos).bounds},
        "hits": float(np.mean(hits)), "of": top, "hits_by_chance": top * top / predicted.shape[1],
        "positions": shown,
    }  # fmt: skip
