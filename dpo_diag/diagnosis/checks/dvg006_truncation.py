"""DVG006: responses were cut before the loss saw their end, or the end token carries the change."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from dpo_diag.diagnosis.checks import register
from dpo_diag.diagnosis.checks.shared.advice import SOUND, Advice, has
from dpo_diag.diagnosis.checks.shared.check import LISTED, Check, Missing, Outcome, silent, speaks
from dpo_diag.diagnosis.checks.shared.context import CheckContext
from dpo_diag.diagnosis.checks.shared.example import Example
from dpo_diag.diagnosis.pair_rows import REFERENCE, Step
from dpo_diag.stats import proportion_change
from dpo_diag.text import percent, signed
from dpo_diag.thresholds import Thresholds

CUT, END, OPEN = "cut responses", "end token", "answers without end"
"""What this check finds; each has advice of its own."""


def truncation(ctx: CheckContext, t: Thresholds) -> Outcome:
    """Looks at cut responses, at the last token's share of the change, and at why answers end."""
    reasons: dict[str, str] = {}
    sources: list[str] = []
    evidence: dict[str, Any] = {}
    if _cut_responses(ctx.pairs.rows, t, evidence, reasons):
        sources.append("cut responses")
    end = ctx.maybe(_end_token, ctx)
    if end is not None:
        sources.append("end token")
        evidence["end_token"] = end
        if abs(end["change"]) >= t["end_token_min_nats"] and end["share"] >= t["end_token_min_share"]:
            reasons[END] = (
                f"the end token carries {percent(end['share'])} of the change of {end['side']} log-prob "
                f"({signed(end['change'])} nats)"
            )
    if _unfinished_answers(ctx, t, evidence, reasons):
        sources.append("finish reasons")
    if not sources:
        raise Missing("neither truncation counts, tokens nor finish reasons are recorded")
    if reasons:
        return speaks("; ".join(reasons.values()), found=list(reasons), **evidence)
    return silent(f"{', '.join(sources)}: nothing out of the ordinary", **evidence)


def _cut_responses(pairs: pd.DataFrame, t: Thresholds, evidence: dict[str, Any], reasons: dict[str, str]) -> bool:
    counts = pairs[["split", "pair_id", "side", "n_truncated"]].dropna(subset="n_truncated")
    counted = counts.drop_duplicates(["split", "pair_id", "side"])
    if counted.empty:
        return False
    cut = counted["n_truncated"] > 0
    share = float(cut.mean())
    worst = counted[cut].sort_values("n_truncated", ascending=False, kind="stable")
    evidence |= {
        "share_of_responses_cut": share,
        "by_side": {str(side): float(rows.mean()) for side, rows in cut.groupby(counted["side"], observed=True)},
        "pair_ids": list(worst["pair_id"].drop_duplicates()[:LISTED]),
        "tokens_cut": int(counted["n_truncated"].sum()),
    }
    if share >= t["truncation_min_share"]:
        reasons[CUT] = f"{percent(share)} of responses were cut: their end token was never trained or scored"
    return True


def _end_token(ctx: CheckContext) -> dict[str, Any]:
    """The side of which the last response token holds the largest share of the change of log-prob.

    Raises:
        Missing: no token records at two steps.
    """
    steps = ctx.pairs.steps
    if not ctx.run.has("tokens"):
        raise Missing("no token records")
    key = ["pair_id", "side", "position"]

    def logps(step: Step) -> pd.Series[float]:
        at, role = (None, "ref") if step == REFERENCE else ([int(step)], "policy")
        rows = ctx.run.read("tokens", [*key, "logp"], steps=at, splits=[ctx.pairs.split], roles=[role])
        return rows.astype({"logp": np.float64}).drop_duplicates(key, keep="last").set_index(key)["logp"]

    before, after = logps(steps[0]), logps(steps[-1])
    if before.empty and ctx.pairs.from_reference:
        before = logps(ctx.pairs.own_steps[0])
    if before.empty or after.empty:
        raise Missing("token records at fewer than two steps")
    change = (after - before).dropna().reset_index()
    last = change.groupby(["pair_id", "side"], observed=True)["position"].transform("max") == change["position"]
    sides = []
    for side, part in change.assign(last=last).groupby("side", observed=True):
        at_end, total = part.loc[part["last"], "logp"], float(part["logp"].abs().sum())
        sides.append({
            "side": str(side), "change": float(at_end.mean()), "pairs": len(at_end),
            "share": float(at_end.abs().sum() / total) if total > 0 else 0.0,
            "share_of_tokens": float(part["last"].mean()),
        })  # fmt: skip
    if not sides:
        raise Missing("no response has token records at both steps")
    return max(sides, key=lambda side: float(side["share"]))


def _unfinished_answers(ctx: CheckContext, t: Thresholds, evidence: dict[str, Any], reasons: dict[str, str]) -> bool:
    """Share of policy answers that ran into the length limit, at the first and the last step."""
    outputs = ctx.run.outputs
    known = outputs[(outputs["model"] == "policy") & outputs["finish_reason"].notna()]
    if known["step"].nunique() < 2:
        return False
    steps = [int(known["step"].min()), int(known["step"].max())]
    unfinished = [known.loc[known["step"] == s, "finish_reason"].eq("length") for s in steps]
    shares, sizes = [float(u.mean()) for u in unfinished], [len(u) for u in unfinished]
    change = proportion_change(shares[0], sizes[0], shares[1], sizes[1], t["confidence"])
    evidence["answers_cut_by_length"] = {"steps": steps, "shares": shares, "change": change}
    if change.above and change.value >= t["truncation_min_share"]:
        reasons[OPEN] = (
            f"answers that ran into the length limit became more frequent, {percent(shares[0])} at step {steps[0]}, "
            f"{percent(shares[1])} at step {steps[1]}"
        )
    return True


_CUT, _WHOLE = [7.0] * 4 + [0.0] * 16, [0.0] * 20
_PAIRS = {0: ([-10.0] * 20, -10.0), 5: ([-9.0] * 20, -12.0)}

register(
    Check(
        code="DVG006",
        title="truncation or end-token artefact",
        says="Responses were cut before the loss saw their end, the end token carries most of the change of a side's "
        "log-prob, or answers that never end became more frequent.",
        why="A cut response has no end token, so the model is never taught to stop there. Where the end token carries "
        "the change, the loss may fall by stopping earlier or later instead of by better content.",
        needs="n_truncated of the pairs, token records at two steps, or finish reasons of outputs",
        severity="warning",
        evidence={
            "found": "which of the three was found",
            "share_of_responses_cut": "share of all responses with at least one token cut off",
            "by_side": "the same for chosen and rejected",
            "pair_ids": "pairs cut most, first",
            "tokens_cut": "tokens cut off, all responses together",
            "end_token": "the side with the largest share: change (nats per response), share of the absolute change, "
            "share_of_tokens, pairs",
            "answers_cut_by_length": "share of answers that ran into the length limit at two steps, and its change",
        },
        false_alarms=(
            "very short responses: of three tokens the end token is one",
            "an evaluation with a smaller max_length than the training",
        ),
        bad=Example(
            "A fifth of the responses lost seven tokens.",
            pairs=_PAIRS,
            columns={"n_truncated": {0: (_CUT, _CUT), 5: (_CUT, _CUT)}},
        ),
        good=Example(
            "No response was cut.", pairs=_PAIRS, columns={"n_truncated": {0: (_WHOLE, _WHOLE), 5: (_WHOLE, _WHOLE)}}
        ),
        try_next=(
            Advice("raise max_length, or drop pairs that do not fit", (SOUND, has("DVG006", "found", CUT))),
            Advice(
                "check that the chat template ends both sides with the end token", (SOUND, has("DVG006", "found", END))
            ),
            Advice(
                "raise max_new_tokens, then read the answers that still do not end",
                (SOUND, has("DVG006", "found", OPEN)),
            ),
        ),
        sources=("huggingface/trl issues 6321, 6548, 6588 (dropped and cut pairs)",),
        since="0.1.0",
        function=truncation,
        reads=("confidence", "truncation_min_share", "end_token_min_share", "end_token_min_nats"),
    )
)
