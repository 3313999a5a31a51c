"""Looking values up in an imported run."""

from __future__ import annotations

from dpo_diag import Run


def value(run: Run, name: str, step: int, split: str = "train") -> float:
    """One value of the history."""
    rows = run.history
    found = rows.loc[(rows["name"] == name) & (rows["step"] == step) & (rows["split"] == split), "value"]
    assert len(found) == 1, f"{name} at {step} of {split}: {len(found)} rows"
    return float(found.iloc[0])


def steps(run: Run, name: str, split: str = "train") -> list[int]:
    """The steps at which a metric was logged."""
    rows = run.history
    return [int(s) for s in rows.loc[(rows["name"] == name) & (rows["split"] == split), "step"]]
