"""Answers against reference answers, through the field's own libraries where the field has one.

Exact match and token F1 follow SQuAD's (Rajpurkar et al. 2016, arXiv 1606.05250) with this package's words, so that
Chinese and Japanese count by characters and no English articles are dropped. ROUGE-L comes from rouge-score, chrF and
BLEU from sacrebleu (extra `text-metrics`).
"""

from __future__ import annotations

import importlib.util
import math
from collections import Counter
from collections.abc import Collection
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd

from dpo_diag.outputs.looks import Answers, Look
from dpo_diag.outputs.stats import SEED, mean_interval
from dpo_diag.outputs.words import main_script, words

METRICS = ("correct", "exact_match", "token_f1", "rouge_l", "chrf", "bleu")
MAX_CHARS = 20_000
MEND = "pip install 'dpo-diag[text-metrics]'"


def token_f1(text: str, reference: str) -> float:
    """Harmonic mean of precision and recall over words, repeats counted; 1 for two texts without words, else 0."""
    a, b = Counter(words(text)), Counter(words(reference))
    if not a or not b:
        return float(a == b)
    shared = (a & b).total()
    return 2 * shared / (a.total() + b.total())


def exact_match(text: str, reference: str) -> float:
    """Equal, blanks and case aside."""
    return float(" ".join(text.casefold().split()) == " ".join(reference.casefold().split()))


class _Words:
    """rouge-score's own tokenizer drops all that is not ASCII: a Chinese answer would score 0."""

    def tokenize(self, text: str) -> list[str]:
        return list(words(text))


@lru_cache(maxsize=65_536)
def rouge_l(text: str, reference: str) -> float:
    """ROUGE-L F-measure (rouge-score) over this package's words."""
    from rouge_score.rouge_scorer import RougeScorer

    return float(RougeScorer(["rougeL"], tokenizer=_Words()).score(reference, text)["rougeL"].fmeasure)


def installed(metric: str) -> bool:
    """Whether the library behind a metric is there."""
    needs = {"rouge_l": "rouge_score", "chrf": "sacrebleu", "bleu": "sacrebleu"}
    return metric not in needs or importlib.util.find_spec(needs[metric]) is not None


def answer_scores(frame: pd.DataFrame) -> pd.DataFrame:
    """Per answer with a reference: correct, exact_match, token_f1 (0 to 1), on the index of `frame`.

    NaN without a reference (`correct`: without a checker's verdict).
    """
    references = frame["reference"] if "reference" in frame else [None] * len(frame)
    pairs = [(t, r) if isinstance(r, str) else None for t, r in zip(frame["text"], references, strict=True)]
    return pd.DataFrame(
        {
            "correct": frame["correct"].astype(float) if "correct" in frame else math.nan,
            "exact_match": [math.nan if pair is None else exact_match(*pair) for pair in pairs],
            "token_f1": [math.nan if pair is None else token_f1(*pair) for pair in pairs],
        },
        index=frame.index,
        dtype=float,
    )


def corpus_score(metric: str, texts: list[str], references: list[str], draws: int = 500) -> tuple[float, float, float]:
    """(value, low, high) of chrF or BLEU (0 to 100) over all answers, with a bootstrap 95 % interval over answers.

    BLEU is tokenised by characters where most references are Chinese or Japanese.
    """
    from sacrebleu.metrics import BLEU, CHRF

    scripts = Counter(main_script(r) for r in references)
    by_character = scripts["Han"] + scripts["Japanese"] > len(references) / 2
    scorer: Any = CHRF() if metric == "chrf" else BLEU(tokenize="char" if by_character else "13a")
    value = float(scorer.corpus_score(texts, [references]).score)
    # sacrebleu's own resampling (n_bootstrap) tells a symmetric half-width; from the same per-answer statistics the
    # percentile interval is as cheap. The statistics of an answer are additive over a corpus.
    stats = np.array(scorer._extract_corpus_statistics(texts, [references]), dtype=float)
    rng = np.random.default_rng(SEED)
    counts = rng.multinomial(len(texts), np.full(len(texts), 1 / len(texts)), size=draws)
    drawn = [float(scorer._compute_score_from_stats((c @ stats).tolist()).score) for c in counts]
    low, high = np.quantile(drawn, (0.025, 0.975))
    return value, float(low), float(high)


def reference_table(answers: Answers, scores: pd.DataFrame, full: Collection[Look] | None = None) -> pd.DataFrame:
    """Per look and metric of `METRICS`: value, low, high (95 % bootstrap over prompts; Wilson's for 0/1), n.

    A metric without any value is left out; one whose library is absent has NaN and the reason in `not_applicable`.

    Args:
        answers: all looks.
        scores: `answer_scores` of their frame.
        full: looks that also get ROUGE-L, chrF and BLEU, which take up to seconds a look; None for all.
    """
    rows = []
    for look in answers.looks:
        own = answers.frame[(answers.frame["model"] == look.model) & (answers.frame["step"] == look.step)]
        referenced = own[own["reference"].map(lambda r: isinstance(r, str))]
        # An answer that runs away for megabytes would take these libraries minutes, and scores 0 either way.
        texts, references = (referenced[c].str.slice(0, MAX_CHARS).tolist() for c in ("text", "reference"))
        for metric in METRICS:
            row: dict[str, Any] = {"model": look.model, "step": look.step, "metric": metric}
            if metric in scores:
                estimate = mean_interval(scores.loc[own.index, metric].to_numpy(dtype=float))
                if estimate.n:
                    rows.append(row | estimate._asdict())
            elif not texts or (full is not None and look not in full):
                continue
            elif not installed(metric):
                row |= {"value": math.nan, "low": math.nan, "high": math.nan, "n": len(texts)}
                rows.append(row | {"not_applicable": f"its library is not installed: {MEND}"})
            elif metric == "rouge_l":
                values = [rouge_l(t, r) for t, r in zip(texts, references, strict=True)]
                rows.append(row | mean_interval(values)._asdict())
            else:
                value, low, high = corpus_score(metric, texts, references)
                rows.append(row | {"value": value, "low": low, "high": high, "n": len(texts)})
    columns = ["model", "step", "metric", "value", "low", "high", "n", "not_applicable"]
    return pd.DataFrame(rows, columns=columns)
