"""What was set in each of several runs, as columns with types."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from dpo_diag.diagnosis.sweep_jobs import overrides
from dpo_diag.documents import parse_yaml
from dpo_diag.frames.run import Run

Value = bool | int | float | str | None


def settings(runs: Sequence[Run]) -> pd.DataFrame:
    """See `frames.Runs.settings`."""
    columns = {name: typed([of[name] for of in map(_said, runs)]) for name in _said(runs[0])}
    # Empty columns keep the type that they have where something is said.
    frame = pd.DataFrame(columns).astype({"run": "category", "beta": "float64", "lr": "float64", "seed": "Int64"})
    given = [overrides(run.path) for run in runs]
    for name in dict.fromkeys(name for of in given for name in of):
        values = [parsed(of.get(name)) for of in given]
        known = {str(frame[c].astype("object").tolist()) for c in frame}
        if len(set(map(str, values))) > 1 and str(values) not in known:
            frame[name] = typed(values)
    return frame


def _said(run: Run) -> dict[str, Value]:
    info = run.info
    return {
        "run": run.name,
        "kind": info.kind,
        "status": info.status,
        "loss_type": "+".join(info.loss.types if info.loss is not None else info.loss_names) or None,
        "beta": info.beta,
        "lr": info.training.learning_rate,
        "seed": info.seed if info.seed is not None else info.training.seed,
    }


def parsed(text: str | None) -> Value:
    """An override's value as Hydra reads it: a number, a truth value, else text; YAML alone takes 1e-4 for text.

    >>> [parsed(text) for text in ("1e-4", "8", "true", "[a,b]", "null", None)]
    [0.0001, 8, True, '[a,b]', None, None]
    """
    if text is None:
        return None
    try:
        value = parse_yaml(text)
        value = float(value) if isinstance(value, str) else value
    except ValueError:
        return text
    return value if value is None or isinstance(value, (bool, int, float)) else text


def typed(values: Sequence[Value]) -> pd.Series:
    """Truth values as `boolean`, whole numbers as `Int64`, numbers as `float64`, the rest as categories.

    >>> [str(typed(values).dtype) for values in ([True, None], [1, None], [1, 0.5], ["a", 1], [None])]
    ['boolean', 'Int64', 'float64', 'category', 'category']
    """
    kinds = {type(value) for value in values if value is not None}
    if kinds == {bool}:
        return pd.Series(list(values), dtype="boolean")
    if kinds == {int}:
        return pd.Series(list(values), dtype="Int64")
    if kinds and kinds <= {int, float}:
        return pd.Series([None if value is None else float(value) for value in values], dtype="float64")
    return pd.Series([None if value is None else str(value) for value in values], dtype="str").astype("category")
