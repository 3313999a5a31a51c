"""How a run, several runs and an explanation show in a notebook. Whatever a run holds is escaped."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import Any

from dpo_diag.records import Run
from dpo_diag.records.schemas import TABLES
from dpo_diag.text import number, safe


def run_html(run: Run) -> str:
    """What a run is: origin, loss, model, splits and tables; reads run.json and file names, no rows."""
    info = run.info
    arguments = info.training
    facts: list[tuple[str, object]] = [
        ("kind", info.kind),
        ("status", info.status),
        ("loss", " + ".join(info.loss.types) if info.loss is not None else info.loss_reason),
        ("beta", info.beta),
        ("learning rate", arguments.learning_rate),
        ("seed", info.seed if info.seed is not None else arguments.seed),
        ("model", info.model.name),
        ("reference", info.reference.kind or info.reference.name),
        ("splits", ", ".join(f"{name} ({of.role})" for name, of in info.splits.items())),
        ("tables", ", ".join(name for name in TABLES if run.has(name))),
    ]
    return f"<div><strong>{_text(run.name)}</strong>{_table(facts)}</div>"


def findings_html(document: dict[str, Any]) -> str:
    """The verdict, the narrative's sentences, and what the checks say."""
    verdict = document["verdict"]
    parts = [
        f"<strong>{_text(document['run'])}</strong>: {_text(verdict['label'])}, harm {_text(verdict['harm'])}",
        f"<p>{_text(verdict['text'])}</p>",
    ]
    for section in document["narrative"]:
        sentences = "".join(f"<li>{_text(sentence['text'])}</li>" for sentence in section["sentences"])
        parts.append(f"<details><summary>{_text(section['heading'])}</summary><ul>{sentences}</ul></details>")
    spoke = [(check["code"], check["reason"]) for check in document["checks"] if check["outcome"] == "speaks"]
    return f"<div>{''.join(parts)}{_table(spoke)}</div>"


def _table(rows: Iterable[tuple[str, object]]) -> str:
    known = ((_text(name), _text(value)) for name, value in rows if value not in (None, ""))
    return f"<table>{''.join(f'<tr><th>{name}</th><td>{value}</td></tr>' for name, value in known)}</table>"


def _text(value: object) -> str:
    return escape(safe(value if isinstance(value, str) else number(value), max_chars=500))
