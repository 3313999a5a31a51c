"""One training's rows in the forms in which trainers leave them: console with and without bars, state, JSON lines."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

Row = dict[str, float]
EPOCH_OF = 50


def training(total: int = 100, every: int = 10, seed: int = 0, per_epoch: int = EPOCH_OF, after: int = 0) -> list[Row]:
    """Rows of a healthy run, four digits each, with their step: rewards part by 0.01 nats a step, the loss follows."""
    random = np.random.default_rng(seed)
    rows = []
    for step in range(every, total + 1, every):
        margin = 0.01 * step + random.normal(0, 0.01)
        values = {
            "loss": np.log1p(np.exp(-margin)), "grad_norm": 2.0, "learning_rate": 5e-07, "rewards/chosen": margin / 4,
            "rewards/rejected": -3 * margin / 4, "rewards/accuracies": min(1.0, 0.5 + margin / 2),
            "rewards/margins": margin, "logps/chosen": -100 + margin * 2.5, "logps/rejected": -120 - margin * 7.5,
        }  # fmt: skip
        row = {name: float(f"{value:.4g}") for name, value in values.items()}
        rows.append({**row, "epoch": round(step / per_epoch, 2), "step": step})
    return [row for row in rows if row["step"] > after]


def printed(row: Mapping[str, float]) -> str:
    """A row as Transformers prints it: without its step."""
    return str({k: v for k, v in row.items() if k != "step"})


def frame(done: int, total: int, label: str = "", unit: str = "1.23it/s") -> str:
    return f"\r{label}{100 * done // total:3d}%|█▏        | {done}/{total} [00:10<02:00,  {unit}]"


def console(rows: Sequence[Mapping[str, float]], total: int | None = None, at: int = 0) -> str:
    """Rows as a terminal shows them; with `total`, in the training's own bar, which a resume moves to `at`."""
    if total is None:
        return "".join(f"{printed(row)}\n" for row in rows)
    text, done = frame(0, total), at
    for row in rows:
        text += "".join(frame(i, total) for i in range(done + 1, int(row["step"]) + 1))
        text += "\r" + " " * 40 + f"\r{printed(row)}\n" + frame(int(row["step"]), total)
        done = int(row["step"])
    return text + "\n"


def summary(total: int, epoch: float) -> str:
    """Transformers' last row: 1.054 steps a second."""
    seconds = round(total / 1.054, 2)
    return str({"train_runtime": seconds, "train_steps_per_second": 1.054, "train_loss": 0.5, "epoch": epoch}) + "\n"


def banner(examples: int, epochs: int, batch: int, total: int) -> str:
    return (
        "[INFO|trainer.py:2409] >> ***** Running training *****\n"
        f"[INFO|trainer.py:2410] >>   Num examples = {examples:,}\n"
        f"[INFO|trainer.py:2411] >>   Num Epochs = {epochs:,}\n"
        f"[INFO|trainer.py:2415] >>   Total train batch size (w. parallel, distributed & accumulation) = {batch:,}\n"
        f"[INFO|trainer.py:2416] >>   Total optimization steps = {total:,}\n"
    )


def state(path: Path, rows: Sequence[Mapping[str, float]]) -> Path:
    path.write_text(json.dumps({"log_history": list(rows), "global_step": rows[-1]["step"]}))
    return path


def lines(path: Path, rows: Sequence[Mapping[str, float]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def log(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8", newline="")
    return path
