"""The explanation of a run that holds means only: what they allow; for the rest, why it is not applicable."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dpo_diag.diagnosis import uncertainty, verdict
from dpo_diag.diagnosis.common_sections import head, judged_evidence, perplexity_signs, run_all_checks
from dpo_diag.diagnosis.decompose import means
from dpo_diag.diagnosis.pair_rows import REFERENCE, Step
from dpo_diag.errors import DiagError
from dpo_diag.records import Run


def explain_means(
    run: Run,
    from_step: Step | None,
    to_step: int | None,
    split: str | None,
    values: Mapping[str, float],
) -> dict[str, Any]:
    """The document of a run without pairs, between the logged steps of one split (default: a fixed set)."""
    if from_step is not None and from_step != REFERENCE and not str(from_step).lstrip("-").isdigit():
        raise DiagError("not a step", where="--from", got=from_step, expected="a number", usage=True)
    summary = means.summarise_means(run, from_step, to_step, split)
    logged = summary["values"]
    document = head(run, summary["from_step"], summary["to_step"], summary["split"], None)
    no_pairs = "the run holds means only, no pairs"
    loss = logged.get("loss")
    perplexity = means.perplexity_of_means(logged)
    checks = run_all_checks(run, from_step, to_step, split, values)
    start, end = summary["from_step"] or 0, summary["to_step"] or 0
    evidence = judged_evidence(run, start, end, values)
    chosen = next((logged[n] for n in ("rewards/chosen", "logps/chosen") if n in logged), None)
    document |= {
        "unit": None,
        "coverage": {},
        "notes": [no_pairs + ": nothing can be split over pairs"],
        "loss": {
            "not_applicable": f"{no_pairs}, so the loss cannot be split into sides",
            **({k: loss[k] for k in ("from", "to", "delta", "interval")} if loss else {}),
        },
        "perplexity": perplexity,
        "quadrants": {"not_applicable": no_pairs},
        "against_reference": {"not_applicable": no_pairs},
        "concentration": None,
        "turning_points": [],
        "pairs": [],
        "means": summary,
        "checks": checks,
        "evidence": [m.document(values) for m, _ in evidence],
        "thresholds": dict(values),
    }
    facts = verdict.Facts(
        loss=_mean_sign(loss, summary["windows"]),
        perplexity=perplexity_signs(perplexity, values["verdict.least_dlog"]),
        chosen=_mean_sign(chosen, summary["windows"]),
        evidence=evidence,
        speaking=frozenset(c["code"] for c in checks if c["outcome"] == "speaks"),
        only_means=True,
        chosen_lower_in_noise=bool(chosen and chosen["delta"] < 0 and _mean_sign(chosen, summary["windows"]) != -1),
    )
    decision = verdict.decide(facts)
    document["verdict"] = decision.document()
    document["remedies"] = []
    return document


def _mean_sign(entry: dict[str, Any] | None, windows: bool) -> int | None:
    """Direction of a logged mean; unknown where nothing is logged or too few batches give no interval."""
    if entry is None or entry["delta"] is None or (windows and entry["interval"] is None):
        return None
    return uncertainty.sign(entry["delta"], entry["interval"])
