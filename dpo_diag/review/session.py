"""One reviewer's way through the items: what is shown, what a verdict does. The file is the only state.

Nothing that is shown says which checkpoint wrote what, before the last verdict.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from dpo_diag.errors import DiagError
from dpo_diag.outputs.diff import word_diff
from dpo_diag.records import Run
from dpo_diag.review import table
from dpo_diag.review.behaviours import KEYS
from dpo_diag.review.items import Item
from dpo_diag.review.table import PERSON, SKIP, UNDO, Judgement
from dpo_diag.text import cut, visible

MAX_CHARS = 20_000
MAX_NOTE = 4_000
SIDES = ("left", "right")
VERDICTS = ("left", "right", "tie", "both_bad", SKIP)


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


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
        self.run, self.items, self.reviewer, self.seed = run, list(items), table.check_reviewer(reviewer), seed
        self.behaviours = list(behaviours)
        self._lock = threading.Lock()

    def _verdicts(self) -> dict[str, Judgement]:
        """item -> this reviewer's last verdict, in the order in which they were given; only items of this review."""
        mine = {item.id for item in self.items}
        return {j.item: j for j in table.read(self.run.path, self.reviewer).effective() if j.item in mine}

    def state(self, _: dict[str, Any] | None = None) -> dict[str, Any]:
        """What the page shows now.

        Keys: reviewer, done, total, skipped, behaviours ([{"key", "name"}]), notice (one line or ""), item (null when
        all are judged): {"id", "prompt", "reference", "left", "right" (each [{"text", "differs"}]), "marks", "note"};
        summary, when all are judged.
        """
        with self._lock:
            return self._state()

    def _state(self, notice: str = "", again: Judgement | None = None) -> dict[str, Any]:
        verdicts = self._verdicts()
        item = next((i for i in self.items if i.id not in verdicts), None)
        skipped = sum(j.outcome == SKIP for j in verdicts.values())
        state: dict[str, Any] = {
            "reviewer": self.reviewer,
            "done": len(verdicts),
            "total": len(self.items),
            "skipped": skipped,
            "can_undo": bool(verdicts),
            "behaviours": [
                {"key": key, "name": visible(name)} for key, name in zip(KEYS, self.behaviours, strict=False)
            ],
            "notice": notice,
            "item": None,
        }
        if item is None:
            state["summary"] = self._summary()
            return state
        letter = item.left(self.reviewer, self.seed)
        a, b = shown(item.a_text), shown(item.b_text)
        pieces = word_diff(a, b)
        sides = {
            "a": [{"text": p.text, "differs": p.kind != "same"} for p in pieces if p.kind != "added"],
            "b": [{"text": p.text, "differs": p.kind != "same"} for p in pieces if p.kind != "removed"],
        }
        names = {"a": "left", "b": "right"} if letter == "a" else {"a": "right", "b": "left"}
        marks = again.behaviours if again is not None and again.item == item.id else {}
        state["item"] = {
            "id": item.id,
            "prompt": shown(item.prompt),
            "reference": None if item.reference is None else shown(item.reference),
            names["a"]: sides["a"],
            names["b"]: sides["b"],
            "marks": {str(self.behaviours.index(k)): [names[x] for x in v]
                      for k, v in marks.items() if k in self.behaviours},
            "note": again.note if again is not None and again.item == item.id else "",
        }  # fmt: skip
        return state

    def judge(self, call: dict[str, Any]) -> dict[str, Any]:
        """Save a verdict, then the next state.

        Args:
            call: {"item", "verdict": left | right | tie | both_bad | skip, "marks": {behaviour number: [left, right]},
                "note", "seconds"}. A verdict about an item that is not the one to be judged now (a key pressed twice,
                another tab) is not recorded, and the state's notice says so.
        """
        with self._lock:
            verdicts = self._verdicts()
            item = next((i for i in self.items if i.id not in verdicts), None)
            verdict = call.get("verdict")
            if item is None or call.get("item") != item.id:
                return self._state("That was about an answer no longer shown: nothing was recorded.")
            if verdict not in VERDICTS:
                return self._state("Unknown verdict: nothing was recorded.")
            left = item.left(self.reviewer, self.seed)
            sides = {"left": left, "right": "b" if left == "a" else "a"}
            marks: dict[str, list[str]] = {}
            given = call.get("marks")
            for number, where in (given if isinstance(given, dict) else {}).items():
                if str(number).isdigit() and int(number) < len(self.behaviours) and isinstance(where, list):
                    on = sorted({sides[x] for x in where if x in SIDES})
                    if on:
                        marks[self.behaviours[int(number)]] = on
            seconds = call.get("seconds")
            known = isinstance(seconds, (int, float)) and 0 <= seconds < 1e6
            outcome = sides.get(str(verdict), str(verdict))
            note = str(call.get("note") or "")[:MAX_NOTE]
            try:
                self._append(item, left, outcome, marks, note, round(float(seconds), 1) if known else None)  # type: ignore[arg-type]
            except DiagError as error:
                return self._state(f"NOT SAVED: {visible(str(error))}")
            return self._state()

    def undo(self, _: dict[str, Any] | None = None) -> dict[str, Any]:
        """Take the last verdict back (a line of its own), and show that item again with its marks and note."""
        with self._lock:
            verdicts = self._verdicts()
            if not verdicts:
                return self._state("Nothing to undo.")
            last = list(verdicts.values())[-1]
            item = next(i for i in self.items if i.id == last.item)
            self._append(item, last.left, UNDO, {}, "", None)
            return self._state("Undone.", again=last)

    def reopen(self, _: dict[str, Any] | None = None) -> dict[str, Any]:
        """Show the skipped items again."""
        with self._lock:
            skipped = [j for j in self._verdicts().values() if j.outcome == SKIP]
            for j in skipped:
                self._append(next(i for i in self.items if i.id == j.item), j.left, UNDO, {}, "", None)
            return self._state("" if skipped else "Nothing was skipped.")

    def _append(
        self, item: Item, left: str, outcome: str, marks: dict[str, list[str]], note: str, seconds: float | None
    ) -> None:
        row = Judgement(
            reviewer=self.reviewer, kind=PERSON, item=item.id, prompt_id=item.prompt_id, sample=item.sample, a=item.a,
            b=item.b, left=left, outcome=outcome, time=now(), decoding_hash=item.decoding_hash, behaviours=marks,
            asked=self.behaviours, note=note, seconds=seconds,
        )  # fmt: skip
        table.append(self.run.path, row)

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
