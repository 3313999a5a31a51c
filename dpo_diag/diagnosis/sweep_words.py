"""What a sweep's table calls things, in a terminal and on a page: runs, settings, values, verdicts, ranks."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from dpo_diag.diagnosis.logged import score_label
from dpo_diag.diagnosis.sweep import Sweep
from dpo_diag.diagnosis.sweep_effects import RISE
from dpo_diag.text import records, some

SHORT = {
    "chosen_ppl_seq_mean": "chosen ppl_seq_mean",
    "rejected_ppl_seq_mean": "rejected ppl_seq_mean",
    "chosen_ce": "chosen CE",
    "both_fell": "both fell",
    "reward_accuracy": "reward acc",
}


def short_names(names: Sequence[str]) -> list[str]:
    """Dotted names by their last parts, as few as tell them apart.

    >>> short_names(["loss.beta", "trainer.args.seed", "seed"])
    ['beta', 'args.seed', 'seed']
    """
    out = []
    for name in names:
        parts = name.split(".")
        for n in range(1, len(parts) + 1):
            short = ".".join(parts[-n:])
            if sum(other == short or other.endswith(f".{short}") for other in names) == 1 or short == name:
                break
        out.append(short)
    return out


def short_runs(runs: Sequence[str]) -> list[str]:
    """Run folders from the first part on that is not the same in all."""
    paths = [os.path.abspath(r) for r in runs]
    root = os.path.commonpath([os.path.dirname(p) for p in paths]) if len(paths) > 1 else os.path.dirname(paths[0])
    return [os.path.relpath(p, root) for p in paths]


def cut_alike(names: Sequence[str], cells: int) -> list[str]:
    """Names of at most so many characters, all cut at one place: the end, the start or the middle, the first that keeps
    them apart; as they are where none does.

    >>> cut_alike(["a-long-name-1", "a-long-name-2"], 6), cut_alike(["1-long-name", "2"], 6)
    (['…ame-1', '…ame-2'], ['1-lon…', '2'])
    """
    half = (cells - 1) // 2
    for start, end in ((cells - 1, 0), (0, cells - 1), (cells - 1 - half, half)):
        cut = [n if len(n) <= cells else f"{n[:start]}…{n[len(n) - end :]}" for n in names]
        if len(set(cut)) == len(set(names)):
            return cut
    return list(names)


def shown_runs(runs: Sequence[str]) -> list[str]:
    """`short_runs` for a terminal, where a name has 24 cells."""
    return cut_alike(short_runs(runs), 24)


def outcome_words(column: str) -> str:
    """An outcome's column of a sweep's table in words: `accuracy[held_out]` -> "accuracy, held_out"."""
    if column.endswith("]"):
        name, _, split = column.removesuffix("]").rpartition("[")
        return score_label(name, split)
    return {RISE: "rise of chosen CE", "reward_accuracy": "reward accuracy"}.get(column, column)


def verdict_words(verdict: Mapping[str, Any]) -> str:
    label, harm = str(verdict["label"]), str(verdict["harm"])
    return label if harm in ("none", label) else f"{label}, {harm.replace('_', ' ')}"


def about_ranks(collected: Sweep, named: Callable[[Sequence[str]], list[str]] = short_runs) -> Iterator[str]:
    """How the runs were ranked, and which the best one is told apart from; `named` gives runs their names."""
    by, score = collected.ranking.by, collected.ranking.score
    if not by:
        if collected.ranking.why_not and len(collected.runs) > 1:
            yield f"not ranked: {collected.ranking.why_not}"
        return
    if len(collected.runs) < 2:
        return
    names = {"reward_accuracy": "reward accuracy", "chosen_ce_change": "the least rise of the chosen answers' CE"}
    told = ", then ".join(names.get(column, column) for column in by)
    yield f"ranked by {told}" + (f"; no rank: {collected.ranking.why_not}" if collected.ranking.why_not else "")
    if score is None:
        return
    frame = collected.ranked
    best, *others = named(frame["run"].tolist())
    apart: list[str] = []
    near: list[str] = []
    for name, row in zip(others, records(frame)[1:], strict=True):
        low, high = row["to_best_low"], row["to_best_high"]
        if row["to_best"] is not None and low is not None and high is not None:
            (near if low <= 0 <= high else apart).append(name)
    level = f"{100 * collected.ranking.level:.4g} %"
    if near or apart:
        over = "paired over the same questions" if collected.ranking.paired else "not paired"
        yield (
            f"{best} is best; {over} ({level} interval, not corrected for how many runs) it is "
            + "; ".join([*([f"told apart from {some(apart, 8)}"] if apart else []),
                         *([f"not told apart from {some(near, 8)}"] if near else [])])
        )  # fmt: skip


def legend(collected: Sweep) -> str:
    """What the numbers are: of an evaluation, or of training batches where a run has none."""
    runs = collected.runs
    named = zip(short_runs(list(runs["run"])), runs["batches"], strict=True)
    batches = [name for name, of_training in named if of_training]
    training = "mean of the last logged training rows, no evaluation is recorded"
    if batches and len(batches) == len(runs):
        numbers = training
    else:
        numbers = "last evaluation" + (f" (of {some(batches, 3)}: {training})" if batches else "")
    scores = "; 95 %: of a score over its questions, of its change since its first evaluation as explain gives it; "
    scores += "best @step: of all evaluations"
    return f"loss and perplexities: {numbers}{scores if collected.scores else ''}"
