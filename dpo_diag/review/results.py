"""What the judgements say: win rates, a ranking, behaviours that moved, agreement. People and judges stay apart.

The unit is the item: one prompt and two looks. Several reviewers of one item are averaged first, so that asking twice
does not look like asking about twice as many prompts.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from dpo_diag.outputs.compare import strict
from dpo_diag.outputs.looks import Look
from dpo_diag.outputs.stats import benjamini_hochberg, binomial_tail, paired_change
from dpo_diag.records import Run, load_run
from dpo_diag.records.metrics import wilson_interval
from dpo_diag.review import table
from dpo_diag.review.agreement import cohen_kappa
from dpo_diag.review.items import differing, digest
from dpo_diag.review.ranking import bradley_terry, groups
from dpo_diag.review.table import JUDGE, PERSON, SKIP, Judgement

SCORE = {"a": 0.0, "b": 1.0, "tie": 0.5, "both_bad": 0.5}
"""Of `b` against `a`."""
PRIOR = 1.0

Pair = tuple[Look, Look]


def results(run: Run | str | os.PathLike[str]) -> dict[str, Any]:
    """The results of a run's reviews, as one strict JSON document.

    Keys:
        run, n_verdicts (of people, without skips), n_items;
        reviewers: [{"reviewer", "kind", "n", "skipped", "notes"}];
        comparisons: [{"a", "b", "a_model", "a_step", "b_model", "b_step", "n" (items), "n_verdicts", "a_wins",
            "b_wins", "ties", "both_bad" (verdicts), "win_rate" (of b, ties half, mean over items), "low", "high"
            (Wilson 95 %), "p" (two-sided sign test over items that are no tie), "differ", "of" (prompts whose answers
            differ, of all that both answered; null if unknown), "by_tag": [{"tag", "n", "win_rate", "low", "high"}]}];
        ranking: {"looks": [{"look", "model", "step", "ability", "low", "high" (nats against the average look), "n",
            "group"}], best first, "groups", "prior"} or {"not_applicable"};
        behaviours: [{"behaviour", "a", "b", "n", "a_shows", "b_shows", "delta", "low", "high", "p", "q", "moved"}];
        agreement: [{"reviewers", "kinds", "n", "agreement", "kappa", "low", "high"}] of any two who share an item;
        judge: {"comparisons", "reviewers", "agreement"} of judge models, or {"not_applicable"};
        stale: verdicts on answers that the run no longer holds as they were (left out everywhere);
        damaged: [{"file", "line", "why"}] lines that could not be read;
        not_applicable: why there are no results; absent where there are.
    """
    opened = run if isinstance(run, Run) else load_run(run)
    read = table.read(opened.path)
    effective = read.effective()
    current, tags = _current(opened, effective)
    valid = [j for j in effective if j.item in current]
    people = [j for j in valid if j.kind == PERSON]
    judges = [j for j in valid if j.kind == JUDGE]
    said = [j for j in people if j.outcome != SKIP]
    found: dict[str, Any] = {
        "run": opened.name,
        "n_verdicts": len(said),
        "n_items": len({j.item for j in said}),
        "reviewers": _reviewers(people),
        "comparisons": _comparisons(opened, said, tags),
        "ranking": _ranking(said),
        "behaviours": _behaviours(said),
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
    if not said:
        found["not_applicable"] = (
            "every verdict is about answers that the run no longer holds"
            if effective and not valid
            else "nobody has judged an answer yet: dpo-diag review RUN"
        )
    document: dict[str, Any] = strict(found)
    return document


def last_comparison(run: Run | str | os.PathLike[str], a_step: int | None = None) -> dict[str, Any] | None:
    """People's comparison (as in `results`) of the last policy step that they judged over an earlier look.

    Args:
        run: a run or its folder.
        a_step: only against looks of this step; None for what most items compare.

    Returns:
        None where nobody judged that.
    """
    found: list[dict[str, Any]] = [
        c
        for c in results(run)["comparisons"]
        if c["b_model"] == "policy"
        and (c["a_model"] != "policy" or c["a_step"] < c["b_step"])
        and a_step in (None, c["a_step"])
    ]
    # The most items come first.
    return max(found, key=lambda c: int(c["b_step"]), default=None)


def _current(run: Run, judgements: Sequence[Judgement]) -> tuple[set[str], dict[str, list[str]]]:
    """Items whose two answers stand in the run as they were judged, and the tags of each prompt."""
    if not judgements or not run.has("outputs"):
        return set(), {}
    frame = run.outputs
    wanted = {(j.prompt_id, j.sample) for j in judgements}
    rows = frame[[key in wanted for key in zip(frame["prompt_id"], frame["sample"], strict=True)]]
    text = {
        (str(m), int(s), str(p), int(n)): str(t)
        for m, s, p, n, t in zip(
            rows["model"], rows["step"], rows["prompt_id"], rows["sample"], rows["text"], strict=True
        )
    }
    tags = {
        str(p): [] if t is None or isinstance(t, float) else [str(x) for x in t]
        for p, t in zip(rows["prompt_id"], rows["tags"], strict=True)
    }
    found = set()
    for j in judgements:
        sides = [text.get((look.model, look.step, j.prompt_id, j.sample)) for look in (j.a, j.b)]
        if None not in sides:
            hashes = [digest(side) for side in sides]
            if digest(j.prompt_id, j.sample, [*j.a], [*j.b], *hashes) == j.item:
                found.add(j.item)
    return found, tags


def _reviewers(rows: Sequence[Judgement]) -> list[dict[str, Any]]:
    found = []
    for name in sorted({j.reviewer for j in rows}):
        own = [j for j in rows if j.reviewer == name]
        skipped = sum(j.outcome == SKIP for j in own)
        notes = [{"prompt_id": j.prompt_id, "note": j.note} for j in own if j.note]
        found.append(
            {"reviewer": name, "kind": own[0].kind, "n": len(own) - skipped, "skipped": skipped, "notes": notes}
        )
    return found


def _by_pair(rows: Iterable[Judgement]) -> dict[Pair, list[Judgement]]:
    found: dict[Pair, list[Judgement]] = defaultdict(list)
    for j in rows:
        found[j.a, j.b].append(j)
    return found


def item_scores(rows: Iterable[Judgement]) -> dict[str, float]:
    """item -> score of b against a in [0, 1], the mean over its reviewers."""
    said: dict[str, list[float]] = defaultdict(list)
    for j in rows:
        said[j.item].append(SCORE[j.outcome])
    return {item: float(np.mean(values)) for item, values in said.items()}


def _rate(scores: Sequence[float]) -> dict[str, Any]:
    n = len(scores)
    low, high = wilson_interval(sum(scores), n)
    return {"n": n, "win_rate": sum(scores) / n, "low": low, "high": high}


def _comparisons(run: Run, rows: Sequence[Judgement], tags: dict[str, list[str]]) -> list[dict[str, Any]]:
    found = []
    for (a, b), own in _by_pair(rows).items():
        scores = item_scores(own)
        outcomes = Counter(j.outcome for j in own)
        won, lost = sum(s > 0.5 for s in scores.values()), sum(s < 0.5 for s in scores.values())
        prompt_of = {j.item: j.prompt_id for j in own}
        by_tag: dict[str, list[float]] = defaultdict(list)
        for item, score in scores.items():
            for tag in tags.get(prompt_of[item], []):
                by_tag[tag].append(score)
        counts = differing(run, a, b, own[0].sample)
        found.append(
            {
                "a": a.label, "b": b.label, "a_model": a.model, "a_step": a.step, "b_model": b.model, "b_step": b.step,
                **_rate(list(scores.values())),
                "n_verdicts": len(own), "a_wins": outcomes["a"], "b_wins": outcomes["b"], "ties": outcomes["tie"],
                "both_bad": outcomes["both_bad"],
                "p": min(1.0, 2 * binomial_tail(max(won, lost), won + lost)),
                "differ": counts[0] if counts else None, "of": counts[1] if counts else None,
                "by_tag": [{"tag": tag, **_rate(values)} for tag, values in sorted(by_tag.items())],
            }
        )  # fmt: skip
    return sorted(found, key=lambda c: (-c["n"], c["a_step"], c["b_step"]))


def _ranking(rows: Sequence[Judgement]) -> dict[str, Any]:
    looks = sorted({x for j in rows for x in (j.a, j.b)}, key=lambda x: (x.model == "policy", x.model, x.step))
    if len(looks) < 2:
        return {"not_applicable": "no two looks were compared"}
    at = {look: i for i, look in enumerate(looks)}
    scores = np.zeros((len(looks), len(looks)))
    for (a, b), own in _by_pair(rows).items():
        for score in item_scores(own).values():
            scores[at[b], at[a]] += score
            scores[at[a], at[b]] += 1 - score
    group = groups(scores)
    ranked = [
        {"look": look.label, "model": look.model, "step": look.step, "ability": x.value, "low": x.low, "high": x.high,
         "n": round(x.n), "group": g}
        for look, x, g in zip(looks, bradley_terry(scores, PRIOR), group, strict=True)
    ]  # fmt: skip
    return {"looks": sorted(ranked, key=lambda x: -float(x["ability"])), "groups": max(group) + 1, "prior": PRIOR}


def _behaviours(rows: Sequence[Judgement]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for (a, b), own in _by_pair(rows).items():
        names = list(dict.fromkeys(name for j in own for name in [*j.asked, *j.behaviours]))
        for name in names:
            shows: dict[str, list[tuple[float, float]]] = defaultdict(list)
            for j in own:
                if name in j.asked or name in j.behaviours:
                    marks = j.behaviours.get(name, [])
                    shows[j.item].append((float("a" in marks), float("b" in marks)))
            means = np.asarray([np.mean(v, axis=0) for v in shows.values()])
            change = paired_change(means[:, 0], means[:, 1])
            found.append(
                {"behaviour": name, "a": a.label, "b": b.label, "n": change.n, "a_shows": float(means[:, 0].mean()),
                 "b_shows": float(means[:, 1].mean()), "delta": change.delta, "low": change.low, "high": change.high,
                 "p": change.p}
            )  # fmt: skip
    for row, q in zip(found, benjamini_hochberg([row["p"] for row in found]), strict=True):
        row["q"] = float(q)
        row["moved"] = "unchanged" if q > 0.05 else "more" if row["delta"] > 0 else "less"
    return sorted(found, key=lambda row: (row["q"], -abs(row["delta"])))


def _agreements(rows: Sequence[Judgement]) -> list[dict[str, Any]]:
    by_reviewer: dict[str, dict[str, str]] = defaultdict(dict)
    kinds: dict[str, str] = {}
    for j in rows:
        if j.outcome != SKIP:
            by_reviewer[j.reviewer][j.item] = j.outcome
            kinds[j.reviewer] = j.kind
    found = []
    for x, y in combinations(sorted(by_reviewer), 2):
        both = sorted(by_reviewer[x].keys() & by_reviewer[y].keys())
        if both:
            k = cohen_kappa([by_reviewer[x][i] for i in both], [by_reviewer[y][i] for i in both])
            found.append({"reviewers": [x, y], "kinds": [kinds[x], kinds[y]], **k._asdict()})
    return found
