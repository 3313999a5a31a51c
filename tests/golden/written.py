"""Small runs through RunWriter whose stories no log can tell: squeezing, hard pairs, lengths, tokenizers, cut answers.

Every number is a closed formula of the pair's index, so that the runs are the same on every machine.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dpo_diag import RunWriter

PAIRS = 40
SIDES = ("chosen", "rejected")
Columns = Callable[[int, str, int], dict[str, Any]]
"""(pair, side, step) -> columns of the row; sum_logp and n_tokens at least."""


def wiggle(i: int, size: float = 1.0) -> float:
    """A number in [-size, size] that differs from pair to pair."""
    return size * math.sin(2.4 * i + 0.3)


def _pairs(writer: RunWriter, steps: tuple[int, ...], columns: Columns) -> None:
    """Policy rows of every step, the reference's of the first."""
    for step in steps:
        for role in ("ref", "policy") if step == steps[0] else ("policy",):
            writer.write("pairs", [
                {"step": step, "split": "eval", "role": role, "pair_id": f"pair{i:02d}", "side": side,
                 **columns(i, side, step)}
                for i in range(PAIRS) for side in SIDES
            ], split=f"eval-{role}")  # fmt: skip


def _scores(writer: RunWriter, values: dict[tuple[str, str], dict[int, float]], n: int) -> None:
    writer.write("history", [
        {"step": step, "split": split, "name": name, "value": value, "weight": n}
        for (split, name), by_step in values.items() for step, value in by_step.items()
    ], split="scores")  # fmt: skip


def _new(folder: Path, **meta: Any) -> RunWriter:
    writer = RunWriter(folder / "written", kind="trained")
    writer.update(**({"loss": {"types": ["sigmoid"], "beta": 0.1}} | meta))
    return writer


def benign_squeezing(folder: Path) -> Path:
    """Both sides fall, greedy tokens gain, entropy falls; the task score holds over 4000 questions."""
    writer = _new(folder)

    def columns(i: int, side: str, step: int) -> dict[str, Any]:
        n, t = 20 + i % 5, step / 100
        fall = (3.0 if side == "chosen" else 9.0) * t * (1 + wiggle(i, 0.2))
        return {"sum_logp": -22.0 + wiggle(i, 4) - fall, "n_tokens": n, "n_bytes": 4 * n, "n_truncated": 0,
                "entropy_sum": n * (1.2 - 0.3 * t), "greedy_logp_sum": n * (-0.6 + 0.15 * t), "top1": 0.7}  # fmt: skip

    _pairs(writer, (0, 50, 100), columns)
    held, like = {0: 0.62, 50: 0.63, 100: 0.64}, {0: 0.62, 50: 0.75, 100: 0.88}
    _scores(writer, {("held_out", "score/accuracy"): held, ("train_like", "score/accuracy"): like}, 4000)
    writer.finish()
    return folder / "written"


def few_hard_pairs(folder: Path) -> Path:
    """Two of forty pairs fall by 30 nats, a fifth of the answers is cut, the logged accuracy ignores the reference."""
    writer = _new(folder)

    def columns(i: int, side: str, step: int) -> dict[str, Any]:
        start = -10.0 if side == "chosen" else (-20.0 if i < 36 else -5.0)
        moved = (-30.0 if i < 2 else 0.0) if side == "chosen" else (1.0 if i % 2 else -1.0)
        return {"sum_logp": start + moved * (step > 0), "n_tokens": 12, "n_bytes": 48, "n_truncated": 7 * (i % 5 == 0)}

    _pairs(writer, (0, 10), columns)
    logged = [{"step": s, "split": "eval", "name": "rewards/accuracies", "value": 0.85} for s in (0, 10)]
    writer.write("history", logged, split="eval")
    writer.finish()
    return folder / "written"


def only_lengths(folder: Path) -> Path:
    """Both sides fall by 0.1 a token; rejected is twice as long: a margin per answer, none per token."""
    writer = _new(folder)

    def columns(i: int, side: str, step: int) -> dict[str, Any]:
        n = 40 if side == "chosen" else 80
        return {"sum_logp": -n * (1 + 0.1 * (step > 0)) + wiggle(i, 0.3), "n_tokens": n, "n_bytes": 4 * n}

    _pairs(writer, (0, 10), columns)
    writer.finish()
    return folder / "written"


def two_tokenizers(folder: Path) -> Path:
    """The same answers counted as 10 and as 13 tokens; a loss with an SFT term."""
    writer = _new(folder, loss={"types": ["sigmoid", "sft"], "weights": [1.0, 0.5], "beta": 0.2})

    def columns(i: int, side: str, step: int) -> dict[str, Any]:
        gain = (1.0 if side == "chosen" else -3.0) * (step > 0)
        return {"sum_logp": -12.0 + wiggle(i, 2) + gain, "n_tokens": 13 if step else 10, "n_bytes": 40}

    _pairs(writer, (0, 10), columns)
    writer.finish()
    return folder / "written"


def end_token(folder: Path) -> Path:
    """Token records: the end token carries the fall; without the prompt nothing differs for one pair in four."""
    writer = _new(folder, loss={"types": ["ipo"], "beta": 0.1})
    change = {"chosen": (-0.1, 0.05, -0.1, -2.0), "rejected": (-0.5, -0.2, -1.5, -0.1)}

    def token_logp(i: int, side: str, step: int, k: int) -> float:
        return -0.4 - 0.2 * k + wiggle(i + k, 0.1) + change[side][k] * (step / 10) * (1 + wiggle(i, 0.1))

    def columns(i: int, side: str, step: int) -> dict[str, Any]:
        return {"sum_logp": sum(token_logp(i, side, step, k) for k in range(4)), "n_tokens": 4, "n_bytes": 17}

    _pairs(writer, (0, 5, 10), columns)
    for step in (0, 5, 10):
        writer.write("tokens", [
            {"step": step, "split": "eval", "role": "policy", "pair_id": f"pair{i:02d}", "side": side, "position": k,
             "token_id": (7 * i + 3 * k + (side == "chosen")) % 11 if k < 3 else 1,
             "logp": token_logp(i, side, step, k), "entropy": 0.8 - 0.1 * k, "is_top1": (i + k) % 3 > 0,
             "logp_no_prompt": token_logp(i, side, step, k) - (0.0 if i % 4 == 0 else 1.5)}
            for i in range(PAIRS) for side in SIDES for k in range(4)
        ], split="eval")  # fmt: skip
    writer.write("alerts", [{"step": 5, "code": "nan_loss", "message": "the loss is not finite"}], split="train")
    writer.finish()
    return folder / "written"
