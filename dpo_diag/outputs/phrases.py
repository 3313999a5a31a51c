"""Phrase inflation: which phrases did the model take up, and from which training answers.

An n-gram is counted once per answer, so that a loop inside one answer is one. Whether a rise is more than chance is
decided by the exact paired test over prompts (McNemar: answers that gained the n-gram against those that lost it) under
the false discovery rate of Benjamini & Hochberg (1995) over all n-grams that could reach significance at all; the
strongest evidence comes first. How large it is says the log-odds ratio with an informative prior of Monroe, Colaresi &
Quinn (2008, "Fightin' Words", Political Analysis 16:372), here per answer: the prior is `PRIOR` answers with the
n-gram's share in both checkpoints together, which shrinks what is rare. (Ranking by it would put a phrase of 9 answers
that is new before one that went from 3 to 30.) Overlapping n-grams are reported as the longest phrase around
them.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from dpo_diag.outputs.words import Word, join, sentences
from dpo_diag.paired import mcnemar
from dpo_diag.stats import false_discovery
from dpo_diag.thresholds import Thresholds, load_thresholds

MAX_WORDS, MAX_CHARACTERS = 6, 8
PRIOR = 10.0
"""Answers in the prior of the log-odds ratio; it shrinks what is rare and decides nothing."""
MAX_PHRASE = 40
MAX_TEXT = 20_000
TESTABLE = 6
"""Discordant prompts that a two-sided exact test needs to reach 0.05 at all (2 / 2^6 = 0.031)."""

Gram = tuple[str, ...]
IntArray = npt.NDArray[np.int64]
COLUMNS = (
    "phrase", "before", "after", "n", "share_before", "share_after", "gained", "lost", "log_odds", "z", "p", "q",
    "significant", "in_chosen", "in_rejected", "n_texts", "prompt_ids", "variants", "tested",
)  # fmt: skip


def _grams(sentence: Sequence[Word]) -> Iterable[Gram]:
    """n-grams of a sentence: up to 6 words, or 2 to 8 characters of an unspaced script."""
    forms = [w.form for w in sentence]
    for i, word in enumerate(sentence):
        characters = 0
        for j in range(i, min(len(forms), i + MAX_CHARACTERS)):
            characters += sentence[j].unspaced
            n = j - i + 1
            if n > MAX_WORDS and characters < n:
                break
            if n == 1 and (word.unspaced or len(word.form) < 2):
                continue
            yield tuple(forms[i : j + 1])


@dataclass(frozen=True)
class _Side:
    """One checkpoint's answers, prepared: the prompts that hold an n-gram, as a mask, of each that can be tested, and
    searchable text per answer."""

    masks: Mapping[Gram, int]
    texts: Sequence[str]

    def mask(self, gram: Gram) -> int:
        if gram in self.masks:
            return self.masks[gram]
        needle = _needle(gram)
        return sum(1 << i for i, text in enumerate(self.texts) if needle in text)


def _sides(before: Sequence[str], after: Sequence[str]) -> tuple[_Side, _Side]:
    """The answers of two checkpoints to the same prompts, in one order.

    Each distinct text is taken apart once. A mask has as many bits as there are prompts, so that only n-grams get one
    that TESTABLE prompts hold in one of their two answers alone.
    """
    numbers: dict[Gram, int] = {}
    grams: dict[str, IntArray] = {}
    found: dict[str, str] = {}
    for text in dict.fromkeys([*before, *after]):
        parts = sentences(text[:MAX_TEXT])
        of_text = {gram for part in parts for gram in _grams(part)}
        grams[text] = np.array([numbers.setdefault(gram, len(numbers)) for gram in of_text], dtype=np.int64)
        found[text] = searchable(parts)
    n, none = max(len(before), 1), np.zeros(0, dtype=np.int64)
    # An n-gram in an answer is one number: that of the n-gram times n, plus the prompt's.
    places = [np.concatenate([none, *(grams[t] * n + i for i, t in enumerate(texts))]) for texts in (before, after)]
    once = np.setxor1d(places[0], places[1], assume_unique=True)
    testable = np.bincount(once // n, minlength=len(numbers)) >= TESTABLE
    names = {i: gram for gram, i in numbers.items() if testable[i]}
    sides = []
    for texts, of_side in zip((before, after), places, strict=True):
        kept = np.sort(of_side[testable[of_side // n]])
        masks = dict.fromkeys(names.values(), 0)
        for part in np.split(kept, np.flatnonzero(np.diff(kept // n)) + 1) if kept.size else ():
            masks[names[int(part[0] // n)]] = _mask(part % n, n)
        sides.append(_Side(masks, [found[text] for text in texts]))
    return sides[0], sides[1]


def _mask(prompts: IntArray, n: int) -> int:
    bits = np.zeros(n, dtype=np.uint8)
    bits[prompts] = 1
    return int.from_bytes(np.packbits(bits, bitorder="little").tobytes(), "little")


def searchable(parts: Sequence[Sequence[Word]]) -> str:
    """Sentences as one string in which an n-gram is found by `in`, at word boundaries, never across sentences."""
    return "\x1e".join("\x1f" + "\x1f".join(w.form for w in part) + "\x1f" for part in parts)


def contains(text: str, phrase: str) -> bool:
    """Whether the phrase's words stand next to each other in one sentence of the text; case and commas aside."""
    wanted = tuple(word.form for part in sentences(phrase) for word in part)
    return bool(wanted) and _needle(wanted) in searchable(sentences(text[:MAX_TEXT]))


def held(text: str, phrases: Sequence[str]) -> list[int]:
    """Places of the phrases that a text holds (see `contains`); the text is read once."""
    known = searchable(sentences(text[:MAX_TEXT]))
    wanted = [tuple(word.form for part in sentences(phrase) for word in part) for phrase in phrases]
    return [i for i, gram in enumerate(wanted) if gram and _needle(gram) in known]


def _needle(gram: Gram) -> str:
    return "\x1f" + "\x1f".join(gram) + "\x1f"


def log_odds(after: float, before: float, n_after: float, n_before: float, prior: float = PRIOR) -> tuple[float, float]:
    """(log-odds ratio, z) of an n-gram in `after` of n_after answers against `before` of n_before.

    Monroe et al.'s equations 16 and 19 with the prior alpha = prior x the pooled share; by hand, for 30 of 100 against
    0 of 100 and prior 10: alpha = 1.5, log(31.5 / 78.5) - log(1.5 / 108.5) = 3.368.
    """
    share = (after + before) / (n_after + n_before)
    alpha = min(max(prior * share, 1e-9), prior - 1e-9)
    a, b = after + alpha, before + alpha
    rest_a, rest_b = n_after + prior - a, n_before + prior - b
    delta = math.log(a / rest_a) - math.log(b / rest_b)
    return delta, delta / math.sqrt(1 / a + 1 / rest_a + 1 / b + 1 / rest_b)


@dataclass(frozen=True)
class _Counted:
    gram: Gram
    before: int
    after: int
    n: int

    @property
    def gained(self) -> int:
        return (self.after & ~self.before).bit_count()

    @property
    def lost(self) -> int:
        return (self.before & ~self.after).bit_count()

    @property
    def p(self) -> float:
        return mcnemar(self.lost, self.gained)

    @property
    def odds(self) -> tuple[float, float]:
        return log_odds(self.after.bit_count(), self.before.bit_count(), self.n, self.n)


def _tested(before: _Side, after: _Side, n: int) -> list[_Counted]:
    """Distinct hypotheses: n-grams that stand in the same answers are one, named by the longest."""
    groups: dict[tuple[int, int], Gram] = {}
    for gram, b in before.masks.items():
        a = after.masks[gram]
        known = groups.get((b, a))
        if known is None or (len(gram), gram) > (len(known), known):
            groups[(b, a)] = gram
    return [_Counted(gram, b, a, n) for (b, a), gram in sorted(groups.items(), key=lambda item: item[1])]


def _neighbours(side: _Side, gram: Gram, mask: int) -> tuple[Counter[str], Counter[str]]:
    """How many answers of `mask` have each word right before and right after the n-gram."""
    left: Counter[str] = Counter()
    right: Counter[str] = Counter()
    pattern = re.compile("(?:\x1f([^\x1e\x1f]+))?(?=" + re.escape(_needle(gram)) + "(?:([^\x1e\x1f]+)\x1f)?)")
    for i, text in enumerate(side.texts):
        if mask >> i & 1:
            around = pattern.findall(text)
            left.update({a for a, _ in around if a})
            right.update({b for _, b in around if b})
    return left, right


def _extended(seed: _Counted, before: _Side, after: _Side, kept: float) -> _Counted:
    """The longest phrase around the n-gram that keeps most of its support and of its gain."""
    current = seed
    for _ in range(MAX_PHRASE - len(seed.gram)):
        left, right = _neighbours(after, current.gram, current.after)
        options = [(c, (w, *current.gram)) for w, c in left.items()] + [
            (c, (*current.gram, w)) for w, c in right.items()
        ]
        grown = None
        for _, gram in sorted(options, key=lambda o: (-o[0], o[1]))[:2]:
            candidate = _Counted(gram, before.mask(gram), after.mask(gram), current.n)
            # Against the seed, not the last step: else a chain of small losses would drift to a rare long phrase.
            if _keeps(candidate, seed, kept):
                grown = candidate
                break
        if grown is None:
            break
        current = grown
    return current


def _overlaps(gram: Gram, phrase: Gram) -> bool:
    inside = set(phrase)
    shared = sum(form in inside for form in gram)
    affix = any(gram[-k:] == phrase[:k] or gram[:k] == phrase[-k:] for k in range(1, min(len(gram), len(phrase)) + 1))
    return 2 * shared >= len(gram) or affix


def _keeps(phrase: _Counted, part: _Counted, kept: float) -> bool:
    """Whether a phrase keeps the share `kept` of a part's answers and of its gain."""
    return (
        phrase.after.bit_count() >= kept * part.after.bit_count()
        and phrase.gained - phrase.lost >= kept * (part.gained - part.lost)
    )  # fmt: skip


def _carries(phrase: _Counted, part: _Counted, kept: float) -> bool:
    """Whether a phrase holds a shorter one and keeps most of its answers and of its gain."""
    longer = len(phrase.gram) > len(part.gram) and _needle(part.gram) in _needle(phrase.gram)
    return longer and _keeps(phrase, part, kept)


def _explained(gram: _Counted, phrase: _Counted, max_p: float) -> bool:
    """Whether an overlapping n-gram's rise is gone where the phrase is absent from both answers."""
    elsewhere = ~(phrase.before | phrase.after)
    rest = _Counted(gram.gram, gram.before & elsewhere, gram.after & elsewhere, gram.n)
    return rest.gained <= rest.lost or rest.p > max_p


class Inflation:
    """Which phrases answers took up from one checkpoint to another, and which they gave up.

    Args:
        before: prompt_id -> answer of the baseline.
        after: prompt_id -> answer of the later checkpoint; only prompts in both count.
        texts: training pairs (`run.texts`: chosen, rejected), for where a phrase comes from; None if unknown.
        top: rows at most.
        thresholds: `answers.max_q` and `phrases.kept_share`; None for the defaults.
    """

    def __init__(
        self,
        before: Mapping[str, str],
        after: Mapping[str, str],
        texts: pd.DataFrame | None = None,
        *,
        top: int = 20,
        thresholds: Thresholds | None = None,
    ) -> None:
        self._ids = [i for i in before if i in after]
        self._before, self._after, self._top = before, after, top
        self._limits = thresholds or load_thresholds()
        self._sides = _sides([before[i] for i in self._ids], [after[i] for i in self._ids])
        self._tested = _tested(*self._sides, len(self._ids))
        self._training = _Training(texts)

    def risen(self) -> pd.DataFrame:
        """Phrases that more answers hold after than before, strongest first.

        Returns:
            One row a phrase: phrase (as first written); before, after (answers that hold it) of n prompts and their
            shares; gained, lost (prompts whose answer took it up or dropped it); log_odds and z (Monroe et al.); p
            (exact, paired) and q of the n-gram that led to it; significant; in_chosen, in_rejected (shares of `n_texts`
            training pairs, NaN without texts); prompt_ids (up to 5 that gained it); variants (n-grams that the phrase
            explains); tested (n-grams that q is corrected for).
            No rows for no common prompt.
        """
        return self._rows(self._tested, *self._sides, self._after)

    def fallen(self) -> pd.DataFrame:
        """Phrases that fewer answers hold, as `risen` of the way back: `before` is then the later checkpoint."""
        turned = [_Counted(c.gram, c.after, c.before, c.n) for c in self._tested]
        return self._rows(turned, self._sides[1], self._sides[0], self._before)

    def _rows(self, tested: list[_Counted], old: _Side, new: _Side, answers: Mapping[str, str]) -> pd.DataFrame:
        max_q = self._limits["answers.max_q"]
        risen = [
            (c, float(q))
            for c, q in zip(tested, false_discovery([c.p for c in tested]), strict=True)
            if c.gained > c.lost and q <= max_q
        ]
        risen.sort(key=lambda item: (item[0].p, -item[0].odds[0], -len(item[0].gram), item[0].gram))
        phrases = _phrases(risen, old, new, self._top, self._limits)
        origin = self._training.shares([phrase.gram for phrase, _, _ in phrases])
        rows = [
            _row(phrase, self._ids, answers)
            | {"q": q, "significant": q <= max_q, "variants": variants[:5], "tested": len(tested)}
            | shares
            for (phrase, q, variants), shares in zip(phrases, origin, strict=True)
        ]
        return pd.DataFrame(rows, columns=list(COLUMNS))


def _phrases(
    risen: Sequence[tuple[_Counted, float]], before: _Side, after: _Side, top: int, limits: Thresholds
) -> list[tuple[_Counted, float, list[str]]]:
    """(phrase, q, the n-grams that it explains), strongest first: overlapping n-grams become one phrase."""
    share, max_p = limits["phrases.kept_share"], limits["answers.max_q"]
    kept: list[tuple[_Counted, float, list[str]]] = []
    for counted, q in risen:
        known = next(
            (i for i, (phrase, _, _) in enumerate(kept)
             if _overlaps(counted.gram, phrase.gram) and _explained(counted, phrase, max_p)), None,
        )  # fmt: skip
        if known is not None:
            phrase, first_q, variants = kept[known]
            if _carries(counted, phrase, share):
                kept[known] = (counted, first_q, [*variants, join(phrase.gram)])
            else:
                variants.append(join(counted.gram))
        elif len(kept) < top:
            phrase = _extended(counted, before, after, share)
            part = next((i for i, row in enumerate(kept) if _carries(phrase, row[0], share)), None)
            if part is not None:
                # A word was misspelt here and there: the whole phrase is what a reader knows it by.
                kept[part] = (phrase, kept[part][1], [join(kept[part][0].gram), *kept[part][2]])
            elif all(phrase.gram != row[0].gram for row in kept):
                kept.append((phrase, q, []))
    return kept


def _row(phrase: _Counted, ids: Sequence[str], after: Mapping[str, str]) -> dict[str, Any]:
    """What the two sides' answers say of a phrase."""
    log_ratio, z = phrase.odds
    n_before, n_after, n = phrase.before.bit_count(), phrase.after.bit_count(), len(ids)
    takers = [i for place, i in enumerate(ids) if (phrase.after & ~phrase.before) >> place & 1]
    return {
        "phrase": _surface(after[takers[0]], phrase.gram), "before": n_before, "after": n_after, "n": n,
        "share_before": n_before / n, "share_after": n_after / n, "gained": phrase.gained, "lost": phrase.lost,
        "log_odds": log_ratio, "z": z, "p": phrase.p, "prompt_ids": takers[:5],
    }  # fmt: skip


def _surface(text: str, gram: Gram) -> str:
    """The phrase as it was first written, case and punctuation included."""
    for part in sentences(text[:MAX_TEXT]):
        forms = [w.form for w in part]
        for i in range(len(forms) - len(gram) + 1):
            if tuple(forms[i : i + len(gram)]) == gram:
                return " ".join(text[part[i].start : part[i + len(gram) - 1].end].split())
    return join(gram)


class _Training:
    """Where phrases come from: the training answers, each prepared once."""

    def __init__(self, texts: pd.DataFrame | None) -> None:
        pairs = pd.DataFrame() if texts is None else texts
        own = pairs[pairs["split"] == "train"] if "split" in pairs else pairs
        self._pairs = own if len(own) else pairs

    @cached_property
    def _prepared(self) -> dict[str, list[str]]:
        return {
            side: [searchable(sentences(t[:MAX_TEXT])) for t in self._pairs[side] if isinstance(t, str)]
            for side in ("chosen", "rejected")
        }

    def shares(self, grams: Sequence[Gram]) -> list[dict[str, float]]:
        """Per phrase the shares of chosen and of rejected training answers that hold it, and of how many pairs."""
        n = len(self._pairs)
        if not n:
            return [{"in_chosen": math.nan, "in_rejected": math.nan, "n_texts": 0}] * len(grams)
        return [
            {"n_texts": n}
            | {f"in_{side}": sum(_needle(gram) in t for t in texts) / n for side, texts in self._prepared.items()}
            for gram in grams
        ]
