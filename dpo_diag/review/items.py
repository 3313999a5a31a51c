"""Which answers are shown beside each other: seeded, the same for every reviewer, blind.

An item is two checkpoints' answers to one prompt. Which prompts are drawn depends on the seed and the prompts alone, so
that reviewers meet the same items (agreement needs that), a session resumes, and a larger n continues a smaller one.
Which answer stands left is a coin toss per reviewer and item.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import combinations
from typing import Any, Literal

import pandas as pd

from dpo_diag.errors import DiagError
from dpo_diag.outputs.answers import POLICY, Answers, Checkpoint, checkpoints_in, find_checkpoint
from dpo_diag.outputs.answers import answers as select
from dpo_diag.records import Run
from dpo_diag.records.pair_id import content_hash
from dpo_diag.review.judgements import Judgement

Letter = Literal["a", "b"]


def digest(*parts: Any) -> str:
    """16 hex digits over JSON values."""
    return content_hash(parts)


@dataclass(frozen=True)
class Item:
    """Two answers to one prompt; `a` is the checkpoint that comes first (sft, ref, then the policy by step).

    Attributes:
        id: over prompt, sample, checkpoints and both texts: an answer that is written anew makes a new item.
    """

    id: str
    prompt_id: str
    sample: int
    prompt: str
    reference: str | None
    a: Checkpoint
    b: Checkpoint
    a_text: str
    b_text: str
    decoding_hash: str | None

    def left(self, reviewer: str, seed: int = 0) -> Letter:
        """Which answer stands left for this reviewer: a fair coin, tossed anew for each item."""
        return "a" if int(digest(seed, "side", reviewer, self.id), 16) % 2 == 0 else "b"

    def judged(self, reviewer: str, kind: str, left: str, outcome: str, **details: Any) -> Judgement:
        """The line that records a verdict on this item, given now; `details`: further fields of a judgement."""
        return Judgement(
            reviewer=reviewer, kind=kind, item=self.id, prompt_id=self.prompt_id, sample=self.sample, a=self.a,
            b=self.b, left=left, outcome=outcome, decoding_hash=self.decoding_hash,
            time=datetime.now(UTC).isoformat(timespec="seconds"), **details,
        )  # fmt: skip


def item_of(a: Checkpoint, b: Checkpoint, first: Any, second: Any) -> Item:
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
        a, b: the two checkpoints, by step or model name; None for the reference, the SFT model or the first step, and
            for the policy's last step.
        every: compare all checkpoints with each other instead: each next item takes, for the next prompt, the pair of
            checkpoints that was drawn least so far.
        sample: which sample of each prompt; None for the first there is.
        same: also show prompts whose two answers are equal.
        seed: of the choice of prompts.

    Returns: at most n items, fewer where fewer answers differ.

    Raises:
        DiagError: no answers, no such checkpoint, one twice, different decoding settings, no answers that differ.
    """
    if n < 1:
        raise DiagError("nothing to review", where="--n", got=n, expected="at least 1", usage=True)
    frame = run.outputs
    checkpoints = list(checkpoints_in(frame))
    if not every and checkpoints:
        chosen = _two(checkpoints, a, b)
        checkpoints = [c for c in checkpoints if c in chosen]
        frame = frame[pd.MultiIndex.from_frame(frame[["model", "step"]]).isin(checkpoints)]
    items = _draw(select(frame, sample=sample, where=run.path), checkpoints, n, same, seed)
    if not items:
        raise DiagError(
            "no two answers differ", where=run.path, got=" and ".join(c.label for c in checkpoints[:4]),
            hint="compare other steps (--a, --b), or show equal answers too (--same)",
        )  # fmt: skip
    return items


def _two(checkpoints: list[Checkpoint], a: str | None, b: str | None) -> tuple[Checkpoint, Checkpoint]:
    """The two to compare; the one that is not named is the first other, or the policy's last other."""
    own = [c for c in checkpoints if c.model == POLICY] or checkpoints
    named = [None if name is None else find_checkpoint(checkpoints, name, last=True) for name in (a, b)]
    first = named[0] or next((c for c in checkpoints if c != named[1]), checkpoints[0])
    second = named[1] or next((c for c in reversed(own) if c != first), first)
    if first == second:
        raise DiagError(
            "a checkpoint cannot be compared with itself", got=first.label, hint="name two, e.g. --a 0 --b 40",
            usage=True,
        )  # fmt: skip
    return first, second


def _draw(answers: Answers, checkpoints: list[Checkpoint], n: int, same: bool, seed: int) -> list[Item]:
    rows = {c: {p: {"prompt_id": p, **row} for p, row in answers.of(c).to_dict("index").items()} for c in checkpoints}
    drawn: Counter[tuple[Checkpoint, Checkpoint]] = Counter()
    left = {
        prompt_id: [
            (x, y) for x, y in combinations(checkpoints, 2)
            if prompt_id in rows[x] and prompt_id in rows[y]
            and (same or rows[x][prompt_id]["text"] != rows[y][prompt_id]["text"])
        ]
        for prompt_id in sorted(answers.prompt_ids, key=lambda p: digest(seed, "prompt", p))
    }  # fmt: skip
    items: list[Item] = []
    # With several pairs of checkpoints a prompt comes round again, each time with another pair.
    while any(left.values()):
        for prompt_id, pairs in left.items():
            if not pairs:
                continue
            if len(items) == n:
                return items
            x, y = min(pairs, key=lambda p: (drawn[p], digest(seed, prompt_id, [*p[0]], [*p[1]])))
            drawn[x, y] += 1
            pairs.remove((x, y))
            items.append(item_of(x, y, rows[x][prompt_id], rows[y][prompt_id]))
    return items


def differing(run: Run, a: Checkpoint, b: Checkpoint, sample: int) -> tuple[int, int] | None:
    """(prompts whose two answers differ, prompts that both answered); None if the answers are not recorded."""
    frame = run.outputs
    frame = frame[frame["sample"] == sample]
    first, second = (
        frame[(frame["model"] == c.model) & (frame["step"] == c.step)].set_index("prompt_id")["text"] for c in (a, b)
    )
    both = pd.DataFrame({"a": first, "b": second}).dropna()
    return (int((both["a"] != both["b"]).sum()), len(both)) if len(both) else None
