"""Words that a finding, its explanation and whatever prints it share. Imports no table: printing waits for none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dpo_diag.text import number

REFERENCE = "ref"
"""Instead of a step: the reference model itself."""
Step = int | str
CAVEAT = "likelihoods alone cannot say whether this is harm: compare outputs or a task score"
ANSWERED_BY_REMEDIES = frozenset({"DVG001", "DVG002", "DVG003", "DVG004", "DVG012", "DVG018", "DVG019", "DVG025"})
"""Checks whose advice the remedies give with this run's numbers: not given twice."""


def step_name(step: Step) -> str:
    """ "step 40", or "the reference"."""
    return "the reference" if step == REFERENCE else f"step {step}"


def alone(document: Mapping[str, Any]) -> int | None:
    """Pairs of the one step that is recorded, where no reference is; None where there is something to compare with."""
    coverage = document.get("coverage") or {}
    only = coverage.get("only_to") if document["from_step"] == REFERENCE and not document["n_pairs"] else None
    return None if coverage.get("only_from") else only or None


def stretch(document: Mapping[str, Any]) -> str:
    """What was compared: "the reference to step 80"."""
    first, last = document["from_step"], document["to_step"]
    if alone(document):
        return f"{document.get('step_word', 'step')} {last} without a reference"
    if document["kind"] == "scored" and (first, last) == (REFERENCE, 0):
        return f"{step_name(first)} to the scored checkpoint"  # nothing names its step: 0 is a place in the records
    # A page may be drawn from findings that an older version wrote.
    if (word := document.get("step_word", "step")) != "step":
        return f"{word} {first} to {last}"
    return f"{step_name(first)} to {step_name(last) if first == REFERENCE else last}"


def against_baselines(document: Mapping[str, Any]) -> str:
    """Where a supervised run's plain NLL, never the smoothed loss, ended beside what knows no context; "" where either
    is unknown."""
    means = document["means"]
    scale, known = means.get("scale", {}), means.get("values", {})
    name = "nll_loss" if "nll_loss" in known else "loss"
    nll = known.get(name, {}).get("to")
    if nll is None or "uniform" not in scale or name in means["withheld"]:
        return ""

    def side(baseline: float) -> str:
        return "at" if number(nll) == number(baseline) else "below" if nll < baseline else "above"

    uniform, unigram = scale["uniform"], scale.get("unigram")
    text = f"plain NLL {number(nll)} is"
    if unigram is not None:
        text += f" {side(unigram)} the unigram baseline {number(unigram)} (token frequencies alone),"
    text += f" {side(uniform)} ln |V| {number(uniform)} (a uniform guess)"
    return text + (f"; a smoothed loss is {number(scale['floor'])} at least" if "floor" in scale else "")


def untrained_prompt(document: Mapping[str, Any]) -> str:
    """What a prompt's perplexity that rose says where no loss is on prompts: "" elsewhere."""
    values = document["means"].get("values", {})
    prompt, share = (values.get(name, {}) for name in ("ppl_token/prompt", "loss_on_prompt"))
    if share.get("to") != 0 or not (prompt.get("delta") or 0) > 0:
        return ""
    return "prompts carry no loss, so their perplexity is free to rise"


def supervised_notes(document: Mapping[str, Any]) -> list[str]:
    """What a supervised run's first lines add to its numbers; [] of any other."""
    return [text for text in (against_baselines(document), untrained_prompt(document)) if text]
