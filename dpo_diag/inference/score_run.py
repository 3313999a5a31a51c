"""Many checkpoints on fixed preference pairs, one checkpoint after the other, into a run folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd

from dpo_diag.data.pairs import Row, text_rows
from dpo_diag.data.tokens import with_ids
from dpo_diag.errors import DiagError
from dpo_diag.inference.kl_reference import Against
from dpo_diag.inference.run_folders import Checkpoints, added_to, as_checkpoints
from dpo_diag.losses import LossSpec
from dpo_diag.models.checkpoints import POLICY, REFERENCE, Checkpoint, Loader, adapter_base
from dpo_diag.models.packed.rows import ROW_TOKENS
from dpo_diag.records import Run, RunWriter
from dpo_diag.records.given_ids import GivenIds
from dpo_diag.records.metric_table import measure, pair_sums
from dpo_diag.records.model_info import ModelInfo, PrefixInfo, ReferenceInfo
from dpo_diag.records.run_info import CallInfo
from dpo_diag.records.schemas import CHES, EVAL_SPLIT
from dpo_diag.records.side_tables import read_side_table, write_side_table
from dpo_diag.records.splits import Role, role_from_name
from dpo_diag.records.typed_json import to_document

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from dpo_diag.inference.scoring import PairTokens
    from dpo_diag.models.packed.verify import Proofs, Proved, SharedPrefix


def score_checkpoints(
    checkpoints: Checkpoints,
    pairs: Sequence[Row],
    out: str | os.PathLike[str],
    *,
    reference: str | os.PathLike[str] | Literal[False] | None = None,
    split: str = EVAL_SPLIT,
    split_role: Role | None = None,
    max_length: int | None = 1024,
    truncation_mode: str = "keep_start",
    loader: Loader | None = None,
    batch_size: int = 16,
    shared_prefix: SharedPrefix = "auto",
    row_tokens: int = ROW_TOKENS,
    tokens: bool = True,
    no_prompt: bool = False,
    ches: bool = False,
    kl: bool = False,
    reference_store: str | os.PathLike[str] | None = None,
    facts: Mapping[str, Any] | None = None,
    proofs: Proofs | None = None,
    call: CallInfo | None = None,
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
        reference: the reference model; None for the one under the adapters, or none (then what needs one is
            not computed); False for none at all.
        split: name of this set in the records.
        split_role: what these pairs are to the training of the checkpoints; None lets the split's name decide.
        max_length, truncation_mode: as for `PairTokens.of`.
        batch_size, shared_prefix, row_tokens, tokens, no_prompt: as for `score_pairs`.
        ches: also compute CHES under the reference and write it to the run's ches.parquet, which explain reads.
        kl: also the KL from the reference at every response token, both ways, for one forward of the reference and each
            policy; a reference that is no adapter's base stays in memory beside the policies. Policies that were scored
            without it are scored again.
        reference_store: a folder where references' rows are kept and taken from (see `reference_store.ReferenceStore`);
            not with `ches` or `no_prompt`, which need the model.
        facts: more fields for run.json, e.g. `loss` (LossSpec.to_dict()) and `data`.
        proofs: how shared prompts may be computed, as far as that was proved before; what is proved here is added.
        call: the command that asked for it, which the run keeps until it is finished.

    Raises:
        DiagError: no pair left, another set of pairs under the same split in `out`; `kl` and no reference.
    """
    from dpo_diag.inference.reference_store import content_ids, open_store, reference_key
    from dpo_diag.inference.scoring import score_pairs
    from dpo_diag.models.loading import describe_model
    from dpo_diag.models.packed.verify import Proofs

    loader, given, store = loader or Loader(), GivenIds(), open_store(reference_store)
    rows = with_ids(pairs, given)
    once = _Once(rows, max_length, truncation_mode, proofs or Proofs())
    if note := given.note():
        say(f"note: {note}")
    models = models_to_score(as_checkpoints(checkpoints), reference)
    against = Against(next((c for c in models if c.model == REFERENCE), None), loader) if kl else None
    with added_to(out, call) as (writer, before), against or nullcontext():
        known = to_document(before)
        if before.kind == "scored":
            writer.update(checkpoints_asked=sum(c.model == POLICY for c in models))
        writer.update(logps="sum", **{k: v for k, v in (facts or {}).items() if k not in known})
        run = Run(writer.path, whole=True)
        refuse_other_pairs(run, rows, split)
        if split not in before.splits:
            role_of_split = split_role or role_from_name(split)
            writer.describe_split(split, role_of_split, n_pairs=len(rows), **given.facts())
        done = scored_already(run, split, with_kl=kl)
        bases = {adapter_base(c) for c in models if c.is_adapter}
        if not run.has("texts") or run.read("texts", ["split"], splits=[split]).empty:
            writer.write("texts", text_rows(rows, split), split=split)
        for n, checkpoint in enumerate(models, 1):
            if checkpoint.model not in (REFERENCE, POLICY):
                say(f"{n}/{len(models)} {checkpoint.model}: only policy and ref have a place in pairs/, left out")
                continue
            role = checkpoint.model
            step = checkpoint.step if role == POLICY else 0
            name = f"{n}/{len(models)} {role} at step {checkpoint.step}"
            hidden = ches and role == REFERENCE
            if (role, step) in done and not (hidden and read_side_table(writer.path, CHES, split).empty):
                say(f"{name}: scored already")
                continue
            say(f"{name}: {len(rows)} pairs, {checkpoint.path}")
            with loader.open(checkpoint, keep=checkpoint.path in bases) as (model, tokenizer):
                if role == REFERENCE:
                    tokenizer = _shared_tokenizer(loader, models, tokenizer, say)
                encoded, proof = once.encoded(tokenizer), once.proved(model, tokenizer)
                scores = key = None
                if store is not None and role == REFERENCE and not (hidden or no_prompt):
                    key = reference_key(model, tokenizer, max_length, truncation_mode)
                    scores, why = store.scores(key, encoded, tokenizer, content_ids(rows), split, tokens)
                    say(f"    {why}")
                if scores is None:
                    compared = against.reference(checkpoint, model) if against and role == POLICY else None
                    scores = score_pairs(
                        model, encoded, step=step, split=split, role=role, batch_size=batch_size,
                        shared_prefix=proof or shared_prefix, row_tokens=row_tokens, tokens=tokens,
                        no_prompt=no_prompt, hidden=hidden, against=compared, progress=progress,
                    )  # fmt: skip
                    if proof is None:
                        once.remember(model, tokenizer, scores.proved)
                    facts_of_model = _described(model, once.description(tokenizer), checkpoint, scores.proved)
                    if key is not None and store is not None:
                        described = describe_model(model, checkpoint.path, fingerprint=False)
                        store.put(key, scores.pairs, scores.tokens, described, tokenizer, content_ids(rows))
                    if proof is None and (note := scores.proved.note()):
                        say(f"    {note}")
                else:
                    facts_of_model = _described(model, once.description(tokenizer), checkpoint, None)
            write_scores(writer, run, scores.pairs, scores.tokens, scores.ches, role, step, split)
            writer.update(**facts_of_model)
            if encoded.dropped:
                say(f"    {len(encoded.dropped)} pairs left out, e.g. {encoded.dropped[0][1]}")
                writer.update(dropped_pairs=[{"pair_id": p, "why": why} for p, why in encoded.dropped[:100]])
    return writer.path


class _Once:
    """What the checkpoints of a scoring share is made once: the pairs' tokens, a tokenizer's description, the proof of
    how shared prompts may be computed."""

    def __init__(self, rows: Sequence[Row], max_length: int | None, truncation_mode: str, proofs: Proofs) -> None:
        self._rows, self._limits, self._proofs = rows, (max_length, truncation_mode), proofs
        self._tokenizers: dict[int, tuple[PreTrainedTokenizerBase, PairTokens, dict[str, Any]]] = {}

    def _of(self, tokenizer: PreTrainedTokenizerBase) -> tuple[PreTrainedTokenizerBase, PairTokens, dict[str, Any]]:
        from dpo_diag.inference.scoring import PairTokens
        from dpo_diag.models.tokenizers import describe_tokenizer

        if id(tokenizer) not in self._tokenizers:
            encoded = PairTokens.of(self._rows, tokenizer, *self._limits)
            # The tokenizer is kept, so that its id is no other one's.
            self._tokenizers[id(tokenizer)] = tokenizer, encoded, describe_tokenizer(tokenizer)
        return self._tokenizers[id(tokenizer)]

    def encoded(self, tokenizer: PreTrainedTokenizerBase) -> PairTokens:
        return self._of(tokenizer)[1]

    def description(self, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
        return self._of(tokenizer)[2]

    def proved(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Proved | None:
        encoded = self.encoded(tokenizer)
        return self._proofs.known(model, encoded.pad_id, encoded.spans)

    def remember(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, proved: Proved) -> None:
        encoded = self.encoded(tokenizer)
        self._proofs.add(model, encoded.pad_id, encoded.spans, proved)


def models_to_score(
    models: list[Checkpoint], reference: str | os.PathLike[str] | Literal[False] | None
) -> list[Checkpoint]:
    """The models, the reference first where one is named or is the one model under all adapters."""
    if reference is False:
        return models
    if reference is not None:
        return [Checkpoint(str(reference), REFERENCE, 0), *(c for c in models if c.model != REFERENCE)]
    if all(c.is_adapter and c.model != REFERENCE for c in models):
        bases = {adapter_base(c) for c in models}
        if len(bases) == 1:
            return [Checkpoint(bases.pop(), REFERENCE, 0), *models]
    return models


def scored_already(run: Run, split: str, *, with_kl: bool = False) -> set[tuple[str, int]]:
    """(role, step) that the run's pairs/ hold, policies' with their KL where that is asked for; the reference's step is
    0."""
    seen = run.read("pairs", ["step", "role", *(["kl_reverse_sum"] if with_kl else [])], splits=[split])
    if with_kl:
        seen = seen.loc[(seen["role"] != POLICY) | seen["kl_reverse_sum"].notna()]
    seen = seen[["step", "role"]].drop_duplicates()
    return {(str(r), int(s) if r == POLICY else 0) for s, r in zip(seen["step"], seen["role"], strict=True)}


def write_scores(
    writer: RunWriter, run: Run, pairs: pd.DataFrame, tokens: pd.DataFrame, ches: pd.DataFrame | None, role: str,
    step: int, split: str,
) -> dict[str, float]:  # fmt: skip
    """What was measured of one checkpoint; a policy's history needs the reference's rows to be there. Returns that
    history by name; {} for a reference."""
    rows: list[dict[str, Any]] = []
    label = split if role == POLICY else f"{split}-ref"
    writer.write("tokens", tokens, split=label)
    if role == POLICY:
        reference = run.read("pairs", ["pair_id", "side", "sum_logp"], splits=[split], roles=[REFERENCE])
        rows = history_rows(pairs, reference, step, split, run.info.loss)
        writer.write("history", rows, split=split)
    if ches is not None:
        write_side_table(writer.path, CHES, ches.assign(split=split))
    # Pairs last: they say that a checkpoint is done.
    writer.write("pairs", pairs, split=label)
    return {row["name"]: row["value"] for row in rows}


def _shared_tokenizer(
    loader: Loader, models: Sequence[Checkpoint], own: PreTrainedTokenizerBase, say: Callable[[str], None]
) -> PreTrainedTokenizerBase:
    """The policy's tokenizer, with which training tokenises for the reference too; a line where they differ."""
    from dpo_diag.models.tokenizers import tokenizer_fingerprint

    policy = next((c for c in models if c.model == POLICY), None)
    if policy is None:
        return own
    shared = loader.tokenizer_of(policy)
    if tokenizer_fingerprint(shared) != tokenizer_fingerprint(own):
        say("    the reference has another tokenizer than the policy: it is given the policy's tokens, as in training")
    return shared


def refuse_other_pairs(run: Run, rows: Sequence[Row], split: str) -> None:
    foreign = set(run.read("pairs", ["pair_id"], splits=[split])["pair_id"]) - {row["pair_id"] for row in rows}
    if foreign:
        raise DiagError(
            f"split {split} of the run holds other pairs", where=run.path, got=f"{len(foreign)} that are not here",
            hint="give this set a split name of its own, or another out folder",
        )  # fmt: skip


def _described(
    model: PreTrainedModel, tokenizer: dict[str, Any], checkpoint: Checkpoint, proved: Proved | None
) -> dict[str, Any]:
    """Fields of run.json."""
    from dpo_diag.models.loading import describe_model

    described = describe_model(model, checkpoint.path, fingerprint=False)
    if proved is not None:
        described["shared_prefix"] = PrefixInfo(proved.way.name, proved.difference, dict(proved.refused))
    own = (
        {"reference": ReferenceInfo(**described)}
        if checkpoint.model == REFERENCE
        else {"model": ModelInfo(**described)}
    )
    return {**own, "tokenizer": tokenizer | {"name": checkpoint.path}}


def history_rows(
    pairs: pd.DataFrame, reference: pd.DataFrame, step: int, split: str, loss: LossSpec | None
) -> list[dict[str, Any]]:
    """What a trained run logs of a set, from one checkpoint's policy rows: names as in history/.

    Args:
        pairs: policy rows of one step.
        reference: reference rows (pair_id, side, sum_logp); empty if there is none: then no loss, rewards or margins.
        loss: what the checkpoints were trained with; None if it is not known: likewise.
    """
    return [
        {"step": step, "split": split, "name": name, "value": value.value, "weight": value.weight}
        for name, value in measure(pair_sums(pairs, reference), loss).items()
    ]
