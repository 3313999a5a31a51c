"""The report's sections in reading order. A section that the records cannot fill says why instead."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from dpo_diag.records import Run
from dpo_diag.report.displays import (
    answers,
    behaviours,
    checks,
    curves,
    metadata,
    pairs,
    quadrants,
    reviews,
    splits,
    tokens,
    vocabulary,
)
from dpo_diag.report.headline import CHANGE, narrative
from dpo_diag.report.text import clean

NOTHING = Markup("")


@dataclass(frozen=True)
class Section:
    """One section: `missing` is the reason why `body` is empty."""

    id: str
    title: str
    lead: str
    body: Markup = NOTHING
    missing: str = ""


def build(run: Run, explanation: dict[str, Any], comparison: dict[str, Any]) -> list[Section]:
    """All sections.

    Args:
        explanation: the explain document (see `dpo_diag.diagnosis.explain`), or {"not_applicable": reason}.
        comparison: the outputs document (see `dpo_diag.outputs.compare`), or {"not_applicable": reason}.
    """
    changes = quadrants.changes_frame(run, explanation)
    return [
        _parting(run, explanation),
        _loss(explanation),
        _perplexity(explanation),
        _quadrants(explanation, changes),
        _pairs(run, explanation, changes),
        _change(explanation),
        _checks(explanation),
        _outputs(run, comparison),
        _reviews(run),
        _metadata(run),
    ]


def _reviews(run: Run) -> Section:
    from dpo_diag.review import results

    head = ("reviews", "What people said", "Two checkpoints' answers side by side, judged blind.")
    found = results(run)
    if found.get("not_applicable"):
        return Section(*head, missing=str(found["not_applicable"]))
    said = f"{found['n_verdicts']} verdicts on {found['n_items']} items by {len(found['reviewers'])} reviewers."
    return Section(*head, Markup('<p class="small">{}</p>').format(said) + reviews.draw_reviews(found))


def _why(explanation: dict[str, Any], part: str, otherwise: str) -> str:
    """The reason that the explanation gives for leaving a part out."""
    inner = explanation.get(part)
    if isinstance(inner, dict) and inner.get("not_applicable"):
        return str(inner["not_applicable"])
    return str(explanation.get("not_applicable") or otherwise)


def _parting(run: Run, explanation: dict[str, Any]) -> Section:
    head = (
        "curves",
        "The parting of the curves",
        "The loss sees the difference of two log-probs; perplexity sees one of them.",
    )
    split = curves.evaluation_split(run, explanation.get("split")) or explanation.get("split")
    frame = curves.curves_frame(run, split, explanation.get("trajectory"))
    if frame.empty:
        return Section(*head, missing="the run has no history of a loss, a perplexity or a score")
    parting = curves.parting_frame(frame)
    marks = [
        (int(explanation[k]), name)
        for k, name in (("from_step", "from"), ("to_step", "to"))
        if explanation.get(k) is not None
    ]
    first = curves.draw_parting(parting) if len(parting) else NOTHING
    note = Markup('<p class="small">Evaluation split: {}.</p>').format(split or "none")
    return Section(*head, first + curves.draw_panels(frame, marks) + note)


def _loss(explanation: dict[str, Any]) -> Section:
    head = ("loss", "What moved the loss", "An exact split of the loss's change over the two sides (Shapley).")
    frame = splits.loss_split_frame(explanation)
    if frame.empty:
        return Section(*head, missing=_why(explanation, "loss", "the explanation has no split of the loss"))
    return Section(*head, splits.draw_loss_split(frame, explanation["loss"].get("residual")))


def _perplexity(explanation: dict[str, Any]) -> Section:
    head = (
        "perplexity",
        "What moved each perplexity",
        "Log perplexity is a level plus a term for how it spreads over answers; both are exact.",
    )
    frame = splits.perplexity_split_frame(explanation)
    if frame.empty:
        return Section(*head, missing=_why(explanation, "perplexity", "the explanation has no split of a perplexity"))
    return Section(*head, splits.draw_perplexity_split(frame))


def _quadrants(explanation: dict[str, Any], changes: Any) -> Section:
    head = ("quadrants", "Where each pair went", "One point per pair; the ringed numbers are the pairs below.")
    if changes.empty:
        reason = "the run has no pair records of the explained split at both steps"
        return Section(*head, missing=_why(explanation, "quadrants", reason))
    return Section(*head, quadrants.draw_quadrants(changes))


def _pairs(run: Run, explanation: dict[str, Any], changes: Any) -> Section:
    head = (
        "pairs",
        "The pairs that carry it",
        "Each token stands over its change of log-prob in nats: −0.7 halves its probability; a dot is under 0.05.",
    )
    frame = pairs.pairs_frame(run, explanation, changes)
    if frame.empty:
        return Section(*head, missing=_why(explanation, "pairs", "the explanation names no pairs"))
    found = tokens.tokens_frame(run, explanation, frame["pair_id"].tolist())
    note = NOTHING
    if found.empty:
        note = Markup('<p class="na">Token heat map: not applicable. The run has no token records of both steps.</p>')
    elif found["text"].isna().any():
        note = Markup(
            '<p class="small">Tokens are shown by id: there is no {} or tokenizer.json, and the texts do not align.</p>'
        ).format(vocabulary.VOCAB_FILE)
    return Section(*head, note + pairs.draw_pairs(frame, found))


def _change(explanation: dict[str, Any]) -> Section:
    head = ("change", "What to change", "Coefficients are translated for this run; one change at a time.")
    advice = [s for told in narrative(explanation) if told.heading == CHANGE for s in told.sentences]
    own = [s for s in advice if not s.startswith("DVG")]  # the checks below carry their own
    if not own:
        return Section(*head, missing=_why(explanation, "remedies", "the explanation proposes no change"))
    items = Markup("").join(Markup("<li>{}</li>").format(clean(s)) for s in own)
    return Section(*head, Markup('<ul class="advice">{}</ul>').format(items))


def _checks(explanation: dict[str, Any]) -> Section:
    head = ("checks", "Checks", "What was looked for, what speaks, and what cannot be told from this run.")
    frame = checks.checks_frame(explanation)
    if frame.empty:
        return Section(*head, missing=_why(explanation, "checks", "the explanation holds no checks"))
    return Section(*head, checks.draw_checks(frame))


def _outputs(run: Run, comparison: dict[str, Any]) -> Section:
    head = (
        "outputs",
        "What it writes",
        "Loss is the alarm, outputs are the steering wheel: read them before you decide.",
    )
    frame = answers.answers_frame(run)
    if frame.empty:
        return Section(
            *head, missing="the run has no outputs: name fixed prompts when training, or generate from its checkpoints"
        )
    return Section(*head, behaviours.draw(comparison) + answers.draw_answers(frame))


def _metadata(run: Run) -> Section:
    frame = metadata.metadata_frame(run)
    return Section("run", "The run", "As run.json has it.", metadata.draw_metadata(frame, run.alerts))
