"""What the checkpoints wrote for the same prompts, compared: the JSON document of `dpo-diag outputs`."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from dpo_diag.outputs.across import across_table
from dpo_diag.outputs.behaviours import behaviour_table, primary_score, sentence, tag_table
from dpo_diag.outputs.changed import answer_changes, change_table
from dpo_diag.outputs.features import features, look_table
from dpo_diag.outputs.gaming import Finding, gaming
from dpo_diag.outputs.looks import Answers, Look
from dpo_diag.outputs.looks import answers as select
from dpo_diag.outputs.phrases import inflation
from dpo_diag.outputs.references import answer_scores, reference_table
from dpo_diag.outputs.stances import load_stances
from dpo_diag.records import Run, load_run


@dataclass(frozen=True)
class Comparison:
    """The frames behind `compare`, for a user's own pandas and for the report.

    Attributes:
        answers: rows of outputs/ by look.
        baseline, look: what is held against what in phrases, gaming and the sentence.
        changes: one row per answer (`changed.answer_changes`).
        changed: shares per look (`changed.change_table`).
        measured: features and scores per answer, on the index of `answers.frame`.
        looks: means per look (`features.look_table`).
        references: scores against references per look.
        phrases: inflation of `look` against `baseline`.
        phrases_fallen: the same the other way round: phrases that went out of use.
        tags, behaviours: tables of `behaviours`.
        gaming: findings.
        sentence: in one sentence, what moved.
        across: old answers under new models and the reverse (`across.across_table`); empty where none were scored.
    """

    answers: Answers
    baseline: Look
    look: Look
    changes: pd.DataFrame
    changed: pd.DataFrame
    measured: pd.DataFrame
    looks: pd.DataFrame
    references: pd.DataFrame
    phrases: pd.DataFrame
    phrases_fallen: pd.DataFrame
    tags: pd.DataFrame
    behaviours: pd.DataFrame
    gaming: list[Finding]
    sentence: str
    across: pd.DataFrame = field(default_factory=pd.DataFrame)


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
) -> Comparison:
    """All comparisons of a run's answers as frames.

    Args:
        run: a run, its folder, or rows of outputs/ .
        texts: training pairs, for where phrases come from; None for the run's own.
        baseline: step or model that changes are measured from; None for the SFT model, else the reference, else the
            first step.
        to_step: the policy's step to judge; None for its last.
        steps, models, sample: which answers (`looks.answers`).
        top_phrases: rows of the phrase table at most.
        phrase_list: a YAML file of refusals and hedges; None for the shipped one.

    Raises:
        DiagError: no answers, answers of different decoding settings, an unknown step or model.
    """
    opened = run if isinstance(run, (Run, pd.DataFrame)) else load_run(run)
    answers = select(opened, sample=sample, steps=steps, models=models)
    base = answers.baseline(baseline)
    look = answers.policy_looks()[-1] if to_step is None else answers.baseline(to_step)
    assert base is not None and look is not None
    scores = answer_scores(answers.frame)
    measured = features(answers.frame, load_stances(phrase_list)).join(scores)
    changes = answer_changes(answers)
    before, after = answers.of(base)["text"].to_dict(), answers.of(look)["text"].to_dict()
    if texts is None and isinstance(opened, Run) and opened.has("texts"):
        texts = opened.texts
    judged = [x for x in answers.policy_looks() if x != base]
    behaviours = behaviour_table(answers, measured, base, judged)
    return Comparison(
        answers=answers,
        baseline=base,
        look=look,
        changes=changes,
        changed=change_table(changes),
        measured=measured,
        looks=look_table(answers, measured),
        references=reference_table(answers, scores, full={base, look, answers.policy_looks()[0]}),
        phrases=inflation(before, after, texts, top=top_phrases),
        phrases_fallen=inflation(after, before, texts, top=top_phrases),
        tags=tag_table(answers, measured, list(answers.looks)),
        behaviours=behaviours,
        gaming=gaming(answers, measured[measured.columns.difference(scores.columns, sort=False)], scores, base, look),
        sentence=sentence(behaviours, base, look) if base != look else "There is one look only: nothing to compare.",
        across=across_table(opened.path, answers, base) if isinstance(opened, Run) else pd.DataFrame(),
    )


def compare(run: Run | str | os.PathLike[str], **options: Any) -> dict[str, Any]:
    """A run's answers compared, as one strict JSON document (NaN and infinities are null).

    Keys: run; baseline, to (look names); n_prompts; steps (of the policy); models; sentence; prompts (one entry per
    prompt, changed ones first, each with its distinct answers in the order of looks); changed (per look, since what);
    phrases, phrases_fallen; tags; behaviours; gaming; looks (measures per look); references (scores per look); across.

    Args:
        run: a run or its folder.
        options: as for `comparison`.
    """
    return to_document(run, comparison(run, **options))


def to_document(run: Run | str | os.PathLike[str], c: Comparison) -> dict[str, Any]:
    """The JSON document of a comparison."""
    document = {
        "run": run.name if isinstance(run, Run) else str(run),
        "baseline": c.baseline.label,
        "to": c.look.label,
        "n_prompts": len(c.answers.prompt_ids),
        "steps": [look.step for look in c.answers.looks if look.model == "policy"],
        "models": list(dict.fromkeys(look.model for look in c.answers.looks)),
        "sentence": c.sentence,
        "score": primary_score(c.measured),
        "prompts": prompt_entries(c),
        "changed": records(c.changed),
        "phrases": records(c.phrases),
        "phrases_fallen": records(c.phrases_fallen),
        "tags": records(c.tags),
        "behaviours": records(c.behaviours),
        "gaming": [f.to_dict() for f in c.gaming],
        "looks": records(c.looks),
        "references": records(c.references),
        "across": records(c.across),
    }
    return strict(document)


def prompt_order(c: Comparison) -> list[str]:
    """Prompt ids, changed ones first: by how often the answer changed between policy looks, then by whether `look`
    differs from the baseline, then in their own order."""
    own = c.changes[c.changes["model"] == c.look.model]
    times = own.groupby("prompt_id", sort=False)["changed_previous"].sum().fillna(0).astype(int).to_dict()
    before, after = c.answers.of(c.baseline)["text"], c.answers.of(c.look)["text"]
    differs = {i: i in before.index and i in after.index and before[i] != after[i] for i in c.answers.prompt_ids}
    rank = {i: n for n, i in enumerate(c.answers.prompt_ids)}
    return sorted(rank, key=lambda i: (not differs[i], -times.get(i, 0), rank[i]))


def prompt_entries(c: Comparison) -> list[dict[str, Any]]:
    """Per prompt: id, prompt, tags, reference, changed (baseline to look; null where one is missing), times_changed,
    answers (each distinct text once, with the looks that gave it)."""
    frame = c.answers.frame
    by_prompt = dict(iter(frame.groupby("prompt_id", sort=False)))
    position = {look: n for n, look in enumerate(c.answers.looks)}
    own = c.changes[c.changes["model"] == c.look.model]
    times = own.groupby("prompt_id", sort=False)["changed_previous"].sum().fillna(0).astype(int).to_dict()
    entries = []
    for prompt_id in prompt_order(c):
        told: dict[str, dict[str, Any]] = {}
        by_look: dict[Look, str] = {}
        rows = by_prompt[prompt_id].to_dict("records")
        rows.sort(key=lambda r: position[Look(r["model"], int(r["step"]))])
        for row in rows:
            look = Look(row["model"], int(row["step"]))
            by_look[look] = row["text"]
            fresh = {"text": row["text"], "looks": [], "finish_reason": row.get("finish_reason")}
            entry = told.setdefault(row["text"], fresh | {"correct": row.get("correct")})
            entry["looks"].append({"model": look.model, "step": look.step})
        old, new = by_look.get(c.baseline), by_look.get(c.look)
        entries.append(
            {
                "prompt_id": prompt_id,
                "prompt": rows[0].get("prompt"),
                "tags": rows[0].get("tags"),
                "reference": rows[0].get("reference"),
                "changed": None if old is None or new is None or c.baseline == c.look else old != new,
                "times_changed": times.get(prompt_id, 0),
                "answers": list(told.values()),
            }
        )
    return entries


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a frame as dictionaries."""
    found: list[dict[str, Any]] = frame.to_dict("records")  # type: ignore[assignment]
    return found


def strict(value: Any) -> Any:
    """Python types that json.dumps(allow_nan=False) takes: missing values, NaN and infinities become None."""
    if value is None or isinstance(value, (str, bool)):
        return value
    if isinstance(value, dict):
        return {str(k): strict(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set, np.ndarray)):
        return [strict(v) for v in value]
    if isinstance(value, np.bool_):
        return bool(value)
    if value is pd.NA or value is pd.NaT:
        return None
    if isinstance(value, (int, np.integer)):
        return int(value)
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else None
    return str(value)
