"""Question rows in four sets that can never share a question.

A question's set follows from the hash of its own text, so the sets stay disjoint whatever the seeds and sizes are;
the paraphrased set has templates of its own besides.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Any

from dpo_diag.errors import DiagError
from dpo_diag.tasks.sql.execute import run_query
from dpo_diag.tasks.sql.queries import INTENTS, draw_query
from dpo_diag.tasks.sql.stream import Stream

# Share of the hash space, in thousandths, that each set owns. The paraphrased set has its own templates instead.
POOLS: dict[str, range] = {"sft": range(640), "pairs": range(640, 850), "held_out": range(850, 1000)}
SETS: tuple[str, ...] = (*POOLS, "paraphrased")
_TRIES_PER_ROW = 400

_TAGS = {
    "where": r"\bWHERE\b", "and": r"\bAND\b", "or": r"\bOR\b", "group_by": r"\bGROUP BY\b", "having": r"\bHAVING\b",
    "order_by": r"\bORDER BY\b", "limit": r"\bLIMIT\b", "join": r"\bJOIN\b", "distinct": r"\bDISTINCT\b",
    "aggregate": r"\b(?:COUNT|SUM|AVG|MIN|MAX)\(", "at_least": r">=",
}  # fmt: skip


@dataclass(frozen=True)
class Question:
    """One question.

    Attributes:
        id: content hash of the prompt, prefixed with the set's name.
        db: the database's name.
        prompt: "db | question |", what the model reads; no schema text.
        gold: the gold SQL, no leading space.
        template: "<intent>/<number>", with "p" before the number for a paraphrase.
        tags: the set's name, then the clauses that the gold query uses.
    """

    id: str
    db: str
    prompt: str
    gold: str
    template: str
    tags: tuple[str, ...]


def clause_tags(sql: str) -> tuple[str, ...]:
    """Which clauses a query uses, of the names in this module's table, in its order; "select" always comes first."""
    return ("select", *(tag for tag, pattern in _TAGS.items() if re.search(pattern, sql)))


def prompt_text(db: str, question: str) -> str:
    """The prompt format: `db | question |`. The answer then starts with one space."""
    return f"{db} | {question} |"


def pool_of(prompt: str) -> str:
    """The set that a question in a training template belongs to, from the SHA-256 of its prompt."""
    bucket = int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:8], "big") % 1000
    return next(name for name, share in POOLS.items() if bucket in share)


def _draw(stream: Stream, paraphrased: bool) -> tuple[str, str, str, str]:
    name = stream.weighted(list(INTENTS), [intent.weight for intent in INTENTS.values()])
    intent = INTENTS[name]
    db, sql, words = draw_query(stream, intent)
    wordings = intent.paraphrased if paraphrased else intent.training
    number = stream.below(len(wordings))
    question = wordings[number].format(**words)
    question = question[0].upper() + question[1:]
    return db.name, prompt_text(db.name, question), sql, f"{name}/{'p' if paraphrased else ''}{number}"


def generate_questions(set_name: str, n: int, *, seed: int = 0, unique: bool = True) -> list[Question]:
    """`n` questions of one set, the same on every machine for the same arguments.

    Every gold query runs and returns at least one row that is not all NULL.

    Args:
        set_name: "sft", "pairs", "held_out" or "paraphrased".
        n: how many; 0 gives [].
        seed: another seed draws other questions, from the same set.
        unique: no question twice. SFT may repeat the few questions of simple intents, so that their share stays
            what the intents' weights say.

    Raises:
        DiagError: unknown set, negative n, or more unique questions than the set has.
    """
    if set_name not in SETS:
        raise DiagError("unknown question set", got=set_name, expected=" | ".join(SETS))
    if n < 0:
        raise DiagError("the number of questions must not be negative", where=set_name, got=n)
    paraphrased = set_name == "paraphrased"
    stream = Stream("questions", set_name, seed)
    out: list[Question] = []
    seen: set[str] = set()
    tries = 0
    while len(out) < n:
        tries += 1
        if tries > _TRIES_PER_ROW * (n + 10):
            raise DiagError(
                "the generator ran out of unique questions",
                where=f"set {set_name}",
                got=f"{len(out)} of {n}",
                hint="ask for fewer questions",
            )
        db, prompt, sql, template = _draw(stream, paraphrased)
        if (unique and prompt in seen) or (not paraphrased and pool_of(prompt) != set_name):
            continue
        result = run_query(db, sql)
        if not result.ok:
            raise AssertionError(f"gold query failed: {sql}: {result.status} {result.message}")
        if not any(cell is not None for row in result.rows for cell in row):
            continue
        seen.add(prompt)
        digest = hashlib.sha256(prompt.encode()).hexdigest()[:12]
        out.append(Question(f"{set_name}-{digest}", db, prompt, sql, template, (set_name, *clause_tags(sql))))
    return out


def prompt_rows(n_held_out: int = 300, n_paraphrased: int = 300, *, seed: int = 0) -> list[dict[str, Any]]:
    """The fixed prompts: fresh questions of two sets, neither in SFT nor in the pairs.

    Returns:
        n_held_out rows in the wording of training and n_paraphrased in unseen wording, each {"id", "prompt",
        "reference" (gold SQL), "db", "checker": "sql", "template", "tags" (the set's name first, then clauses)}.
    """
    return [
        {"id": q.id, "prompt": q.prompt, "reference": q.gold, "db": q.db, "checker": "sql", "template": q.template,
         "tags": list(q.tags)}
        for name, n in (("held_out", n_held_out), ("paraphrased", n_paraphrased))
        for q in generate_questions(name, n, seed=seed)
    ]  # fmt: skip
