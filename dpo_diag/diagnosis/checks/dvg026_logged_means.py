"""DVG026: the means that a trainer logs are not those of its pairs: unweighted batches, examples counted twice."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from dpo_diag.diagnosis.checks import register
from dpo_diag.diagnosis.checks.shared.advice import SOUND, Advice, has
from dpo_diag.diagnosis.checks.shared.check import WORST, Check, Missing, Outcome, silent, speaks
from dpo_diag.diagnosis.checks.shared.context import CheckContext
from dpo_diag.diagnosis.checks.shared.example import SIGMOID, Example
from dpo_diag.diagnosis.scheduled import loss_at
from dpo_diag.records.metric_table import TRAINERS_OWN, measure, pair_sums
from dpo_diag.text import number, plural, signed
from dpo_diag.thresholds import Thresholds

OF_PAIRS = ("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies", "loss")
"""Means that pair records give too, where loss and reference are known; `logps` needs neither."""


@dataclass(frozen=True)
class Compared:
    """One mean at one step: as the trainer averages it, and over all examples."""

    name: str
    split: str
    step: int
    logged: float
    exact: float

    @property
    def share(self) -> float:
        """The difference, as a share of the value or of 1, whichever is larger."""
        return abs(self.logged - self.exact) / max(1.0, abs(self.exact))

    def evidence(self) -> dict[str, Any]:
        """As the check's evidence names it."""
        return vars(self) | {"difference": self.logged - self.exact}


def logged_means(ctx: CheckContext, t: Thresholds) -> Outcome:
    """A trainer's own means beside the set's, else the logged means beside those of the pair records."""
    beside, from_pairs = list(_beside(ctx)), list(_from_pairs(ctx))
    compared = [*beside, *from_pairs]
    measured = (ctx.logged.rows["name"] == "loss_exact").any()
    if not compared and not measured:
        raise Missing("no logged mean stands beside the pairs that it is a mean of")
    worst: dict[str, Compared] = {}
    for one in sorted(compared, key=lambda c: -c.share):
        worst.setdefault(one.name, one)
    wrong = [one for one in worst.values() if one.share > t["logged_means_share"]]
    evidence: dict[str, Any] = {"compared": len(compared)}
    if not wrong:
        return silent("the trainer's means are the exact ones" if compared else
                      "no mean of the trainer's differs from the exact one", **evidence)  # fmt: skip
    first = wrong[0]
    evidence |= {"worst": [one.evidence() for one in wrong[:WORST]], "metrics": len(wrong)}
    others = (
        f" ({plural(len(wrong) - 1, 'other metric differs', 'other metrics differ')} too)" if len(wrong) > 1 else ""
    )
    trainers = first not in beside
    held = "the trainer's means" if trainers else "the exact means"
    return speaks(
        f"{first.name} of {first.split} at step {first.step} is {number(first.logged)} as the trainer averages it, and "
        f"{number(first.exact)} over all examples: off by {signed(first.logged - first.exact)}{others}; history holds "
        f"{held}",
        **evidence,
        trainers_means=trainers,
    )


def _beside(ctx: CheckContext) -> Iterator[Compared]:
    rows = ctx.logged.rows
    named = rows[rows["name"].str.startswith(TRAINERS_OWN)]
    if named.empty:
        return
    own = named.assign(name=named["name"].str.removeprefix(TRAINERS_OWN))
    # A mean logit is no quantity that anything is judged by.
    own = own[~own["name"].str.startswith("logits/")]
    both = own.merge(rows, on=["step", "split", "name"], suffixes=("_own", ""))
    yield from map(Compared, *(both[c].tolist() for c in ("name", "split", "step", "value_own", "value")))


def _from_pairs(ctx: CheckContext) -> Iterator[Compared]:
    """The last step of each fixed set at which its means are logged; sets that hold a pair twice are left out."""
    info, pairs = ctx.info, ctx.pairs.rows
    loss = info.loss if info.loss is not None and info.loss.ld_alpha is None else None
    names = [*(OF_PAIRS if loss is not None and info.reference.step is None else ()), *(
        ("logps",) if info.logps == "sum" else ())]  # fmt: skip
    for split, rows in pairs.groupby("split", observed=True):
        about = info.splits.get(str(split))
        if info.role(str(split)) == "train" or (about is not None and about.n_duplicates):
            continue
        logged = ctx.logged.rows[ctx.logged.rows["split"] == split]
        steps = set(rows["step"]) & set(logged["step"])
        if not steps:
            continue
        last = max(steps)
        at = rows[rows["step"] == last]
        known = at[at["ref_sum_logp"].notna()]
        reference = known.assign(sum_logp=known["ref_sum_logp"]) if len(known) == len(at) else None
        sums = pair_sums(at, reference)
        spec = None if loss is None else loss_at(ctx.run, loss, int(last), str(split))
        means = measure(sums, spec, names) if "n_tokens" in sums.policy else {}
        values = logged.loc[logged["step"] == last].set_index("name")["value"]
        for name in values.index.intersection(list(means)):
            yield Compared(str(name), str(split), int(last), float(values[name]), means[str(name)].value)


register(
    Check(
        code="DVG026",
        title="logged means are not the set's",
        says="A mean that the trainer logs (rewards, log-probs, accuracy, loss) differs by more than 1 % from the same "
        "mean over the pairs that were measured.",
        why="A trainer that averages batches unweighted lets the pairs of a short last batch count more, and with "
        "several processes the examples that fill that batch count twice. Two runs that differ in batch size or "
        "processes alone then log other rewards for the same model, and small margins may change their sign.",
        needs="a run of this project's trainers, or logged means beside pair records of a fixed set",
        severity="info",
        evidence={
            "compared": "means that were compared",
            "metrics": "metrics that differ",
            "trainers_means": "whether history holds the trainer's means, not the exact ones",
            "worst": "the largest difference of each metric: name, split, step, logged by the trainer, exact, "
            "difference",
        },
        false_alarms=("pairs that were recorded only in part, where the mean is over all",),
        bad=Example(
            "Five pairs in batches of two: the last pair counts as much as two others.",
            fixed={"rewards/margins": [-0.2550], "trl/rewards/margins": [-0.2292], "loss_exact": [0.8289]},
            run={"loss": SIGMOID},
        ),
        good=Example(
            "The batch size divides the set: the trainer's means are those of the pairs, and are not logged twice.",
            fixed={"rewards/margins": [-0.2550], "loss_exact": [0.8289]},
            run={"loss": SIGMOID},
        ),
        try_next=(
            Advice(
                "trust the means of the pair records; or evaluate in one process, with a batch that divides the set",
                (SOUND, has("DVG026", "trainers_means")),
            ),
        ),
        sources=("huggingface/trl issue 7010",),
        since="0.2.0",
        function=logged_means,
        reads=("logged_means_share",),
    )
)
