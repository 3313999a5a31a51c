"""H2O LLM Studio's charts_<name>.json: {"train": {metric: {"steps": [...], "values": [...]}}, "validation": ...}.

NaN is written as null. Steps are counted in samples or, by a setting, in fractions of an epoch: fractions are numbered.
The validation metric "Perplexity" is the mean over answers of exp(ce): `ppl_seq_mean`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dpo_diag.documents import parse_json
from dpo_diag.errors import DiagError
from dpo_diag.importers.facts import facts_from_mapping
from dpo_diag.importers.log_format import Head, LogFormat, register
from dpo_diag.importers.numbers import MAX_STEP, number
from dpo_diag.importers.parsed import Options, Parsed
from dpo_diag.records.text_files import Skipped, whole

_PREFIX = {"train": "", "meta": "", "validation": "validation/", "val": "validation/", "test": "test/"}
_LEFT_OUT = ("df", "cfg", "internal", "html", "texts", "plots")


def _is_charts(head: Head) -> bool:
    if isinstance(head.document, Mapping):
        return any(
            isinstance(charts, Mapping)
            and any(isinstance(chart, Mapping) and "steps" in chart and "values" in chart for chart in charts.values())
            for charts in head.document.values()
        )
    # Longer than the head, or broken: by the keys in it.
    is_long = head.is_json and head.document is None
    has_subset = '"train"' in head.text or '"validation"' in head.text
    return is_long and has_subset and '"steps"' in head.text and '"values"' in head.text


def read_h2o(path: Path, options: Options) -> Parsed:
    """Read the charts of all subsets.

    Raises:
        DiagError: no JSON object, or no chart in it.
    """
    parsed = Parsed.of("h2o", [path], options, "h2o-llmstudio")
    try:
        document = parse_json(whole(path, parsed.skipped))
    except ValueError as error:
        raise DiagError("the charts are broken JSON", where=path, got=error, hint="download them again") from error
    parsed.skipped.add_repeated(document)
    if not isinstance(document, Mapping):
        raise DiagError("no charts", where=path, got=type(document).__name__, expected="an object of subsets")
    points = _points(document, parsed.skipped)
    steps = sorted({step for _, step, _ in points})
    is_fractional = any(step != int(step) for step in steps)
    places = {step: i if is_fractional else int(step) for i, step in enumerate(steps)}
    parsed.store.add_points((places[step], key, value) for key, step, value in points)
    if isinstance(document.get("cfg"), Mapping):
        parsed.facts.merge(facts_from_mapping(document["cfg"], f"{path.name}: cfg"))
    parsed.steps = "counted" if is_fractional else "stated"
    parsed.steps_from = (
        "numbers of the charts' fractional steps, in order" if is_fractional else "the charts' own steps (samples seen)"
    )
    parsed.n_rows = parsed.n_read = parsed.store.rows
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
                    skipped.add(at + 1, f"{subset}/{name}: a point is not a number")
                    continue
                out.append((f"{prefix}{name}", step, value))
    return out


register(
    LogFormat(
        name="h2o",
        description="H2O LLM Studio charts_<name>.json",
        trainers=("H2O LLM Studio",),
        file_name="charts_falcon.json",
        example='{"train": {"loss": {"steps": [64, 128], "values": [0.6931, null]}}, "validation": {}}\n',
        order=40,
        why="a JSON document, by its charts, before other documents",
        sniff=_is_charts,
        read=read_h2o,
    )
)
