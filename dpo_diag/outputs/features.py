"""One row of measures per answer (length, repetition, form, stance, language, entropy), and means per checkpoint."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from functools import cache

import numpy as np
import numpy.typing as npt
import pandas as pd

from dpo_diag.outputs import formats
from dpo_diag.outputs.answers import Answers, columns_of, tags_of
from dpo_diag.outputs.stances import Stances, load_stances
from dpo_diag.outputs.words import main_script, ngrams, words
from dpo_diag.stats import mean_interval

IntArray = npt.NDArray[np.int64]
LOOP_REPEATS, LOOP_WORDS, LOOP_PERIOD = 3, 12, 30

MEANS = (
    "n_words", "n_chars", "loop", "distinct_2", "truncated", "refusal", "hedge", "language_switch", "valid_format",
    "json", "sql", "code", "list", "structure", "entropy", "empty",
)  # fmt: skip
"""Columns of `features` that `checkpoint_table` gives the mean of."""


def loop_words(forms: Sequence[str]) -> int:
    """Words in the longest stretch that repeats itself at once, at least 3 times over and 12 words long; 0 for none.

    Periods of up to 30 words are seen: "a b a b a b ..." has period 2.
    """
    n = len(forms)
    # Every word of such a stretch stands in the text three times or more: few texts have a dozen of those.
    if n < LOOP_WORDS or sum(k for k in Counter(forms).values() if k >= LOOP_REPEATS) < LOOP_WORDS:
        return 0
    vocabulary = {w: i for i, w in enumerate(dict.fromkeys(forms))}
    ids = np.array([vocabulary[w] for w in forms])
    longest = 0
    for period in range(1, min(LOOP_PERIOD, n // LOOP_REPEATS) + 1):
        breaks = np.flatnonzero(np.concatenate(([True], ids[period:] != ids[:-period], [True])))
        run = int(np.diff(breaks).max()) - 1
        if run >= (LOOP_REPEATS - 1) * period and run + period >= LOOP_WORDS:
            longest = max(longest, run + period)
    return longest


def distinct(forms: Sequence[str], n: int) -> float:
    """Distinct n-grams over all n-grams (Li et al. 2016, arXiv 1510.03055); NaN for fewer than n words."""
    grams = ngrams(forms, n)
    return len(set(grams)) / len(grams) if grams else math.nan


_READ = ("text", "prompt", "finish_reason", "n_tokens", "tags", "entropy_sum")


def wanted_format(tags: Sequence[str]) -> str | None:
    """The form that a prompt asks for, from its tag `format=NAME`; None without one."""
    for tag in tags:
        if tag.startswith("format=") and tag[7:] in formats.FORMATS:
            return tag[7:]
    return None


def features(frame: pd.DataFrame, stances: Stances | None = None) -> pd.DataFrame:
    """Measures of each answer, on the index of `frame` (rows of outputs/).

    Columns: n_words, n_chars; loop (0/1), loop_words; distinct_2 (share); truncated (0/1, ended by length);
    refusal, hedge (0/1), refusal_hits, hedge_hits (phrases found); script, language_switch (0/1: another main script
    than the prompt's); json, sql, code, list (0/1), valid_format (0/1 where a tag asks for a form, else NaN);
    structure (Markdown elements); kind; entropy (nats per token), empty (0/1). NaN where the records do not say.
    """
    stances = stances or load_stances()
    by_text = {text: _of_text(text, stances) for text in frame["text"].unique()}
    script_of = cache(main_script)
    read = [frame[c].tolist() if c in frame else [None] * len(frame) for c in _READ]
    rows = []
    for text, prompt, reason, n, tags, entropy in zip(*read, strict=True):
        own, wanted = by_text[text], wanted_format(tags_of(tags))
        script, asked = own["script"], script_of(prompt) if isinstance(prompt, str) else None
        rows.append(
            own
            | {
                "truncated": float(reason == "length") if isinstance(reason, str) else math.nan,
                "language_switch": math.nan if script is None or asked is None else float(script != asked),
                "valid_format": math.nan if wanted is None else own[wanted],
                "entropy": float(math.nan if entropy is None else entropy) / n if pd.notna(n) and n > 0 else math.nan,
            }
        )
    columns = [*MEANS, "loop_words", "refusal_hits", "hedge_hits", "script", "kind"]
    return pd.DataFrame({c: [row[c] for row in rows] for c in columns}, index=frame.index)


def _of_text(text: str, stances: Stances) -> dict[str, object]:
    """The measures that the text alone gives."""
    forms, hits, looped = words(text), stances.hits(text), loop_words(words(text))
    shown = text[: formats.MAX_CHARS]  # a form that takes longer than this to tell is none
    refused = bool(hits.get("refusal"))
    return {
        "n_words": len(forms),
        "n_chars": len(text),
        "loop": float(looped > 0),
        "loop_words": looped,
        "distinct_2": distinct(forms, 2),
        "refusal": float(refused),
        "hedge": float(bool(hits.get("hedge"))),
        "refusal_hits": hits.get("refusal", []),
        "hedge_hits": hits.get("hedge", []),
        "script": main_script(text),
        **{name: float(test(shown)) for name, test in formats.FORMATS.items()},
        "structure": float(formats.structure(shown)),
        "kind": formats.kind(shown, refused),
        "empty": float(not text.strip()),
    }


class NGrams:
    """The n-grams of texts as numbers; each text is taken apart once, whichever checkpoints wrote it."""

    def __init__(self) -> None:
        self._numbers: dict[tuple[str, ...], int] = {}
        self._known: dict[tuple[str, int], IntArray] = {}

    def of(self, text: str, n: int) -> IntArray:
        """A text's distinct n-grams of words, each by its number."""
        if (text, n) not in self._known:
            grams = set(ngrams(words(text), n))
            numbers = [self._numbers.setdefault(gram, len(self._numbers)) for gram in grams]
            self._known[text, n] = np.array(numbers, dtype=np.int64)
        return self._known[text, n]


def self_similarity(texts: Sequence[str], grams: NGrams | None = None) -> float:
    """Mean cosine between the word-bigram sets of answers to different prompts: 0 unrelated, 1 all the same.

    Rises when a model gives everyone the same answer (mode collapse). NaN for fewer than two answers with a bigram.
    With unit vectors v_i the mean over pairs is (|sum v|^2 - n) / (n (n - 1)): linear in the texts, not quadratic.
    """
    grams = grams or NGrams()
    sets = [of for text in texts if (of := grams.of(text, 2)).size]
    if (n := len(sets)) < 2:
        return math.nan
    sizes = np.array([of.size for of in sets])
    total = np.bincount(np.concatenate(sets), weights=np.repeat(1 / np.sqrt(sizes), sizes))
    return float((total @ total - n) / (n * (n - 1)))


def corpus_distinct(texts: Sequence[str], n: int, grams: NGrams | None = None) -> float:
    """Distinct n-grams over all n-grams of all answers together; NaN without any."""
    grams = grams or NGrams()
    total = sum(max(0, len(words(text)) - n + 1) for text in texts)
    return np.unique(np.concatenate([grams.of(text, n) for text in texts])).size / total if total else math.nan


def checkpoint_table(answers: Answers, measured: pd.DataFrame) -> pd.DataFrame:
    """One row per checkpoint: the mean of each measure of `MEANS` with `_low`, `_high`, `_n`, and what needs all
    answers.

    Those are self_similarity, distinct_1_all, distinct_2_all, identical (share of answers that another prompt got
    too). Entropy is the mean over answers of nats per token.
    """
    rows, grams = [], NGrams()
    for checkpoint in answers.checkpoints:
        texts = answers.of(checkpoint)["text"].tolist()
        row: dict[str, object] = {**checkpoint._asdict(), "n": len(texts)}
        for name in MEANS:
            row |= columns_of(mean_interval(answers.values(measured, checkpoint, name)), name)
        counts = Counter(text.strip() for text in texts)
        row["identical"] = sum(c for c in counts.values() if c > 1) / len(texts) if texts else math.nan
        row["self_similarity"] = self_similarity(texts, grams)
        row["distinct_1_all"], row["distinct_2_all"] = (corpus_distinct(texts, n, grams) for n in (1, 2))
        rows.append(row)
    return pd.DataFrame(rows)
