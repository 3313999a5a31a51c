"""The numbers of a console line that names them: `step=7 loss=0.69`, `Iter 10: Train loss 0.61, Learning Rate 1e-05`,
`Epoch:[1/1](20/4292), loss: 0.69`, `1|10|Loss: 0.69`, `Step 100 | loss 0.53 | acc 0.7`, a progress bar's own numbers.

A line is a row of a training only if it holds a loss, reward or log-prob under a known name and says where it stands (a
step, an epoch, a bar), or holds two of them. Names of one word after `=` or `:` are kept; other words are no metrics.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from dpo_diag.importers.bars import UNKNOWN, Counter, next_counter
from dpo_diag.importers.keys import Place, is_bookkeeping, place, with_split
from dpo_diag.importers.literal import ANSI
from dpo_diag.importers.scope import is_online_key

_NUMBER = r"[-+]?(?:\d{1,3}(?:,\d{3})++(?:\.\d++)?|\d++\.?\d*+|\.\d++)(?:[eE][-+]?\d++)?|[-+]?(?:nan|inf(?:inity)?)"
_PAIR = re.compile(
    rf"(?<![\w/.@\-])([A-Za-z][\w/@.\-]{{0,63}}(?:[ ][A-Za-z][\w/@.\-]{{0,63}}){{0,3}})"
    rf"(\s*+[:=]\s*+|\s++)({_NUMBER})(%?)(?=[\s,;|)\]}}:]|$)",
    re.IGNORECASE,
)
_STEP = re.compile(
    r"(?<![\w/])(?:(?:global|train(?:ing)?|opt(?:imizer)?|current)[ _]?)?(?:steps?|iter(?:ation)?s?|updates?)\b"
    r"\s*+[:=#]?+\s*+[\[(]?+\s*+(\d{1,15})(?:\s*+/\s*+(\d{1,15}))?(?![\w.%])[\])]?",
    re.IGNORECASE,
)
_EPOCH = re.compile(
    r"(?<![\w/])epochs?\b\s*+[:=#]?+\s*+[\[(]?+\s*+(\d{1,6}(?:\.\d+)?)(?:\s*+/\s*+\d+)?[\])]?"
    r"(?:\s*+[\[(](\d{1,15})/(\d{1,15})[\])])?",
    re.IGNORECASE,
)
_PIPES = re.compile(r"^\W*(\d{1,6})\|(\d{1,15})\|(?=\s*[A-Za-z])")  # torchtune's console: epoch|step|Loss: 0.69
_COUNT = re.compile(r"[\[(]\s*(\d{1,15})\s*/\s*(\d{1,15})[\])]")  # [20/4292]
_BAR = re.compile(r"(?<!\s)\s*+\d{1,3}%\|[^|]*\|\s*\d+/\d+ \[[^,\]]*(?:,\s*[^,=\]]*)?")
_ANSI = re.compile(ANSI.pattern.decode())
_EVALUATES = re.compile(r"\b(?:eval(?:uat(?:ion|ing|e))?|valid(?:ation)?|val|test)\b", re.IGNORECASE)
_TELLS_OF_ANOTHER = re.compile(
    r"\b(?:best|lowest|minimum|early stop|improved|trainoutput|sav(?:ed|ing)|checkpoint|threshold|expected|should)\b",
    re.IGNORECASE,
)
_IN_FRONT = frozenset(
    ("info", "debug", "warning", "notice", "main", "rank", "trainer", "train", "training", "avg", "average", "mean",
     "total", "batch", "step", "dpo", "current", "running", "iter", "loop", "the")
)  # fmt: skip
"""Words before a metric's name that say nothing of what it is."""
_MARKS = (",", "|", ";")
_GROUPS = ("actor/", "policy/", "model/", "metrics/", "stats/", "dpo/")
LONGEST = 1 << 14
"""Characters; a longer line is no row."""
CARRIES = ("loss", "rewards/", "logps/", "nll_loss", "preference_loss", "log_odds")
"""Beginnings of our names: a line without any of these is no row of a training."""


@dataclass
class Line:
    """One line's numbers.

    Attributes:
        row: name -> number, as text; an evaluation's carry their split.
        step, of: the step that the text names, and the number after its slash.
        epoch: that the text names.
        bar: the counter of the progress bar that the numbers stand in.
    """

    row: dict[str, str] = field(default_factory=dict)
    step: int | None = None
    of: int | None = None
    epoch: float | None = None
    bar: Counter = UNKNOWN


def parse_line(text: str, trainer: str = "any") -> Line | None:
    """The numbers of a line; None where it is no row of a training."""
    if len(text) > LONGEST:
        return None
    text = _ANSI.sub("", text)
    if _TELLS_OF_ANOTHER.search(text):
        return None
    line = Line()
    if "%|" in text:
        raw = text.encode("utf-8", "replace")
        line.bar = next_counter(raw, 0, len(raw))
        text = _BAR.sub(" ", text)
    text = _take_place(line, text)
    first, n_known = len(text), 0
    for match in _PAIR.finditer(text):
        words, mark, value, percent = match.groups()
        # A lone pair between commas or bars is as clear as one with a sign.
        around = text[: match.start()].rstrip()[-1:], text[match.end() :].lstrip()[:1]
        alone = all(sign in ("", *_MARKS) for sign in around)
        found = _name(words, trainer, named=alone or mark.strip() != "")
        if found is None or (percent and "acc" not in found[0]) or found[0] in line.row:
            continue
        name, known = found
        if known is not None and (known.name.startswith(CARRIES) or is_online_key(name)):
            n_known += 1
        first = min(first, match.start())
        plain = value.replace(",", "")
        line.row[name] = str(float(plain) / 100) if percent else plain
    is_placed = line.step is not None or line.epoch is not None or line.bar != UNKNOWN
    if n_known == 0 or not (is_placed or n_known > 1):
        return None
    if _EVALUATES.search(text[:first]) and not any(k.startswith(("eval", "val", "test")) for k in line.row):
        line.row = with_split(line.row, "eval")
    return line


def _take_place(line: Line, text: str) -> str:
    """Read step and epoch of a line; returns the text without them."""
    if pipes := _PIPES.match(text):
        line.epoch, line.step = float(pipes.group(1)), int(pipes.group(2))
        return text[pipes.end() :]
    if epoch := _EPOCH.search(text):
        line.epoch = float(epoch.group(1))
        if epoch.group(2):
            line.step, line.of = int(epoch.group(2)), int(epoch.group(3))
        text = f"{text[: epoch.start()]} ; {text[epoch.end() :]}"
    step = None if line.step is not None else _STEP.search(text) or _COUNT.search(text)
    if step is not None:
        line.step, line.of = int(step.group(1)), int(step.group(2)) if step.group(2) else None
        text = f"{text[: step.start()]} ; {text[step.end() :]}"
    return text


def _name(words: str, trainer: str, named: bool) -> tuple[str, Place | None] | None:
    """(name, its place where it is known) of the words before a number; None where they name no metric.

    Args:
        named: the number follows `=` or `:`.
    """
    parts = words.lower().split()
    for start in range(len(parts)):
        if not set(parts[:start]) <= _IN_FRONT:
            break
        name = "_".join(parts[start:])
        for group in _GROUPS:
            if name.startswith(group) and (inner := place(name[len(group) :], trainer)) and inner.known:
                return name[len(group) :], inner
        found = place(name, trainer)
        if found is not None and (found.known or is_online_key(name)):
            return name, found
    last = parts[-1]
    if not named or "." in last or is_bookkeeping(last) or len(last) < 2:
        return None
    return (last, None) if len(parts) == 1 or set(parts[:-1]) <= _IN_FRONT else None
