"""What an import decides, once, about the training behind a log; run.json records it, and no reader asks again.

Who wrote the log, its loss and beta, whether its log-probs are sums or means, whether there is a reference. What the
user says comes first, then what the source says (`Facts`), then what its numbers show.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from dpo_diag.importers.derived import BetaCheck, check_beta, derive, margins, nll_weight_at_start
from dpo_diag.importers.merged import History, Key
from dpo_diag.importers.parsed import Facts, Options, Parsed
from dpo_diag.importers.trainers import guess_trainer, logps_reduction
from dpo_diag.losses import LOSSES, NAMED, LossSpec, has_no_reference
from dpo_diag.records.inferred import NAMES, Inferred, infer
from dpo_diag.records.run_info import Reduction

INFERRED_FROM = 20_000
"""Steps of a split from which beta and the like are inferred, evenly spaced: a long log's means fill the memory."""


@dataclass(frozen=True)
class Decisions:
    """The training, as far as the source shows it; see RunInfo for the fields of the same names.

    Attributes:
        facts: what the sources say, all together.
        beta: of the loss, None where neither user nor source nor a fixed set's reference gives it.
        check: whether the reference derived with beta is constant.
        reference_free: whether the rewards hold no reference.
        said: what gave loss, beta and reference_free: an option, a file and its line, or the numbers.
        reduction: what the log's own log-probs are; `logps_why` is the reason.
        derived: columns that follow from logged ones.
    """

    trainer: str
    trainer_version: str | None
    facts: Facts
    loss: LossSpec | None
    loss_reason: str | None
    loss_names: tuple[str, ...]
    beta: float | None
    check: BetaCheck | None
    reference_free: bool
    said: dict[str, str]
    reduction: Reduction | None
    logps_why: str
    nll_weight: float | None
    derived: dict[Key, pd.DataFrame]
    inferred: Inferred

    def run_fields(self, logps: Reduction | None) -> dict[str, Any]:
        """The fields of run.json about the loss."""
        return {
            "loss": self.loss,
            "loss_reason": self.loss_reason,
            "loss_names": self.loss_names if self.loss is None else (),
            "loss_like": self.inferred.loss_like if self.loss is None else None,
            "beta": self.beta or self.inferred.beta,
            "logps": logps,
            "reference_free": self.reference_free,
        }


def decide(sources: list[Parsed], history: History, options: Options) -> Decisions:
    """Everything that is decided about the training of these sources."""
    facts = Facts()
    for source in sources:
        facts.merge(source.facts)
    trainer, version = _trainer(sources, options)
    if any(name.startswith("log_odds") for _, name in history.metrics()):
        facts.take("loss", ("orpo",), "the log holds ORPO's log odds")
    names = options.loss or facts.loss
    beta = options.beta if options.beta is not None else facts.beta
    check = check_beta(history, beta)
    if beta is None and check is not None and check.constant:
        beta = check.beta
        facts.take("beta", beta, f"inferred: the reference is constant over the evaluations of {check.split}")
    nll_weight = nll_weight_at_start(history, facts.nll_weight)
    of_margins = margins(history)
    inferred = infer(_means(history, of_margins, sources), beta)
    free_by = _reference_free_by(names, options, facts, inferred)
    loss, reason = _loss(names, beta, options, facts, free_by)
    if not names and inferred.loss_like in ("hinge", "ipo"):
        reason = (
            f"the source does not name its loss; loss and margins are those of {inferred.loss_like}, inferred from the "
            "numbers (--loss NAME says which it is)"
        )
    reduction = logps_reduction(trainer, version, names, options.logps, _size_of_logps(history), free_by is not None)
    derived = of_margins | derive(history, None if free_by else beta, reduction.value, nll_weight)
    by_option = {k: f"--{k.replace('_', '-')}" for k in ("loss", "beta", "label_smoothing") if getattr(options, k)}
    said = facts.stated_in | by_option | ({"reference_free": free_by} if free_by else {})
    return Decisions(
        trainer, version, facts, loss, reason, names, beta, check, free_by is not None, said, reduction.value,
        reduction.why, nll_weight, derived, inferred,
    )  # fmt: skip


def _reference_free_by(names: tuple[str, ...], options: Options, facts: Facts, inferred: Inferred) -> str | None:
    """What says that the rewards hold no reference; None where they do, or nothing says so."""
    if options.reference_free:
        return "--reference-free"
    if facts.reference_free:
        return facts.stated_in["reference_free"]
    if has_no_reference(names):
        return f"the loss is {', '.join(names)}"
    return inferred.free_by


def _trainer(sources: list[Parsed], options: Options) -> tuple[str, str | None]:
    if options.trainer:
        return options.trainer, options.trainer_version
    guesses = [(s.trainer, s.version) for s in sources] + [guess_trainer(s.store, s.files[0].name) for s in sources]
    named = [guess for guess in guesses if guess[0] != "unknown"]
    if not named:
        return "unknown", options.trainer_version
    # A trainer's own log beside a Hugging Face state names the trainer more exactly than TRL's keys do.
    trainer, version = next((guess for guess in named if guess[0] != "trl"), named[0])
    return trainer, options.trainer_version or version


def _loss(
    names: tuple[str, ...], beta: float | None, options: Options, facts: Facts, free_by: str | None
) -> tuple[LossSpec | None, str | None]:
    """(the loss, why it is None)."""
    if not names:
        return None, "the source does not name its loss (--loss sigmoid --beta 0.1)"
    if free_by and not has_no_reference(names):
        return None, f"{', '.join(names)} without a reference has no form over log-ratios ({free_by})"
    smoothing = options.label_smoothing if options.label_smoothing is not None else facts.label_smoothing or 0.0
    types = tuple("cdpo" if name == "sigmoid" and smoothing > 0 else name for name in names)
    if any(name in NAMED or name not in LOSSES for name in types):
        return None, f"no per-pair form of the loss {', '.join(types)} is known here"
    if beta is None:
        return None, "beta is not known (--beta 0.1)"
    weights = options.loss_weights
    if not weights and facts.nll_weight and types != ("sft",) and len(types) == 1:
        types, weights = (*types, "sft"), (1.0, facts.nll_weight)
    # alpha_divergence is left out: no source names its coefficient.
    divergence = facts.f_divergence_type if facts.f_divergence_type in ("forward_kl", "js_divergence") else "reverse_kl"
    spec = LossSpec(types=types, weights=weights, beta=beta, label_smoothing=smoothing, f_divergence_type=divergence)
    return spec, None


def _size_of_logps(history: History) -> float | None:
    """Median |logps/chosen| of the split that has most of it, in nats."""
    columns = [c for s in history.splits() if (c := history.column(s, "logps/chosen")) is not None]
    values = [c["value"][np.isfinite(c["value"])].abs() for c in columns]
    longest = max(values, key=len, default=pd.Series(dtype=float))
    return float(longest.median()) if len(longest) else None


def _means(history: History, derived: dict[Key, pd.DataFrame], sources: list[Parsed]) -> pd.DataFrame:
    """The history rows from which `records.inferred` infers: step, split, name, value."""
    keys = [key for key in (*history.metrics(), *derived) if key[1] in NAMES]

    def columns(split: str) -> Iterator[tuple[str, pd.DataFrame]]:
        """One at a time: a long log's columns do not fit into memory together."""
        for key in keys:
            if key[0] == split:
                column = derived[key] if key in derived else history.column(*key)
                if column is not None:
                    yield key[1], column

    frames = []
    for split in sorted({split for split, _ in keys}):
        steps = max((column["step"] for _, column in columns(split)), key=len)
        chosen = steps[:: -(-len(steps) // INFERRED_FROM)]
        frames += [c[c["step"].isin(chosen)].assign(split=split, name=name) for name, c in columns(split)]
    frames += [s.history for s in sources if s.history is not None]
    names = ["step", "split", "name", "value"]
    return pd.concat([f[names] for f in frames], ignore_index=True) if frames else pd.DataFrame(columns=names)
