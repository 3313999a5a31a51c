"""Runs that a simulation of one's own forgets: logs as others write them, the right headline fixed beforehand.

`python -m benchmarks.diagnosis.adversaries [--seeds N] [--base SEED]` writes docs/adversaries.md. Every run draws its
strength, length, noise and form of log from its seed; the seeds are not those with which a threshold was chosen
(`--base` gives others). A run is right if its verdict is among the labels that are right, every code of `speaks`
speaks and none of `silent` does. Nothing here knows a threshold of the checks.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.diagnosis.simulate import Plan, World, means, train_rows, write
from dpo_diag.diagnosis.explanation import explain
from dpo_diag.importers import import_path
from dpo_diag.losses import LossSpec
from dpo_diag.stats import proportion

RESULTS = Path(__file__).parents[2] / "docs" / "adversaries.md"
FRESH = 2026_11_29
OPEN = frozenset({"healthy", "cannot_tell", "within_noise", "loss_unclear"})
"""What may be said of a run in which nothing is wrong, depending on how much of it is recorded."""
Rows = list[dict[str, Any]]
Rng = np.random.Generator


@dataclass(frozen=True)
class Adversary:
    """One kind: how a run of it is written, and what is right to say of it.

    Attributes:
        make: writes a log (or a run) into a folder and returns its path.
        labels: the verdicts that are right; empty where any but `wrong` is.
        wrong: verdicts that are wrong whatever else is said.
    """

    make: Callable[[Rng, Path], Path]
    labels: frozenset[str] = frozenset()
    wrong: frozenset[str] = frozenset()
    speaks: tuple[str, ...] = ()
    silent: tuple[str, ...] = ()


# --- logs as others write them ----------------------------------------------------------------------------------------


def rows_of(plan: Plan, rng: Rng) -> Rows:
    """Rows of a training log as a trainer writes them."""
    table = pd.DataFrame(train_rows(plan, rng)).pivot(index=["step", "epoch"], columns="name", values="value")
    rows: Rows = table.reset_index().to_dict("records")
    return rows


def trainer_state(folder: Path, rows: Rows) -> Path:
    path = folder / "trainer_state.json"
    path.write_text(json.dumps({"global_step": rows[-1].get("step", 0), "log_history": rows}), encoding="utf-8")
    return path


def json_lines(folder: Path, rows: Rows, name: str = "log.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def console(folder: Path, rows: Rows, stated: bool = True) -> Path:
    """Dict rows without a step, as a trainer prints them; with `stated` the progress bar's frames between them."""
    total, lines = rows[-1]["step"], []
    for row in rows:
        lines.append(str({k: f"{v:.4g}" for k, v in row.items() if k != "step"}))
        if stated:
            lines.append(f" {100 * row['step'] // total:3d}%|###   | {row['step']}/{total} [00:10<00:20,  1.05it/s]")
    path = folder / "train.log"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def any_form(rng: Rng, folder: Path, rows: Rows) -> Path:
    """One of three forms that state the step."""
    return (trainer_state, json_lines, console)[int(rng.integers(3))](folder, rows)


def healthy_plan(rng: Rng, **changes: Any) -> Plan:
    """Chosen gains a little, rejected loses more."""
    return Plan(
        pairs=False, evaluations=False, seed=int(rng.integers(1 << 30)), chosen=rng.uniform(0.03, 0.08),
        rejected=-rng.uniform(0.12, 0.2), length=rng.uniform(40, 150), rows=int(rng.integers(25, 60)),
        steps=int(rng.integers(4, 9)) * 100, batch=int(rng.choice([16, 32, 64])),
    ).but(**changes)  # fmt: skip


def displaced_plan(rng: Rng, **changes: Any) -> Plan:
    """Both sides lose, rejected more: 6 nats and more per chosen answer."""
    return healthy_plan(rng, chosen=-rng.uniform(0.15, 0.3), rejected=-rng.uniform(0.4, 0.6)).but(**changes)


def heavy_tails(rng: Rng, rows: Rows) -> Rows:
    """Student's t with two degrees of freedom on loss and rewards: batches of one or two pairs from a mixed set."""
    for row in rows:
        shock = 0.05 * rng.standard_t(2)
        row["loss"] = max(0.001, row["loss"] + abs(shock))
        for side in ("chosen", "rejected"):
            row[f"rewards/{side}"] += 0.05 * rng.standard_t(2)
        row["rewards/margins"] = row["rewards/chosen"] - row["rewards/rejected"]
    return rows


# --- the kinds --------------------------------------------------------------------------------------------------------


def heavy_tailed_healthy(rng: Rng, folder: Path) -> Path:
    return any_form(rng, folder, heavy_tails(rng, rows_of(healthy_plan(rng, batch=2), rng)))


def heavy_tailed_displaced(rng: Rng, folder: Path) -> Path:
    return any_form(rng, folder, heavy_tails(rng, rows_of(displaced_plan(rng, batch=4), rng)))


def two_collapsing_pairs(rng: Rng, folder: Path) -> Path:
    plan = Plan(n_pairs=int(rng.integers(100, 250)), hard_pairs=2, hard_ce=rng.uniform(2.0, 4.0), chosen=0.0,
                spread=0.02, seed=int(rng.integers(1 << 30)))  # fmt: skip
    return write(plan, folder / "run")


def length_explains(rng: Rng, folder: Path) -> Path:
    """Every token of both sides gains alike; chosen is longer, so its sum gains more: the margin is length alone."""
    rate = rng.uniform(0.02, 0.05)
    plan = Plan(chosen=rate, rejected=rate, spread=0.003, length=120.0, length_gap=-rng.uniform(40, 80),
                seed=int(rng.integers(1 << 30)))  # fmt: skip
    return write(plan, folder / "run")


def restarted(rng: Rng, folder: Path) -> Path:
    first, second = rows_of(healthy_plan(rng), rng), rows_of(displaced_plan(rng), rng)
    return console(folder, first[: int(rng.integers(4, 10))] + second)


def resumed(rng: Rng, folder: Path) -> Path:
    """Killed, and resumed from a checkpoint some rows earlier: those rows stand twice."""
    plan = displaced_plan(rng)
    rows, again = rows_of(plan, rng), rows_of(plan, rng)
    killed = int(rng.integers(12, len(rows) - 4))
    return json_lines(folder, rows[:killed] + again[killed - int(rng.integers(2, 6)) :])


def columns_missing(rng: Rng, folder: Path) -> Path:
    """Some columns dropped; at least one of those that tell of chosen stays."""
    rows = rows_of(displaced_plan(rng), rng)
    droppable = ["grad_norm", "learning_rate", "rewards/accuracies", "rewards/margins", "epoch", "logps/rejected",
                 str(rng.choice(["rewards/chosen", "logps/chosen"]))]  # fmt: skip
    dropped = set(rng.permutation(droppable)[: int(rng.integers(2, 6))])
    return json_lines(folder, [{k: v for k, v in row.items() if k not in dropped} for row in rows])


def chosen_unrecorded(rng: Rng, folder: Path) -> Path:
    """Nothing that tells of chosen is logged."""
    rows = rows_of(displaced_plan(rng), rng)
    kept = {"loss", "step", "learning_rate", *(["rewards/accuracies"] if rng.random() < 0.5 else [])}
    return json_lines(folder, [{k: v for k, v in row.items() if k in kept} for row in rows])


def mismatch_and_fall(rng: Rng, folder: Path) -> Path:
    """The reference is another model: rewards start away from 0, and chosen really falls."""
    off = rng.uniform(2.0, 5.0)
    rows = rows_of(displaced_plan(rng, batch=64), rng)
    for row in rows:
        row["rewards/chosen"] += off
        row["rewards/rejected"] += off + 1.0
        row["rewards/margins"] -= 1.0
        row["loss"] = float(np.logaddexp(0, -row["rewards/margins"]))
    return any_form(rng, folder, rows)


def collapse_and_fall(rng: Rng, folder: Path) -> Path:
    return any_form(rng, folder, rows_of(displaced_plan(rng, rejected=-rng.uniform(1.6, 2.5)), rng))


def slow_fall(rng: Rng, folder: Path) -> Path:
    """Linear, over many noisy rows."""
    plan = displaced_plan(rng, chosen=-0.12, rejected=-0.3, speed=0.05, rows=400, steps=4000, batch=8, warmup=0.0)
    return any_form(rng, folder, rows_of(plan, rng))


def slow_healthy(rng: Rng, folder: Path) -> Path:
    plan = healthy_plan(rng, chosen=0.03, rejected=-0.08, speed=0.05, rows=400, steps=4000, batch=8, warmup=0.0)
    return any_form(rng, folder, rows_of(plan, rng))


def nan_for_missing(rng: Rng, folder: Path) -> Path:
    """A data frame's history: evaluation columns are NaN in training rows and the other way round, at shared steps."""
    plan = healthy_plan(rng)
    train = pd.DataFrame(rows_of(plan, rng)).drop(columns="epoch")
    world = World(plan, plan.n_pairs, rng)
    held = [{"step": s} | means(plan, world, *world.ratios(s / plan.steps)) for s in train["step"][4::5]]
    sides = (frame.set_index("step").add_prefix(f"{split}/").reset_index() for split, frame in
             (("train", train), ("eval", pd.DataFrame(held))))  # fmt: skip
    table = pd.concat(sides).sort_values("step", kind="stable")
    return json_lines(folder, table.to_dict("records"))


def named_like_another_loss(rng: Rng, folder: Path) -> Path:
    word = str(rng.choice(["dpo-not-orpo", "simpo_baseline_dpo", "kto2dpo", "cpo-vs-dpo"]))
    path = folder / f"{word}.csv"
    pd.DataFrame(rows_of(displaced_plan(rng), rng)).to_csv(path, index=False)
    return path


def counted_rows(rng: Rng, folder: Path) -> Path:
    """A console without steps, logged every ten: its first row is far from the start."""
    plan = healthy_plan(rng, rows=30, steps=300, rejected=-0.2, speed=4.0, warmup=0.0, batch=64)
    return console(folder, rows_of(plan, rng), stated=False)


def summed(rng: Rng, folder: Path) -> Path:
    """Every mean is a sum over the micro-batches of a step."""
    factor = int(rng.choice([4, 8]))
    rows = rows_of(healthy_plan(rng), rng)
    for row in rows:
        row |= {k: v * factor for k, v in row.items() if k == "loss" or k.startswith(("rewards/", "logps/"))}
    return any_form(rng, folder, rows)


def learned_nothing(rng: Rng, folder: Path) -> Path:
    return any_form(rng, folder, rows_of(healthy_plan(rng, chosen=0.0002, rejected=-0.0005, spread=0.005), rng))


def few_evaluations(rng: Rng, folder: Path) -> Path:
    """Four evaluations; the rejected answers end far below what the loss can use."""
    worst, rows = -rng.uniform(60, 160), []
    for i, share in enumerate((0.02, 0.2, 0.6, 1.0)):
        chosen, rejected = rng.normal(0.3 * share, 0.02), worst * share
        rows.append({
            "step": 100 * (i + 1), "eval_loss": float(np.logaddexp(0, -(chosen - rejected))),
            "eval_rewards/chosen": chosen, "eval_rewards/rejected": rejected,
            "eval_rewards/margins": chosen - rejected, "eval_rewards/accuracies": min(1.0, 0.7 + 0.3 * share),
        })  # fmt: skip
    return trainer_state(folder, rows)


def one_row(rng: Rng, folder: Path) -> Path:
    return json_lines(folder, rows_of(displaced_plan(rng), rng)[-1:])


def smoothed_floor(rng: Rng, folder: Path) -> Path:
    """Label smoothing holds the loss at its own floor: nothing is wrong with a loss that stays above 0."""
    spec = LossSpec(types=("cdpo",), label_smoothing=float(rng.choice([0.05, 0.1])))
    plan = healthy_plan(rng, loss=spec, chosen=0.1, rejected=-0.42, speed=6.0, to_floor=True, spread=0.005, batch=64)
    return any_form(rng, folder, rows_of(plan, rng))


def no_reference(rng: Rng, folder: Path) -> Path:
    """SimPO: rewards are beta times mean log-probs, so no start at 0 is to be expected."""
    return any_form(rng, folder, rows_of(healthy_plan(rng, reference_free=True, rejected=-0.4, chosen=0.1), rng))


NOT_WELL = frozenset({"healthy"})
FALLEN = frozenset({"likelihood_displacement"})
ADVERSARIES: dict[str, Adversary] = {
    "heavy-tailed batches, healthy": Adversary(
        heavy_tailed_healthy, OPEN, silent=("DVG001", "DVG002", "DVG007", "DVG011", "DVG020")),
    "heavy-tailed batches, displacement": Adversary(
        heavy_tailed_displaced, FALLEN, speaks=("DVG001",), silent=("DVG007",)),
    "two collapsing pairs": Adversary(
        two_collapsing_pairs, wrong=frozenset({"length_explained", "dead_run", "not_learning"}),
        speaks=("DVG004",), silent=("DVG005",)),
    "length explains the margin": Adversary(length_explains, wrong=NOT_WELL, speaks=("DVG005",)),
    "a restart in the same file": Adversary(restarted, FALLEN, speaks=("DVG001",), silent=("DVG007",)),
    "killed and resumed": Adversary(resumed, FALLEN, speaks=("DVG001",), silent=("DVG007",)),
    "columns missing": Adversary(columns_missing, wrong=NOT_WELL, speaks=("DVG001",)),
    "chosen is not recorded": Adversary(chosen_unrecorded, frozenset({"cannot_tell", "within_noise", "loss_unclear"})),
    "another reference, and chosen falls": Adversary(
        mismatch_and_fall, frozenset({"reference_mismatch"}), speaks=("DVG007", "DVG001")),
    "collapse, and chosen falls": Adversary(
        collapse_and_fall, FALLEN | {"rejected_collapse"}, speaks=("DVG001", "DVG002")),
    "slow fall": Adversary(slow_fall, FALLEN, speaks=("DVG001",)),
    "slow and healthy": Adversary(slow_healthy, OPEN, silent=("DVG001", "DVG002", "DVG007")),
    "NaN stands for missing": Adversary(nan_for_missing, OPEN, silent=("DVG011", "DVG001")),
    "a name that holds another loss": Adversary(named_like_another_loss, FALLEN, speaks=("DVG001",)),
    "counted rows, every tenth step": Adversary(counted_rows, OPEN, silent=("DVG007", "DVG001")),
    "sums over micro-batches": Adversary(
        summed, frozenset({"implausible_numbers", "summed_numbers"}), speaks=("DVG028",), silent=("DVG001", "DVG002")),
    "nothing learned": Adversary(
        learned_nothing, frozenset({"not_learning", "loss_unclear"}), silent=("DVG001", "DVG002")),
    "four evaluations, collapse": Adversary(few_evaluations, frozenset({"rejected_collapse"}), speaks=("DVG002",)),
    "one row": Adversary(one_row, frozenset({"one_row"})),
    "floor of label smoothing": Adversary(
        smoothed_floor, frozenset({"healthy", "saturated", "cannot_tell"}), silent=("DVG001", "DVG007", "DVG009")),
    "no reference in the loss": Adversary(no_reference, OPEN, silent=("DVG007",)),
}  # fmt: skip


def judge(adversary: Adversary, seed: int) -> str:
    """ "" if what is said of the run is right, else what was wrong."""
    rng = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as scratch:
        path = adversary.make(rng, Path(scratch))
        if path.is_file():
            path = Path(import_path(path, Path(scratch) / "imported")["run"])
        document = explain(path)
    label = document["verdict"]["label"]
    outcomes = {c["code"]: c["outcome"] for c in document["checks"]}
    wrong = [f"{code} did not speak" for code in adversary.speaks if outcomes.get(code) != "speaks"]
    wrong += [f"{code} spoke" for code in adversary.silent if outcomes.get(code) == "speaks"]
    if label in adversary.wrong or (adversary.labels and label not in adversary.labels):
        wrong.append(f"headline {label}")
    return ", ".join(wrong)


def report(found: dict[str, list[str]], command: str) -> str:
    """The table as Markdown: right of all per kind, with Wilson's 95 % interval, and what was wrong."""
    total, right = sum(map(len, found.values())), sum(w == "" for rows in found.values() for w in rows)
    lines = [
        "# Runs that a simulation of one's own forgets", "",
        f"Printed by `{command}`: {total} runs from seeds with which nothing was tuned, each written as a log (or a "
        "run with pairs), imported and explained. Right: the headline is among those fixed beforehand, every check "
        f"that must speak does, none that must be silent speaks. Right in all: {_share(right, total)}.", "",
        "| kind | right | share, 95 % interval (Wilson) | must speak | must be silent | what was wrong |",
        "| --- | ---: | --- | --- | --- | --- |",
    ]  # fmt: skip
    for name, rows in found.items():
        kind, good = ADVERSARIES[name], sum(w == "" for w in rows)
        faults = "; ".join(f"{w} ({n})" for w, n in Counter(w for w in rows if w).most_common(3))
        lines.append(
            f"| {name} | {good}/{len(rows)} | {_share(good, len(rows))} | {', '.join(kind.speaks)} | "
            f"{', '.join(kind.silent)} | {faults} |"
        )
    return "\n".join(lines) + "\n"


def _share(right: int, n: int) -> str:
    share = proportion(right, n)
    return f"{share.value:.3f} [{share.low:.3f}, {share.high:.3f}]"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=10, help="runs of each kind (default 10)")
    parser.add_argument("--base", type=int, default=FRESH, help="first seed")
    parser.add_argument("--kind", help="only this kind; nothing is written")
    args = parser.parse_args()
    found: dict[str, list[str]] = defaultdict(list)
    for k, (name, adversary) in enumerate(ADVERSARIES.items()):
        if args.kind in (None, name):
            found[name] = [judge(adversary, args.base + 1000 * k + seed) for seed in range(args.seeds)]
            print(f"{name}: {sum(w == '' for w in found[name])}/{args.seeds}", file=sys.stderr, flush=True)
    document = report(found, " ".join(["python -m benchmarks.diagnosis.adversaries", *sys.argv[1:]]))
    print(document)
    if args.kind is None:
        RESULTS.write_text(document, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
