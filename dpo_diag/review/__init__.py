"""Right wing: people (and, if asked, a judge model) compare two checkpoints' answers, blind. No torch.

items       which answers are shown beside each other, in which order
judgements  append-only JSONL, one file per reviewer
session     one reviewer's way through the items
ranking     Bradley-Terry over all checkpoints
agreement   Cohen's kappa
results     win rates, ranking, behaviours, agreement as one JSON document
judge       a pairwise judge behind an OpenAI-compatible endpoint
printed     results as lines for a terminal
page        the page of `dpo-diag review`
"""

from __future__ import annotations

from dpo_diag.review.results import results

__all__ = ["results"]
