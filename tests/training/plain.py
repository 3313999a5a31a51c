"""What every recorded number is compared with: one sequence at a time, full logits, float64 log-softmax."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch

from dpo_diag.records import make_pair_id

SIDES = ("chosen", "rejected")


def common_prefix(a: list[int], b: list[int]) -> int:
    n = 0
    while n < min(len(a), len(b)) and a[n] == b[n]:
        n += 1
    return n


def encode(tokenizer: Any, example: Mapping[str, str], max_length: int | None = None, keep_end: bool = False) -> Any:
    """Per side (token ids, mask of response tokens) after truncation, and the full response lengths."""
    prompt = tokenizer(example["prompt"])["input_ids"]
    whole = [tokenizer(example["prompt"] + example[s] + tokenizer.eos_token)["input_ids"] for s in SIDES]
    start = min(common_prefix(prompt, ids) for ids in whole)
    encoded = []
    for ids in whole:
        mask = [0] * start + [1] * (len(ids) - start)
        cut = slice(None) if max_length is None else slice(-max_length, None) if keep_end else slice(None, max_length)
        encoded.append((ids[cut], mask[cut], len(ids) - start))
    return encoded


def score(model: Any, ids: list[int], mask: list[int]) -> dict[str, float]:
    """Sums over the response tokens that have a score."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids])).logits[0, :-1].double()
    logp = logits.log_softmax(-1)
    targets, scored = torch.tensor(ids[1:]), torch.tensor(mask[1:], dtype=torch.bool)
    own = logp.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    rank = (logits > logits.gather(-1, targets.unsqueeze(-1))).sum(-1)
    entropy = -(logp.exp() * logp).sum(-1)
    return {
        "sum_logp": float(own[scored].sum()),
        "n_tokens": int(scored.sum()),
        "top1": float((logits.argmax(-1) == targets)[scored].double().mean()) if scored.any() else math.nan,
        "top5": float((rank < 5)[scored].double().mean()) if scored.any() else math.nan,
        "entropy_sum": float(entropy[scored].sum()),
        "greedy_logp_sum": float(logp.amax(-1)[scored].sum()),
        "logit_sum": float(logits.mean(-1)[scored].sum()),
    }


def score_pairs(
    model: Any, tokenizer: Any, examples: Iterable[Mapping[str, str]], max_length: int | None = None,
    keep_end: bool = False, context: Any = None,
) -> dict[tuple[str, str], dict[str, float]]:  # fmt: skip
    """(pair_id, side) -> sums, with n_truncated and n_bytes."""
    rows = {}
    model.eval()
    with context if context is not None else nullcontext():
        for example in examples:
            pair_id = make_pair_id(example["prompt"], example["chosen"], example["rejected"])
            for side, (ids, mask, full) in zip(SIDES, encode(tokenizer, example, max_length, keep_end), strict=True):
                row = score(model, ids, mask)
                kept = [i for i, m in zip(ids[1:], mask[1:], strict=True) if m]
                row["n_truncated"] = full - sum(mask)
                row["n_bytes"] = sum(len(tokenizer.convert_ids_to_tokens(i)) for i in kept if i > 1)
                rows[pair_id, side] = row
    return rows


def assert_rows(frame: Any, expected: Mapping[tuple[str, str], Mapping[str, float]], names: Iterable[str],
                tolerance: float = 2e-4, prefix: str = "") -> None:  # fmt: skip
    """Each expected (pair, side) stands exactly once with these values, and nothing else does."""
    assert not frame.duplicated(["pair_id", "side"]).any()
    rows = frame.set_index(["pair_id", "side"])
    assert set(rows.index) == set(expected)
    for key, values in expected.items():
        for name in names:
            np.testing.assert_allclose(
                float(rows.loc[key, prefix + name]), values[name], atol=tolerance, rtol=0, err_msg=f"{key} {name}"
            )


def logged_means(
    policy: Mapping[tuple[str, str], Mapping[str, float]], reference: Mapping[tuple[str, str], Mapping[str, float]],
    beta: float, times: Mapping[str, int] | None = None,
) -> dict[str, float]:  # fmt: skip
    """What TRL logs under its names with the sigmoid loss, over all pairs of `score_pairs`.

    Args:
        times: how often the set holds a pair, where that is not once.
    """
    ids = [p for p, side in policy if side == "chosen" for _ in range((times or {}).get(p, 1))]

    def column(rows: Any, name: str) -> Any:
        return np.array([[rows[p, side][name] for p in ids] for side in SIDES])

    sums, n = column(policy, "sum_logp"), column(policy, "n_tokens")
    rewards = beta * (sums - column(reference, "sum_logp"))
    hits = column(policy, "top1") * n
    logits = column(policy, "logit_sum").sum(axis=1) / n.sum(axis=1)
    margins = rewards[0] - rewards[1]
    return {
        "loss": float(np.log1p(np.exp(-margins)).mean()),
        "rewards/chosen": float(rewards[0].mean()),
        "rewards/rejected": float(rewards[1].mean()),
        "rewards/margins": float(margins.mean()),
        "rewards/accuracies": float((margins > 0).mean()),
        "logps/chosen": float(sums[0].mean()),
        "logps/rejected": float(sums[1].mean()),
        "logits/chosen": float(logits[0]),
        "logits/rejected": float(logits[1]),
        "entropy": float(column(policy, "entropy_sum").sum() / n.sum()),
        "mean_token_accuracy": float(hits[0].sum() / n[0].sum()),
    }
