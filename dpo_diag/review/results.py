"""What the judgements say: win rates, a ranking, behaviours that moved, agreement. People and judges stay apart.

The unit is the item: one prompt and two checkpoints. Several reviewers of one item are averaged first, so that asking
twice does not look like asking about twice as many prompts.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from dpo_diag.outputs.answers import Checkpoint, columns_of, tags_of
from dpo_diag.paired import mcnemar, paired_change
from dpo_diag.records import Run, load_run
from dpo_diag.review import judgements
from dpo_diag.review.agreement import cohen_kappa
from dpo_diag.review.conclusion import conclude
from dpo_diag.review.items import differing, digest
from dpo_diag.review.judgements import JUDGE, PERSON, SKIP, Judgement
from dpo_diag.review.ranking import bradley_terry, groups
from dpo_diag.stats import false_discovery, proportion
from dpo_diag.text import plain
from dpo_diag.thresholds import load_thresholds

SCORE = {"a": 0.0, "b": 1.0, "tie": 0.5, "both_bad": 0.5}
"""Of `b` against `a`."""
PRIOR = 1.0

Pair = tuple[Checkpoint, Checkpoint]


def results(run: Run | str | os.PathLike[str]) -> dict[str, Any]:
    """The results of a run's reviews, as one strict JSON document.

    Keys:
        run, n_verdicts (of people, without skips), n_items;
        reviewers: [{"reviewer", "kind", "n", "skipped", "notes"}];
        comparisons: [{"a", "b", "a_model", "a_step", "b_model", "b_step", "n" (items), "n_verdicts", "a_wins",
            "b_wins", "ties", "both_bad" (verdicts), "win_rate" (of b, ties half, mean over items), "low", "high"
            (Wilson 95 %; null for few items), "p" (two-sided sign test over items that are no tie), "q" (corrected for
            all comparisons), "preferred", "more", "conclusion" (see `conclude`), "differ", "of" (prompts whose answers
            differ, of all that both answered; null if unknown), "by_tag": [{"tag", "n", "win_rate", "low", "high"}]}];
        ranking: {"looks": [{"look", "model", "step", "ability", "low", "high" (nats against the average checkpoint),
            "n", "group"}], best first, "groups", "prior"} or {"not_applicable"};
        behaviours: [{"behaviour", "a", "b", "n", "a_shows", "b_shows", "delta", "low", "high", "p", "q", "moved"}];
        agreement: [{"reviewers", "kinds", "n", "agreement", "kappa", "low", "high"}] of any two who share an item;
        judge: {"comparisons", "reviewers", "agreement"} of judge models, or {"not_applicable"};
        stale: verdicts on answers that the run no longer holds as they were (left out everywhere);
        damaged: [{"file", "line", "why"}] lines that could not be read;
        not_applicable: why there are no results; absent where there are.
    """
    opened = run if isinstance(run, Run) else load_run(run)
    read = judgements.read(opened.path)
    effective = read.effective()
    current, tags = _current(opened, effective)
    valid = [j for j in effective if j.item in current]
    people = [j for j in valid if j.kind == PERSON]
    judges = [j for j in valid if j.kind == JUDGE]
    verdicts = [j for j in people if j.outcome != SKIP]
    document: dict[str, Any] = {
        "run": opened.name,
        "n_verdicts": len(verdicts),
        "n_items": len({j.item for j in verdicts}),
        "reviewers": _reviewers(people),
        "comparisons": _comparisons(opened, verdicts, tags),
        "ranking": _ranking(verdicts),
        "behaviours": _behaviours(verdicts),
        "agreement": _agreements(people),
        "judge": {
            "reviewers": _reviewers(judges),
            "comparisons": _comparisons(opened, [j for j in judges if j.outcome != SKIP], tags),
            "agreement": [x for x in _agreements([*people, *judges]) if JUDGE in x["kinds"]],
        }
        if judges
        else {"not_applicable": "no judge model was asked"},
        "stale": len(effective) - len(valid),
        "damaged": [{"file": f, "line": n, "why": why} for f, n, why in read.damaged],
    }
    if not verdicts:
        document["not_applicable"] = (
            "every verdict is about answers that the run no longer holds"
            if effective and not valid
            else "nobody has judged an answer yet: dpo-diag review RUN"
        )
    strict: dict[str, Any] = plain(document)
    return strict


def last_comparison(run: Run | str | os.PathLike[str], a_step: int | None = None) -> dict[str, Any] | None:
    """People's comparison (as in `results`) of the last policy step that they judged over an earlier
    checkpoint.

    Args:
        run: a run or its folder.
        a_step: only against checkpoints of this step; None for what most items compare.

    Returns:
        None where nobody judged that.
    """
    judged: list[dict[str, Any]] = [
        c
        for c in results(run)["comparisons"]
        if c["b_model"] == "policy"
        and (c["a_model"] != "policy" or c["a_step"] < c["b_step"])
        and a_step in (None, c["a_step"])
    ]
    # The most items come first.
    return max(judged, key=lambda c: int(c["b_step"]), default=None)


def _current(run: Run, judgements: Sequence[Judgement]) -> tuple[set[str], dict[str, list[str]]]:
    """Items whose two answers stand in the run as they were judged, and the tags of each prompt."""
    if not judgements or not run.has("outputs"):
        return set(), {}
    frame = run.outputs
    frame = frame[frame["prompt_id"].isin({j.prompt_id for j in judgements})]
    keys = zip(frame["model"], frame["step"], frame["prompt_id"], frame["sample"], strict=True)
    text = {(str(m), int(s), str(p), int(n)): str(t) for (m, s, p, n), t in zip(keys, frame["text"], strict=True)}
    tags = {str(p): tags_of(t) for p, t in zip(frame["prompt_id"], frame["tags"], strict=True)}
    current = set()
    for j in judgements:
        sides = [text.get((*c, j.prompt_id, j.sample)) for c in (j.a, j.b)]
        if None not in sides:
            hashes = [digest(side) for side in sides]
            if digest(j.prompt_id, j.sample, [*j.a], [*j.b], *hashes) == j.item:
                current.add(j.item)
    return current, tags


def _reviewers(rows: Sequence[Judgement]) -> list[dict[str, Any]]:
    by_name: dict[str, list[Judgement]] = defaultdict(list)
    for j in sorted(rows, key=lambda j: j.reviewer):
        by_name[j.reviewer].append(j)
    skipped = {name: sum(j.outcome == SKIP for j in own) for name, own in by_name.items()}
    return [
        {"reviewer": name, "kind": own[0].kind, "n": len(own) - skipped[name], "skipped": skipped[name],
         "notes": [{"prompt_id": j.prompt_id, "note": j.note} for j in own if j.note]}
        for name, own in by_name.items()
    ]  # fmt: skip


def _by_pair(rows: Iterable[Judgement]) -> dict[Pair, list[Judgement]]:
    by_pair: dict[Pair, list[Judgement]] = defaultdict(list)
    for j in rows:
        by_pair[j.a, j.b].append(j)
    return by_pair


def item_scores(rows: Iterable[Judgement]) -> dict[str, float]:
    """item -> score of b against a in [0, 1], the mean over its reviewers."""
    by_item: dict[str, list[float]] = defaultdict(list)
    for j in rows:
        by_item[j.item].append(SCORE[j.outcome])
    return {item: float(np.mean(values)) for item, values in by_item.items()}


def _rate(scores: Sequence[float]) -> dict[str, Any]:
    rate = columns_of(proportion(sum(scores), len(scores)).with_least(load_thresholds()["least_for_interval"]))
    return {"n": rate["n"], "win_rate": rate["value"], "low": rate["low"], "high": rate["high"]}


def _comparisons(run: Run, rows: Sequence[Judgement], tags: dict[str, list[str]]) -> list[dict[str, Any]]:
    comparisons = []
    for (a, b), own in _by_pair(rows).items():
        scores = item_scores(own)
        outcomes = Counter(j.outcome for j in own)
        won, lost = sum(s > 0.5 for s in scores.values()), sum(s < 0.5 for s in scores.values())
        by_tag: dict[str, list[float]] = defaultdict(list)
        for item, prompt_id in {j.item: j.prompt_id for j in own}.items():
            for tag in tags.get(prompt_id, []):
                by_tag[tag].append(scores[item])
        differ, of = differing(run, a, b, own[0].sample) or (None, None)
        comparisons.append(
            {
                "a": a.label, "b": b.label, "a_model": a.model, "a_step": a.step, "b_model": b.model, "b_step": b.step,
                **_rate(list(scores.values())),
                "n_verdicts": len(own), "a_wins": outcomes["a"], "b_wins": outcomes["b"], "ties": outcomes["tie"],
                "both_bad": outcomes["both_bad"],
                "p": mcnemar(lost, won),
                "differ": differ, "of": of,
                "by_tag": [{"tag": tag, **_rate(values)} for tag, values in sorted(by_tag.items())],
            }
        )  # fmt: skip
    for comparison, q in zip(comparisons, false_discovery([c["p"] for c in comparisons]), strict=True):
        comparison["q"] = float(q)
        comparison |= conclude(comparison)
    return sorted(comparisons, key=lambda c: (-c["n"], c["a_step"], c["b_step"]))


def _ranking(rows: Sequence[Judgement]) -> dict[str, Any]:
    checkpoints = sorted({c for j in rows for c in (j.a, j.b)}, key=lambda c: (c.model == "policy", c.model, c.step))
    if len(checkpoints) < 2:
        return {"not_applicable": "no two checkpoints were compared"}
    at = {checkpoint: i for i, checkpoint in enumerate(checkpoints)}
    scores = np.zeros((len(checkpoints), len(checkpoints)))
    for (a, b), own in _by_pair(rows).items():
        for score in item_scores(own).values():
            scores[at[b], at[a]] += score
            scores[at[a], at[b]] += 1 - score
    group = groups(scores)
    ranked = [
        {"look": c.label, **c._asdict(), "ability": x.value, "low": x.low, "high": x.high, "n": x.n, "group": g}
        for c, x, g in zip(checkpoints, bradley_terry(scores, PRIOR), group, strict=True)
    ]
    return {"looks": sorted(ranked, key=lambda x: -float(x["ability"])), "groups": max(group) + 1, "prior": PRIOR}


def _behaviours(rows: Sequence[Judgement]) -> list[dict[str, Any]]:
    marked: list[dict[str, Any]] = []
    for (a, b), own in _by_pair(rows).items():
        for name in dict.fromkeys(name for j in own for name in [*j.asked, *j.behaviours]):
            shows: dict[str, list[tuple[bool, bool]]] = defaultdict(list)
            for j in own:
                if name in j.asked or name in j.behaviours:
                    marks = j.behaviours.get(name, [])
                    shows[j.item].append(("a" in marks, "b" in marks))
            a_shows, b_shows = np.array([np.mean(marks, axis=0) for marks in shows.values()]).T
            change = paired_change(a_shows, b_shows)
            delta = columns_of(change.delta)
            marked.append(
                {"behaviour": name, "a": a.label, "b": b.label, "a_shows": float(a_shows.mean()),
                 "b_shows": float(b_shows.mean()), "delta": delta.pop("value"), **delta, "p": change.p}
            )  # fmt: skip
    max_q = load_thresholds()["answers.max_q"]
    for row, q in zip(marked, false_discovery([row["p"] for row in marked]), strict=True):
        row["q"] = float(q)
        row["moved"] = "unchanged" if q > max_q else "more" if row["delta"] > 0 else "less"
    return sorted(marked, key=lambda row: (row["q"], -abs(row["delta"])))


def _agreements(rows: Sequence[Judgement]) -> list[dict[str, Any]]:
    by_reviewer: dict[str, dict[str, str]] = defaultdict(dict)
    kinds: dict[str, str] = {}
    for j in rows:
        if j.outcome != SKIP:
            by_reviewer[j.reviewer][j.item] = j.outcome
            kinds[j.reviewer] = j.kind
    agreements = []
    for x, y in combinations(sorted(by_reviewer), 2):
        both = sorted(by_reviewer[x].keys() & by_reviewer[y].keys())
        if both:
            agreement = cohen_kappa([by_reviewer[x][i] for i in both], [by_reviewer[y][i] for i in both])
            kappa = agreement.kappa
            agreements.append(
                {"reviewers": [x, y], "kinds": [kinds[x], kinds[y]], "n": kappa.n, "agreement": agreement.equal,
                 "kappa": kappa.value, "low": kappa.low, "high": kappa.high}
            )  # fmt: skip
    return agreements
