"""The loss at a step, where a schedule moved its coefficients over the training."""

from __future__ import annotations

from dpo_diag.diagnosis.pair_rows import REFERENCE, Step
from dpo_diag.losses import LossSpec
from dpo_diag.records import Run
from dpo_diag.records.metric_table import COEFFICIENT


def loss_at(run: Run, spec: LossSpec, step: Step, split: str | None) -> LossSpec:
    """The run's loss with the coefficients that it had at a step: those that history holds of the split
    (`coefficient/NAME`), of the last step up to this one; as run.json has them before the first, and at the reference.
    """
    if step == REFERENCE:
        return spec
    history = run.history
    own = history.loc[(history["split"] == split) & (history["step"] <= int(step))]
    for name, values in own.loc[own["name"].astype(str).str.startswith(COEFFICIENT)].groupby("name", observed=True):
        last = values.sort_values("step")["value"].iloc[-1]
        spec = spec.with_value(str(name).removeprefix(COEFFICIENT), float(last))
    return spec


def moved_coefficients(run: Run) -> list[str]:
    """Coefficients of which history holds more than one value, by name."""
    names = run.history["name"].astype(str)
    rows = run.history.loc[names.str.startswith(COEFFICIENT)]
    values = rows.groupby(names, observed=True)["value"].nunique()
    return [str(name).removeprefix(COEFFICIENT) for name in values.index[values > 1]]
