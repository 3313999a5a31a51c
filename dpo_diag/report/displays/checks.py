"""The checks: which speak, which cannot tell and why, which are silent."""

from __future__ import annotations

from typing import Any

import pandas as pd
from markupsafe import Markup, escape

from dpo_diag.report.numbers import number
from dpo_diag.report.text import capital, clean

ORDER = {"speaks": 0, "not_applicable": 1, "silent": 2}
SEVERITY = {"error": 0, "warning": 1, "info": 2}


def checks_frame(explanation: dict[str, Any]) -> pd.DataFrame:
    """code, title, outcome, severity, reason, evidence (names, texts), try (list); what speaks first, by severity."""
    rows = []
    for check in explanation.get("checks") or []:
        rows.append(
            {
                "code": check.get("code"), "title": check.get("title"), "outcome": check.get("outcome"),
                "severity": check.get("severity") or "", "reason": check.get("reason") or "",
                "evidence": evidence_items(check.get("evidence")), "try": [_advice(t) for t in check.get("try") or []],
            }
        )  # fmt: skip
    frame = pd.DataFrame(rows, columns=["code", "title", "outcome", "severity", "reason", "evidence", "try"])
    key = frame["outcome"].map(ORDER).fillna(3) * 10 + frame["severity"].map(SEVERITY).fillna(2)
    return frame.assign(_key=key).sort_values(["_key", "code"], ignore_index=True).drop(columns="_key")


def evidence_items(value: Any) -> list[tuple[str, str]]:
    """The numbers of a check, by name."""
    told = value if isinstance(value, dict) else {"evidence": value} if value else {}
    return [(str(k).replace("_", " "), evidence_text(v)) for k, v in told.items() if v not in (None, [], {})]


def evidence_text(value: Any) -> str:
    """The numbers of a check as `name value` pairs."""
    if isinstance(value, dict) and {"value", "low", "high"} <= set(value):
        n = f", n {number(value['n'])}" if value.get("n") is not None else ""
        return f"{number(value['value'])} ({number(value['low'])} to {number(value['high'])}{n})"
    if isinstance(value, dict):
        return "; ".join(f"{str(k).replace('_', ' ')} {evidence_text(v)}" for k, v in value.items())
    if isinstance(value, (list, tuple)):
        shown = ", ".join(evidence_text(v) for v in value[:8])
        return f"{shown}, … ({len(value)} in all)" if len(value) > 8 else shown
    return clean(value, 300) if isinstance(value, str) else number(value)


def _advice(value: Any) -> str:
    if isinstance(value, dict):
        return " ".join(str(v) for v in value.values() if v)
    return str(value)


def draw_checks(frame: pd.DataFrame) -> Markup:
    """What speaks as cards, the rest as two folded tables."""
    speaks = frame.loc[frame["outcome"] == "speaks"]
    cards = [_card(row) for row in speaks.itertuples(index=False)]
    head = Markup("<p>{} of {} checks speak.</p>").format(len(speaks), len(frame))
    rest = [
        Markup('<details class="numbers"><summary>{} {}</summary><dl class="checks">{}</dl></details>').format(
            len(part), label, Markup("").join(_line(r) for r in part.itertuples(index=False))
        )
        for outcome, label in (
            ("not_applicable", "not applicable, or cannot tell"),
            ("silent", "looked and found nothing"),
        )
        if len(part := frame.loc[frame["outcome"] == outcome])
    ]
    return head + Markup("").join(cards) + Markup("").join(rest)


def _card(row: Any) -> Markup:
    return Markup(
        '<article class="check"><h3><span class="badge {}">{}</span> {} <code>{}</code></h3><p>{}</p>{}{}</article>'
    ).format(
        row.severity if row.severity in SEVERITY else "info",
        row.severity or "speaks",
        capital(clean(row.title)),
        clean(row.code),
        capital(clean(row.reason)),
        _tries(row[6]),
        _evidence(row.evidence),
    )


def _line(row: Any) -> Markup:
    return Markup("<dt>{} <code>{}</code></dt><dd>{}</dd>").format(
        capital(clean(row.title)), clean(row.code), capital(clean(row.reason)) or "Nothing to report"
    )


def _evidence(items: list[tuple[str, str]]) -> Markup:
    if not items:
        return Markup("")
    rows = Markup("").join(Markup("<dt>{}</dt><dd>{}</dd>").format(clean(name), clean(text)) for name, text in items)
    return Markup(
        '<details class="numbers"><summary>The numbers behind it</summary><dl class="evidence">{}</dl></details>'
    ).format(rows)


def _tries(tries: list[str]) -> Markup:
    if not tries:
        return Markup("")
    items = Markup("").join(Markup("<li>{}</li>").format(escape(clean(t))) for t in tries)
    return Markup('<p class="try">Try</p><ul class="try">{}</ul>').format(items)
