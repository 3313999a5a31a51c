"""H2O LLM Studio's charts_<name>.json: {"train": {metric: {"steps": [...], "values": [...]}}, "validation": ...}.

NaN is written as null. Steps are counted in samples or, by a setting, in fractions of an epoch: fractions are numbered.
The validation metric "Perplexity" is the mean over answers of exp(ce): `ppl_seq_mean`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dpo_diag.errors import DiagError
from dpo_diag.importers.by_step import RowsByStep
from dpo_diag.importers.facts import facts_from_mapping
from dpo_diag.importers.parsed import Options, Parsed
from dpo_diag.importers.rows import MAX_STEP, RowStore, number
from dpo_diag.records.text_files import Skipped, whole

_PREFIX = {"train": "", "meta": "", "validation": "validation/", "val": "validation/", "test": "test/"}
_LEFT_OUT = ("df", "cfg", "internal", "html", "texts", "plots")


def read_h2o(path: Path, options: Options) -> Parsed:
    """Read the charts of all subsets.

    Raises:
        DiagError: no JSON object, or no chart in it.
    """
    skipped = Skipped()
    try:
        document = json.loads(whole(path, skipped))
    except (ValueError, RecursionError) as error:
        raise DiagError("the charts are broken JSON", where=path, got=error, hint="download them again") from error
    if not isinstance(document, Mapping):
        raise DiagError("no charts", where=path, got=type(document).__name__, expected="an object of subsets")
    store = RowStore(skipped, options.trainer or "h2o-llmstudio")
    rows = RowsByStep(store)
    parsed = Parsed("h2o", [path], skipped, options.trainer or "h2o-llmstudio", options.trainer_version, store=store)
    points = _points(document, skipped)
    fractional = sorted({s for _, s, _ in points if s != int(s)})
    places = {s: i for i, s in enumerate(sorted({s for _, s, _ in points}))} if fractional else None
    for key, step, value in points:
        rows.add(places[step] if places is not None else int(step), key, value)
    rows.finish()
    if isinstance(document.get("cfg"), Mapping):
        parsed.facts.merge(facts_from_mapping(document["cfg"], f"{path.name}: cfg"))
    parsed.steps_from = (
        "numbers of the charts' fractional steps, in order" if fractional else "the charts' own steps (samples seen)"
    )
    parsed.found, parsed.read = store.rows, store.rows
    return parsed


def _points(document: Mapping[str, Any], skipped: Skipped) -> list[tuple[str, float, float]]:
    """(key with its subset's prefix, step, value); a null value is NaN."""
    out = []
    for subset, charts in document.items():
        if not isinstance(charts, Mapping) or subset in _LEFT_OUT:
            continue
        prefix = _PREFIX.get(subset, f"{subset}/")
        for name, chart in charts.items():
            if not isinstance(chart, Mapping) or not isinstance(chart.get("values"), list):
                continue
            steps = chart.get("steps")
            if not isinstance(steps, list) or len(steps) != len(chart["values"]):
                skipped.add(None, f"{subset}/{name}: steps and values differ in length")
                continue
            for at, (raw_step, raw) in enumerate(zip(steps, chart["values"], strict=True)):
                step = number(raw_step)
                value = math.nan if raw is None else number(raw)
                if step is None or not 0 <= step <= MAX_STEP or value is None:
                    skipped.add(at + 1, f"{subset}/{name}: a point is no number")
                    continue
                out.append((f"{prefix}{name}", step, value))
    return out
