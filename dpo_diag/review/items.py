"""Which answers are shown beside each other: seeded, the same for every reviewer, blind.

An item is two looks' answers to one prompt. Which prompts are drawn depends on the seed and the prompts alone, so that
reviewers meet the same items (agreement needs that), a session resumes, and a larger n continues a smaller one. Which
answer stands left is a coin toss per reviewer and item.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal

import pandas as pd

from dpo_diag.errors import DiagError
from dpo_diag.outputs.looks import POLICY, REFERENCE, SFT, Answers, Look
from dpo_diag.outputs.looks import answers as select
from dpo_diag.records import Run

Letter = Literal["a", "b"]


def digest(*parts: Any) -> str:
    """16 hex digits over JSON values."""
    return hashlib.sha256(json.dumps(parts, ensure_ascii=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Item:
    """Two answers to one prompt; `a` is the look that comes first (sft, ref, then the policy by step).

    Attributes:
        id: over prompt, sample, looks and both texts: an answer that is written anew makes a new item.
    """

    id: str
    prompt_id: str
    sample: int
    prompt: str
    reference: str | None
    a: Look
    b: Look
    a_text: str
    b_text: str
    decoding_hash: str | None

    def left(self, reviewer: str, seed: int = 0) -> Letter:
        """Which answer stands left for this reviewer: a fair coin, tossed anew for each item."""
        return "a" if int(digest(seed, "side", reviewer, self.id), 16) % 2 == 0 else "b"


def looks_in(frame: pd.DataFrame) -> list[Look]:
    """The looks of rows of outputs/: sft, ref, others, then the policy by step."""
    rank = {SFT: 0, REFERENCE: 1, POLICY: 3}
    pairs = frame[["model", "step"]].drop_duplicates()
    found = [Look(str(m), int(s)) for m, s in zip(pairs["model"], pairs["step"], strict=True)]
    return sorted(found, key=lambda x: (rank.get(x.model, 2), x.model, x.step))


def find_look(looks: list[Look], name: str) -> Look:
    """The look that a user names: a step of the policy, or a model (its last step).

    Raises:
        DiagError: no such look.
    """
    for look in reversed(looks):
        if name == look.model or (look.model == POLICY and name == str(look.step)):
            return look
    known = ", ".join(str(x.step) if x.model == POLICY else x.model for x in looks)
    raise DiagError("no answers of that model or step", got=name, expected=f"one of {known or 'none'}", usage=True)


def item_of(a: Look, b: Look, first: Any, second: Any) -> Item:
    """The item of two rows of outputs/ for one prompt (mappings), `a` coming before `b`."""
    sample = int(first["sample"])
    key = digest(str(first["prompt_id"]), sample, [*a], [*b], digest(first["text"]), digest(second["text"]))
    return Item(
        id=key,
        prompt_id=str(first["prompt_id"]),
        sample=sample,
        prompt=_text(first.get("prompt")) or "",
        reference=_text(first.get("reference")),
        a=a,
        b=b,
        a_text=str(first["text"]),
        b_text=str(second["text"]),
        decoding_hash=_text(first.get("decoding_hash")),
    )


def _text(value: Any) -> str | None:
    return None if value is None or value != value else str(value)


def choose_items(
    run: Run,
    *,
    a: str | None = None,
    b: str | None = None,
    every: bool = False,
    n: int = 20,
    sample: int | None = None,
    same: bool = False,
    seed: int = 0,
) -> list[Item]:
    """The first n items of a review, in the order in which everyone meets them.

    Args:
        a, b: the two looks, by step or model name; None for the SFT model, the reference or the first step, and for
            the policy's last step.
        every: compare all looks with each other instead: each next item takes, for the next prompt, the pair of looks
            that was drawn least so far.
        sample: which sample of each prompt; None for the first there is.
        same: also show prompts whose two answers are equal.
        seed: of the choice of prompts.

    Returns: at most n items, fewer where fewer answers differ.

    Raises:
        DiagError: no answers, no such look, one look twice, different decoding settings, no answers that differ.
    """
    frame = run.outputs
    if frame.empty:
        raise DiagError(
            "the run holds no answers to fixed prompts",
            where=run.path,
            hint="train with prompts=..., or write them with dpo-generate",
        )
    if n < 1:
        raise DiagError("nothing to review", where="--n", got=n, expected="at least 1", usage=True)
    looks = looks_in(frame)
    if not every:
        own = [x for x in looks if x.model == POLICY] or looks
        first = find_look(looks, a) if a is not None else _baseline(looks, b)
        second = find_look(looks, b) if b is not None else next((x for x in reversed(own) if x != first), first)
        if first == second:
            raise DiagError(
                "one look cannot be compared with itself", got=first.label, hint="name two, e.g. --a 0 --b 40",
                usage=True,
            )  # fmt: skip
        looks = [x for x in looks if x in (first, second)]
        wanted = pd.MultiIndex.from_tuples([tuple(x) for x in looks])
        frame = frame[pd.MultiIndex.from_frame(frame[["model", "step"]]).isin(wanted)]
    try:
        found = select(frame, sample=sample)
    except DiagError as error:
        raise DiagError(
            error.what, where=run.path, got=error.got, expected=error.expected, hint=error.hint, usage=error.usage
        ) from None
    items = _draw(found, looks, n, same, seed)
    if not items:
        raise DiagError(
            "no two answers differ", where=run.path, got=" and ".join(x.label for x in looks[:4]),
            hint="compare other steps (--a, --b), or show equal answers too (--same)",
        )  # fmt: skip
    return items


def _baseline(looks: list[Look], other: str | None) -> Look:
    taken = find_look(looks, other) if other is not None else None
    return next((x for x in looks if x != taken), looks[0])


def _draw(found: Answers, looks: list[Look], n: int, same: bool, seed: int) -> list[Item]:
    tables = {look: found.of(look).reset_index().set_index("prompt_id", drop=False) for look in looks}
    texts = {look: table["text"].to_dict() for look, table in tables.items()}
    pairs = list(combinations(looks, 2))
    drawn: Counter[tuple[Look, Look]] = Counter()
    shown: set[tuple[str, Look, Look]] = set()
    order = sorted(found.prompt_ids, key=lambda p: digest(seed, "prompt", p))
    items: list[Item] = []
    grew = True
    while len(items) < n and grew:
        grew = False  # with several pairs of looks a prompt comes round again, each time with another pair
        for prompt_id in order:
            if len(items) == n:
                break
            open_pairs = [
                (x, y)
                for x, y in pairs
                if prompt_id in texts[x]
                and prompt_id in texts[y]
                and (prompt_id, x, y) not in shown
                and (same or texts[x][prompt_id] != texts[y][prompt_id])
            ]
            if not open_pairs:
                continue
            x, y = min(open_pairs, key=lambda p: (drawn[p], digest(seed, prompt_id, [*p[0]], [*p[1]])))
            drawn[x, y] += 1
            shown.add((prompt_id, x, y))
            items.append(item_of(x, y, tables[x].loc[prompt_id], tables[y].loc[prompt_id]))
            grew = True
    return items


def differing(run: Run, a: Look, b: Look, sample: int) -> tuple[int, int] | None:
    """(prompts whose two answers differ, prompts that both looks answered); None if the answers are not recorded."""
    frame = run.outputs
    frame = frame[frame["sample"] == sample]
    sides = [frame[(frame["model"] == x.model) & (frame["step"] == x.step)].set_index("prompt_id")["text"] for x in (a, b)]  # fmt: skip # noqa: E501
    both = sides[0].to_frame("a").join(sides[1].rename("b"), how="inner")
    return (int((both["a"] != both["b"]).sum()), len(both)) if len(both) else None
