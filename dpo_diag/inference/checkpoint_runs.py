"""Work over many checkpoints, one after the other, into a run folder: answers to fixed prompts, scores on pairs.

What is done already is skipped; what is written stays if the work is stopped.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from dpo_diag.data.pairs import Row, text_rows
from dpo_diag.errors import DiagError
from dpo_diag.inference.prompts import Prompt, prompts_hash, to_prompts
from dpo_diag.models.checkpoints import POLICY, REFERENCE, Checkpoint, Loader, adapter_base, find_checkpoints
from dpo_diag.records import Run, RunWriter, metrics
from dpo_diag.records.ches_file import has_ches, write_ches
from dpo_diag.records.files import RUN_FILE
from dpo_diag.records.run_info import ModelInfo, ReferenceInfo, RunInfo
from dpo_diag.records.schemas import EVAL_SPLIT, SIDES
from dpo_diag.records.typed_json import to_document

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from dpo_diag.models.decoding import Decoding

_KEEP_ALL = 2**62


def open_writer(out: str | os.PathLike[str]) -> tuple[RunWriter, RunInfo]:
    """A writer that adds to `out` without removing anything, and the run's facts before it; a trained run stays one."""
    path = Path(out)
    before = Run(path).info if (path / RUN_FILE).is_file() else RunInfo(kind="scored")
    return RunWriter(path, kind=before.kind, resume_step=_KEEP_ALL), before


def _close(writer: RunWriter, before: RunInfo) -> None:
    """Mark the run finished, unless it is a training's, whose own status and end stay true."""
    if before.kind == "scored":
        writer.finish()
    else:
        writer.update(status=before.status or "finished", ended=before.ended)


def generate_checkpoints(
    checkpoints: Iterable[str | os.PathLike[str] | Checkpoint],
    prompts: Iterable[Prompt | Mapping[str, Any]],
    out: str | os.PathLike[str],
    *,
    decoding: Decoding | None = None,
    loader: Loader | None = None,
    batch_size: int = 32,
    chunk: int = 64,
    progress: bool = True,
    say: Callable[[str], None] = lambda line: None,
) -> Path:
    """Answers of checkpoints to fixed prompts, written to the run folder `out` as rows of outputs/.

    Answers that are there are not written again (per checkpoint and prompt); what is written stays if the work is
    interrupted, and the same call goes on from there. `out` may be a training's run: its answers gain columns.

    Args:
        checkpoints: as for `find_checkpoints`.
        prompts: Prompts or their rows.
        out: run folder, made if absent.
        decoding: None for greedy answers of up to 256 tokens.
        loader: device, dtype, tokenizer; None for the defaults.
        batch_size: answers written at once by the model.
        chunk: prompts per file: what a killed run loses at most.
        progress: show a bar per checkpoint.
        say: called with one line per checkpoint.

    Raises:
        DiagError: answers in `out` were written under other decoding settings or for other prompts of the same ids.
    """
    from dpo_diag.inference.generation import generate
    from dpo_diag.models.decoding import Decoding

    decoding, loader = decoding or Decoding(), loader or Loader()
    rows = to_prompts(prompts)
    if not rows:
        raise DiagError("no prompts", expected="at least one")
    found = _as_checkpoints(checkpoints)
    writer, before = open_writer(out)
    done = _answered(Run(writer.path), decoding)
    for n, checkpoint in enumerate(found, 1):
        missing = [p for p in rows if (checkpoint.model, checkpoint.step, p.id) not in done]
        name = f"{checkpoint.model} at step {checkpoint.step}"
        if not missing:
            say(f"{n}/{len(found)} {name}: all {len(rows)} answers are there")
            continue
        say(f"{n}/{len(found)} {name}: {len(missing)} prompts, {checkpoint.path}")
        with loader.open(checkpoint) as (model, tokenizer):
            for start in range(0, len(missing), chunk):
                part = missing[start : start + chunk]
                frame = generate(
                    model, tokenizer, part, decoding, step=checkpoint.step, model_name=checkpoint.model,
                    batch_size=batch_size, progress=progress,
                )  # fmt: skip
                # A name of its own per part: a file is replaced by one of the same step and name.
                writer.write("outputs", frame, split=f"{checkpoint.model}-{prompts_hash(part)}")
    prompt_facts = {"n": len(rows), "hash": prompts_hash(rows)}
    writer.update(decoding=decoding.to_dict(), prompts=prompt_facts)
    _close(writer, before)
    return writer.path


def _as_checkpoints(checkpoints: Iterable[str | os.PathLike[str] | Checkpoint]) -> list[Checkpoint]:
    entries = list(checkpoints)
    ready = [c for c in entries if isinstance(c, Checkpoint)]
    named = [c for c in entries if not isinstance(c, Checkpoint)]
    return [*ready, *(find_checkpoints(named) if named or not ready else [])]


def _answered(run: Run, decoding: Decoding) -> set[tuple[str, int, str]]:
    """(model, step, prompt id) of prompts whose answers are complete; refuses answers under other settings."""
    columns = ["model", "step", "prompt_id", "sample", "decoding_hash", "seed"]
    frame = run.read("outputs", columns)
    if frame.empty:
        return set()
    for sampled, own in frame.groupby(frame["seed"].notna()):
        wanted = decoding.row_hash(bool(sampled))
        other = own.loc[own["decoding_hash"] != wanted, "decoding_hash"]
        asked = decoding.n_samples > 0 if sampled else decoding.greedy
        if asked and len(other):
            raise DiagError(
                "the run holds answers under other decoding settings", where=run.path, got=other.iloc[0],
                expected=wanted, hint="use the settings in its run.json (decoding), or another out folder",
            )  # fmt: skip
    needed = set(range(decoding.answers_per_prompt))
    per_prompt = frame.groupby(["model", "step", "prompt_id"])["sample"].agg(set)
    return {(str(m), int(s), str(p)) for (m, s, p), samples in per_prompt.items() if needed <= samples}


def score_checkpoints(
    checkpoints: Iterable[str | os.PathLike[str] | Checkpoint],
    pairs: Sequence[Row],
    out: str | os.PathLike[str],
    *,
    reference: str | os.PathLike[str] | None = None,
    split: str = EVAL_SPLIT,
    max_length: int | None = 1024,
    truncation_mode: str = "keep_start",
    loader: Loader | None = None,
    batch_size: int = 16,
    tokens: bool = True,
    no_prompt: bool = False,
    ches: bool = False,
    facts: Mapping[str, Any] | None = None,
    progress: bool = True,
    say: Callable[[str], None] = lambda line: None,
) -> Path:
    """Checkpoints on fixed pairs, written to the run folder `out` as rows of pairs/, tokens/, history/ and texts/.

    Checkpoints that are scored already are skipped. The reference is scored once: the model that `reference` names,
    a checkpoint of column `ref`, or, for adapters, the model under them.

    Args:
        checkpoints: as for `find_checkpoints`.
        pairs: rows of prompt, chosen, rejected.
        out: run folder, made if absent.
        reference: the reference model; None for the one under the adapters, or none (then nothing that needs one
            can be told).
        split: name of this set in the records.
        max_length, truncation_mode, tokens, no_prompt, batch_size: as for `score_pairs`.
        ches: also compute CHES under the reference and write it to the run's `ches.csv`, which the explanation reads.
        facts: more fields for run.json, e.g. `loss` (LossSpec.to_dict()) and `data`.

    Raises:
        DiagError: no pair left, another set of pairs under the same split in `out`.
    """
    from dpo_diag.inference.scoring import Scores, score_pairs

    loader = loader or Loader()
    found = _as_checkpoints(checkpoints)
    if reference is not None:
        found = [c for c in found if c.model != REFERENCE]
        found.insert(0, Checkpoint(str(reference), REFERENCE, 0))
    elif not any(c.model == REFERENCE for c in found) and all(c.is_adapter for c in found):
        bases = {adapter_base(c) for c in found}
        if len(bases) == 1:
            found.insert(0, Checkpoint(bases.pop(), REFERENCE, 0))
    writer, before = open_writer(out)
    run = Run(writer.path)
    _same_pairs(run, pairs, split)
    seen = run.read("pairs", ["step", "role"], splits=[split]).drop_duplicates()
    done = {(str(r), int(s) if r == POLICY else 0) for s, r in zip(seen["step"], seen["role"], strict=True)}
    if not run.has("texts") or run.read("texts", ["split"], splits=[split]).empty:
        writer.write("texts", text_rows(_with_ids(pairs), split), split=split)
    for n, checkpoint in enumerate(found, 1):
        role = REFERENCE if checkpoint.model == REFERENCE else POLICY
        if checkpoint.model not in (REFERENCE, POLICY):
            say(f"{n}/{len(found)} {checkpoint.model}: only policy and ref have a place in pairs/, left out")
            continue
        key = (role, checkpoint.step if role == POLICY else 0)
        if key in done and not (ches and role == REFERENCE and not has_ches(writer.path, split)):
            say(f"{n}/{len(found)} {role} at step {checkpoint.step}: scored already")
            continue
        say(f"{n}/{len(found)} {role} at step {checkpoint.step}: {len(pairs)} pairs, {checkpoint.path}")
        with loader.open(checkpoint) as (model, tokenizer):
            if role == REFERENCE:
                tokenizer = _policys(loader, found, tokenizer, say)
            scores: Scores = score_pairs(
                model, tokenizer, pairs, step=key[1], split=split, role=role, max_length=max_length,
                truncation_mode=truncation_mode, batch_size=batch_size, tokens=tokens, no_prompt=no_prompt,
                hidden=ches and role == REFERENCE, progress=progress,
            )  # fmt: skip
            described = _described(model, tokenizer, checkpoint)
        label = split if role == POLICY else f"{split}-ref"
        # Pairs last: they say that a checkpoint is done.
        writer.write("tokens", scores.tokens, split=label)
        if role == POLICY:
            known = run.read("pairs", ["pair_id", "side", "sum_logp"], splits=[split], roles=[REFERENCE])
            writer.write("history", history_rows(scores.pairs, known, key[1], split), split=split)
        if scores.ches is not None:
            write_ches(writer.path, scores.ches, split)
        writer.write("pairs", scores.pairs, split=label)
        if role == REFERENCE:
            writer.update(reference=ReferenceInfo(**described[0]), tokenizer=described[1])
        else:
            writer.update(model=ModelInfo(**described[0]), tokenizer=described[1])
        if scores.dropped:
            say(f"    {len(scores.dropped)} pairs left out, e.g. {scores.dropped[0][1]}")
            writer.update(dropped_pairs=[{"pair_id": p, "why": why} for p, why in scores.dropped[:100]])
    known = to_document(before)
    writer.update(logps="sum", **{k: v for k, v in (facts or {}).items() if k not in known})
    _close(writer, before)
    return writer.path


def _policys(
    loader: Loader, found: Sequence[Checkpoint], own: PreTrainedTokenizerBase, say: Callable[[str], None]
) -> PreTrainedTokenizerBase:
    """The policy's tokenizer, with which training tokenises for the reference too; says so where they differ."""
    from dpo_diag.models.tokenizers import tokenizer_fingerprint

    policy = next((c for c in found if c.model == POLICY), None)
    if policy is None:
        return own
    shared = loader.tokenizer_of(policy)
    if tokenizer_fingerprint(shared) != tokenizer_fingerprint(own):
        say("    the reference has another tokenizer than the policy: it is given the policy's tokens, as in training")
    return shared


def _with_ids(pairs: Sequence[Row]) -> list[Row]:
    from dpo_diag.records import make_pair_id

    out: dict[str, Row] = {}
    for row in pairs:
        pair_id = row.get("pair_id") or make_pair_id(row["prompt"], row["chosen"], row["rejected"])
        out.setdefault(pair_id, row | {"pair_id": pair_id})
    return list(out.values())


def _same_pairs(run: Run, pairs: Sequence[Row], split: str) -> None:
    known = run.read("pairs", ["pair_id"], splits=[split])["pair_id"]
    if len(known):
        ids = {row["pair_id"] for row in _with_ids(pairs)}
        foreign = set(known) - ids
        if foreign:
            raise DiagError(
                f"split {split} of the run holds other pairs", where=run.path, got=f"{len(foreign)} that are not here",
                hint="give this set a split name of its own, or another out folder",
            )  # fmt: skip


def _described(model: Any, tokenizer: Any, checkpoint: Checkpoint) -> tuple[dict[str, Any], dict[str, Any]]:
    from dpo_diag.models.policy import describe_model
    from dpo_diag.models.tokenizers import describe_tokenizer

    return describe_model(model, checkpoint.path, fingerprint=False), describe_tokenizer(tokenizer, checkpoint.path)


def history_rows(pairs: pd.DataFrame, reference: pd.DataFrame, step: int, split: str) -> list[dict[str, Any]]:
    """The live metrics of a trained run, from one checkpoint's policy rows: names as in history/.

    Args:
        pairs: policy rows of one step.
        reference: reference rows (pair_id, side, sum_logp); empty if there is none.
    """
    rows: list[dict[str, Any]] = []

    def add(name: str, value: float, weight: float) -> None:
        rows.append({"step": step, "split": split, "name": name, "value": value, "weight": weight})

    for side in SIDES:
        own = pairs[pairs["side"] == side]
        total, n = own["sum_logp"].to_numpy(dtype=float), own["n_tokens"].to_numpy(dtype=float)
        tokens = float(n.sum())
        add(f"ce/{side}", metrics.mean_ce(total, n), len(own))
        add(f"ppl_token/{side}", metrics.ppl_token(total, n), tokens)
        add(f"ppl_seq_mean/{side}", metrics.ppl_seq_mean(total, n), len(own))
        add(f"ppl_seq_geomean/{side}", metrics.ppl_seq_geomean(total, n), len(own))
        add(f"bits_per_byte/{side}", metrics.bits_per_byte(total, own["n_bytes"]), float(own["n_bytes"].sum()))
        if tokens:
            for name in ("top1", "top5"):
                add(f"{name}/{side}", float((own[name].to_numpy(dtype=float) * n).sum() / tokens), tokens)
            add(f"entropy/{side}", float(own["entropy_sum"].sum()) / tokens, tokens)
            add(f"greedy_logp/{side}", float(own["greedy_logp_sum"].sum()) / tokens, tokens)
    if len(reference):
        joined = pairs.merge(reference, on=["pair_id", "side"], suffixes=("", "_ref"))
        delta = (joined["sum_logp"] - joined["sum_logp_ref"]).groupby([joined["pair_id"], joined["side"]]).first()
        wide = delta.unstack("side").dropna()
        if len(wide):
            shares = metrics.quadrants(np.asarray(wide["chosen"]), np.asarray(wide["rejected"]))
            add("pairs/both_fell", shares.both_fell, len(wide))
            add("pairs/chosen_fell", shares.both_fell + shares.rejected_rose, len(wide))
    return rows
