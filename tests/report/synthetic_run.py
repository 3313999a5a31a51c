"""A made-up run for the report's tests: numbers and texts from a seed, records consistent with one another."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dpo_diag.diagnosis import Explanation, explain_run
from dpo_diag.losses import LossSpec, pair_losses
from dpo_diag.records import Run, RunWriter, load_run, make_pair_id
from dpo_diag.records.metrics import PERPLEXITIES, quadrants, safe_exp

WORDS = [
    "SELECT",
    "name",
    "FROM",
    "employees",
    "WHERE",
    "salary",
    ">",
    "3000",
    "AND",
    "city",
    "=",
    "'Oslo'",
    "ORDER",
    "BY",
    "age",
    "LIMIT",
    "5",
    "GROUP",
]


def make_run(
    path: Path,
    *,
    pairs: int = 60,
    steps: tuple[int, ...] = (0, 10, 20, 40, 60, 80),
    prompts: int = 24,
    words: int = 14,
    seed: int = 0,
    texts: dict[int, tuple[str, str, str]] | None = None,
    answers: dict[int, str] | None = None,
) -> Path:
    """Write a finished run: history, pairs, tokens (every step), texts, outputs, two alerts; returns its folder.

    `texts` replaces (prompt, chosen, rejected) of pair i, `answers` the last answer to prompt i.
    """
    rng = np.random.default_rng(seed)
    writer = RunWriter(path, kind="trained")
    spec = LossSpec(beta=0.1)
    made = [_pair(rng, i) for i in range(pairs)]
    for i, replaced in (texts or {}).items():
        made[i] = replaced
    ids = [make_pair_id(*p) for p in made]
    writer.write(
        "texts",
        [
            {"split": "eval", "pair_id": i, "prompt": p, "chosen": c, "rejected": r}
            for i, (p, c, r) in zip(ids, made, strict=True)
        ],
        "eval",
    )
    vocabulary: dict[str, int] = {}
    hard = rng.gamma(1.2, 1.0, size=pairs)
    tokens = []
    for i, (pair_id, pair) in enumerate(zip(ids, made, strict=True)):
        for side, text in (("chosen", pair[1]), ("rejected", pair[2])):
            pieces = [(" " if k else "") + w for k, w in enumerate(text.split())]
            base = -rng.gamma(0.6, 0.35 if side == "chosen" else 0.6, size=len(pieces) + 1)
            drift = -rng.gamma(0.5, 1.0, size=len(pieces) + 1) * hard[i] * (0.45 if side == "chosen" else 1.0)
            drift += rng.normal(0, 0.12, size=len(drift))
            for position, piece in enumerate([*pieces, "</s>"]):
                token = vocabulary.setdefault(piece, len(vocabulary) + 3)
                tokens.append((pair_id, side, position, token, base[position], drift[position]))
    frame = pd.DataFrame(tokens, columns=["pair_id", "side", "position", "token_id", "base", "drift"])
    reference: dict[str, pd.Series] = {}
    for step in steps:
        share = (step / max(steps[-1], 1)) ** 1.4
        logp = np.minimum(frame["base"] + frame["drift"] * share, 0.0)
        rows = frame[["pair_id", "side", "position", "token_id"]].assign(
            step=step, split="eval", role="policy", logp=logp, entropy=0.4 + 0.2 * share, is_top1=logp > -0.7
        )
        writer.write("tokens", rows, "eval")
        sums = rows.groupby(["pair_id", "side"], sort=False).agg(
            sum_logp=("logp", "sum"),
            n_tokens=("logp", "size"),
            top1=("is_top1", "mean"),
            entropy_sum=("entropy", "sum"),
        )
        sums = sums.reset_index().assign(step=step, split="eval", role="policy", n_truncated=0)
        sums["n_bytes"] = sums["n_tokens"] * 5
        writer.write("pairs", sums, "eval")
        by_side = {s: sums.loc[sums["side"] == s].set_index("pair_id").loc[ids] for s in ("chosen", "rejected")}
        if not reference:
            reference = {s: part["sum_logp"] for s, part in by_side.items()}
            writer.write("pairs", sums.assign(role="ref"), "eval-ref")
        a, b = (by_side[s]["sum_logp"] - reference[s] for s in ("chosen", "rejected"))
        values = {"loss": pair_losses(spec, a, b).mean(), "rewards/accuracies": float((a > b).mean())}
        for side, part in by_side.items():
            values |= {f"{n}/{side}": safe_exp(f(part["sum_logp"], part["n_tokens"])) for n, f in PERPLEXITIES.items()}
            values[f"logps/{side}"] = part["sum_logp"].mean()
        history = [{"step": step, "split": "eval", "name": k, "value": v, "weight": pairs} for k, v in values.items()]
        for split, start, n in (("held_out", 0.70, 600), ("paraphrased", 0.55, 300)):
            score = round((start * (1 - 0.45 * share)) * n) / n
            history.append(
                {"step": step, "split": split, "name": "score/execution_accuracy", "value": score, "weight": n}
            )
        writer.write("history", history, "eval")
        writer.write(
            "outputs", _answers(rng, step, share, prompts, words, (answers or {}) if step == steps[-1] else {}), "out"
        )
    train = [
        {
            "step": s, "split": "train", "name": "loss", "weight": 8,
            "value": 0.693 - 0.11 * (s / max(steps[-1], 1)) ** 0.7 + rng.normal(0, 0.02),
        }
        for s in range(1, steps[-1] + 1)
    ]  # fmt: skip
    writer.write("history", train, "train")
    writer.write(
        "alerts",
        [
            {
                "step": steps[-1],
                "code": "both_fell",
                "message": "93 % of pairs lost log-prob on both sides",
                "evidence": "{}",
            }
        ],
        "guards",
    )
    writer.update(
        loss=spec.to_dict(),
        model={"name": "tiny-llama", "n_parameters": 532_480},
        tokenizer={"name": "bpe-768", "vocab_size": 768},
        data={"name": "sql", "pairs": pairs},
        tracking={"api_key": "not-for-the-page"},
    )
    writer.finish()
    return path


def _pair(rng: np.random.Generator, i: int) -> tuple[str, str, str]:
    n = int(rng.integers(6, 14))
    words = list(rng.choice(WORDS, size=n))
    wrong = list(words)
    wrong[int(rng.integers(n))] = "COUNT(*)"
    return f"shop | which employees earn more than {i} in Oslo? |", " ".join(words), " ".join(wrong)


def _answers(
    rng: np.random.Generator, step: int, share: float, prompts: int, words: int, replaced: dict[int, str]
) -> list[dict[str, Any]]:
    rows = []
    for i in range(prompts):
        own = np.random.default_rng(1000 + i)
        text = list(own.choice(WORDS, size=words))
        for at in np.flatnonzero(own.random(words) < 0.5 * share):
            text[at] = f"{own.choice(WORDS)}_{step}"
        rows.append(
            {
                "step": step, "model": "policy", "prompt_id": f"q{i:04d}", "sample": 0,
                "prompt": f"shop | list the names of employees number {i} |",
                "tags": ["like_training" if i % 2 else "paraphrased"], "reference": "SELECT name FROM employees",
                "text": replaced.get(i, " ".join(text)), "finish_reason": "stop", "n_tokens": words,
                "correct": float(own.random() > 0.3 + 0.4 * share), "decoding_hash": "greedy",
            }
        )  # fmt: skip
    return rows


def _quadrants(pairs: pd.DataFrame, first: int, last: int) -> dict[str, float]:
    at = pairs.pivot(index="pair_id", columns=["side", "step"], values="sum_logp")
    return quadrants(*(at[side, last] - at[side, first] for side in ("chosen", "rejected")))._asdict()


def make_explanation(run_path: Path) -> Explanation:
    """The run's pairs and tokens with a hand-made document in the shape that the design fixes; its parts add up."""
    run = load_run(run_path)
    return replace(explain_run(run), document=make_document(run))


def make_document(run: Run) -> dict[str, Any]:
    """The explain document alone."""
    steps = sorted(run.pairs["step"].unique())
    first, last = int(steps[0]), int(steps[-1])
    at = run.pairs.loc[run.pairs["side"] == "chosen"].set_index(["step", "pair_id"])["sum_logp"]
    falls = (at.loc[last] - at.loc[first]).sort_values()
    history = run.history.loc[run.history["split"] == "eval"].set_index(["name", "step"])["value"]
    perplexity: dict[str, Any] = {}
    for side in ("chosen", "rejected"):
        perplexity[side] = {}
        for name in PERPLEXITIES:
            before, after = history[f"{name}/{side}", first], history[f"{name}/{side}", last]
            dlog = float(np.log(after / before))
            level = float(np.log(history[f"ppl_seq_geomean/{side}", last] / history[f"ppl_seq_geomean/{side}", first]))
            term = {"ppl_seq_mean": "dispersion", "ppl_token": "length_weight"}.get(name)
            perplexity[side][name] = {"from": before, "to": after, "dlog": dlog, "level": level, "residual": 0.0}
            if term:
                perplexity[side][name][term] = dlog - level
    loss = history["loss", first], history["loss", last]
    return {
        "run": run.name, "kind": "trained", "from_step": first, "to_step": last, "split": "eval",
        "n_pairs": len(falls),
        "loss": {"from": loss[0], "to": loss[1], "delta": loss[1] - loss[0], "chosen_part": 0.11,
                 "rejected_part": loss[1] - loss[0] - 0.11, "residual": 1e-16},
        "perplexity": perplexity,
        "quadrants": _quadrants(run.pairs, first, last),
        "pairs": [{"pair_id": p, "share_of_rise": float(v / falls.sum())} for p, v in falls.head(10).items()],
        "checks": [
            {"code": "DVG001", "title": "Likelihood displacement", "outcome": "speaks", "severity": "warning",
             "reason": "The loss fell while 95 % of chosen answers lost log-prob.",
             "evidence": {"chosen_fell": 0.95, "n": 60}, "try": ["trainer.learning_rate=1e-5", "loss=sigmoid_sft"]},
            {"code": "DVG018", "title": "People prefer the earlier checkpoint", "outcome": "not_applicable",
             "severity": "info", "reason": "no review was recorded", "evidence": {}, "try": []},
            {"code": "DVG004", "title": "Dead run", "outcome": "silent", "severity": "error",
             "reason": "gradients are finite and above zero", "evidence": {"median_grad_norm": 1.3}, "try": []},
        ],
        "verdict": {
            "label": "Loss down, answers less likely, accuracy lower", "harm": "harmful", "confidence": "high",
            "text": "The loss fell through the rejected side alone. Nearly all chosen answers lost log-prob "
                    "and execution accuracy fell with them. Lower the learning rate or add an SFT term.",
        },
    }  # fmt: skip
