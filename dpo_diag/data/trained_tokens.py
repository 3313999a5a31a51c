"""Which tokens a training learns from, and what is wrong with them: for pairs, for SFT, for one sample that is shown.

Everything here looks at token ids and at which of them the loss counts, so it is the same for every trainer.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from dpo_diag.records.conversation import REASONING_KEYS, content_text, shown_keys
from dpo_diag.text import number, percent, safe

if TYPE_CHECKING:
    import pandas as pd
    from transformers import PreTrainedTokenizerBase

DOUBLE_BOS = "the prompt begins with two begin tokens"
BOS_INSIDE = "a trained answer begins with a begin token"
NO_END = "a trained answer has no end token"
END_OUTSIDE = "the end token lies outside of the trained tokens"
DOUBLE_END = "a trained answer ends with two end tokens"
EMPTY_THINK = "the chat template puts an empty think block into a trained answer"
UNSEEN = "the chat template does not show a part of the messages"
EQUAL = "the responses are equal as tokens"
NOTHING = "nothing of a row is trained"
CAP = "an answer ends at a length cap"
PROMPT_FILLS = "the prompt fills max_length"
NO_TOKENS = "a response has no tokens"
CUT = "a response is cut"
CUT_EQUAL = "the responses are equal once cut"
HINTS: Mapping[str, str] = {
    DOUBLE_BOS: "the text has one and the tokenizer adds one: leave it out of the text",
    BOS_INSIDE: "leave it out of the answers' text",
    NO_END: "the model never learns to stop: end the template's turns, or the texts, with the tokenizer's end token",
    END_OUTSIDE: "the model never learns to stop: put it inside the template's generation block, or train on it",
    DOUBLE_END: "leave it out of the answers' text, white space behind it included",
    EMPTY_THINK: "the model learns not to think: give the reasoning in the data, or take a template without the block",
    UNSEEN: "the model never reads it: take a template that shows it, or drop the key",
    EQUAL: "their margin can never change: look at what the template leaves out",
    NOTHING: "check the mask, the template's generation block and max_length",
    PROMPT_FILLS: "nothing of the answers is left, and such rows are left out: raise trainer.max_length",
    NO_TOKENS: "such rows are left out: the prompt holds the answer already",
    CUT: "its end token is not trained: raise trainer.max_length, or leave such rows out",
    CUT_EQUAL: "their margin can never change: raise trainer.max_length, or leave such rows out",
    CAP: "the model learns to stop in the middle: leave such answers out, or write them again with a larger cap",
}
"""What is found -> what to do; the keys are the reasons that data_issues.csv lists."""


@dataclass(frozen=True)
class Finding:
    """One of the reasons above, over a set.

    Attributes:
        rows: how many rows have it; share: of the rows looked at.
        row, detail: the first of them, and what is special there.
    """

    why: str
    rows: int
    share: float
    row: int
    detail: str

    def to_dict(self) -> dict[str, Any]:
        """For run.json and data_report.json: no text of the data."""
        return {**{k: v for k, v in asdict(self).items() if k != "detail"}, "hint": HINTS[self.why]}

    def line(self, what: str = "rows") -> str:
        """One line for the user."""
        count = f"{number(self.rows)} of {number(round(self.rows / self.share))} {what} ({percent(self.share)})"
        return (
            f"{count}: {self.why}, first in row {self.row}: {safe(self.detail, max_chars=200, one_line=True)}; "
            f"{HINTS[self.why]}"
        )


def of_sides(details: Mapping[str, str]) -> str:
    """What is special on each side, said once where it is the same."""
    if len(details) > 1 and len(set(details.values())) == 1:
        return next(iter(details.values()))
    return "; ".join(detail if side == "sequence" else f"{side}: {detail}" for side, detail in details.items())


def findings_of(issues: pd.DataFrame, n_rows: int) -> list[Finding]:
    """Findings of a list of issues (row, why, detail), commonest first; other reasons are not about tokens."""
    known = issues[issues["why"].isin(list(HINTS))].drop_duplicates(["row", "why"])
    found = [
        Finding(str(why), len(part), len(part) / n_rows, int(part["row"].iloc[0]), str(part["detail"].iloc[0]))
        for why, part in known.groupby("why", sort=False, observed=True)
    ]
    return sorted(found, key=lambda finding: -finding.rows)


_THINK = re.compile(
    r"(?<!\s)\s*+(?:<\|?(?P<tag>think|thinking|thought|reasoning)\|?>\s*<\|?/(?P=tag)\|?>"
    r"|\[(?P<mark>think|reasoning)\]\s*\[/(?P=mark)\]"
    r"|<\|(?:begin|start)_of_thought\|>\s*<\|end_of_thought\|>"
    r"|<\|channel\|>analysis<\|message\|>\s*<\|end\|>)",
    re.IGNORECASE,
)
_THINK_TOKENS = 48
"""The template's empty think block lies within so many tokens of an answer's begin."""


class Issue(NamedTuple):
    """One of the reasons above, and what is special here."""

    why: str
    detail: str


@dataclass(frozen=True)
class TrainedIds:
    """Token ids of one sequence and which of them the loss counts."""

    ids: Sequence[int]
    trained: Sequence[bool]
    is_cut: bool = False

    @classmethod
    def of_pair(cls, prompt: Sequence[int], response: Sequence[int], is_cut: bool = False) -> TrainedIds:
        """Prompt and response of one side of a pair."""
        return cls([*prompt, *response], [False] * len(prompt) + [True] * len(response), is_cut)

    def spans(self) -> Iterator[tuple[int, int]]:
        """(begin, end) of each run of trained tokens."""
        begin = None
        for i, trained in enumerate([*self.trained, False]):
            if trained and begin is None:
                begin = i
            elif not trained and begin is not None:
                yield begin, i
                begin = None


def has_empty_think(answer: str | Sequence[Mapping[str, Any]]) -> bool:
    """Whether an answer, text or messages, begins with a think block that holds nothing, in the data already."""
    contents = [answer] if isinstance(answer, str) else [content_text(message.get("content")) for message in answer]
    return any(_THINK.match(content) for content in contents)


class TokenRules:
    """What a tokenizer's tokens mean.

    Args:
        end_ids: further ids that end a generation (the model's generation config), beside the tokenizer's.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, end_ids: Collection[int] = ()) -> None:
        self.tokenizer = tokenizer
        self.bos = tokenizer.bos_token_id
        self.ends = {i for i in (tokenizer.eos_token_id, *end_ids) if isinstance(i, int)}
        self._is_blank = lru_cache(maxsize=None)(lambda token: not self.text([token]).strip())

    def text(self, ids: Sequence[int]) -> str:
        """The tokens' text, special tokens visible."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def without_end(self, text: str) -> str:
        """An answer's text without the end token that it may have brought along."""
        return text.rstrip().removesuffix(str(self.tokenizer.eos_token))

    def issues(self, sequence: TrainedIds, *, own_think: bool = False) -> list[Issue]:
        """What is wrong with one sequence, each reason once.

        Args:
            own_think: the data's own text begins with an empty think block, so that the template did not add it.
        """
        ids, found = sequence.ids, dict[str, str]()
        if self.bos is not None and list(ids[:2]) == [self.bos] * 2:
            found[DOUBLE_BOS] = repr(self.text(ids[:3]))
        spans = list(sequence.spans())
        if not spans:
            found[NOTHING] = "cut off" if sequence.is_cut else f"{len(ids)} tokens, none in the loss"
        for begin, end in spans:
            last = end == len(ids)
            for why, detail in self._of_span(ids, begin, end, is_cut=sequence.is_cut and last, own_think=own_think):
                found.setdefault(why, detail)
        return [Issue(*entry) for entry in found.items()]

    def _of_span(self, ids: Sequence[int], begin: int, end: int, *, is_cut: bool, own_think: bool) -> Iterator[Issue]:
        if begin > 0 and ids[begin] == self.bos and self.bos not in self.ends:
            yield Issue(BOS_INSIDE, repr(self.text(ids[begin : begin + 6])))
        # A span from the first token on is a whole conversation; else it is an answer, perhaps with its role before it.
        head = self.text(ids[begin : end if begin == 0 else min(end, begin + _THINK_TOKENS)])
        if not own_think and (block := _THINK.search(head)):
            yield Issue(EMPTY_THINK, repr(block.group().strip()))
        tail = self._filled(ids, begin, end)
        if tail and ids[tail[-1]] in self.ends:
            if len(tail) > 1 and ids[tail[-2]] in self.ends:
                yield Issue(DOUBLE_END, repr(self.text(ids[tail[-2] : end])))
        elif not is_cut:
            after = next((i for i in ids[end:] if not self._is_blank(i)), None)
            shown = repr(self.text(ids[max(begin, end - 6) : end]))
            if after in self.ends:
                yield Issue(END_OUTSIDE, f"{self.text([after])!r} follows {shown}")
            else:
                yield Issue(NO_END, f"it ends with {shown}, not with {self._names()}")

    def _filled(self, ids: Sequence[int], begin: int, end: int) -> list[int]:
        """Places of the last two tokens of a span that are no white space, in order."""
        places: list[int] = []
        for i in range(end - 1, begin - 1, -1):
            if not self._is_blank(ids[i]):
                places.insert(0, i)
                if len(places) == 2:
                    break
        return places

    def _names(self) -> str:
        return " or ".join(repr(self.text([i])) for i in sorted(self.ends)) or "an end token"


def unseen_parts(messages: Sequence[Mapping[str, Any]], rendered: str) -> list[str]:
    """Keys of messages whose text does not stand in what the template made of them: reasoning, plans, tool calls."""
    missing = []
    for message in messages:
        for key, value in shown_keys(message).items():
            if key == "tool_calls" and isinstance(value, (list, tuple)):
                values = [called_name(call) for call in value]
            else:
                values = [value] if key in (*REASONING_KEYS, "tool_plan") and isinstance(value, str) else []
            if any(v.strip() not in rendered for v in values):
                missing.append(key)
    return list(dict.fromkeys(missing))


def called_name(call: Any) -> str:
    """Name of the function of a tool or of a tool call; "" for none."""
    function = call.get("function", call) if isinstance(call, Mapping) else {}
    return str(function.get("name") or "") if isinstance(function, Mapping) else ""
