"""The parting of the curves: the loss, both sides' perplexities and the task score over the steps."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup

from dpo_diag.records import Run
from dpo_diag.records.metrics import wilson_interval
from dpo_diag.records.schemas import TRAIN_SPLIT
from dpo_diag.report.numbers import number, percent, ratio, signed
from dpo_diag.report.plots import Series, line_chart
from dpo_diag.report.svg import responsive
from dpo_diag.report.tables import behind, figure

LOSS, CHOSEN, REJECTED = "DPO loss", "chosen perplexity", "rejected perplexity"
PERPLEXITY_NAMES = ("ppl_seq_mean", "ppl_token", "ppl_seq_geomean")
LOGPS = ("logps/chosen", "logps/rejected")
COLUMNS = ["panel", "line", "kind", "step", "value", "low", "high", "n", "measure", "split"]


def evaluation_split(run: Run, wanted: str | None = None) -> str | None:
    """The split whose curves are shown: the wanted one, else eval, else the first fixed set, else train, else None."""
    splits = [s for s in run.history["split"].unique() if s is not None]
    measured = [
        s
        for s in splits
        if (run.history.loc[run.history["split"] == s, "name"].isin(["loss", *LOGPS]).any()) or s == wanted
    ]
    if wanted in measured:
        return wanted
    fixed = sorted(s for s in measured if s != TRAIN_SPLIT)
    if "eval" in fixed:
        return "eval"
    return fixed[0] if fixed else (TRAIN_SPLIT if TRAIN_SPLIT in measured else None)


def curves_frame(run: Run, split: str | None, trajectory: list[dict[str, Any]] | None = None) -> pd.DataFrame:
    """Long frame of what the panels draw: panel (loss | perplexity | log-probs | score), line, kind, step, value,
    low and high (a score's Wilson 95 % interval), n, measure (the history's name), split. What the history lacks (a
    scored run has none) comes from the explanation's `trajectory`. Empty where neither has anything.
    """
    history = _with_trajectory(run.history, split, trajectory or [])
    parts = []

    def take(panel: str, line: str, kind: str, name: str, of: str | None) -> bool:
        rows = history.loc[(history["name"] == name) & (history["split"] == of)]
        if rows.empty:
            return False
        part = pd.DataFrame(
            {
                "panel": panel, "line": line, "kind": kind, "step": rows["step"].to_numpy(),
                "value": rows["value"].to_numpy(dtype=float), "low": np.nan, "high": np.nan,
                "n": rows["weight"].to_numpy(dtype=float), "measure": name, "split": of,
            }
        )  # fmt: skip
        if panel == "score":
            bounds = [
                wilson_interval(v * n, int(n)) if math.isfinite(v + n) and 0 <= v <= 1 else (math.nan, math.nan)
                for v, n in zip(part["value"], part["n"], strict=True)
            ]
            part["low"], part["high"] = [b[0] for b in bounds], [b[1] for b in bounds]
        parts.append(part)
        return True

    take("loss", LOSS, "loss", "loss", split)
    if split != TRAIN_SPLIT:
        take("loss", "training batches", "train", "loss", TRAIN_SPLIT)
    for name in PERPLEXITY_NAMES:
        found = take("perplexity", CHOSEN, "chosen", f"{name}/chosen", split)
        if take("perplexity", REJECTED, "rejected", f"{name}/rejected", split) or found:
            break
    else:
        take("log-probs", "chosen log-prob", "chosen", LOGPS[0], split)
        take("log-probs", "rejected log-prob", "rejected", LOGPS[1], split)
    scores = history.loc[history["name"].str.startswith("score/"), ["name", "split"]].drop_duplicates()
    for i, (name, of) in enumerate(scores.itertuples(index=False, name=None)):
        take("score", score_name(name, of), "score" if i % 2 == 0 else "score2", name, of)
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=COLUMNS)


def _with_trajectory(history: pd.DataFrame, split: str | None, trajectory: list[dict[str, Any]]) -> pd.DataFrame:
    """The history and, of the loss and perplexities that it lacks, the explanation's own values per step."""
    known = set(history.loc[history["split"] == split, "name"])
    names = {"loss": "loss"} | {f"{p}/{s}": f"{p}_{s}" for p in PERPLEXITY_NAMES for s in ("chosen", "rejected")}
    rows = [
        {"step": at["step"], "split": split, "name": name, "value": float(at[key])}
        for name, key in names.items()
        if name not in known
        for at in trajectory
        if at.get(key) is not None
    ]
    return pd.concat([history, pd.DataFrame(rows)], ignore_index=True) if rows else history


def score_name(name: str, split: str) -> str:
    """`score/execution_accuracy` of `held_out` as "execution accuracy, held out"."""
    plain = name.removeprefix("score/").replace("_", " ")
    return f"{plain}, {split.replace('_', ' ')}" if split not in ("eval", "train") else plain


def parting_frame(curves: pd.DataFrame) -> pd.DataFrame:
    """Loss, chosen perplexity and scores as ratios to their first finite value: line, kind, step, ratio, value.

    Left out: lines of one point, and lines whose first value is not positive (no ratio to it means anything).
    """
    parts = []
    for line, rows in curves.loc[curves["line"].isin([LOSS, CHOSEN]) | (curves["panel"] == "score")].groupby(
        "line", sort=False
    ):
        finite = rows.loc[np.isfinite(rows["value"])]
        if len(finite) < 2 or float(finite["value"].iloc[0]) <= 0:
            continue
        first = float(finite["value"].iloc[0])
        parts.append(
            pd.DataFrame(
                {"line": line, "kind": rows["kind"], "step": rows["step"], "ratio": rows["value"] / first,
                 "value": rows["value"]}
            )
        )  # fmt: skip
    columns = ["line", "kind", "step", "ratio", "value"]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)


def draw_parting(parting: pd.DataFrame) -> Markup:
    """One plot: every line starts at 1; loss, chosen perplexity and score leave in their own directions.

    Per cent on a linear axis while nothing more than triples, else factors on a logarithmic one.
    """
    finite = parting["ratio"][np.isfinite(parting["ratio"])]
    log = bool(len(finite) and finite.max() > 3 and finite.min() > 0)
    shown = parting if log else parting.assign(ratio=parting["ratio"] - 1)

    def draw(width: int) -> Markup:
        lines = []
        for line, rows in shown.groupby("line", sort=False):
            values = parting.loc[(parting["line"] == line) & np.isfinite(parting["ratio"]), "ratio"]
            lines.append(
                Series(
                    _short(str(line)) if width < 500 else str(line),
                    rows["step"].to_numpy(dtype=float), rows["ratio"].to_numpy(dtype=float), str(rows["kind"].iloc[0]),
                    note=f"{ratio(values.iloc[-1]) if log else _change(values.iloc[-1] - 1)} since the start"
                    if width > 500 else ratio(values.iloc[-1]) if log else _change(values.iloc[-1] - 1),
                )
            )  # fmt: skip
        return line_chart(
            lines,
            width=width,
            height=320,
            log=log,
            tick=ratio if log else _change,
            level=1.0 if log else 0.0,
            description="Change since the first measurement: " + parting_text(parting),
        )

    return figure(
        responsive(draw),
        f"Each line against its own first value. {parting_text(parting)}",
        behind(
            parting.drop(columns="kind"), "change since the first measurement", formats={"ratio": ratio, "step": number}
        ),
    )


def parting_text(parting: pd.DataFrame) -> str:
    """What the plot says, in one sentence."""
    said = []
    for line, rows in parting.groupby("line", sort=False):
        finite = rows.loc[np.isfinite(rows["ratio"])]
        first, last = finite.iloc[0], finite.iloc[-1]
        change = _change(last["ratio"] - 1) if last["ratio"] <= 3 else ratio(last["ratio"])
        said.append(f"{line} {number(first['value'])} → {number(last['value'])} ({change})")
    return "; ".join(said) + "." if said else ""


def draw_panels(curves: pd.DataFrame, marks: list[tuple[int, str]]) -> Markup:
    """The same in absolute values: one panel under the other on one step axis; perplexities on a logarithmic axis."""
    pieces = []
    names = {
        "loss": "Loss, nats per pair",
        "perplexity": "Perplexity of the answers ({measure}), logarithmic",
        "log-probs": "Log-prob of the answers, nats",
        "score": "Task score, with 95 % interval",
    }
    for panel, rows in curves.groupby("panel", sort=False):
        measures = rows["measure"].unique()
        measure = str(measures[0]).split("/")[0]
        title = names[str(panel)].format(measure=measure)
        if panel == "score" and len(measures) == 1:
            title = f"{score_name(str(measures[0]), 'eval').capitalize()}, with 95 % interval"
        all_steps = (float(curves["step"].min()), float(curves["step"].max()))
        pieces.append(
            Markup("<h3>{}</h3>{}").format(title, responsive(_panel(str(panel), rows, title, marks, all_steps)))
        )
    shown = curves.drop(columns=["panel", "kind"])
    evaluated = shown.loc[curves["kind"] != "train"]
    formats = {"step": number, "n": number}
    return Markup("<figure>{}{}</figure>").format(
        Markup("").join(pieces), behind(evaluated, "loss, perplexities and scores", formats=formats)
    )


def _panel(
    panel: str, rows: pd.DataFrame, title: str, marks: list[tuple[int, str]], all_steps: tuple[float, float]
) -> Callable[[int], Markup]:
    def draw(width: int) -> Markup:
        narrow = width < 500
        lines = []
        for line, part in rows.groupby("line", sort=False):
            finite = part["value"][np.isfinite(part["value"])]
            end = number(finite.iloc[-1], 3) if len(finite) else "NaN"
            name = _short(str(line)) if narrow or len(str(line)) > 26 else _plain(str(line))
            bounds = [part[c].to_numpy(dtype=float) if panel == "score" else None for c in ("low", "high")]
            lines.append(
                Series(
                    name, part["step"].to_numpy(dtype=float), part["value"].to_numpy(dtype=float),
                    str(part["kind"].iloc[0]), *bounds, end,
                )
            )  # fmt: skip
        return line_chart(
            lines, width=width, height=190, log=panel == "perplexity", marks=marks, description=title,
            right=130.0 if narrow else 230.0, x_range=all_steps,
        )  # fmt: skip

    return draw


def _plain(line: str) -> str:
    return line.replace(" perplexity", "").replace(" log-prob", "").replace("DPO loss", "evaluation")


def _short(line: str) -> str:
    plain = _plain(line).replace("training batches", "training")
    plain = plain.split(", ")[-1]  # a score's split tells more than its name, which stands in the title
    return plain if len(plain) <= 15 else plain[:14] + "…"


def _change(value: float) -> str:
    return "0" if value == 0 else signed(round(100 * value, 1), 3) + " %" if math.isfinite(value) else percent(value)
