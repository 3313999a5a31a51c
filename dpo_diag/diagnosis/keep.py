"""Which of a run's checkpoints to keep, and why; which may go. It deletes nothing."""

from __future__ import annotations

import math
from typing import Any

from dpo_diag.checkpoint_choice import SCORE, Candidate, Curve, choose, curve_of
from dpo_diag.records import Run
from dpo_diag.records.metric_table import label_of, side_of
from dpo_diag.records.saved import saved_checkpoints
from dpo_diag.text import number, plural, size, some, table
from dpo_diag.thresholds import Thresholds, load_thresholds


def keep(run: Run, metric: str | None = None, thresholds: Thresholds | None = None) -> dict[str, Any]:
    """The choice as a document: {"run", "metric", "split", "better", "n", "band", "keep", "reason", "best_measured",
    "ahead", "checkpoints": [{"step", "folder", "bytes", "value", "behind", "error", "within", "verdict", "why"}],
    "may_delete", "bytes_freed"}. A checkpoint's verdict is keep | may be deleted | stays. `best_measured`: the step
    that would be kept if all evaluations were on disk; `ahead`: by how much it is better than the choice, null where
    that is noise.

    Args:
        metric: NAME or NAME@SPLIT, see `checkpoint_choice.curve_of`.

    Raises:
        DiagError: the run records no such metric, or was never evaluated.
    """
    limits = thresholds or load_thresholds()
    curve, saved = curve_of(run, metric), saved_checkpoints(run.path)
    band = limits["keep.band"]
    chosen, candidates = choose(curve, {s.step for s in saved if s.broken is None}, band)
    known = {c.step: c for c in candidates}
    finished = run.info.status == "finished"
    last = max((s.step for s in saved if s.broken is None), default=None)
    rows = []
    for s in saved:
        broken = s.broken or ("its log-probs are no numbers" if s.step in curve.broken else None)
        verdict, why = _verdict(s.step, broken, chosen, known.get(s.step), last if not finished else None)
        of = known.get(s.step)
        rows.append({
            "step": s.step, "folder": str(s.folder), "bytes": s.size, "value": None if of is None else of.value,
            "behind": None if of is None else of.behind, "error": None if of is None else of.error,
            "within": None if of is None else of.within, "verdict": verdict, "why": why,
        })  # fmt: skip
    # Of no checkpoints: which evaluation would have been kept.
    measured, _ = choose(curve, set(curve.steps), band)
    ahead = _ahead(curve, chosen, measured, band)
    gone = [r for r in rows if r["verdict"] == "may be deleted"]
    return {
        "run": str(run.path), "metric": curve.name, "split": curve.split, "better": curve.better, "n": curve.n,
        "band": band, "keep": chosen, "reason": _reason(chosen, candidates, band, rows), "best_measured": measured,
        "ahead": ahead,
        "checkpoints": rows, "may_delete": [r["folder"] for r in gone], "bytes_freed": sum(r["bytes"] for r in gone),
    }  # fmt: skip


def _ahead(curve: Curve, chosen: int | None, measured: int | None, band: float) -> float | None:
    """How much better the step that would be kept is than the one that is, beyond the band; None where it is not."""
    if chosen is None or measured is None or chosen == measured:
        return None
    gain, error = curve.gain(curve.steps.index(chosen), curve.steps.index(measured))
    return gain if gain > (band * error if math.isfinite(error) else 0.0) else None


def _verdict(
    step: int, broken: str | None, chosen: int | None, candidate: Candidate | None, resumable: int | None
) -> tuple[str, str]:
    if broken is not None:
        return "may be deleted", broken
    if step == chosen:
        return "keep", "the choice"
    if step == resumable:
        return "stays", "the run is not finished, and goes on from it"
    if candidate is None:
        return "stays", "it was not measured"
    if candidate.within:
        return "may be deleted", "no better than the choice, beyond the noise"
    return "may be deleted", "worse than the best one, beyond the noise"


def _reason(chosen: int | None, candidates: list[Candidate], band: float, rows: list[dict[str, Any]]) -> str:
    if chosen is None and any(row["why"].startswith("its log-probs") for row in rows):
        return "of those that were measured none has log-probs that are numbers"
    if chosen is None:
        return "no checkpoint that was measured is on this machine"
    best = next(c.step for c in candidates if c.behind == 0 and c.error == 0)
    of = next(c for c in candidates if c.step == chosen)
    if len(candidates) == 1:
        return "the only one that was measured"
    if chosen == best:
        return f"the best, and no earlier one is within {_errors(band)} of it"
    return (
        f"the earliest within {_errors(band)} of the best, step {best}: {number(of.behind)} behind it, "
        f"standard error {number(of.error)}"
    )


def _errors(band: float) -> str:
    return f"{number(band)} standard error" + ("" if band == 1 else "s")


def lines(document: dict[str, Any]) -> list[str]:
    """The choice in words, a table of the checkpoints in their midst."""
    d, what = document, metric_words(document)
    if d["keep"] is None:
        found = plural(len(d["checkpoints"]), "checkpoint") if d["checkpoints"] else "no checkpoints"
        head = [f"keep: nothing to choose from ({found}; {d['reason']})"]
        head += [f"step {d['best_measured']} would be the choice"] if d["best_measured"] is not None else []
    else:
        head = [f"keep checkpoint-{d['keep']}: {d['reason']}"]
    if d["ahead"] is not None:
        which = "the model before training" if d["best_measured"] == 0 else f"step {d['best_measured']}"
        head.append(f"{which} was better by {number(d['ahead'])}, beyond the noise, and is not among them")
    head.append(f"judged by {what}")
    rows = [[f"checkpoint-{c['step']}", number(c["value"]), number(c["behind"]), number(c["error"]), size(c["bytes"]),
             c["verdict"], c["why"]] for c in d["checkpoints"]]  # fmt: skip
    names = ["", "value", "behind", "error", "size", "verdict", "why"]
    body = ["", table(names, rows)] if rows else []
    if d["may_delete"]:
        names = [f"checkpoint-{c['step']}" for c in d["checkpoints"] if c["verdict"] == "may be deleted"]
        body += ["", f"may be deleted: {some(names, 8)}, {size(d['bytes_freed'])} (nothing was deleted)"]
    return [*head, *body]


def metric_words(document: dict[str, Any]) -> str:
    """ "reward accuracy (rewards/accuracies) of 62 pairs of eval, higher is better"."""
    d = document
    units = "answers" if d["metric"] == SCORE or side_of(d["metric"]) in ("response", "prompt") else "pairs"
    name = "the task's score" if d["metric"] == SCORE else f"{label_of(d['metric'])} ({d['metric']})"
    of = f" of {d['n']} {units}" if d["n"] else ""
    where = "" if d["metric"] == SCORE else f" of {d['split']}"
    return f"{name}{of}{where}, {d['better']} is better"
