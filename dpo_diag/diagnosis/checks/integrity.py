"""Are the numbers and the data whole: DVG006, 011, 014, 021, 024."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from dpo_diag.diagnosis.checks.base import Missing, Outcome, Thresholds, silent, speaks
from dpo_diag.diagnosis.checks.context import CheckContext
from dpo_diag.diagnosis.checks.series import is_training
from dpo_diag.diagnosis.checks.stats import proportion_change


def non_finite(ctx: CheckContext, t: Thresholds) -> Outcome:
    """DVG011: NaN or infinity in a metric or a sum, often behind a loss that still looks finite."""
    history = ctx.history
    if history.empty and ctx.pairs.empty:
        raise Missing("the run holds neither history nor pairs")
    bad = history[~np.isfinite(history["value"])]
    sums = ctx.pairs[ctx.pairs["sum_logp"].notna() | ctx.pairs["sum_logp"].isna()]
    broken = sums[~np.isfinite(sums["sum_logp"])]
    if bad.empty and broken.empty:
        return silent("every recorded value is finite", values=len(history), sums=len(sums))
    steps = sorted({int(s) for s in [*bad["step"], *broken["step"]]})
    loss = history[history["name"] == "loss"]
    finite_loss = loss[np.isfinite(loss["value"])]
    behind = sorted({int(s) for s in steps} & {int(s) for s in finite_loss["step"]})
    counts = bad.groupby(["split", "name"]).size()
    last = int(max(history["step"].max() if len(history) else 0, ctx.pairs["step"].max() if len(ctx.pairs) else 0))
    evidence: dict[str, Any] = {
        "steps": steps[:50], "steps_with_finite_loss": behind[:50],
        "metrics": {f"{s}:{n}": int(c) for (s, n), c in counts.items()},
        "pairs": sorted(set(broken["pair_id"]))[:20], "broken_sums": len(broken), "last_step": last,
    }  # fmt: skip
    at_end = last in steps
    what = ", ".join(sorted({str(n) for n in bad["name"]})[:6]) or "sum_logp"
    return speaks(
        f"NaN or infinity in {what} at {len(steps)} steps (first {steps[0]}, last {steps[-1]})"
        + (f", behind a finite loss at {len(behind)} of them" if behind else ""),
        severity="error" if at_end else "warning",
        **evidence,
    )


def truncation(ctx: CheckContext, t: Thresholds) -> Outcome:
    """DVG006: responses were cut before the loss saw their end, or the end token carries the change."""
    spoken, looked = [], []
    evidence: dict[str, Any] = {}
    cut = ctx.pairs[ctx.pairs["n_truncated"].notna()]
    if not cut.empty:
        looked.append("cut responses")
        first = cut.drop_duplicates(["split", "pair_id", "side"])
        share = float((first["n_truncated"] > 0).mean())
        by_side = {s: float((g["n_truncated"] > 0).mean()) for s, g in first.groupby("side")}
        worst = first[first["n_truncated"] > 0].sort_values("n_truncated", ascending=False)
        evidence |= {"share_of_responses_cut": share, "by_side": by_side, "pair_ids": list(worst["pair_id"][:10]),
                     "tokens_cut": int(first["n_truncated"].sum())}  # fmt: skip
        if share >= t["truncation_min_share"]:
            spoken.append(f"{share:.0%} of responses were cut: their end token was never trained or scored")
    end = ctx.maybe(lambda: _end_token(ctx))
    if end is not None:
        looked.append("end token")
        evidence["end_token"] = end
        if abs(end["change"]) >= t["end_token_min_nats"] and end["share"] >= t["end_token_min_share"]:
            spoken.append(
                f"the end token carries {end['share']:.0%} of the change of {end['side']} log-prob "
                f"({end['change']:.3g} nats)"
            )
    finish = _finish(ctx, t)
    if finish is not None:
        looked.append("finish reasons")
        evidence["answers_cut_by_length"] = finish[1]
        if finish[0]:
            spoken.append("answers that never end became more frequent")
    if not looked:
        raise Missing("neither truncation counts, tokens nor finish reasons are recorded")
    if spoken:
        return speaks("; ".join(spoken), **evidence)
    return silent(f"{', '.join(looked)}: nothing out of the ordinary", **evidence)


def _end_token(ctx: CheckContext) -> dict[str, Any] | None:
    """Share of the change of a side's summed log-prob that sits on the last response token."""
    split = ctx.pair_split()
    steps = ctx.pair_steps(split)
    if not ctx.run.has("tokens"):
        raise Missing("no token records")
    found = None
    columns = ["step", "pair_id", "side", "position", "logp"]
    rows = ctx.run.read("tokens", columns, steps=[steps[0], steps[-1]], splits=[split], roles=["policy"])
    if rows.empty or rows["step"].nunique() < 2:
        raise Missing("token records at fewer than two steps")
    rows = rows.assign(logp=rows["logp"].astype(np.float64))
    key = ["pair_id", "side", "position"]
    before = rows[rows["step"] == steps[0]].set_index(key)["logp"]
    after = rows[rows["step"] == steps[-1]].set_index(key)["logp"]
    change = (after - before).dropna().reset_index()
    last = change.groupby(["pair_id", "side"], observed=True)["position"].transform("max") == change["position"]
    for side, part in change.assign(last=last).groupby("side", observed=True):
        at_end, total = float(part.loc[part["last"], "logp"].sum()), float(part["logp"].abs().sum())
        pairs = int(part["last"].sum())
        item: dict[str, Any] = {
            "side": str(side), "change": at_end / max(pairs, 1), "pairs": pairs,
            "share": float(part.loc[part["last"], "logp"].abs().sum() / total) if total > 0 else 0.0,
            "share_of_tokens": float(part["last"].mean()),
        }  # fmt: skip
        if found is None or float(item["share"]) > float(found["share"]):
            found = item
    return found


def _finish(ctx: CheckContext, t: Thresholds) -> tuple[bool, dict[str, Any]] | None:
    """Share of policy answers that ran into the length limit, first and last step."""
    outputs = ctx.run.outputs
    known = outputs[(outputs["model"] == "policy") & outputs["finish_reason"].notna()]
    if known.empty or known["step"].nunique() < 2:
        return None
    steps = [int(known["step"].min()), int(known["step"].max())]
    shares = [known[known["step"] == s]["finish_reason"].eq("length") for s in steps]
    change = proportion_change(
        float(shares[0].mean()), len(shares[0]), float(shares[1].mean()), len(shares[1]), t["confidence"]
    )
    evidence = {"steps": steps, "shares": [float(s.mean()) for s in shares], "change": change}
    return change.above and change.value >= t["truncation_min_share"], evidence


def duplicates(ctx: CheckContext, t: Thresholds) -> Outcome:
    """DVG014: one prompt preferred both ways, the same pair twice, chosen equal to rejected, train pairs held out."""
    texts = ctx.run.read("texts")
    evidence: dict[str, Any] = {}
    spoken = []
    if not texts.empty:
        clean = pd.DataFrame(
            {c: texts[c].fillna("").str.lower().str.split().str.join(" ") for c in ("prompt", "chosen", "rejected")}
        ).assign(pair_id=texts["pair_id"], split=texts["split"])
        once = clean.drop_duplicates("pair_id")
        same = once[(once["chosen"] == once["rejected"]) & (once["chosen"] != "")]
        flipped = once.merge(
            once.rename(columns={"chosen": "rejected", "rejected": "chosen"}), on=["prompt", "chosen", "rejected"],
            suffixes=("", "_other"),
        )  # fmt: skip
        flipped = flipped[flipped["pair_id"] != flipped["pair_id_other"]]
        repeated = once[once.duplicated(["prompt", "chosen", "rejected"], keep=False)]
        liked = set(zip(once["prompt"], once["chosen"], strict=True))
        both = [p for p, r in zip(once["prompt"], once["rejected"], strict=True) if (p, r) in liked]
        evidence |= {
            "preferred_both_ways": list(flipped["pair_id"][:20]), "duplicates": list(repeated["pair_id"][:20]),
            "chosen_equals_rejected": list(same["pair_id"][:20]), "answers_both_chosen_and_rejected": len(both),
        }  # fmt: skip
        if len(flipped):
            spoken.append(f"{len(flipped)} pairs are preferred both ways")
        elif both:
            spoken.append(f"{len(both)} answers are chosen in one pair and rejected in another of the same prompt")
        if len(same):
            spoken.append(f"{len(same)} pairs have equal chosen and rejected")
        if len(repeated) > t["duplicates_max_share"] * len(once):
            spoken.append(f"{len(repeated)} pairs repeat another up to spaces and case")
        leaked = _text_leak(clean)
        evidence["leaked_from_texts"] = leaked[:20]
    leaked_ids = sorted({*_leak(ctx), *evidence.get("leaked_from_texts", [])})
    evidence["train_pairs_held_out"] = leaked_ids[:20]
    if leaked_ids:
        spoken.append(f"{len(leaked_ids)} held-out pairs are also training pairs")
    if texts.empty and ctx.pairs["split"].nunique() < 2:
        raise Missing("neither texts nor the pairs of two splits are recorded")
    if spoken:
        return speaks("; ".join(spoken), **evidence)
    return silent("no contradictory, repeated or leaked pair", **evidence)


def _probe_of_training(split: str) -> bool:
    return "train" in split or "like" in split


def _leak(ctx: CheckContext) -> set[str]:
    """pair_ids that occur both in training batches and in a held-out set; a probe named after training is exempt."""
    pairs = ctx.pairs[["split", "pair_id"]].drop_duplicates()
    training = pairs["split"].map(is_training)
    held_out = ~pairs["split"].map(_probe_of_training)
    return set(pairs.loc[training, "pair_id"]) & set(pairs.loc[held_out, "pair_id"])


def _text_leak(clean: pd.DataFrame) -> list[str]:
    training = clean[clean["split"].map(is_training)]
    held_out = clean[~clean["split"].map(_probe_of_training)]
    key = ["prompt", "chosen", "rejected"]
    return list(held_out.merge(training[key].drop_duplicates(), on=key)["pair_id"])


def backtrack(ctx: CheckContext, t: Thresholds) -> Outcome:
    """DVG021: steps or epochs run backwards: two runs in one log, or a resume from an older checkpoint."""
    said = list(ctx.info.source.backtracks)
    if said:
        return speaks("the source's steps run backwards: two runs, or a resume, in one log", backtracks=said)
    table = ctx.run.arrow("history", ["step", "epoch", "split"]).to_pandas()
    table["split"] = table["split"].astype(str)
    known = table[table["epoch"].notna()].drop_duplicates(["step", "split"])
    if known.empty:
        if table.empty:
            raise Missing("no history")
        return silent("no source report of steps that run backwards; epochs are not recorded")
    found = []
    for split, rows in known.sort_values("step").groupby("split"):
        drop = rows["epoch"].diff()
        # An epoch column is rounded to two digits by some trainers.
        for i in rows.index[drop < -t["backtrack_min_epochs"]]:
            found.append({"split": str(split), "step": int(rows.loc[i, "step"]), "epoch_change": float(drop[i])})
    if found:
        return speaks("the epoch runs backwards while the step grows: two runs in one log", backtracks=found[:20])
    return silent("steps and epochs only grow", rows=len(known))


def unparsed(ctx: CheckContext, t: Thresholds) -> Outcome:
    """DVG024: the importer met lines that look like metrics and could not read them."""
    source = ctx.info.source
    count = source.skipped_count
    if count is None:
        raise Missing("not an imported log, or its importer reports no skipped lines")
    listed = list(source.skipped[:10])
    evidence: dict[str, Any] = {
        "skipped": listed if listed or not count else count,
        "count": count,
        "read": source.read,
    }
    if count:
        return speaks(f"{count} lines or rows of the source were not read", **evidence)
    return silent("every line was read", **evidence)
