"""From a run to the explanation: every decomposition, the checks, the verdict, as one plain JSON document.

`explain` assembles; each number is made in the module named after its question. The document's keys are fixed by
DESIGN section 6; further keys are additions that a reader may ignore.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from dpo_diag.diagnosis import remedies, verdict
from dpo_diag.diagnosis.aligned import Aligned, align
from dpo_diag.diagnosis.calibration import calibration
from dpo_diag.diagnosis.checks import CheckContext, check_thresholds, run_checks
from dpo_diag.diagnosis.checks.shared.advice import Situation
from dpo_diag.diagnosis.damage import left_out
from dpo_diag.diagnosis.decompose.destination import destination, lost_mass
from dpo_diag.diagnosis.decompose.loss import loss_section, loss_spec
from dpo_diag.diagnosis.decompose.means import perplexity_of_means, summarise_means
from dpo_diag.diagnosis.decompose.pairs import (
    NO_PAIR,
    from_reference,
    margins,
    pair_table,
    quadrants,
)
from dpo_diag.diagnosis.decompose.perplexity import concentration, perplexity_section
from dpo_diag.diagnosis.decompose.prompt_dependence import prompt_dependence
from dpo_diag.diagnosis.decompose.ranking import ranking
from dpo_diag.diagnosis.decompose.similarity import similarity
from dpo_diag.diagnosis.decompose.tokens import NO_TOKENS, follow_roles, summarise_tokens, token_rows
from dpo_diag.diagnosis.decompose.trajectory import follow, turning_points
from dpo_diag.diagnosis.drift import data_kl
from dpo_diag.diagnosis.evidence import measures
from dpo_diag.diagnosis.guards_acted import guards_acted
from dpo_diag.diagnosis.measure import Measure
from dpo_diag.diagnosis.narrative import narrate
from dpo_diag.diagnosis.pair_intervals import PairIntervals
from dpo_diag.diagnosis.pair_rows import REFERENCE, PairRows, Step
from dpo_diag.diagnosis.scheduled import loss_at
from dpo_diag.diagnosis.unfinished import Unfinished, unfinished
from dpo_diag.errors import DiagError
from dpo_diag.records import Run, load_run
from dpo_diag.text import plain, records, safe

PAIRS_SHOWN = 2000
SNIPPET = 80
"""Characters of an answer that name its pair."""
ROWS_ONLY = (
    "the log states no steps: its rows are counted, their distance from the start is not known "
    "(dpo-diag import --logging-steps N makes them steps)"
)
PAIR_SECTIONS = ("bits_per_byte", "quadrants", "margins", "ranking", "against_reference", "along_the_run")
"""Keys of the document that need pairs,"""
TOKEN_SECTIONS = ("tokens", "prompt_dependence", "destination", "lost_mass", "similarity")
"""and more than their sums."""
OVER_PAIRS = "both steps on the same ones; Student's t, for ppl_seq_mean a bootstrap"
"""How the intervals of a run with pairs are made, in words."""
TEXTS = ["pair_id", "prompt", "chosen", "rejected"]
LOSS_KEYS = ("from", "to", "delta", "interval", "from_is", "to_is", "first", "first_step", "rows", "n_to")
"""What a logged loss says of itself (see `dpo_diag.ends`)."""


@dataclass(frozen=True, eq=False)
class Explanation:
    """An explanation with what it was made from, so that whoever draws it needs not go back to the run.

    Attributes:
        document: strict JSON values (None instead of NaN) with the keys of DESIGN section 6.
        aligned: the pairs and tokens at both steps; None for a run that holds means only.
        pairs: every aligned pair in the order of `document["pairs"]`: the columns there, and `quadrant` (a name of
            `metrics.Quadrants`; "" where a log-prob is unknown or one side is not recorded), `{side}_n_tokens`.
    """

    document: dict[str, Any]
    aligned: Aligned | None
    pairs: pd.DataFrame

    def texts(self, pair_ids: Sequence[str]) -> pd.DataFrame:
        """`pair_id`, `prompt`, `chosen`, `rejected` of some pairs, in their order; null where not recorded."""
        texts = self.aligned.run.texts if self.aligned is not None else pd.DataFrame(columns=TEXTS, dtype="str")
        return pd.DataFrame({"pair_id": list(pair_ids)}, dtype="str").merge(texts[TEXTS], on="pair_id", how="left")

    def tokens(self, pair_ids: Sequence[str]) -> pd.DataFrame:
        """Token by token for some pairs (see `decompose.tokens.token_rows`); empty without token records."""
        change = self.aligned.tokens if self.aligned is not None else None
        return token_rows(change, list(pair_ids)) if change is not None else pd.DataFrame(columns=["pair_id", "side"])


def explain(
    run: Run | str | os.PathLike[str],
    from_step: Step | None = None,
    to_step: int | None = None,
    split: str | None = None,
    thresholds: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The document of `explain_run`."""
    return explain_run(run, from_step, to_step, split, thresholds).document


def explain_run(
    run: Run | str | os.PathLike[str],
    from_step: Step | None = None,
    to_step: int | None = None,
    split: str | None = None,
    thresholds: Mapping[str, Any] | None = None,
) -> Explanation:
    """Why loss and perplexities moved between two steps, in which pairs and tokens, and whether it is harm.

    Args:
        run: a run or its folder.
        from_step: default "ref", the reference, wherever it was measured and is what the policy started from, else the
            first measured step.
        to_step: default the last measured step.
        split: default a fixed evaluation set before anything else.
        thresholds: overrides by name, dotted or nested (see dpo_diag.thresholds).

    Returns: of a run without pair records what its logged means allow (`means`); the rest is
        {"not_applicable": reason}.

    Raises:
        DiagError: no run, no such split, step or threshold.
    """
    opened = run if isinstance(run, Run) else load_run(run)
    values = check_thresholds(thresholds)
    rows = PairRows(opened, values["reference_tolerance_nats"])
    only_logged = split is not None and split not in rows.steps and bool((opened.history["split"] == split).any())
    aligned, table, half = None, pd.DataFrame(), unfinished(opened)
    if rows.steps and not only_logged:
        aligned = align(rows, from_step, to_step, split)
        document, table = _of_pairs(aligned, values, half)
    else:
        document = _of_means(opened, from_step, to_step, split, values, half)
    if half is not None:
        document["unfinished"] = half.document()
    if opened.has("tokens"):
        ends = {end: calibration(opened, str(document["split"]), document[f"{end}_step"]) for end in ("from", "to")}
        document["calibration"] = ends
    if kl := data_kl(opened, document["split"], document["from_step"], document["to_step"]):
        document["kl"] = kl
    # What the import decided: which of several runs was taken, what it left out.
    document["notes"] = [*document["notes"], *opened.info.source.notes]
    ended = opened.info.stopped_by
    if ended is not None:
        document["stopped_by"] = {**asdict(ended), "line": ended.line}
    if acted := guards_acted(opened):
        document["guards_acted"] = acted
    if opened.damaged:
        document["notes"] += [f"rows are left out: {error}" for error in opened.damaged.values()]
        document["damaged"] = [str(path) for path in opened.damaged]
        document["left_out"] = left_out(opened, document["split"], split)
    first = [*([ended.line] if ended is not None else []), *acted,
             *([text] if (text := document.get("left_out")) else [])]  # fmt: skip
    headline = document["verdict"]["headline"]
    said = document["verdict"]["text"].removeprefix(headline)
    document["verdict"]["text"] = " ".join([headline, *first]) + said
    document = plain({**document, "thresholds": dict(values)})
    document["narrative"] = plain(narrate(document))
    return Explanation(document, aligned, table)


# --- a run that holds pairs -------------------------------------------------------------------------------------------


def _of_pairs(
    aligned: Aligned, values: Mapping[str, float], half: Unfinished | None
) -> tuple[dict[str, Any], pd.DataFrame]:
    run, pairs = aligned.run, aligned.pairs
    spec, why_not = loss_spec(run)
    intervals, ids = PairIntervals.of(aligned.rows, values), list(pairs["pair_id"])
    loss, loss_rows = loss_section(aligned, spec, why_not, intervals)
    unit, unit_note = aligned.unit_and_note
    perplexity = perplexity_section(aligned, intervals)
    # One yardstick along the run: a loss whose coefficients move may fall without any answer's changing.
    last = None if spec is None else loss_at(run, spec, aligned.to_step, aligned.split)
    path = follow(aligned, last)
    turns = turning_points(path, intervals, values["turning_point.least_dlog"])
    table = pair_table(aligned, loss_rows)
    few = concentration(table) if "share_of_rise" in table else None
    context = CheckContext.from_run(aligned.rows, aligned.from_step, aligned.to_step, aligned.split, values)
    checks = list(run_checks(context, values))
    evidence = _evidence(run, aligned.from_step, aligned.to_step, values)
    situation = Situation.of(context, checks, values)
    material = remedies.Material(aligned, last, turns, few, situation, values)
    decision = verdict.decide(
        verdict.Facts(
            checks=checks,
            evidence=evidence,
            n_pairs=len(pairs),
            has_intervals=intervals.units(ids) >= intervals.least,
            reference_free=context.reference_free,
            supervised=len(aligned.sides) < 2,
            answers=run.has("outputs"),
            unfinished=half,
        )
    )
    document = {
        **_head(run, aligned.from_step, aligned.to_step, aligned.split, len(pairs)),
        "n_prompts": intervals.n_prompts(ids),
        "intervals": {"level": intervals.level, "least": intervals.least, "method": OVER_PAIRS},
        "unit": unit,
        "coverage": aligned.coverage,
        "notes": [*aligned.notes, *([unit_note] if unit_note and unit else [])],
        "loss": loss,
        "perplexity": perplexity,
        "bits_per_byte": {s: aligned.bits_per_byte(s) for s in aligned.sides} if len(pairs) else {},
        "quadrants": quadrants(aligned),
        "margins": margins(pairs, intervals),
        "ranking": ranking(aligned),
        "against_reference": from_reference(aligned, last),
        "concentration": asdict(few) if few is not None else None,
        "turning_points": [t.document() for t in turns],
        "pairs": _with_texts(run, records(table.head(PAIRS_SHOWN))),
        "pairs_not_shown": max(0, len(table) - PAIRS_SHOWN),
        "means": {"not_applicable": "the run holds pairs, which say all that means say"},
        "trajectory": records(path.steps),
        "along_the_run": path.summary,
        "checks": checks,
        "evidence": [m.document(values) for m, _ in evidence],
        "verdict": decision.document(),
        **_of_tokens(aligned, values, intervals),
        "remedies": [asdict(r) for r in remedies.suggest(material, decision)],
    }
    return document, _drawn(aligned, table)


def _with_texts(run: Run, pairs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Pairs with the beginning of their chosen answer, which names them better than a hash; None where not recorded."""
    texts: Any = run.texts.set_index("pair_id")["chosen"].to_dict() if pairs and run.has("texts") else {}
    for pair in pairs:
        chosen = texts.get(pair["pair_id"])
        shown = safe(chosen.strip(), max_chars=SNIPPET, one_line=True) if isinstance(chosen, str) else None
        pair["chosen_text"] = shown
    return pairs


def _of_tokens(aligned: Aligned, values: Mapping[str, float], intervals: PairIntervals) -> dict[str, Any]:
    """The sections that need more than sums, each with its numbers or {"not_applicable": reason}."""
    if not len(aligned.pairs):
        return dict.fromkeys(TOKEN_SECTIONS, NO_PAIR)
    sections: dict[str, Any] = {"tokens": NO_TOKENS, "prompt_dependence": NO_TOKENS, "lost_mass": NO_TOKENS}
    change = aligned.tokens
    if change is not None and change.usable.any():
        limits = values["key_tokens.gain"], values["key_tokens.floor"]
        sections["tokens"] = {**summarise_tokens(aligned, change), "along_the_run": follow_roles(aligned, change)}
        sections["prompt_dependence"] = prompt_dependence(aligned, change, *limits)
        sections["lost_mass"] = lost_mass(aligned, change)
    return sections | {"destination": destination(aligned, intervals), "similarity": similarity(aligned)}


def _drawn(aligned: Aligned, table: pd.DataFrame) -> pd.DataFrame:
    """The table of pairs with what a drawing needs besides."""
    counts = [f"{side}_n_tokens" for side in aligned.sides]
    of_pair = aligned.pairs[["pair_id", *(f"{c}_1" for c in counts)]].set_axis(["pair_id", *counts], axis=1)
    if len(aligned.sides) == 2:
        chosen, rejected = (aligned.change(side) for side in aligned.sides)
        unknown = np.isnan(chosen) | np.isnan(rejected)
        of_pair["quadrant"] = np.select(
            [unknown, (chosen < 0) & (rejected < 0), chosen < 0, rejected < 0],
            ["", "both_fell", "rejected_rose", "chosen_rose"], "both_rose",
        )  # fmt: skip
    else:
        of_pair["quadrant"] = ""
    return table.merge(of_pair, on="pair_id", how="left")


# --- a run that holds means only --------------------------------------------------------------------------------------


def _of_means(
    run: Run, from_step: Step | None, to_step: int | None, split: str | None, values: Mapping[str, float],
    half: Unfinished | None,
) -> dict[str, Any]:  # fmt: skip
    if from_step is not None and from_step != REFERENCE and not str(from_step).lstrip("-").isdigit():
        raise DiagError("not a step", where="--from", got=from_step, expected="a number", usage=True)
    context = CheckContext.from_run(PairRows(run), from_step, to_step, split, values)
    checks = list(run_checks(context, values))
    # At the level of the checks, so that a change has one interval in the document.
    means = summarise_means(run, from_step, to_step, split, known_starts(context, values), values["confidence"])
    means.withheld = tuple(
        name for name in means.values if any(one.withholds(str(means.split), name) for one in context.implausible)
    )
    usable = {name: entry for name, entry in means.values.items() if name not in means.withheld}
    supervised = _supervised(run, means.values)
    no_pairs = "a supervised run has no pairs" if supervised else "the run holds means only, no pairs"
    why_no_loss = f"{no_pairs}, so the loss cannot be split into sides"
    if "loss" in means.withheld:
        why_no_loss = f"the logged loss of {means.split} is implausible, see DVG028"
    loss = usable.get("loss", {})
    perplexity = perplexity_of_means(usable)
    evidence = _evidence(run, means.from_step or 0, means.to_step or 0, values)
    decision = verdict.decide(
        verdict.Facts(
            checks=checks,
            evidence=evidence,
            rows=means.rows,
            batches=means.windows,
            reference_free=context.reference_free,
            supervised=supervised,
            answers=run.has("outputs"),
            unfinished=half,
        )
    )
    return {
        **_head(run, means.from_step, means.to_step, means.split, None),
        "n_prompts": None,
        "intervals": {"level": values["confidence"], "least": None, "method": means.compared},
        "unit": None,
        "coverage": {},
        "notes": [
            *([] if supervised else [f"{no_pairs}: nothing can be split over pairs"]),
            *([] if run.info.steps_are_stated else [ROWS_ONLY]),
        ],
        "loss": {
            "not_applicable": why_no_loss,
            **{k: loss[k] for k in LOSS_KEYS if k in loss},
        },
        "perplexity": perplexity,
        **{key: {"not_applicable": no_pairs} for key in (*PAIR_SECTIONS, *TOKEN_SECTIONS)},
        "concentration": None,
        "turning_points": [],
        "pairs": [],
        "pairs_not_shown": 0,
        "trajectory": [],
        "means": means.document(),
        "checks": checks,
        "evidence": [m.document(values) for m, _ in evidence],
        "verdict": decision.document(),
        "remedies": [],
    }


# --- both -------------------------------------------------------------------------------------------------------------


def _supervised(run: Run, values: Mapping[str, Any]) -> bool:
    """Whether no preference was trained: the run says so, or its log has the names that TRL's SFT has and none of two
    sides (its DPO logs the token accuracy beside rewards)."""
    if run.info.method == "sft" or "ppl_token/response" in values:
        return True
    names = set(run.history["name"].unique())
    two_sided = any(
        name.startswith(("rewards/", "logps/")) or name.endswith(("/chosen", "/rejected")) for name in names
    )
    return "mean_token_accuracy" in names and not two_sided


def _head(run: Run, from_step: Step | None, to_step: int | None, split: str | None, n: int | None) -> dict[str, Any]:
    """The keys that say what was compared."""
    return {
        "run": run.name, "kind": run.kind, "from_step": from_step, "to_step": to_step, "split": split, "n_pairs": n,
        "step_word": run.info.step_word,
    }  # fmt: skip


def _evidence(
    run: Run, from_step: Step | None, to_step: int | None, values: Mapping[str, float]
) -> list[tuple[Measure, str]]:
    """What is measured that is not likelihood, with its direction."""
    return [(m, m.direction(values)) for m in measures(run, from_step, to_step, values)]


def known_starts(context: CheckContext, values: Mapping[str, float]) -> dict[str, float]:
    """Metric -> the value that the run is known to have started from: the reference's own."""
    rewards = ("rewards/chosen", "rewards/rejected", "rewards/margins")
    starts = dict.fromkeys(rewards if context.rewards_from_zero(values) else (), 0.0)
    loss = context.known_start(values)
    return starts if loss is None else {"loss": loss, **starts}
