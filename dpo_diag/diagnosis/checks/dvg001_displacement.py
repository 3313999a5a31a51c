"""DVG001: the chosen responses became less likely while the loss fell."""

from __future__ import annotations

from dpo_diag.diagnosis.checks import register
from dpo_diag.diagnosis.checks.shared.advice import (
    LOSS_TAUGHT,
    LOWER_RATE,
    NOT_MEASURED,
    RAISE_BETA,
    SFT_TERM,
    SOUND,
    Advice,
)
from dpo_diag.diagnosis.checks.shared.check import Check, Outcome, cannot_tell, inside_noise, silent, speaks
from dpo_diag.diagnosis.checks.shared.chosen import chosen_changes
from dpo_diag.diagnosis.checks.shared.chosen_change import BEST, EVIDENCE, READS
from dpo_diag.diagnosis.checks.shared.context import CheckContext
from dpo_diag.diagnosis.checks.shared.example import Example, noise
from dpo_diag.diagnosis.checks.shared.scores import caveat
from dpo_diag.text import percent
from dpo_diag.thresholds import Thresholds


def displacement(ctx: CheckContext, t: Thresholds) -> Outcome:
    """Speaks on a material fall of chosen, beyond its noise, over a window in which the loss fell or is not known."""
    changes = chosen_changes(ctx, t)
    material = [c for c in changes if c.material(t)]
    for fall in material:
        if fall.beyond_noise and fall.loss_fell is not False:
            both = fall.more.get("quadrants", {}).get("both_fell")
            loss = "while the loss fell" if fall.loss_fell else "(whether the loss fell is not recorded)"
            since = " over these steps" if fall.window == BEST else ""
            share = f"; both sides fell in {percent(both)} of the pairs{since}" if both is not None else ""
            return speaks(
                f"{fall.in_words} ({fall.stretch}) {loss}{share}{caveat(ctx, t)}",
                **fall.evidence(t),
                all_windows=[c.evidence(t) for c in changes],
            )
    for change in material:
        if change.beyond_noise:
            return silent(
                f"{change.in_words}, but the loss did not fall",
                **change.evidence(t),
            )
    for change in material:
        if change.loss_fell is not False:
            of_pairs = change.source == "pairs"
            noise = inside_noise(change.delta, change.p) if of_pairs else inside_noise(change.delta, units="")
            return cannot_tell(f"{change.in_words} {noise}", **change.evidence(t))
    return silent("chosen did not fall materially", **changes[0].evidence(t))


_REFERENCE = -20.0 + noise(40), -22.0 + noise(40, seed=1)

register(
    Check(
        code="DVG001",
        title="likelihood displacement",
        says="The chosen responses became less likely while the loss fell: against the reference, or from the step "
        "where they were likeliest. The loss sees only the difference of the two sides, so it can fall while both do.",
        why="Probability that leaves the chosen answers goes somewhere: to other good wordings, to the model's own "
        "greedy answer, or to garbage. Perplexity of the chosen answers then rises although the loss falls. It is "
        "expected to some degree after SFT on the chosen answers, and is no harm by itself.",
        needs="pairs of a fixed set at two steps; or rewards/chosen, logps/chosen or ce/chosen",
        severity="warning",
        evidence={**EVIDENCE, "all_windows": "the same for every window that was looked at"},
        false_alarms=(
            "chosen fell because the model now prefers another right wording: read outputs and task scores (DVG018)",
            "a reference that is not the starting model (DVG007) shifts every log-ratio",
        ),
        bad=Example(
            "Chosen falls by 2 nats, rejected by 8: the margin grows by 6 nats, the loss falls from 0.693 to 0.44.",
            pairs={
                0: _REFERENCE,
                10: (_REFERENCE[0] - 2 + noise(40, 0.1, 2), _REFERENCE[1] - 8 + noise(40, 0.1, 3)),
            },
            reference=_REFERENCE,
        ),
        good=Example(
            "The same margin, but chosen rises by 1 nat.",
            pairs={0: _REFERENCE, 10: (_REFERENCE[0] + 1, _REFERENCE[1] - 5)},
            reference=_REFERENCE,
        ),
        try_next=(
            Advice(
                "look at what the model now writes before you call it harm (dpo-generate, dpo-diag outputs)",
                (SOUND, NOT_MEASURED),
            ),
            SFT_TERM,
            RAISE_BETA,
            LOWER_RATE,
            Advice("drop pairs whose chosen and rejected are nearly the same (high ln-CHES)", LOSS_TAUGHT),
        ),
        sources=(
            "Razin et al. 2024, arXiv 2410.08847 (likelihood displacement)",
            "h2oai/h2o-llmstudio issue 594",
            "Pal et al. 2024, arXiv 2402.13228 (DPOP)",
        ),
        since="0.1.0",
        function=displacement,
        reads=READS,
    )
)
