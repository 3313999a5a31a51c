"""Answers against reference answers, through the field's own libraries where the field has one.

Exact match and token F1 follow SQuAD's (Rajpurkar et al. 2016, arXiv 1606.05250) with this package's words, so that
Chinese and Japanese count by characters and no English articles are dropped. ROUGE-L is rouge-score's (Lin 2004) over
the same words; chrF and BLEU come from sacrebleu (extra `text-metrics`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
from rapidfuzz.distance import LCSseq

from dpo_diag.extras import install_hint, is_installed
from dpo_diag.outputs.answers import Answers, Checkpoint, columns_of
from dpo_diag.outputs.words import main_script, words
from dpo_diag.stats import FloatArray, Interval, bootstrap, mean_interval

METRICS = ("correct", "exact_match", "token_f1", "rouge_l", "chrf", "bleu")
MAX_CHARS = 20_000


def token_f1(text: str, reference: str) -> float:
    """Harmonic mean of precision and recall over words, repeats counted; 1 for two texts without words, else 0."""
    a, b = Counter(words(text)), _bag(reference)
    if not a or not b:
        return float(a == b)
    shared = (a & b).total()
    return 2 * shared / (a.total() + b.total())


@lru_cache(maxsize=65_536)
def _bag(reference: str) -> Counter[str]:
    return Counter(words(reference))


def exact_match(text: str, reference: str) -> float:
    """Equal, blanks and case aside."""
    return float(" ".join(text.casefold().split()) == " ".join(reference.casefold().split()))


@lru_cache(maxsize=65_536)
def rouge_l(text: str, reference: str) -> float:
    """ROUGE-L F-measure over this package's words, as rouge-score computes it, whose import and table cost a hundred
    times as much; 0 where either has none."""
    a, b = words(text), words(reference)
    common = LCSseq.similarity(a, b)
    if not common:
        return 0.0
    precision, recall = common / len(a), common / len(b)
    return 2 * precision * recall / (precision + recall)


def installed(metric: str) -> bool:
    """Whether the library behind a metric is there."""
    return metric not in ("chrf", "bleu") or is_installed("sacrebleu")


def answer_scores(frame: pd.DataFrame) -> pd.DataFrame:
    """Per answer with a reference: correct, exact_match, token_f1 (0 to 1), on the index of `frame`.

    NaN without a reference (`correct`: without a checker's verdict).
    """
    references = frame["reference"] if "reference" in frame else [None] * len(frame)
    pairs = [(t, r) if isinstance(r, str) else None for t, r in zip(frame["text"], references, strict=True)]
    scores = {pair: (exact_match(*pair), token_f1(*pair)) for pair in dict.fromkeys(pairs) if pair is not None}
    return pd.DataFrame(
        {
            "correct": frame["correct"].astype(float) if "correct" in frame else math.nan,
            "exact_match": [math.nan if pair is None else scores[pair][0] for pair in pairs],
            "token_f1": [math.nan if pair is None else scores[pair][1] for pair in pairs],
        },
        index=frame.index,
        dtype=float,
    )


Statistics = dict[tuple[str, str, str], list[float]]
"""(metric and its tokenizer, answer, reference) -> what the corpus score adds up."""


def corpus_score(
    metric: str, texts: Sequence[str], references: Sequence[str], known: Statistics | None = None
) -> Interval:
    """chrF or BLEU (0 to 100) over all answers, with a bootstrap 95 % interval over answers.

    Args:
        known: what other checkpoints' answers gave; extended here, so that an answer is counted out once.

    BLEU is tokenised by characters where most references are Chinese or Japanese.
    """
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    scripts = Counter(main_script(r) for r in references)
    by_character = scripts["Han"] + scripts["Japanese"] > len(references) / 2
    scorer: Any = CHRF() if metric == "chrf" else BLEU(tokenize="char" if by_character else "13a")
    # sacrebleu's own resampling (n_bootstrap) gives a symmetric half-width; from the same per-answer statistics, which
    # are additive over a corpus, the percentile interval is as cheap.
    known, way = {} if known is None else known, f"{metric} {by_character}"
    pairs = list(zip(texts, references, strict=True))
    new = [pair for pair in dict.fromkeys(pairs) if (way, *pair) not in known]
    if new:
        counted = scorer._extract_corpus_statistics([t for t, _ in new], [[r for _, r in new]])
        known.update(((way, *pair), row) for pair, row in zip(new, counted, strict=True))
    statistics = np.array([known[way, *pair] for pair in pairs], dtype=float)

    def score(counts: FloatArray) -> list[float]:
        return [float(scorer._compute_score_from_stats(row).score) for row in (counts @ statistics).tolist()]

    return bootstrap(score, len(texts))


def reference_table(answers: Answers, scores: pd.DataFrame, full: Collection[Checkpoint] | None = None) -> pd.DataFrame:
    """Per checkpoint and metric of `METRICS`: value, low, high (95 %; t, Wilson's for 0/1, bootstrap of a corpus), n.

    A metric without any value is left out; one whose library is absent has NaN and the reason in `not_applicable`.

    Args:
        answers: all checkpoints.
        scores: `answer_scores` of their samples.
        full: checkpoints that also get ROUGE-L, chrF and BLEU, which take up to seconds each; None for all.
    """
    rows, known = [], Statistics()
    for checkpoint in answers.checkpoints:
        own = answers.of(checkpoint)
        referenced = own[own["reference"].map(lambda r: isinstance(r, str))]
        # An answer that runs away for megabytes would take these libraries minutes, and scores 0 either way.
        texts, references = (referenced[c].str.slice(0, MAX_CHARS).tolist() for c in ("text", "reference"))
        for metric in METRICS:
            row: dict[str, Any] = {**checkpoint._asdict(), "metric": metric}
            if metric in scores:
                estimate = mean_interval(answers.values(scores, checkpoint, metric))
                if not estimate.n:
                    continue
            elif not texts or (full is not None and checkpoint not in full):
                continue
            elif not installed(metric):
                estimate = Interval(math.nan, math.nan, math.nan, len(texts))
                row["not_applicable"] = f"its library is not installed: {install_hint('sacrebleu')}"
            elif metric == "rouge_l":
                estimate = mean_interval([rouge_l(t, r) for t, r in zip(texts, references, strict=True)])
            else:
                estimate = corpus_score(metric, texts, references, known)
            rows.append(row | columns_of(estimate))
    return pd.DataFrame(rows, columns=["model", "step", "metric", "value", "low", "high", "n", "not_applicable"])
