"""What was read, written as a run folder of kind `imported`."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dpo_diag.errors import DiagError
from dpo_diag.importers.derived import check_beta, derive, nll_weight_at_start
from dpo_diag.importers.merged import History, Key
from dpo_diag.importers.parsed import Facts, Options, Parsed
from dpo_diag.importers.trainers import guess_trainer, logps_reduction
from dpo_diag.losses import LOSSES, LossSpec
from dpo_diag.records.files import part_of
from dpo_diag.records.inferred import NAMES, infer, without_reference
from dpo_diag.records.run_info import ModelInfo
from dpo_diag.records.schemas import TRAIN_SPLIT
from dpo_diag.records.text_files import Skipped
from dpo_diag.records.typed_json import Tolerance, from_document
from dpo_diag.records.writer import RunWriter
from dpo_diag.text import to_json

BATCH = 1 << 18


def write_run(out: Path, sources: list[Parsed], options: Options, scores: pd.DataFrame | None) -> dict[str, Any]:
    """Write all tables and run.json; returns the result that `dpo-diag import --json` prints.

    Raises:
        DiagError: the folder already holds a run, or nothing at all could be read.
    """
    history = History([s for s in sources if s.store is not None])
    facts = Facts()
    for source in sources:
        facts.merge(source.facts)
    total = sum(s.n_read for s in sources)
    if total == 0 and scores is None:
        raise DiagError(
            "no row could be read",
            where=", ".join(str(s.files[0]) for s in sources),
            got=_first_reason(sources),
            expected="log rows with a loss, rewards or log-probs",
            hint="name the format with --as, or see dpo-diag import --formats",
        )
    existed = out.exists()
    if any(part_of(p) for p in out.glob("*/*.parquet")):
        raise DiagError("the folder already holds a run", where=out, hint="name another folder with --out", usage=True)
    try:
        return _write(RunWriter(out, kind="imported"), out, sources, history, facts, options, scores)
    except BaseException:
        if not existed:
            shutil.rmtree(out, ignore_errors=True)
        raise


def _write(
    writer: RunWriter,
    out: Path,
    sources: list[Parsed],
    history: History,
    facts: Facts,
    options: Options,
    scores: pd.DataFrame | None,
) -> dict[str, Any]:
    trainer, version = _trainer(sources, options)
    if not facts.loss and any(name.startswith("log_odds") for _, name in history.metrics()):
        facts.take("loss", ("orpo",), "the log holds ORPO's log odds")
    types = options.loss or facts.loss
    beta = options.beta if options.beta is not None else facts.beta
    check = check_beta(history, beta)
    if beta is None and check is not None and check.constant:
        beta = check.beta
        facts.take("beta", beta, f"found: the reference is constant over the evaluations of {check.split}")
    reduction = logps_reduction(trainer, version, types, options.logps, _logps_size(history))
    nll_weight = nll_weight_at_start(history, facts.nll_weight)
    derived = derive(history, beta, reduction.value, nll_weight)
    _write_history(writer, history, derived)
    extra_history = [s.history for s in sources if s.history is not None] + ([scores] if scores is not None else [])
    for part in extra_history:
        _write_extra(writer, part, out)
    for source in sources:
        for table, rows in (("pairs", source.pairs), ("texts", source.texts)):
            if rows is not None:
                for split, part in rows.groupby("split", sort=True):
                    writer.write(table, part.reset_index(drop=True), str(split))
    skipped = Skipped()
    for source in sources:
        skipped.extend(source.skipped, source.files[0].name if len(sources) > 1 else None)
    inferred = infer(_means(history, derived, sources))
    logged = any(name.startswith("logps/") for _, name in history.metrics())
    origin = _source_document(sources, history, facts, options, trainer, version, reduction.why, check, nll_weight)
    loss = _loss_fields(types, beta, options, facts)
    is_known = loss["loss"] is not None
    named = without_reference(" ".join(types), to_json(origin), str(loss.get("loss_reason")))
    writer.update(
        **loss,
        beta=beta if is_known or beta else inferred.beta,
        loss_like=None if is_known else inferred.loss_like,
        # The pair tables' columns are sums by definition.
        logps=(options.logps or "sum") if _has_pairs(sources) else (reduction.value or None) if logged else None,
        reference_free=named or inferred.reference_free,
        model=from_document(ModelInfo, facts.model, "model", Tolerance.MISFITS),
        reference={
            "source": next((s.details["reference_from"] for s in sources if "reference_from" in s.details), None)
        },
        source=origin,
    )
    listed = skipped.listed
    if skipped.count > len(listed):
        listed = [*listed, {"line": None, "why": f"and {skipped.count - len(listed)} more"}]
    writer.finish("finished")
    duplicates = history.duplicate_rows() + sum(s.n_duplicates for s in sources)
    summaries = sum(len(s.store.summaries) for s in sources if s.store is not None)
    primary = sources[0]
    return {
        "run": str(out),
        "format": primary.format,
        "rows": sum(s.n_rows for s in sources),
        "read": sum(s.n_read for s in sources) - history.duplicate_rows(),
        "skipped": listed,
        "merged": [str(f) for s in sources for f in s.files] if sum(len(s.files) for s in sources) > 1 else [],
        "skipped_count": skipped.count,
        "duplicates": duplicates,
        "summary_rows": summaries,
        "trainer": trainer,
        "trainer_version": version,
        "steps_from": next((s.steps_from for s in sources if s.steps_from), None),
        "beta": beta,
        "notes": origin["notes"],
    }


def _first_reason(sources: list[Parsed]) -> str:
    for source in sources:
        if source.skipped.listed:
            row = source.skipped.listed[0]
            return f"{row['why']} (line {row['line']})" if row["line"] else str(row["why"])
    return "no rows"


def _has_pairs(sources: list[Parsed]) -> bool:
    return any(s.pairs is not None for s in sources)


def _trainer(sources: list[Parsed], options: Options) -> tuple[str, str | None]:
    if options.trainer:
        return options.trainer, options.trainer_version
    known = [(s.trainer, s.version) for s in sources if s.trainer != "unknown"]
    guesses = [guess_trainer(s.store, s.files[0].name) for s in sources]
    named = known + [g for g in guesses if g[0] != "unknown"]
    if not named:
        return "unknown", options.trainer_version
    # A trainer's own log beside a Hugging Face state names the trainer more exactly than TRL's keys do.
    own = next((n for n in named if n[0] not in ("trl", "unknown")), named[0])
    version = options.trainer_version or own[1]
    return own[0], version


def _frames(columns: Iterator[tuple[str, str, pd.DataFrame, bool]]) -> Iterator[pd.DataFrame]:
    """History rows of (split, name, column, derived) in batches of about a quarter million."""
    waiting: list[pd.DataFrame] = []
    size = 0
    for split, name, column, derived in columns:
        for start in range(0, len(column), BATCH):
            waiting.append(column.iloc[start : start + BATCH].assign(split=split, name=name, derived=derived))
            size += len(waiting[-1])
            if size >= BATCH:
                yield _stacked(waiting)
                waiting, size = [], 0
    if waiting:
        yield _stacked(waiting)


def _stacked(frames: list[pd.DataFrame]) -> pd.DataFrame:
    stacked = pd.concat(frames, ignore_index=True)
    if stacked["epoch"].isna().any():
        # Null, not NaN: an object column says "missing", a float column keeps NaN as a value.
        stacked["epoch"] = stacked["epoch"].astype(object).where(stacked["epoch"].notna(), None)
    return stacked


def _write_history(writer: RunWriter, history: History, derived: Mapping[Key, pd.DataFrame]) -> None:
    def columns() -> Iterator[tuple[str, str, pd.DataFrame, bool]]:
        for split, name in history.metrics():
            column = history.column(split, name)
            if column is not None:
                yield split, name, column, False
        for (split, name), column in derived.items():
            yield split, name, column, True

    for part, frame in enumerate(_frames(columns())):
        writer.write("history", frame, "all" if part == 0 else f"all{part}")


def _write_extra(writer: RunWriter, rows: pd.DataFrame, out: Path) -> None:
    """Scores and other finished history rows, beside the log's own."""
    taken = len(list((out / "history").glob("*.parquet")))
    rows = rows.copy()
    if "weight" in rows:
        rows["weight"] = rows["weight"].astype(object).where(rows["weight"].notna(), None)
    writer.write("history", rows, f"extra{taken}" if taken else "extra")


def _means(history: History, derived: dict[tuple[str, str], Column], sources: list[Parsed]) -> pd.DataFrame:
    """The history rows from which beta and the like are inferred, as records.inferred reads them."""
    columns = {(s, n): c for s, n in history.metrics() if n in NAMES and (c := history.column(s, n)) is not None}
    columns |= {key: column for key, column in derived.items() if key[1] in NAMES}
    frames = [
        pd.DataFrame({"step": c.step, "value": c.value, "split": split, "name": name})
        for (split, name), c in columns.items()
    ]
    frames += [s.history[["step", "value", "split", "name"]] for s in sources if s.history is not None]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=["step", "value", "split", "name"])


def _loss_fields(types: tuple[str, ...], beta: float | None, options: Options, facts: Facts) -> dict[str, Any]:
    """run.json's fields about the loss: a LossSpec, or why there is none and how the source names it."""
    if not types:
        return {"loss": None, "loss_reason": "the source does not name its loss (--loss sigmoid --beta 0.1)"}
    smoothing = options.label_smoothing if options.label_smoothing is not None else facts.label_smoothing or 0.0
    names = tuple("cdpo" if t == "sigmoid" and smoothing > 0 else t for t in types)
    if any(t not in LOSSES for t in names):
        reason = f"no per-pair form of the loss {', '.join(names)} is known here"
        return {"loss": None, "loss_reason": reason, "loss_names": types}
    if beta is None:
        return {"loss": None, "loss_reason": "beta is not known (--beta 0.1)", "loss_names": types}
    weights = options.loss_weights
    if not weights and facts.nll_weight and "sft" not in names and len(names) == 1:
        names, weights = (*names, "sft"), (1.0, facts.nll_weight)
    spec = LossSpec(
        types=names,
        weights=weights,
        beta=beta,
        label_smoothing=smoothing,
        f_divergence_type=facts.f_divergence_type
        if facts.f_divergence_type in ("forward_kl", "js_divergence")
        else "reverse_kl",
    )
    return {"loss": spec}


def _source_document(
    sources: list[Parsed],
    history: History,
    facts: Facts,
    options: Options,
    trainer: str,
    version: str | None,
    reduction_why: str,
    check: Any,
    nll_weight: float | None,
) -> dict[str, Any]:
    stores = [s.store for s in sources if s.store is not None]
    notes = [n for s in sources for n in s.notes]
    if differing := history.differing_rows():
        notes.append(f"{differing} repeated rows differ from the one kept (the last of each step)")
    for name, n in history.disagreeing_values().items():
        notes.append(f"{name}: {n} values differ from the first source's, which were kept")
    if check is not None and not check.constant:
        notes.append(
            f"the reference derived with beta {check.beta:g} is not constant over {check.evaluations} evaluations of "
            f"{check.split} (spread {check.spread:.3g} nats): wrong beta, or not a sum-log-prob loss"
        )
    notes += _swap_note(history)
    summary = next((s.summaries[-1] for s in stores if s.summaries), None)
    return {
        "files": [str(f) for s in sources for f in s.files],
        "format": sources[0].format,
        "formats": [s.format for s in sources],
        "trainer": trainer,
        "trainer_version": version,
        "steps_from": {s.files[0].name: s.steps_from for s in sources if s.steps_from},
        "logps_why": reduction_why,
        "said": facts.said,
        "options": {k: v for k, v in vars(options).items() if v not in (None, ())},
        "names": {k: v for s in stores for k, v in s.mapping().items()},
        "kept_under_own_name": sorted({k for s in stores for k in s.unknown_keys()}),
        "left_out": sorted({k for s in stores for k in s.dropped_keys()}),
        "summary": {k: _finite(v) for k, v in summary.items()} if summary else None,
        "duplicates": history.duplicate_rows() + sum(s.n_duplicates for s in sources),
        "backtracks": history.backtracks(),
        "read": sum(s.n_read for s in sources),
        **_skipped(sources),
        "beta_check": check.to_dict() if check is not None else None,
        "nll_weight": nll_weight,
        "notes": notes,
        "details": {k: v for s in reversed(sources) for k, v in s.details.items()},
    }


def _logps_size(history: History) -> float | None:
    """Median |logps/chosen| of the split that has most of it, in nats."""
    columns = [c for s in history.splits() if (c := history.column(s, "logps/chosen")) is not None]
    values = [c["value"][np.isfinite(c["value"])].abs() for c in columns]
    longest = max(values, key=len, default=pd.Series(dtype=float))
    return float(longest.median()) if len(longest) else None


def _skipped(sources: list[Parsed]) -> dict[str, Any]:
    """What was not read, by line; the number alone where it is more than is listed."""
    count = sum(s.skipped.count for s in sources)
    listed = [row for s in sources for row in s.skipped.listed]
    return {"skipped": listed if len(listed) == count else [], "skipped_count": count}


def _finite(value: Any) -> Any:
    return value if not isinstance(value, float) or math.isfinite(value) else str(value)


def _swap_note(history: History) -> list[str]:
    """margins = chosen - rejected must hold; where its negative holds at every row, the sides are swapped."""
    rows = history.aligned(TRAIN_SPLIT, "rewards/chosen", "rewards/rejected", "rewards/margins")
    if rows is None:
        return []
    margins = rows["rewards/margins"]
    rows = rows[np.isfinite(margins) & (margins.abs() > 1e-3)]
    off = (rows["rewards/chosen"] - rows["rewards/rejected"] + rows["rewards/margins"]).abs().dropna()
    if len(off) >= 3 and (off <= 1e-2 * rows["rewards/margins"].abs()[off.index]).mean() > 0.9:
        return ["rewards/margins is rejected - chosen in this log: chosen and rejected are swapped in it"]
    return []
