"""One label, one word about harm, one about confidence; each sentence of the text carries its numbers.

"harmful" needs outputs or a task score that got worse. A fall of the chosen answers' likelihood alone is no harm: after
SFT on those answers some fall is expected under DPO, and behaviour can improve all the same (Razin et al. 2024, arXiv
2410.08847, section on filtering). Without such evidence the word is "cannot_tell", or "none" where nothing that could
be harm was seen.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from dpo_diag.diagnosis.evidence import TASK_KINDS, Measure
from dpo_diag.text import capital, plural

LABELS = {
    "broken_numbers": "the records hold NaN or infinity",
    "dead_run": "the run did not train",
    "not_learning": "the loss did not fall by enough to matter, or not beyond its noise",
    "loss_unclear": "the loss moved less than pairs or batches differ: whether the run learned is open",
    "loss_rose": "the loss rose beyond its noise",
    "likelihood_displacement": "the loss fell while the chosen answers became less likely",
    "sign_depends_on_aggregator": "the loss fell; whether perplexity rose depends on how responses are averaged",
    "late_divergence": "the loss kept falling after the chosen answers had begun to lose likelihood again",
    "reference_mismatch": "the loss fell, but the run did not start at its reference: rewards and margins are no gains",
    "rejected_collapse": "the loss fell because the rejected answers lost far more than it needs, not the chosen ones",
    "saturated": "the loss is at its floor: these pairs have nothing left to teach",
    "healthy": "the loss fell and the chosen answers did not become less likely",
    "within_noise": "the loss fell; whether the chosen answers became less likely is inside the noise of the batches",
    "loss_unknown": "the loss is unknown; only likelihoods can be read",
    "cannot_tell": "too little is recorded to say more than what the loss did",
}

NOT_HEALTHY = {
    "DVG007": "reference_mismatch",
    "DVG002": "rejected_collapse",
    "DVG010": "saturated",
    "DVG009": "not_learning",
}
"""Checks that speak of the whole run: chosen kept its likelihood, and still "healthy" would be the wrong headline."""
SUSPICIOUS = frozenset(
    {
        "likelihood_displacement", "sign_depends_on_aggregator", "late_divergence", "loss_unknown", "within_noise",
        "reference_mismatch", "rejected_collapse", "loss_unclear",
    }
)  # fmt: skip
"""Labels of what could be harm: without outputs or a score the word is "cannot_tell"."""


@dataclass(frozen=True)
class Facts:
    """What a verdict looks at; None where the run does not tell. Signs are +1, 0 (not distinguishable from 0), -1.

    `perplexity`: sign of dlog of each chosen perplexity; `evidence`: measures with their
    direction.
    """

    loss: int | None
    perplexity: dict[str, int]
    chosen: int | None
    turned: bool = False
    evidence: list[tuple[Measure, str]] = field(default_factory=list)
    speaking: frozenset[str] = frozenset()
    n_pairs: int = 0
    has_intervals: bool = False
    only_means: bool = False
    chosen_lower_in_noise: bool = False
    """The logged mean of chosen is lower at the end, but not beyond what batches differ by."""


def label(facts: Facts) -> str:
    """The label that fits best; the first that applies, from what makes others meaningless to what is subtle."""
    if "DVG008" in facts.speaking:
        return "dead_run"
    if facts.loss is None:
        if not facts.perplexity and facts.chosen is None:
            return "broken_numbers" if "DVG011" in facts.speaking else "cannot_tell"
        return "loss_unknown"
    if facts.loss >= 0:
        if "DVG010" in facts.speaking:
            return "saturated"
        if facts.loss > 0 and facts.speaking & {"DVG020", "DVG022"}:
            return "loss_rose"
        return "not_learning" if facts.loss > 0 or "DVG009" in facts.speaking else "loss_unclear"
    signs = set(facts.perplexity.values())
    if {1, -1} <= signs:
        return "sign_depends_on_aggregator"
    if 1 in signs or (not signs and facts.chosen == -1):
        return "likelihood_displacement"
    if facts.turned:
        return "late_divergence"
    if not signs and "DVG001" in facts.speaking:
        # Against the reference, or on another split: chosen may have risen between these two steps, or not be logged.
        return "likelihood_displacement"
    if not signs and facts.chosen_lower_in_noise:
        return "within_noise"
    for code, name in NOT_HEALTHY.items():
        if code in facts.speaking:
            return name
    return "healthy" if signs or facts.chosen is not None else "cannot_tell"


@dataclass(frozen=True)
class Verdict:
    """The label with its title, the word about harm, how sure, the text, and the evidence that decided about harm."""

    label: str
    harm: str
    confidence: str
    text: str
    because: tuple[tuple[Measure, str], ...] = ()

    def document(self) -> dict[str, Any]:
        """As the explanation holds it."""
        return {
            "label": self.label, "title": LABELS[self.label], "harm": self.harm, "confidence": self.confidence,
            "text": self.text,
            "because": [
                {"what": m.what, "split": m.split, "from": m.before, "to": m.after, "delta": m.change.value,
                 "interval": m.change.bounds, "p": m.p, "n": m.change.n or None, "method": m.method,
                 "direction": direction}
                for m, direction in self.because
            ],
        }  # fmt: skip


def decide(facts: Facts) -> Verdict:
    """The verdict; see the module's docstring."""
    name = label(facts)
    worse, unclear = ([e for e in facts.evidence if e[1] == d] for d in ("worse", "unclear"))
    fine = [e for e in facts.evidence if e[1] in ("no_worse", "better")]
    chosen_lost = facts.chosen == -1 or 1 in facts.perplexity.values()
    suspicious = name in SUSPICIOUS or (name in ("loss_rose", "saturated") and chosen_lost)
    because: list[tuple[Measure, str]] = []
    if worse:
        harm, because = "harmful", worse
    elif any(m.kind in (*TASK_KINDS, "review") for m, _ in fine) and not any(m.kind in TASK_KINDS for m, _ in unclear):
        harm, because = ("benign" if suspicious else "none"), fine
    elif suspicious or name in ("broken_numbers", "cannot_tell"):
        harm, because = "cannot_tell", unclear
    else:
        harm = "none"
    text = f"{capital(LABELS[name])}. {_harm_text(harm, [m for m, _ in because], bool(facts.evidence))}"
    return Verdict(name, harm, _confidence(facts, harm, name), text, tuple(because))


def _harm_text(harm: str, because: list[Measure], measured: bool) -> str:
    cited = _cite(because) if because else ""
    if harm == "harmful":
        return f"It is harm: {cited}."
    if harm == "benign":
        return f"No harm was measured: {cited}."
    if harm == "none":
        return f"Nothing got worse: {cited}." if because else "Nothing points to harm."
    if because:
        return f"Whether that is harm is not known: {cited}."
    if measured:
        return "Whether that is harm is not known from what was measured."
    return "Likelihoods alone do not say whether that is harm: no outputs and no task score are recorded."


def _cite(because: list[Measure]) -> str:
    """The task measure with most answers behind it, paired ones first; and how many more say the same."""
    first = min(because, key=lambda m: (m.kind not in TASK_KINDS, m.p is None, -m.change.n))
    more = len(because) - 1
    return f"{first}, and {plural(more, 'more measure')} likewise" if more else str(first)


def _confidence(facts: Facts, harm: str, name: str) -> str:
    if name == "cannot_tell" or facts.only_means or not facts.has_intervals:
        return "low" if harm in ("cannot_tell", "none") else "medium"
    if harm == "cannot_tell":
        return "medium" if facts.n_pairs >= 30 else "low"
    return "high" if facts.n_pairs >= 30 else "medium"
