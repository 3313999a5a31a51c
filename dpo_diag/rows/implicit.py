"""Two whole texts or conversations to the prompt that they share and the rest of each.

A prompt that nobody wrote down is found, not known: it is taken where a turn's mark, a line's or a sentence's end shows
that it is whole, and refused where two answers may only begin alike.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from dpo_diag.records.conversation import response_text
from dpo_diag.records.row_files import BadRow
from dpo_diag.rows.pair import Turns, shorten
from dpo_diag.thresholds import defaults

ASSISTANT_MARK = re.compile(
    r"\n\nAssistant:"  # hh-rlhf
    r"|(?:^|\n)[ \t]*(?:#+ *)?(?:Assistant|Answer|A|Response|Reply|Bot|AI|GPT|Output|Completion|TL;DR)\s*:(?:[ \t]*\n)?"
    r"|<\|im_start\|>assistant\n|<\|assistant\|>\n?|\[/INST\]|<start_of_turn>model\n"
    r"|<\|start_header_id\|>assistant<\|end_header_id\|>\n\n"
)
_WHOLE = re.compile(r"[.?!:;…。？！：؟][\"'”’»)\]*`]*$|[>}\]`]$")


@dataclass(frozen=True)
class Rules:
    """What an implicit prompt of text must be.

    Attributes:
        any: any shared beginning will do.
        other_columns: columns of text that nothing reads: one of them may be the prompt.
        min_share: it is at least this share of the responses' mean length, in characters, unless a turn's mark ends it.
    """

    any: bool = False
    other_columns: tuple[str, ...] = ()
    min_share: float = field(default_factory=lambda: defaults()["rows.implicit_prompt_min_share"])

    @property
    def candidate(self) -> str:
        """The column that may be the prompt, for a hint."""
        return self.other_columns[0] if self.other_columns else "NAME"

    @property
    def hint(self) -> str:
        """What to do about a shared beginning that is no prompt."""
        return (
            f"name the prompt's column: data.columns.prompt={self.candidate}; "
            "or data.implicit_prompt=any takes any shared beginning"
        )


def _common_prefix(a: str, b: str) -> int:
    """Length of the longest common prefix, by bisection: comparing slices is fast, characters are not."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def split_text(chosen: str, rejected: str, rules: Rules) -> tuple[str, str, str]:
    """Two whole texts that share a prompt to (prompt, chosen, rejected).

    The prompt ends with the last mark of the assistant's turn that both share (hh-rlhf's `Assistant:`), so that an
    answer's first words stay in the answer even where both answers begin alike. Without a mark it is the common
    prefix, cut back to a word's start (the space belongs to the response, as in TRL's `extract_prompt`), or to a
    line's where the last one is no whole sentence.

    Raises:
        BadRow: the texts are equal or share nothing; what they share ends in a sentence, or is short.
    """
    if chosen == rejected:
        raise BadRow("chosen equals rejected", shorten(chosen))
    common = _common_prefix(chosen, rejected)
    marks = list(ASSISTANT_MARK.finditer(chosen, 0, common))
    if marks:
        cut = marks[-1].end()
        return chosen[:cut], chosen[cut:], rejected[cut:]
    cut = common
    while cut > 0 and not chosen[cut - 1].isspace():
        cut -= 1
    if cut > 0 and chosen[cut - 1] == " ":
        cut -= 1
    if cut == 0:
        detail = f"chosen begins with {shorten(chosen, 40)!r}"
        raise BadRow("no shared prompt", detail, f"name the prompt's column: data.columns.prompt={rules.candidate}")
    if not rules.any:
        if chosen[cut - 1] != "\n" and not _WHOLE.search(chosen[:cut]):
            line = chosen.rfind("\n", 0, cut) + 1
            if line == 0:
                raise BadRow("the shared beginning ends in the middle of a sentence", shorten(chosen[:cut]), rules.hint)
            cut = line
        mean = (len(chosen) + len(rejected)) / 2 - cut
        if cut < rules.min_share * mean:
            detail = f"{cut} characters before responses of {mean:.0f}: {shorten(chosen[:cut], 40)!r}"
            raise BadRow("the shared beginning is short for a prompt", detail, rules.hint)
    return chosen[:cut], chosen[cut:], rejected[cut:]


def split_messages(chosen: Turns, rejected: Turns) -> tuple[Turns, Turns, Turns]:
    """Two whole conversations to their common first turns and the rest of each (TRL's implicit prompt)."""
    if chosen == rejected:
        raise BadRow("chosen equals rejected", shorten(response_text(chosen)))
    common = 0
    for a, b in zip(chosen, rejected, strict=False):
        if a != b:
            break
        common += 1
    if common == 0:
        raise BadRow("no shared prompt", "the first turns differ")
    return chosen[:common], chosen[common:], rejected[common:]
