"""What the checkpoints wrote for the same prompts, compared: the JSON document of `dpo-diag outputs`."""

from __future__ import annotations

import os
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import pandas as pd

from dpo_diag.outputs.answers import Answers, Checkpoint
from dpo_diag.outputs.answers import answers as select
from dpo_diag.outputs.behaviours import behaviour_table, primary_score, sentence, tag_table
from dpo_diag.outputs.changed import answer_changes, change_table
from dpo_diag.outputs.cross_scores import COLUMNS as CROSS_COLUMNS
from dpo_diag.outputs.cross_scores import cross_score_table
from dpo_diag.outputs.features import checkpoint_table, features
from dpo_diag.outputs.gaming import Finding, gaming
from dpo_diag.outputs.phrases import Inflation
from dpo_diag.outputs.references import answer_scores, reference_table
from dpo_diag.outputs.selection import counted, outcome, reading_order
from dpo_diag.outputs.stances import load_stances
from dpo_diag.records import Run, load_run
from dpo_diag.text import plain, records
from dpo_diag.thresholds import Thresholds, load_thresholds


@dataclass(frozen=True)
class Comparison:
    """The frames behind `compare`, for a user's own pandas and for the report.

    Attributes:
        answers: rows of outputs/ by checkpoint.
        baseline, target: what is held against what in phrases, gaming and the sentence.
        changes: one row per answer (`changed.answer_changes`).
        changed: shares per checkpoint (`changed.change_table`).
        measured: features and scores per answer, on the index of `answers.samples`.
        level: confidence level of the changes of what was measured (`confidence_scores`).
        by_checkpoint: means per checkpoint (`features.checkpoint_table`).
        references: scores against references per checkpoint.
        phrases: inflation of `target` against `baseline`.
        phrases_fallen: the same the other way round: phrases that went out of use.
        tags, behaviours: tables of `behaviours`.
        gaming: findings.
        sentence: in one sentence, what moved.
        cross_scores: old answers under new models and the reverse (`cross_scores`); empty where none were scored.
    """

    answers: Answers
    baseline: Checkpoint
    target: Checkpoint
    changes: pd.DataFrame
    changed: pd.DataFrame
    measured: pd.DataFrame
    by_checkpoint: pd.DataFrame
    references: pd.DataFrame
    phrases: pd.DataFrame
    phrases_fallen: pd.DataFrame
    tags: pd.DataFrame
    behaviours: pd.DataFrame
    gaming: list[Finding]
    sentence: str
    cross_scores: pd.DataFrame
    level: float

    def at_target(self, table: pd.DataFrame) -> pd.DataFrame:
        """The rows of one of the tables that are about `target`."""
        return table[(table["model"] == self.target.model) & (table["step"] == self.target.step)]


def comparison(
    run: Run | str | os.PathLike[str] | pd.DataFrame,
    *,
    texts: pd.DataFrame | None = None,
    baseline: str | int | None = None,
    to_step: int | None = None,
    steps: list[int] | None = None,
    models: list[str] | None = None,
    sample: int | None = None,
    top_phrases: int = 20,
    phrase_list: str | os.PathLike[str] | None = None,
    thresholds: Thresholds | None = None,
) -> Comparison:
    """All comparisons of a run's answers as frames.

    Args:
        run: a run, its folder, or rows of outputs/ .
        texts: training pairs, for where phrases come from; None for the run's own.
        baseline: step or model that changes are measured from; None for the reference, else the SFT model, else the
            first step.
        to_step: the policy's step to judge; None for its last.
        steps, models, sample: which answers (`answers.answers`).
        top_phrases: rows of the phrase table at most.
        phrase_list: a YAML file of refusals and hedges; None for the shipped one.
        thresholds: groups `answers`, `gaming`, `phrases`; None for the defaults.

    Raises:
        DiagError: no answers, answers of different decoding settings, an unknown step or model.
    """
    opened = run if isinstance(run, (Run, pd.DataFrame)) else load_run(run)
    limits = thresholds or load_thresholds()
    answers = select(opened, sample=sample, steps=steps, models=models)
    own, base = answers.policy_checkpoints(), answers.baseline(baseline)
    target = own[-1] if to_step is None else answers.baseline(to_step)
    scores = answer_scores(answers.samples)
    measured = features(answers.samples, load_stances(phrase_list)).join(scores)
    changes = answer_changes(answers)
    before, after = answers.texts(base), answers.texts(target)
    if texts is None and isinstance(opened, Run) and opened.has("texts"):
        texts = opened.texts
    phrases = Inflation(before, after, texts, top=top_phrases, thresholds=limits)
    behaviours = behaviour_table(answers, measured, base, own, limits)
    return Comparison(
        answers=answers,
        baseline=base,
        target=target,
        changes=changes,
        changed=change_table(changes),
        measured=measured,
        by_checkpoint=checkpoint_table(answers, measured),
        references=reference_table(answers, scores, full={base, target, own[0]}),
        phrases=phrases.risen(),
        phrases_fallen=phrases.fallen(),
        tags=tag_table(answers, measured),
        behaviours=behaviours,
        gaming=gaming(answers, measured, base, target, limits),
        sentence="There is one checkpoint only: nothing to compare."
        if base == target
        else sentence(behaviours, base, target),
        cross_scores=cross_score_table(opened.path, answers, base, limits["confidence_scores"])
        if isinstance(opened, Run)
        else pd.DataFrame(columns=CROSS_COLUMNS),
        level=limits["confidence_scores"],
    )


def compare(run: Run | str | os.PathLike[str], **options: Any) -> dict[str, Any]:
    """A run's answers compared, as one strict JSON document (NaN and infinities are null).

    Keys: run; baseline, to (checkpoints); n_prompts; n_samples (of a prompt, which numbers are means over); level (of
    the changes' intervals); steps (of the policy); models; sentence; outcomes (prompts of each); prompts (one entry per
    prompt, regressions first, each with its distinct answers in the order of checkpoints); changed (per checkpoint,
    since what); phrases, phrases_fallen; tags; behaviours; gaming; looks (measures per checkpoint); references (scores
    per checkpoint); across (answers under the model that did not write them).

    Args:
        run: a run or its folder.
        options: as for `comparison`.
    """
    return to_document(run, comparison(run, **options))


def to_document(run: Run | str | os.PathLike[str], c: Comparison) -> dict[str, Any]:
    """The JSON document of a comparison."""
    entries = prompt_entries(c)
    document: dict[str, Any] = plain(
        {
            "run": run.name if isinstance(run, Run) else str(run),
            "baseline": c.baseline.label,
            "to": c.target.label,
            "n_prompts": len(c.answers.prompt_ids),
            "n_samples": c.answers.n_samples,
            "level": c.level,
            "steps": [x.step for x in c.answers.checkpoints if x.model == "policy"],
            "models": list(dict.fromkeys(x.model for x in c.answers.checkpoints)),
            "sentence": c.sentence,
            "score": primary_score(c.measured),
            "outcomes": counted(entries),
            "prompts": entries,
            "changed": records(c.changed),
            "phrases": records(c.phrases),
            "phrases_fallen": records(c.phrases_fallen),
            "tags": records(c.tags),
            "behaviours": records(c.behaviours),
            "gaming": [f.to_dict() for f in c.gaming],
            "looks": records(c.by_checkpoint),
            "references": records(c.references),
            "across": records(c.cross_scores),
        }
    )
    return document


_SHOWN = ("prompt", "tags", "reference", "text", "finish_reason", "correct")


def prompt_entries(c: Comparison) -> list[dict[str, Any]]:
    """Per prompt: id, prompt, tags, reference, changed (baseline to target; null where one is missing), outcome (see
    `selection.OUTCOMES`), times_changed (between the target model's checkpoints), answers (each distinct text once,
    with the checkpoints that gave it).

    Regressions come first, then gains, then other changes (see `selection.reading_order`).
    """
    own = c.changes[c.changes["model"] == c.target.model]
    times = (
        own.groupby("prompt_id", sort=False, observed=True)["changed_previous"].sum().fillna(0).astype(int).to_dict()
    )
    rows: dict[str, dict[Checkpoint, dict[str, Any]]] = defaultdict(dict)
    for checkpoint in c.answers.checkpoints:
        own_rows = c.answers.of(checkpoint)
        names = [name for name in _SHOWN if name in own_rows]
        for prompt_id, *values in zip(own_rows.index, *(own_rows[name].tolist() for name in names), strict=True):
            rows[str(prompt_id)][checkpoint] = dict(zip(names, values, strict=True))
    entries = []
    for prompt_id in c.answers.prompt_ids:
        by_checkpoint = rows[prompt_id]
        first = next(iter(by_checkpoint.values()))
        old, new = by_checkpoint.get(c.baseline), by_checkpoint.get(c.target)
        entries.append(
            {
                "prompt_id": prompt_id,
                **{key: first.get(key) for key in ("prompt", "tags", "reference")},
                "changed": old["text"] != new["text"] if old and new and c.baseline != c.target else None,
                "outcome": outcome(old, new) if c.baseline != c.target else None,
                "times_changed": times.get(prompt_id, 0),
                "answers": _distinct(by_checkpoint),
            }
        )
    return sorted(entries, key=reading_order)


def _distinct(rows: dict[Checkpoint, dict[str, Any]]) -> list[dict[str, Any]]:
    by_text: dict[str, dict[str, Any]] = {}
    for checkpoint, row in rows.items():
        answer = {key: row.get(key) for key in ("text", "finish_reason", "correct")}
        by_text.setdefault(row["text"], answer | {"looks": []})["looks"].append(checkpoint._asdict())
    return list(by_text.values())
