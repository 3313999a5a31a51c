"""Metrics of one side: how likely its responses are, from sums of token log-probs and counts."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from dpo_diag.records import metrics
from dpo_diag.records.metric_table import METRICS, Columns, FloatArray, Metric, Value


def _per_response(formula: Callable[[FloatArray, FloatArray], float]) -> Callable[[Columns], Value]:
    return lambda rows: Value(formula(rows["sum_logp"], rows["n_tokens"]), float(len(rows["n_tokens"])))


def _ppl_token(rows: Columns) -> Value:
    return Value(metrics.ppl_token(rows["sum_logp"], rows["n_tokens"]), float(rows["n_tokens"].sum()))


def _bits_per_byte(rows: Columns) -> Value | None:
    if "n_bytes" not in rows:
        return None
    return Value(metrics.bits_per_byte(rows["sum_logp"], rows["n_bytes"]), float(rows["n_bytes"].sum()))


def _per_token(column: str) -> Callable[[Columns], Value | None]:
    """A column's sum over the sides' tokens, divided by their number."""

    def formula(rows: Columns) -> Value | None:
        tokens = float(rows["n_tokens"].sum())
        return Value(float(rows[column].sum()) / tokens, tokens) if column in rows else None

    return formula


def _logps(rows: Columns) -> Value:
    sums = rows.get("loss_logp", rows["sum_logp"])  # LD-DPO's log-probs, where the loss is made of them
    return Value(float(np.mean(sums)), float(len(sums)))


METRICS.add("ce", Metric(
    "{side} cross-entropy (nats/token)", "nats/token", "lower",
    "mean over responses of the mean token cross-entropy",
    bounds=(0.0, None), sides=True, of_side=_per_response(metrics.mean_ce), per_response=True,
))  # fmt: skip
METRICS.add("ppl_token", Metric(
    "{side} ppl_token", "ratio", "lower",
    "exp of the mean cross-entropy over all tokens: every token weighs the same",
    bounds=(1.0, None), sides=True, of_side=_ppl_token,
))  # fmt: skip
METRICS.add("ppl_seq_mean", Metric(
    "{side} ppl_seq_mean", "ratio", "lower",
    "mean over responses of exp(cross-entropy), H2O LLM Studio's Perplexity: one hard response can carry it",
    bounds=(1.0, None), sides=True, of_side=_per_response(metrics.ppl_seq_mean), per_response=True,
))  # fmt: skip
METRICS.add("ppl_seq_geomean", Metric(
    "{side} ppl_seq_geomean", "ratio", "lower",
    "exp of the mean over responses of the cross-entropy: every response weighs the same",
    bounds=(1.0, None), sides=True, of_side=_per_response(metrics.ppl_seq_geomean), per_response=True,
))  # fmt: skip
METRICS.add("bits_per_byte", Metric(
    "{side} bits per byte", "bits/byte", "lower",
    "-log2 p of the responses over their UTF-8 bytes: comparable across tokenizers",
    bounds=(0.0, None), sides=True, of_side=_bits_per_byte,
))  # fmt: skip
METRICS.add("top1", Metric(
    "{side} top-1 share", "share", "higher", "share of tokens that are the model's first choice",
    sides=True, of_side=_per_token("top1_hits"),
))  # fmt: skip
METRICS.add("top5", Metric(
    "{side} top-5 share", "share", "higher", "share of tokens among the model's first five choices",
    sides=True, of_side=_per_token("top5_hits"),
))  # fmt: skip
METRICS.add("entropy", Metric(
    "{side} entropy", "nats/token", "neither",
    "mean next-token entropy; without a side over both responses (the trainer's number)",
    bounds=(0.0, None), sides=True, of_side=_per_token("entropy_sum"), stand_ins=("entropy/chosen",),
))  # fmt: skip
METRICS.add("greedy_logp", Metric(
    "{side} greedy log-prob", "nats/token", "neither",
    "mean log-prob of the model's first choice at the responses' positions",
    bounds=(None, 0.0), sides=True, of_side=_per_token("greedy_logp_sum"),
))  # fmt: skip
for _name, _divergence in (("kl_reverse", "KL(policy || reference)"), ("kl_forward", "KL(reference || policy)")):
    METRICS.add(_name, Metric(
        f"{{side}} {_divergence}", "nats/token", "neither",
        f"{_divergence} over the whole vocabulary, mean over the positions of the data's responses",
        bounds=(0.0, None), sides=True, of_side=_per_token(f"{_name}_sum"),
    ))  # fmt: skip
METRICS.add("logps", Metric(
    "{side} log-prob", "nats", "neither",
    "mean over responses of the summed token log-probs (means over tokens where run.json's logps says so)",
    bounds=(None, 0.0), sides=True, of_side=_logps, per_response=True,
))  # fmt: skip
METRICS.add("mean_logps", Metric(
    "{side} mean token log-prob", "nats/token", "higher",
    "mean over responses of the mean token log-prob, where a log holds it beside or instead of sums: -ce",
    bounds=(None, 0.0), sides=True,
))  # fmt: skip
METRICS.add("ref_logps", Metric(
    "{side} log-prob under the reference", "nats", "neither",
    "logps - rewards / beta: constant over the evaluations of one set", sides=True,
))  # fmt: skip
METRICS.add("logits", Metric(
    "{side} mean logit", "logits", "neither", "mean logit; not comparable between models",
    sides=True, of_side=_per_token("logit_sum"),
))  # fmt: skip
