"""Runs by simulation: pair records of a policy that drifts from its reference, with a cause planted on purpose.

Nothing here knows a threshold of the checks: a plan speaks of nats per token, batch sizes and shares of pairs. The
world: each pair has a chosen and a rejected response of some length and difficulty; training moves the log-ratios
a (chosen) and b (rejected) along a concave path, with spread over pairs; training rows are means over small batches of
fresh pairs, evaluations are per-pair rows of one fixed set.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from dpo_diag.losses import LossSpec, loss_at_reference, pair_losses
from dpo_diag.records import RunWriter, make_pair_id
from dpo_diag.records.inferred import infer

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Plan:
    """One simulated run. Rates are nats per token at the end of training, spreads over pairs in the same unit."""

    name: str = "healthy"
    truth: tuple[str, ...] = ()
    follows: tuple[str, ...] = ()
    strength: str = "healthy"
    seed: int = 0
    # What the source records.
    pairs: bool = True
    train: bool = True
    evaluations: bool = True
    rewards: bool = True
    logps: bool = True
    loss_known: bool = True
    mean_logps: bool = False
    reference_free: bool = False
    accuracy_name: str = "rewards/accuracies"
    # The set and the schedule.
    n_pairs: int = 120
    length: float = 45.0
    length_gap: float = 0.0
    steps: int = 200
    rows: int = 40
    evals: int = 6
    batch: int = 32
    epochs: int = 1
    warmup: float = 0.1
    # What training does.
    chosen: float = 0.03
    rejected: float = -0.12
    spread: float = 0.05
    turn: float = 0.0
    turn_at: float = 0.5
    speed: float = 1.5
    hard_pairs: int = 0
    hard_ce: float = 0.0
    entropy: float = 0.0
    greedy: float = 0.0
    easy_gain: float = 0.0
    stair: float = 0.0
    to_floor: bool = False
    held_out_turn: float = 0.0
    # What is wrong with it.
    offset: float = 0.0
    frozen: bool = False
    nan_rows: int = 0
    nan_pairs: int = 0
    spikes: int = 0
    spike_size: float = 0.0
    blow_up: float = 0.0
    plateau: bool = False
    cut_share: float = 0.0
    end_token: float = 0.0
    flipped: int = 0
    leaked: int = 0
    recounted: bool = False
    accuracy_without_reference: bool = False
    backtrack: bool = False
    skipped: int = 0
    nll: float = 0.0
    # The task: score at start, middle and end on held-out questions; on training-like ones; questions.
    score: tuple[float, ...] = ()
    score_seen: tuple[float, ...] = ()
    questions: int = 400
    loss: LossSpec = field(default_factory=LossSpec)

    def but(self, **changes: Any) -> Plan:
        return replace(self, **changes)


class World:
    """The pairs of a plan and where their log-probs stand at a share of the training."""

    def __init__(self, plan: Plan, n: int, rng: np.random.Generator) -> None:
        self.plan, self.n, self.rng = plan, n, rng
        self.n_c = np.maximum(4, rng.lognormal(math.log(plan.length), 0.45, n)).round()
        self.n_r = np.maximum(4, self.n_c + plan.length_gap + rng.normal(0, 6, n)).round()
        ce = np.clip(rng.lognormal(math.log(1.1), 0.35, n), 0.2, 4.0)
        self.ref_c = -self.n_c * ce
        self.ref_r = -self.n_r * np.clip(ce + rng.normal(0.05, 0.25, n), 0.15, 5.0)
        self.drift_c = rng.normal(plan.chosen, plan.spread, n)
        self.drift_r = rng.normal(plan.rejected, plan.spread, n)
        # `easy_gain`: the longer a response, the more its likelihood gains; the short ones lose.
        self.easy = (self.n_c - self.n_c.mean()) / max(float(self.n_c.std()), 1.0)
        self.easy_noise = rng.normal(0, 0.3, n)
        if n == plan.n_pairs:
            self.hard = (np.arange(n) < plan.hard_pairs).astype(np.float64)
        else:
            self.hard = (rng.random(n) < plan.hard_pairs / plan.n_pairs).astype(np.float64)
        self.off_c, self.off_r = rng.normal(0, 1, (2, n)) * plan.offset

    def progress(self, p: float) -> float:
        """Concave path from 0 to 1; a stair adds a step at each epoch's end."""
        plan = self.plan
        if plan.frozen:
            return 0.0
        smooth = (1 - math.exp(-plan.speed * p)) / (1 - math.exp(-plan.speed))
        if plan.plateau:
            smooth = min(1.0, (1 - math.exp(-40 * p)))
        if plan.stair and plan.epochs > 1:
            done = min(plan.epochs - 1, math.floor(p * plan.epochs))
            smooth = (1 - plan.stair) * smooth + plan.stair * done / (plan.epochs - 1)
        return smooth

    def ratios(self, p: float, held_out: bool = False) -> tuple[FloatArray, FloatArray]:
        """a, b (nats) at the share p of training."""
        plan, done = self.plan, self.progress(p)
        late = max(0.0, p - plan.turn_at) / (1 - plan.turn_at)
        a = self.n_c * (self.drift_c * done + plan.turn * late) + self.n_c * plan.easy_gain * self.easy * done
        b = self.n_r * (self.drift_r * done + 2 * plan.turn * late)
        a = a - self.n_c * self.hard * plan.hard_ce * done
        if plan.to_floor:
            # With label smoothing each pair stops at the margin at which its own gradient vanishes.
            eps = plan.loss.label_smoothing
            b = a - done * math.log((1 - eps) / eps) / plan.loss.beta * (1 + 0.3 * self.easy_noise)
        if held_out and plan.held_out_turn:
            b = b + self.n_r * plan.held_out_turn * late * self.rng_held
        if plan.blow_up:
            late_end = max(0.0, p - 0.6) / 0.4
            a, b = a - plan.blow_up * late_end * self.n_c, b + 0.2 * plan.blow_up * late_end * self.n_r
        return a + self.off_c, b + self.off_r

    @property
    def rng_held(self) -> FloatArray:
        """Which held-out pairs turn, and how strongly: fixed for a set."""
        return np.abs(np.random.default_rng(self.plan.seed + 7).normal(1.0, 0.5, self.n))


def losses(plan: Plan, world: World, a: FloatArray, b: FloatArray) -> FloatArray:
    """Loss of each pair; a reference-free plan is SimPO: mean log-probs, margin 0.5."""
    if plan.reference_free:
        gap = 2.0 * ((world.ref_c + a) / world.n_c - (world.ref_r + b) / world.n_r)
        return np.logaddexp(0.0, -(gap - 0.5))
    return pair_losses(
        plan.loss, a, b, n_chosen=world.n_c, n_rejected=world.n_r, chosen_sum_logp=world.ref_c + a
    )  # fmt: skip


def means(plan: Plan, world: World, a: FloatArray, b: FloatArray) -> dict[str, float]:
    """What a trainer logs of a batch."""
    s_c, s_r = world.ref_c + a, world.ref_r + b
    row = {"loss": float(losses(plan, world, a, b).mean())}
    beta = plan.loss.beta
    if plan.reference_free:
        beta, a, b = 2.0, s_c / world.n_c, s_r / world.n_r
    won = (s_c > s_r) if plan.accuracy_without_reference else (a > b)
    row[plan.accuracy_name] = float(won.mean())
    if plan.rewards:
        row |= {"rewards/chosen": float(beta * a.mean()), "rewards/rejected": float(beta * b.mean()),
                "rewards/margins": float(beta * (a - b).mean())}  # fmt: skip
    if plan.logps:
        d_c, d_r = (world.n_c, world.n_r) if plan.mean_logps or plan.reference_free else (1.0, 1.0)
        row |= {"logps/chosen": float((s_c / d_c).mean()), "logps/rejected": float((s_r / d_r).mean())}
    if plan.nll:
        nll = float(-(s_c.sum() / world.n_c.sum()))
        row |= {"nll_loss": nll, "loss": row["loss"] + plan.nll * nll}
    return row


def write(plan: Plan, folder: Path) -> Path:
    """Simulate the plan into a run folder."""
    rng = np.random.default_rng(plan.seed)
    writer = RunWriter(folder, kind="trained" if plan.pairs else "imported")
    known: dict[str, Any] = {}
    if plan.loss_known:
        known |= {"loss": plan.loss.to_dict(), "beta": plan.loss.beta}
    if plan.mean_logps:
        known["logps"] = "mean"
    if plan.skipped:
        skipped = [{"line": i, "why": "not a row"} for i in range(plan.skipped)]
        known["source"] = {"skipped": skipped, "skipped_count": plan.skipped}
    history: list[dict[str, Any]] = []
    if plan.train:
        history += train_rows(plan, rng)
    fixed = World(plan, plan.n_pairs, rng)
    at = np.unique(np.linspace(0, plan.steps, plan.evals).round().astype(int))
    if plan.evaluations:
        for step in at:
            a, b = fixed.ratios(step / plan.steps, held_out=True)
            if plan.evals and not (step == 0 and not plan.pairs):
                history += rows_of(int(step), step / plan.steps * plan.epochs, "eval", means(plan, fixed, a, b), plan)
    for split, curve in (("held_out", plan.score), ("train_like", plan.score_seen)):
        for step, value in zip(np.linspace(0, plan.steps, len(curve)).round() if curve else (), curve, strict=True):
            right = rng.binomial(plan.questions, value) if plan.strength == "noise" else value * plan.questions
            history.append({"step": int(step), "split": split, "name": "score/execution_accuracy",
                            "value": right / plan.questions, "weight": float(plan.questions)})  # fmt: skip
    writer.write("history", history)
    # As an import does where the log does not say it.
    writer.update(**infer(pd.DataFrame(history)).run_fields() | known if history else known)
    if plan.pairs:
        ids = [make_pair_id(f"question {plan.seed} {i}", f"yes {i}", f"no {i}") for i in range(plan.n_pairs)]
        write_pairs(plan, writer, fixed, at, ids)
        write_texts(plan, writer, ids)
    writer.finish()
    return folder


def rows_of(step: int, epoch: float, split: str, values: dict[str, float], plan: Plan) -> list[dict[str, Any]]:
    return [
        {"step": step, "epoch": epoch, "split": split, "name": k, "value": v, "weight": float(plan.n_pairs)}
        for k, v in values.items()
    ]


def train_rows(plan: Plan, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Rows of the training log: each the mean over one small batch, averaged over the steps since the last row."""
    every = max(1, plan.steps // plan.rows)
    spiked = rng.choice(np.arange(plan.rows // 3, plan.rows - 3), plan.spikes, replace=False)
    holes = rng.choice(np.arange(5, plan.rows - 5), plan.nan_rows, replace=False)
    history: list[dict[str, Any]] = []
    for i in range(plan.rows):
        step = (i + 1) * every
        p = (step - every / 2) / plan.steps
        # Under warm-up the first steps hardly move anything.
        p = p * min(1.0, p / plan.warmup) if plan.warmup > 0 else p
        world = World(plan, plan.batch, rng)
        values = means(plan, world, *world.ratios(p))
        if i in spiked:
            values["loss"] += plan.spike_size
        if i in holes:
            values |= {k: math.nan for k in values if k.startswith(("logps/", "rewards/")) and "accur" not in k}
        values["learning_rate"] = 5e-6 * min(1.0, p / max(plan.warmup, 1e-9)) * (1.0 if plan.plateau else 1.05 - p)
        values["grad_norm"] = 0.0 if plan.frozen else float(rng.lognormal(0.0, 0.3))
        if plan.entropy:
            values["entropy"] = 1.3 + plan.entropy * world.progress(p) + rng.normal(0, 0.02)
        epoch = step / plan.steps * plan.epochs
        if plan.backtrack and i > plan.rows // 2:
            epoch -= 0.4 * plan.epochs
        history += rows_of(step, epoch, "train", values, plan)
    return history


def write_pairs(plan: Plan, writer: RunWriter, world: World, at: Sequence[int], ids: list[str]) -> None:
    rng = np.random.default_rng(plan.seed + 1)
    cut_c, cut_r = (np.where(rng.random(plan.n_pairs) < plan.cut_share, 12, 0) for _ in range(2))
    frames = []
    for step in at:
        p = step / plan.steps
        a, b = world.ratios(p, held_out=True)
        done = world.progress(p)
        for side, n, ref, ratio, cut in (
            ("chosen", world.n_c, world.ref_c, a, cut_c), ("rejected", world.n_r, world.ref_r, b, cut_r)
        ):  # fmt: skip
            sums = ref + ratio
            if plan.nan_pairs and step == at[-1]:
                sums = sums.copy()
                sums[: plan.nan_pairs] = np.nan
            counted = np.ceil(n * 1.3) if plan.recounted and step == at[-1] else n
            entropy = n * (1.3 + plan.entropy * done + rng.normal(0, 0.01, plan.n_pairs))
            greedy = n * (-0.6 + plan.greedy * done + rng.normal(0, 0.01, plan.n_pairs))
            frames.append(pd.DataFrame({
                "step": int(step), "split": "eval", "role": "policy", "pair_id": ids, "side": side, "sum_logp": sums,
                "n_tokens": counted.astype(int), "n_bytes": (n * 4).astype(int), "n_truncated": cut,
                "entropy_sum": entropy, "greedy_logp_sum": greedy,
            }))  # fmt: skip
            if step == at[0]:
                frames.append(pd.DataFrame({
                    "step": 0, "split": "eval", "role": "ref", "pair_id": ids, "side": side, "sum_logp": ref,
                    "n_tokens": n.astype(int), "n_bytes": (n * 4).astype(int),
                }))  # fmt: skip
    if plan.leaked:
        frames.append(pd.DataFrame({
            "step": 5, "split": "train", "role": "policy", "pair_id": ids[: plan.leaked], "side": "chosen",
            "sum_logp": world.ref_c[: plan.leaked], "n_tokens": world.n_c[: plan.leaked].astype(int),
        }))  # fmt: skip
    writer.write("pairs", pd.concat(frames, ignore_index=True))
    if plan.end_token:
        write_tokens(plan, writer, world, at, ids)


def write_tokens(plan: Plan, writer: RunWriter, world: World, at: Sequence[int], ids: list[str]) -> None:
    """Token rows of the first and the last step; the change sits on the end token."""
    rows = []
    for step in (at[0], at[-1]):
        for i, pair in enumerate(ids):
            n = int(world.n_c[i])
            logp = np.full(n, world.ref_c[i] / n)
            if step == at[-1]:
                logp[-1] -= plan.end_token
                logp[:-1] -= 0.002
            rows.append(pd.DataFrame({
                "step": int(step), "split": "eval", "role": "policy", "pair_id": pair, "side": "chosen",
                "position": np.arange(n), "token_id": 7, "logp": np.minimum(logp, -1e-4),
            }))  # fmt: skip
    writer.write("tokens", pd.concat(rows, ignore_index=True))


def write_texts(plan: Plan, writer: RunWriter, ids: list[str]) -> None:
    texts = [
        {"split": "eval", "pair_id": pair, "prompt": f"question {plan.seed} {i}", "chosen": f"yes {i}",
         "rejected": f"no {i}"}
        for i, pair in enumerate(ids)
    ]  # fmt: skip
    for i in range(plan.flipped):
        prompt, chosen, rejected = f"question {plan.seed} {i}", f"no {i}", f"yes {i}"
        texts.append({"split": "eval", "pair_id": make_pair_id(prompt, chosen, rejected), "prompt": prompt,
                      "chosen": chosen, "rejected": rejected})  # fmt: skip
    writer.write("texts", texts)


def start_of(plan: Plan) -> float:
    """The loss at the reference, for a reader of the plans."""
    return loss_at_reference(plan.loss)
