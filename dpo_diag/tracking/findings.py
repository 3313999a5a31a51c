"""What an explained run says, in the forms that trackers show: numbers and words, two tables, the page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from dpo_diag.errors import DiagError
from dpo_diag.records import Run
from dpo_diag.records.checksums import read_json
from dpo_diag.records.metric_table import metric_of
from dpo_diag.records.schemas import TRAIN_SPLIT
from dpo_diag.text import safe

FINDINGS, REPORT_PAGE = "findings.json", "report.html"
PAIR_COLUMNS = ("pair_id", "quadrant", "share_of_rise", "chosen_text", "prompt", "chosen", "rejected")
"""Columns of a pair that come first, where there are any; its numbers follow."""


@dataclass(frozen=True)
class Findings:
    """The end of a run's mirror.

    Attributes:
        summary: flat: `diag/verdict`, `diag/harm`, `diag/headline`, `diag/text`, `diag/checks`, `best/METRIC` with
            `best_step/METRIC`, and the changes between the two steps.
        checks: code, outcome, severity, title, reason; what speaks first.
        pairs: the pairs that carry the change, those that carry most first; no rows where the run holds none.
        report: the page, where it was written.
    """

    summary: dict[str, float | str] = field(default_factory=dict)
    checks: pd.DataFrame = field(default_factory=pd.DataFrame)
    pairs: pd.DataFrame = field(default_factory=pd.DataFrame)
    report: Path | None = None

    def __bool__(self) -> bool:
        return bool(self.summary) or self.report is not None


def findings_of(run: Run) -> Findings:
    """Of the run's findings.json and report.html as they lie there, and of its history; what is not there is empty."""
    file, page = run.path / FINDINGS, run.path / REPORT_PAGE
    try:
        document = read_json(file)
    except (FileNotFoundError, DiagError):
        document = {}
    document = document if isinstance(document, dict) else {}
    return Findings(
        {**summary_of(document), **best_values(run)},
        checks_table(document),
        pairs_table(document, run),
        page if page.is_file() else None,
    )


def summary_of(document: Mapping[str, Any]) -> dict[str, float | str]:
    """The verdict in words, the checks that speak, and the numbers of an explanation."""
    verdict = document.get("verdict")
    if not isinstance(verdict, Mapping):
        return {}
    speaking = [str(c.get("code")) for c in document.get("checks", []) if c.get("outcome") == "speaks"]
    words = {
        "diag/verdict": verdict.get("label"), "diag/harm": verdict.get("harm"),
        "diag/headline": verdict.get("headline"), "diag/text": verdict.get("text"),
        "diag/checks": ", ".join(speaking) or "none",
    }  # fmt: skip
    numbers: dict[str, Any] = {"diag/n_checks": len(speaking)}
    for name in ("from_step", "to_step", "n_pairs"):
        numbers[f"diag/{name}"] = document.get(name)
    loss = document.get("loss") or {}
    for name in ("delta", "chosen_part", "rejected_part"):
        numbers[f"diag/loss_{name}"] = loss.get(name)
    for side, kinds in (document.get("perplexity") or {}).items():
        for kind, values in kinds.items() if isinstance(kinds, Mapping) else ():
            if isinstance(values, Mapping):
                numbers[f"diag/dlog_{kind}/{side}"] = values.get("dlog")
    for name, share in (document.get("quadrants") or {}).items():
        numbers[f"diag/quadrant/{name}"] = share
    out: dict[str, float | str] = {k: safe(str(v), max_chars=None) for k, v in words.items() if v is not None}
    out |= {k: v for k, v in numbers.items() if isinstance(v, (int, float)) and not isinstance(v, bool)}
    return out


def best_values(run: Run) -> dict[str, float | str]:
    """`best/SPLIT/NAME` and its step, of each evaluated metric of which more or less is wanted; the first of equals."""
    history = run.history
    rows = history.loc[(history["split"] != TRAIN_SPLIT) & history["value"].notna()]
    out: dict[str, float | str] = {}
    for (split, name), group in rows.groupby(["split", "name"], sort=True, observed=True):
        metric = metric_of(str(name)) if not str(name).startswith("score/") else metric_of("score")
        better = metric.better if metric is not None else "neither"
        if better == "neither" or group["step"].nunique() < 2:
            continue
        values = group["value"].astype(float)
        at = int(values.to_numpy().argmax() if better == "higher" else values.to_numpy().argmin())
        out[f"best/{split}/{name}"] = float(values.iloc[at])
        out[f"best_step/{split}/{name}"] = int(group["step"].iloc[at])
    return out


def checks_table(document: Mapping[str, Any]) -> pd.DataFrame:
    """One row per check, text only."""
    columns = ["code", "outcome", "severity", "title", "reason"]
    order = {"speaks": 0, "not_applicable": 1, "silent": 2}
    found = [c for c in document.get("checks", []) if isinstance(c, Mapping)]
    found.sort(key=lambda c: (order.get(str(c.get("outcome")), 3), str(c.get("code"))))
    rows = [[safe(str(c.get(name) or ""), max_chars=None) for name in columns] for c in found]
    return pd.DataFrame(rows, columns=columns, dtype="str")


def pairs_table(document: Mapping[str, Any], run: Run) -> pd.DataFrame:
    """The explanation's pairs with their texts; numbers stay numbers, texts are made harmless."""
    found = [p for p in document.get("pairs", []) if isinstance(p, Mapping) and "pair_id" in p]
    if not found:
        return pd.DataFrame(columns=["pair_id"])
    table = pd.DataFrame(found)
    if run.has("texts"):
        texts = run.texts.drop_duplicates("pair_id").set_index("pair_id")[["prompt", "chosen", "rejected"]]
        table = table.drop(columns="chosen_text", errors="ignore").join(texts, on="pair_id")
    plain = [c for c in table.columns if not table[c].map(lambda v: isinstance(v, (dict, list))).any()]
    first = [c for c in PAIR_COLUMNS if c in plain]
    table = table[[*first, *(c for c in plain if c not in first)]]
    return table.map(lambda cell: safe(cell) if isinstance(cell, str) else cell)
