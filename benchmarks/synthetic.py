"""Synthetic runs of any size for the benchmarks of reading: pairs, tokens, history, answers as training writes them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from dpo_diag import RunWriter

SIDES = ("chosen", "rejected")
WORDS = 2_000
"""Words of the language that answers are written in; a few are many times as frequent as the rest."""


def write_run(
    path: Path, *, pairs: int, steps: int, tokens: int = 0, prompts: int = 0, words: int = 30, seed: int = 0
) -> Path:
    """A finished run: `steps` evaluations, 10 optimizer steps apart, the reference once.

    Args:
        pairs: of the fixed evaluation set, measured at every evaluation.
        tokens: of each answer, recorded one by one; 0: sums alone.
        prompts: answered at every evaluation, with a reference answer and a checker's verdict; 0: none.
        words: of an answer.
    """
    rng = np.random.default_rng(seed)
    writer = RunWriter(path)
    ids = np.array([f"{i:016x}" for i in rng.permutation(pairs)])
    lengths = rng.integers(8, 60, (pairs, 2)) if not tokens else np.full((pairs, 2), tokens)
    start = -lengths * rng.gamma(2.0, 0.4, (pairs, 2))
    drift = np.stack([-0.4 * rng.random(pairs), -1.5 * rng.random(pairs)], axis=1)
    rows = _Tokens(ids, tokens, rng) if tokens else None
    answers = _answers(prompts, steps, words, rng) if prompts else iter(())
    for k in range(steps):
        done = k / max(steps - 1, 1)
        sums = (
            rows.write(writer, 10 * k, done) if rows else start * (1 - drift * done) + rng.normal(0, 0.05, (pairs, 2))
        )
        for role in ("policy", "ref") if k == 0 else ("policy",):
            writer.write("pairs", _pairs(10 * k, role, ids, sums, lengths), split=f"eval.{role}")
        loss = np.log1p(np.exp(-0.1 * (sums[:, 0] - sums[:, 1]))).mean()
        history = {"loss": loss, "rewards/accuracies": 0.5 + 0.4 * done, "logps/chosen": sums[:, 0].mean()}
        if (answered := next(answers, None)) is not None:
            writer.write("outputs", answered, split="policy")
            history["score/correct"] = answered["correct"].mean()
        writer.write("history", _history(10 * k, "eval", history, max(prompts, 1)), split="eval")
        batches = [
            _history(step, "train", {"loss": loss + rng.normal(0, 0.02), "grad_norm": 1 + rng.random()}, 8)
            for step in range(10 * k + 1, 10 * k + 11)
        ]
        writer.write("history", pd.concat(batches, ignore_index=True), split="train")
    writer.update(loss={"types": ["sigmoid"], "beta": 0.1}, tokenizer={"eos_token_id": 2})
    writer.finish()
    return path


def _pairs(step: int, role: str, ids: np.ndarray, sums: np.ndarray, lengths: np.ndarray) -> pd.DataFrame:
    n = sums.size
    return pd.DataFrame(
        {
            "step": step, "split": "eval", "role": role, "pair_id": np.repeat(ids, 2), "side": np.tile(SIDES, n // 2),
            "sum_logp": sums.ravel(), "n_tokens": lengths.ravel(), "n_bytes": 4 * lengths.ravel(), "n_truncated": 0,
            "top1": np.linspace(0.3, 0.9, n), "top5": np.linspace(0.5, 1.0, n), "entropy_sum": lengths.ravel() * 1.5,
        }
    )  # fmt: skip


def _history(step: int, split: str, values: dict[str, float], weight: int) -> pd.DataFrame:
    return pd.DataFrame(
        {"step": step, "epoch": step / 100, "split": split, "name": list(values), "value": list(values.values()),
         "weight": float(weight), "derived": False}
    )  # fmt: skip


class _Tokens:
    """Two answers a pair that share a prefix and a suffix; the rest of both becomes less likely from step to step."""

    def __init__(self, ids: np.ndarray, tokens: int, rng: np.random.Generator) -> None:
        pairs = len(ids)
        chosen = rng.integers(3, 49152, (pairs, tokens), dtype=np.int32)
        rejected = chosen.copy()
        middle = slice(tokens // 4, tokens // 4 + max(1, tokens // 5))
        rejected[:, middle] = rng.integers(3, 49152, rejected[:, middle].shape, dtype=np.int32)
        self.token_ids = np.stack([chosen, rejected], axis=1)
        self.token_ids[:, :, -1] = 2
        self.base = -rng.exponential(0.5, self.token_ids.shape).astype(np.float32)
        self.drift = np.zeros(self.token_ids.shape, dtype=np.float32)
        for side, size in enumerate((0.1, 0.8)):
            self.drift[:, side, tokens // 4 :] = -size * rng.random((pairs, tokens - tokens // 4))
        self.ids = pd.Categorical.from_codes(np.repeat(np.arange(pairs), 2 * tokens), categories=list(ids))
        self.sides = pd.Categorical.from_codes(np.tile(np.repeat([0, 1], tokens), pairs), categories=list(SIDES))
        self.position = np.tile(np.arange(tokens), 2 * pairs)
        self.rng = rng

    def write(self, writer: RunWriter, step: int, done: float) -> np.ndarray:
        """The rows of one evaluation; returns the answers' sums, (pairs, 2)."""
        logp = self.base + self.drift * np.float32(done)
        frame = pd.DataFrame(
            {
                "step": step, "split": "eval", "role": "policy", "pair_id": self.ids, "side": self.sides,
                "position": self.position, "token_id": self.token_ids.ravel(), "logp": logp.ravel(),
                "entropy": self.rng.random(logp.size, dtype=np.float32), "is_top1": logp.ravel() > -0.5,
            }
        )  # fmt: skip
        writer.write("tokens", frame, split="eval")
        return logp.sum(axis=2, dtype=np.float64)


def _answers(prompts: int, steps: int, words: int, rng: np.random.Generator) -> Iterator[pd.DataFrame]:
    """Every evaluation's answers: a fifth of them change between two, half of those take up a phrase by the end."""
    frequency = 1 / np.arange(1, WORDS + 1)
    chance = frequency / frequency.sum()
    language = np.array(["".join(rng.choice(list("abcdefghiklmnoprstuvw"), rng.integers(2, 9))) for _ in range(WORDS)])

    def write() -> str:
        drawn = language[rng.choice(WORDS, words, p=chance)]
        return " ".join(drawn[: words // 2]) + ". " + " ".join(drawn[words // 2 :]) + "."

    asked = [f"question {i}: {write()}?" for i in range(prompts)]
    references = [write() for _ in range(prompts)]
    texts = [r if rng.random() < 0.3 else write() for r in references]
    for k in range(steps):
        for i in np.flatnonzero(rng.random(prompts) < 0.2) if k else ():
            texts[i] = ("I hope this helps you. " if rng.random() < 0.5 * k / steps else "") + write()
        yield pd.DataFrame(
            {
                "step": 10 * k, "model": "policy", "prompt_id": [f"p{i:06d}" for i in range(prompts)], "sample": 0,
                "prompt": asked, "tags": [["held_out", "long" if i % 3 else "short"] for i in range(prompts)],
                "reference": references, "text": texts, "token_ids": [list(range(words)) for _ in texts],
                "finish_reason": "stop", "n_tokens": words, "sum_logp": -1.5 * words, "entropy_sum": 1.2 * words,
                "correct": [float(t == r) for t, r in zip(texts, references, strict=True)], "decoding_hash": "d",
                "seed": None,
            }
        )  # fmt: skip
