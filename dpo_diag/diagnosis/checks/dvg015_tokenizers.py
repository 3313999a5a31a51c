"""DVG015: perplexities per token of different tokenizers are not comparable; bits per byte are."""

from __future__ import annotations

from typing import Any

import pandas as pd

from dpo_diag.diagnosis.checks import register
from dpo_diag.diagnosis.checks.shared.check import Check, Missing, Outcome, silent, speaks
from dpo_diag.diagnosis.checks.shared.context import CheckContext
from dpo_diag.diagnosis.checks.shared.example import Example
from dpo_diag.records.metrics import bits_per_byte
from dpo_diag.records.run_info import RunInfo
from dpo_diag.text import percent
from dpo_diag.thresholds import Thresholds


def tokenizers(ctx: CheckContext, t: Thresholds) -> Outcome:
    """Compares the tokenizers' fingerprints, and the token counts of the same responses."""
    names = _fingerprints(ctx.info)
    counts = ["split", "pair_id", "side", "n_tokens", "n_truncated", "ref_n_tokens"]
    counted = ctx.pairs.rows[counts].dropna(subset="n_tokens")
    if counted.empty and not names:
        raise Missing("neither a tokenizer nor token counts are recorded")
    evidence: dict[str, Any] = {"tokenizers": names}
    differing = 0.0
    if not counted.empty:
        # A cut response has another count for another reason.
        differing = 0.0 if counted["n_truncated"].gt(0).any() else _counted_differently(counted)
        evidence |= {"responses_counted_differently": differing, "bits_per_byte": _bits_per_byte(ctx.pairs.rows)}
    if len(set(names.values())) > 1 or differing > t["tokenizer_max_differing"]:
        if len(set(names.values())) > 1:
            what = f"{' and '.join(sorted(names))} have different tokenizers"
        else:
            what = f"{percent(differing)} of the responses have another number of tokens at another step or under the "
            what += "reference"
        return speaks(f"{what}: compare bits per byte, never perplexity", **evidence)
    return silent("one tokenizer", **evidence)


def _fingerprints(info: RunInfo) -> dict[str, str]:
    """Whose tokenizer -> its fingerprint, or its name where there is none."""
    known = {"policy": info.tokenizer, "reference": info.reference.tokenizer}
    known |= {f"checkpoint {i}": other for i, other in enumerate(info.other_tokenizers)}
    names = {whose: tokenizer and (tokenizer.fingerprint or tokenizer.name) for whose, tokenizer in known.items()}
    return {whose: name for whose, name in names.items() if name}


def _counted_differently(counted: pd.DataFrame) -> float:
    """Share of responses with different token counts at two steps, or under the reference; the larger of the two."""
    counts = counted.groupby(["split", "pair_id", "side"], observed=True)["n_tokens"].agg(["min", "max", "count"])
    repeated = counts[counts["count"] > 1]
    reference = counted[counted["ref_n_tokens"].notna()]
    return max(
        float((repeated["min"] != repeated["max"]).mean()) if len(repeated) else 0.0,
        float((reference["n_tokens"] != reference["ref_n_tokens"]).mean()) if len(reference) else 0.0,
    )


def _bits_per_byte(pairs: pd.DataFrame) -> dict[str, float]:
    """split@step -> bits per byte of chosen, of the first and the last set measured in full."""
    values = {
        f"{split}@{step}": bits_per_byte(rows["sum_logp"], rows["n_bytes"])
        for (split, step), rows in pairs.loc[
            pairs["side"] == "chosen", ["split", "step", "sum_logp", "n_bytes"]
        ].groupby(["split", "step"], observed=True)
        if rows["n_bytes"].notna().all()
    }
    return {key: values[key] for key in [*values][:1] + [*values][-1:]}


_SUMS = {0: ([-10.0] * 5, -10.0), 5: ([-9.0] * 5, -12.0)}

register(
    Check(
        code="DVG015",
        title="perplexities of different tokenizers compared",
        says="The policy, its reference or a scored checkpoint uses another tokenizer, or the same response has "
        "another number of tokens at another step.",
        why="A perplexity is per token. A tokenizer that cuts the same text into more tokens has a lower perplexity "
        "for the same text, and nothing has improved.",
        needs="tokenizer of the run, or token counts of the same responses",
        severity="error",
        evidence={
            "tokenizers": "whose tokenizer -> its fingerprint or name",
            "responses_counted_differently": "share of responses with different token counts",
            "bits_per_byte": "split@step -> bits per byte of chosen, first and last",
        },
        false_alarms=("max_length changed between two scorings, and cut responses are not recorded as cut",),
        bad=Example(
            "The same responses have 10 tokens at step 0 and 13 at step 5.",
            pairs=_SUMS,
            columns={"n_tokens": {5: (13, 13)}},
        ),
        good=Example("Ten tokens at both steps.", pairs=_SUMS),
        try_next=("compare bits per byte instead",),
        sources=(),
        since="0.1.0",
        function=tokenizers,
        reads=("tokenizer_max_differing",),
    )
)
