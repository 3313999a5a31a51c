"""The checks: which speak, which cannot tell and why, which are silent."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from dpo_diag.report.section import SECTIONS, Context, Section
from dpo_diag.report.text import clean
from dpo_diag.text import interval, number, plural

ORDER = {"speaks": 0, "not_applicable": 1, "silent": 2}
SEVERITY = {"error": 0, "warning": 1, "info": 2}
REST = {"not_applicable": "not applicable, or cannot tell", "silent": "looked and found nothing"}
SHOWN = 8
"""Values of a list in a check's evidence that are shown."""
TEMPLATE = """
<p>{{ "%(n)s of %(all)s checks speak."|say|format(n=speaking|length, all=total) }}</p>
{% for check in speaking %}
<article class="check"><h3><span class="badge {{ check.style }}">{{ (check.severity or "speaks")|say }}</span>
{{ check.title|clean|sentence|say }} <code>{{ check.code }}</code></h3>
<p>{{ check.reason|clean|sentence|say }}</p>
{% if check.advice %}
<p class="try">{{ "Try"|say }}</p>
<ul class="try">{% for item in check.advice %}<li>{{ item|clean|say }}</li>{% endfor %}</ul>
{% endif %}
{% if check.evidence %}
<details class="numbers"><summary>{{ "The numbers behind it"|say }}</summary><dl class="evidence">
{% for name, value in check.evidence %}<dt>{{ name|clean }}</dt><dd>{{ value|clean }}</dd>{% endfor %}
</dl></details>
{% endif %}
</article>
{% endfor %}
{% for label, checks in rest if checks %}
<details class="numbers"><summary>{{ checks|length }} {{ label|say }}</summary><dl class="checks">
{% for check in checks %}
<dt>{{ check.title|clean|sentence|say }} <code>{{ check.code }}</code></dt>
<dd>{{ (check.reason|clean|sentence or "Nothing to report")|say }}</dd>
{% endfor %}
</dl></details>
{% endfor %}
"""


def build(context: Context) -> Mapping[str, Any]:
    """What speaks as cards, the rest as two folded lists."""
    checks = checks_frame(context.document).to_dict("records")
    of = {outcome: [c for c in checks if c["outcome"] == outcome] for outcome in ORDER}
    return {
        "total": len(checks),
        "speaking": [{**c, "style": c["severity"] if c["severity"] in SEVERITY else "info"} for c in of["speaks"]],
        "rest": [(label, of[outcome]) for outcome, label in REST.items()],
    }


def checks_frame(document: Mapping[str, Any]) -> pd.DataFrame:
    """code, title, outcome, severity, reason, evidence (names and texts), advice (list); what speaks first, by
    severity."""
    rows = [
        {
            "code": check.get("code"), "title": check.get("title"), "outcome": check.get("outcome"),
            "severity": check.get("severity") or "", "reason": check.get("reason") or "",
            "evidence": _evidence(check.get("evidence")), "advice": [_advice(t) for t in check.get("try") or []],
        }
        for check in document.get("checks") or []
    ]  # fmt: skip
    frame = pd.DataFrame(rows, columns=["code", "title", "outcome", "severity", "reason", "evidence", "advice"])
    key = frame["outcome"].map(ORDER).fillna(3) * 10 + frame["severity"].map(SEVERITY).fillna(2)
    return frame.assign(key=key).sort_values(["key", "code"], ignore_index=True).drop(columns="key")


def _evidence(value: Any) -> list[tuple[str, str]]:
    """The numbers of a check, by name."""
    named = value if isinstance(value, dict) else {"evidence": value} if value else {}
    return [(str(k).replace("_", " "), _evidence_text(v)) for k, v in named.items() if v not in (None, [], {})]


def _evidence_text(value: Any) -> str:
    """A number with its interval, a list cut after `SHOWN`, a mapping as `name value` pairs."""
    if isinstance(value, dict) and {"value", "low", "high"} <= set(value):
        n = f", n {number(value['n'])}" if value.get("n") is not None else ""
        n += f" of {plural(value['prompts'], 'prompt')}" if value.get("prompts") else ""
        bounds = None if None in (value["low"], value["high"]) else (value["low"], value["high"])
        return f"{number(value['value'])} ({interval(bounds, value.get('level', math.nan), number)}{n})"
    if isinstance(value, dict):
        return "; ".join(f"{str(k).replace('_', ' ')} {_evidence_text(v)}" for k, v in value.items())
    if isinstance(value, (list, tuple)):
        shown = ", ".join(_evidence_text(v) for v in value[:SHOWN])
        return f"{shown}, … ({len(value)} in all)" if len(value) > SHOWN else shown
    return clean(value, 300) if isinstance(value, str) else number(value)


def _advice(value: Any) -> str:
    return " ".join(str(v) for v in value.values() if v) if isinstance(value, dict) else str(value)


SECTIONS.add("checks", Section(
    title="Checks", lead="What was looked for, what speaks, and what could not be computed, with the reason.",
    order=70, needs="checks", build=build, template=TEMPLATE,
))  # fmt: skip
