"""Where the probability goes, by the evaluations of a set against its first one: displacement, entropy collapse."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dpo_diag.thresholds import Thresholds
from dpo_diag.training.guards.watch import LATE, WATCHES, Evaluation, Said, Watch


class Displacement(Watch):
    """The chosen answers have become less likely than a bound allows."""

    code, actions = "displacement", LATE

    def evaluation(self, evaluation: Evaluation) -> Said | None:
        """See `Watch.evaluation`."""
        rise, bound = evaluation.change("ce/chosen"), self.limits["guards.displacement_ce"]
        if not rise > bound:
            return None
        now = evaluation.values["ce/chosen"]
        return Said(
            f"chosen's cross-entropy on {evaluation.split} is {now:.4g} nats per token at step {evaluation.step}, "
            f"{rise:.3g} above the first evaluation; the bound is {bound:g}",
            {"split": evaluation.split, "ce_chosen": now, "rise": rise, "bound": bound},
        )


class BothFall(Watch):
    """Both sides have become less likely while the margin grew, in several evaluations in a row."""

    code, actions = "both_fall", LATE

    def __init__(self, limits: Thresholds) -> None:
        super().__init__(limits)
        self._in_a_row: dict[str, int] = {}

    def evaluation(self, evaluation: Evaluation) -> Said | None:
        """See `Watch.evaluation`."""
        chosen, rejected = evaluation.change("ce/chosen"), evaluation.change("ce/rejected")
        margin, least = evaluation.change("rewards/margins"), self.limits["guards.both_fall_ce"]
        speaks = chosen > least and rejected > least and margin > 0
        n = self._in_a_row[evaluation.split] = self._in_a_row.get(evaluation.split, 0) + 1 if speaks else 0
        if n < self.limits["guards.both_fall_evaluations"]:
            return None
        return Said(
            f"both sides of {evaluation.split} are less likely at step {evaluation.step} than at the first evaluation, "
            f"chosen by {chosen:.3g} and rejected by {rejected:.3g} nats per token, while the margin grew {margin:.3g}",
            {"split": evaluation.split, "chosen": chosen, "rejected": rejected, "margin": margin, "evaluations": n},
        )

    def memory(self) -> dict[str, Any]:
        """See `Watch.memory`."""
        return {"splits": [*self._in_a_row], "n": [*self._in_a_row.values()]}

    def recall(self, memory: Mapping[str, Any]) -> None:
        """See `Watch.recall`."""
        splits = [str(s) for s in memory.get("splits", ())]
        self._in_a_row = dict(zip(splits, (int(n) for n in memory.get("n", ())), strict=True))


class EntropyCollapse(Watch):
    """The next-token entropy on a set's responses has fallen to a share of what it was."""

    code, actions = "entropy_collapse", LATE

    def evaluation(self, evaluation: Evaluation) -> Said | None:
        """See `Watch.evaluation`."""
        known = [name for name in ("entropy/chosen", "entropy/response", "entropy") if name in evaluation.values]
        if not known:
            return None
        now, first = evaluation.values[known[0]], evaluation.first.get(known[0], 0.0)
        share = self.limits["guards.entropy_share"]
        if not now < share * first:
            return None
        return Said(
            f"{known[0]} on {evaluation.split} is {now:.4g} nats at step {evaluation.step}, {now / first:.0%} of the "
            f"{first:.4g} of the first evaluation; the bound is {share:.0%}",
            {"split": evaluation.split, "entropy": now, "first": first, "bound": share * first},
        )


for watch in (Displacement, BothFall, EntropyCollapse):
    WATCHES.add(watch.code, watch)
