"""Metrics of supervised training: the terms of its loss apart, and what its loss is to be measured against."""

from __future__ import annotations

from dpo_diag.records.metric_table import METRICS, Metric

METRICS.add("aux/label_smoothing", Metric(
    "label-smoothing term", "nats/token", "neither",
    "mean over the loss's tokens of z(target) - mean z: epsilon times it is added to the NLL", bounds=(None, None),
))  # fmt: skip
METRICS.add("aux/confidence_penalty", Metric(
    "confidence penalty", "nats/token", "neither", "minus the entropy, mean over the loss's tokens, before its weight",
    bounds=(None, 0.0),
))  # fmt: skip
METRICS.add("aux/z_loss", Metric(
    "z-loss", "nats^2", "lower", "(log of the normaliser)^2, mean over the loss's tokens, before its weight",
    bounds=(0.0, None),
))  # fmt: skip
METRICS.add("aux/infonce", Metric(
    "InfoNCE", "nats", "lower",
    "of prompt against response states within a micro-batch, mean over rows, before its weight", bounds=(0.0, None),
))  # fmt: skip
METRICS.add("baseline/uniform", Metric(
    "loss of a uniform guess", "nats/token", "neither",
    "ln |V|: the cross-entropy, smoothed or not, of the same probability for each token", bounds=(0.0, None),
))  # fmt: skip
METRICS.add("baseline/unigram", Metric(
    "loss of the unigram baseline", "nats/token", "neither",
    "cross-entropy of the set's trained tokens under the frequencies of the training's (Witten-Bell for unseen ones; "
    "of the training set itself their entropy)",
    bounds=(0.0, None),
))  # fmt: skip
METRICS.add("baseline/unseen", Metric(
    "tokens that training lacks", "share", "neither",
    "share of the set's trained tokens that the training set never has",
))  # fmt: skip
METRICS.add("baseline/floor", Metric(
    "floor of the smoothed loss", "nats/token", "neither",
    "entropy of the smoothed target: the least that a smoothed loss can be; a uniform guess has ln |V|",
    bounds=(0.0, None),
))  # fmt: skip
