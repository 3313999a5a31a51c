"""One reviewer's way through the items: what is shown, what a verdict does. The file is the only state.

Nothing that is shown says which checkpoint wrote what, before the last verdict.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from dpo_diag.errors import DiagError
from dpo_diag.outputs.diff import word_diff
from dpo_diag.records import Run
from dpo_diag.review import judgements
from dpo_diag.review.behaviours import KEYS
from dpo_diag.review.items import Item
from dpo_diag.review.judgements import PERSON, SKIP, UNDO, Judgement
from dpo_diag.text import cut, visible

MAX_CHARS = 20_000
MAX_NOTE = 4_000
MAX_SECONDS = 1e6
"""A page that was open for longer than eleven days measured nothing."""
VERDICTS = ("left", "right", "tie", "both_bad", SKIP)


def shown(text: str) -> str:
    """Text as the page may show it: cut, hidden characters by their code points; the page sets it as text."""
    return visible(cut(text, MAX_CHARS))


class Session:
    """A reviewer at work. Methods take and return JSON objects; safe to call from several threads.

    Args:
        run: the run, whose folder gets the judgements.
        items: what is to be judged, in order.
        reviewer: whose file.
        behaviours: names, at most as many as there are keys.
        seed: of the sides.
    """

    def __init__(
        self, run: Run, items: Sequence[Item], reviewer: str, behaviours: Sequence[str] = (), seed: int = 0
    ) -> None:
        self.run, self.items, self.reviewer, self.seed = run, list(items), judgements.check_reviewer(reviewer), seed
        self.behaviours = list(behaviours)
        self._lock = threading.Lock()

    def _verdicts(self) -> dict[str, Judgement]:
        """item -> this reviewer's last verdict, in the order in which they were given; only items of this review."""
        mine = {item.id for item in self.items}
        return {j.item: j for j in judgements.read(self.run.path, self.reviewer).effective() if j.item in mine}

    def state(self, _: dict[str, Any] | None = None) -> dict[str, Any]:
        """What the page shows now.

        Keys: reviewer, done, total, skipped, behaviours ([{"key", "name"}]), notice (one line or ""), item (null when
        all are judged): {"id", "prompt", "reference", "left", "right" (each [{"text", "differs"}]), "marks", "note"};
        summary, when all are judged.
        """
        with self._lock:
            return self._state()

    def _current(self, verdicts: dict[str, Judgement]) -> Item | None:
        """The item to be judged now."""
        return next((item for item in self.items if item.id not in verdicts), None)

    def _state(self, notice: str = "", undone: Judgement | None = None) -> dict[str, Any]:
        verdicts = self._verdicts()
        item = self._current(verdicts)
        again = undone if item is not None and undone is not None and undone.item == item.id else None
        return {
            "reviewer": self.reviewer,
            "done": len(verdicts),
            "total": len(self.items),
            "skipped": sum(j.outcome == SKIP for j in verdicts.values()),
            "can_undo": bool(verdicts),
            "behaviours": [{"key": k, "name": visible(name)} for k, name in zip(KEYS, self.behaviours, strict=False)],
            "notice": notice,
            "item": None if item is None else self._shown_item(item, again),
            **({"summary": self._summary()} if item is None else {}),
        }

    def _sides(self, item: Item) -> dict[str, str]:
        """left, right -> the answer that stands there, a or b."""
        left = item.left(self.reviewer, self.seed)
        return {"left": left, "right": "b" if left == "a" else "a"}

    def _shown_item(self, item: Item, again: Judgement | None) -> dict[str, Any]:
        """What the page shows of an item; `again`: the verdict on it that was just taken back."""
        pieces = word_diff(shown(item.a_text), shown(item.b_text))
        hidden = {"a": "added", "b": "removed"}
        sides = self._sides(item)
        place = {letter: side for side, letter in sides.items()}
        marks = again.behaviours if again else {}
        return {
            "id": item.id,
            "prompt": shown(item.prompt),
            "reference": None if item.reference is None else shown(item.reference),
            **{
                side: [{"text": p.text, "differs": p.kind != "same"} for p in pieces if p.kind != hidden[letter]]
                for side, letter in sides.items()
            },
            "marks": {
                str(self.behaviours.index(name)): [place[letter] for letter in letters]
                for name, letters in marks.items()
                if name in self.behaviours
            },
            "note": again.note if again else "",
        }

    def judge(self, call: dict[str, Any]) -> dict[str, Any]:
        """Save a verdict, then the next state.

        Args:
            call: {"item", "verdict": left | right | tie | both_bad | skip, "marks": {behaviour number: [left, right]},
                "note", "seconds"}. A verdict about an item that is not the one to be judged now (a key pressed twice,
                another tab) is not recorded, and the state's notice says so.
        """
        with self._lock:
            item, verdict = self._current(self._verdicts()), call.get("verdict")
            if item is None or call.get("item") != item.id:
                return self._state("That was about an answer no longer shown: nothing was recorded.")
            if verdict not in VERDICTS:
                return self._state("Unknown verdict: nothing was recorded.")
            sides, seconds = self._sides(item), call.get("seconds")
            known = isinstance(seconds, (int, float)) and 0 <= seconds < MAX_SECONDS
            row = item.judged(
                self.reviewer, PERSON, sides["left"], sides.get(str(verdict), str(verdict)), asked=self.behaviours,
                behaviours=self._marks(call.get("marks"), sides), note=str(call.get("note") or "")[:MAX_NOTE],
                seconds=round(float(seconds), 1) if known and seconds is not None else None,
            )  # fmt: skip
            try:
                judgements.append(self.run.path, row)
            except DiagError as error:
                return self._state(f"NOT SAVED: {visible(str(error))}")
            return self._state()

    def _marks(self, given: Any, sides: dict[str, str]) -> dict[str, list[str]]:
        """behaviour -> answers that show it, from what the page sent; what does not fit is passed over."""
        marks: dict[str, list[str]] = {}
        for number, where in (given if isinstance(given, dict) else {}).items():
            if str(number).isdigit() and int(number) < len(self.behaviours) and isinstance(where, list):
                letters = sorted({sides[side] for side in where if side in sides})
                if letters:
                    marks[self.behaviours[int(number)]] = letters
        return marks

    def undo(self, _: dict[str, Any] | None = None) -> dict[str, Any]:
        """Take the last verdict back (a line of its own), and show that item again with its marks and note."""
        with self._lock:
            verdicts = self._verdicts()
            if not verdicts:
                return self._state("Nothing to undo.")
            last = list(verdicts.values())[-1]
            self._take_back(last)
            return self._state("Undone.", undone=last)

    def reopen(self, _: dict[str, Any] | None = None) -> dict[str, Any]:
        """Show the skipped items again."""
        with self._lock:
            skipped = [j for j in self._verdicts().values() if j.outcome == SKIP]
            for j in skipped:
                self._take_back(j)
            return self._state("" if skipped else "Nothing was skipped.")

    def _take_back(self, verdict: Judgement) -> None:
        item = next(i for i in self.items if i.id == verdict.item)
        judgements.append(self.run.path, item.judged(self.reviewer, PERSON, verdict.left, UNDO, asked=self.behaviours))

    def _summary(self) -> dict[str, Any]:
        """Now that all is judged, which checkpoint was which: the results of the pairs of this review."""
        from dpo_diag.review.results import results

        document = results(self.run)
        pairs = {(i.a.label, i.b.label) for i in self.items}
        return {
            "comparisons": [c for c in document["comparisons"] if (c["a"], c["b"]) in pairs],
            "behaviours": [c for c in document["behaviours"] if (c["a"], c["b"]) in pairs],
            "agreement": [x for x in document["agreement"] if self.reviewer in x["reviewers"]],
            "run": visible(str(self.run.path)),
        }
