"""DVG011: NaN or infinity in a metric or a sum, often behind a loss that still looks finite."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd

from dpo_diag.diagnosis.checks import register
from dpo_diag.diagnosis.checks.shared.advice import RATE_HIGH, Advice, Condition, has
from dpo_diag.diagnosis.checks.shared.check import LISTED, Check, Missing, Outcome, silent, speaks
from dpo_diag.diagnosis.checks.shared.context import CheckContext
from dpo_diag.diagnosis.checks.shared.example import Example
from dpo_diag.records.metric_table import metric_of
from dpo_diag.text import some
from dpo_diag.thresholds import Thresholds


def non_finite(ctx: CheckContext, t: Thresholds) -> Outcome:
    """Looks at every value of history and at every summed log-prob that was recorded."""
    history, sums = ctx.logged.rows, _recorded_sums(ctx)
    if history.empty and sums.empty:
        raise Missing("the run holds neither history nor pairs")
    bad = history[~np.isfinite(history["value"])]
    broken = sums[~np.isfinite(sums["sum_logp"])]
    if bad.empty and broken.empty:
        return silent("every recorded value is finite", values=len(history), sums=len(sums))
    steps = sorted({int(s) for s in [*bad["step"], *broken["step"]]})
    loss = history[(history["name"] == "loss") & np.isfinite(history["value"])]
    behind = sorted({int(s) for s in loss.merge(bad[["split", "step"]], on=["split", "step"])["step"]})
    last = int(max(frame["step"].max() for frame in (history, sums) if len(frame)))
    # What a source keeps under a name of its own, nothing here rests on.
    known = bad["step"][[metric_of(str(name)) is not None for name in bad["name"]]]
    read = {int(s) for s in [*known, *broken["step"]]}
    what = some(sorted({str(n) for n in bad["name"]})) or "sum_logp"
    word = ctx.info.step_word
    where = f"{word} {steps[0]}" if len(steps) == 1 else f"{len(steps)} {word}s ({steps[0]} to {steps[-1]})"
    return speaks(
        f"NaN or infinity in {what} at {where}"
        + (f", behind a finite loss at {len(behind)} of them" if behind else ""),
        severity="error" if last in read else "warning",
        steps=steps[:LISTED],
        steps_with_finite_loss=behind[:LISTED],
        metrics={f"{s}:{n}": int(c) for (s, n), c in bad.groupby(["split", "name"], observed=True).size().items()},
        pairs=sorted(set(broken["pair_id"]))[:LISTED],
        broken_sums=len(broken),
        last_step=last,
        **_before(history, steps[0]),
    )


def _before(history: pd.DataFrame, first: int) -> dict[str, Any]:
    """What the last training row before the first bad step holds: {} where none is there, or its loss is not finite."""
    earlier = history[(history["step"] < first) & np.isfinite(history["value"])]
    rows = earlier[earlier["split"].isin(set(earlier.loc[earlier["name"] == "learning_rate", "split"]) | {"train"})]
    losses = rows[rows["name"] == "loss"]
    if losses.empty:
        return {}
    values = rows[rows["step"] == losses["step"].max()].drop_duplicates("name", keep="last")
    found = values.set_index("name")["value"]
    return {"finite_before": True} | {
        f"{name}_before": float(found[name]) for name in ("loss", "grad_norm", "learning_rate") if name in found
    }


def _recorded_sums(ctx: CheckContext) -> pd.DataFrame:
    """step, pair_id, sum_logp of the policy's pair rows; a null (not recorded) is left out, NaN stays."""
    table = ctx.run.arrow("pairs", ["step", "pair_id", "sum_logp"], roles=["policy"])
    recorded: pd.DataFrame = table.filter(table.column("sum_logp").is_valid()).to_pandas()
    return ctx.window.of(recorded)


FINITE_BEFORE = has("DVG011", "finite_before")
RATE_IS_LIKELY = Condition(
    "the loss was finite before, and the learning rate is {rate_high} or more",
    lambda s, t: FINITE_BEFORE.holds(s, t) and RATE_HIGH.holds(s, t),
)
RATE_IS_NOT = Condition(
    "the loss was not finite before, or the learning rate is not known to be {rate_high} or more",
    lambda s, t: not RATE_IS_LIKELY.holds(s, t),
)
PAIRS_ADVICE = "find the pairs behind it: empty or fully masked responses"

register(
    Check(
        code="DVG011",
        title="NaN or infinity",
        says="A logged metric or a pair's summed log-prob is NaN or infinite. It is an error where the last step has "
        "one.",
        why="Transformers leaves NaN out of the loss that it logs, so the curve looks whole while the gradients of "
        "those batches are not. One empty or fully masked response is enough.",
        needs="history or pairs",
        severity="warning",
        evidence={
            "values": "silent: values of history that were looked at",
            "sums": "silent: summed log-probs that were looked at",
            "steps": "steps with a value that is not finite",
            "steps_with_finite_loss": "those of them whose logged loss is finite",
            "metrics": "split:metric -> rows that are not finite",
            "pairs": "pair_ids with a sum that is not finite",
            "broken_sums": "such sums, all steps together",
            "last_step": "last step of the run",
            "finite_before": "the training's loss was finite before the first of these steps",
            "loss_before": "the last loss of the training before them",
            "grad_norm_before": "the gradient's norm beside it",
            "learning_rate_before": "the learning rate beside it",
        },
        false_alarms=("a metric that is undefined at a step (a correlation of constants), not the training's",),
        bad=Example(
            "rewards/chosen is NaN in one row whose loss is finite.",
            train={"loss": [0.69, 0.68, 0.67, 0.66, 0.65], "rewards/chosen": [0.1, 0.2, math.nan, 0.3, 0.4]},
        ),
        good=Example(
            "Every value is finite.",
            train={"loss": [0.69, 0.68, 0.67, 0.66, 0.65], "rewards/chosen": [0.1, 0.2, 0.2, 0.3, 0.4]},
        ),
        try_next=(
            Advice("lower the learning rate: the numbers were finite before it moved the weights", (RATE_IS_LIKELY,)),
            Advice(PAIRS_ADVICE, (RATE_IS_NOT,)),
            Advice("train in bfloat16 or float32: float16 overflows", ()),
            Advice("lower the learning rate", (RATE_HIGH, RATE_IS_NOT)),
            Advice(f"where a lower learning rate does not help, {PAIRS_ADVICE}", (RATE_IS_LIKELY,)),
        ),
        sources=("transformers filters NaN out of the logged loss",),
        since="0.1.0",
        function=non_finite,
    )
)
