"""A fixed set of pairs and prompts, measured while a model trains, whatever trains it: what dpo-score and dpo-generate
measure of a finished checkpoint, measured of the model in memory, into a run folder.

Nothing of the training is changed: see `models.borrowed`. Several processes share the pairs and prompts; where the
weights are shards every process does all of them, since each forward needs all. Rank 0 writes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch

from dpo_diag.data.pairs import Row, read_pairs, text_rows
from dpo_diag.data.tokens import with_ids
from dpo_diag.errors import DiagError
from dpo_diag.inference.generation import begin_note, generate
from dpo_diag.inference.prompts import Prompt, load_prompts, prompts_hash, to_prompts
from dpo_diag.inference.reference_store import content_ids, open_store, reference_key
from dpo_diag.inference.score_run import refuse_other_pairs, scored_already, write_scores
from dpo_diag.inference.scoring import PairTokens, score_pairs
from dpo_diag.losses import LossSpec
from dpo_diag.models.checkpoints import POLICY, REFERENCE
from dpo_diag.models.decoding import Decoding
from dpo_diag.models.packed.verify import Proved, SharedPrefix
from dpo_diag.models.processes import place, together
from dpo_diag.models.tokenizers import describe_tokenizer
from dpo_diag.models.wrapped import as_it_stands, inner_model, is_sharded
from dpo_diag.records import Run, RunWriter
from dpo_diag.records.given_ids import GivenIds
from dpo_diag.records.model_info import PrefixInfo, ReferenceKey
from dpo_diag.records.run_info import Status
from dpo_diag.records.splits import Role
from dpo_diag.training.describe import describe_policy
from dpo_diag.training.probe_reference import Measured, ProbeReference, Reference
from dpo_diag.training.vocabulary import write_vocabulary

PROBE_SPLIT = "probe"
Pairs = str | os.PathLike[str] | Sequence[Row]
Prompts = str | os.PathLike[str] | Iterable[Prompt | Mapping[str, Any]]


class Probe:
    """Scores fixed pairs and answers fixed prompts with a model in training, and writes a run that every command reads.

        probe = Probe("probe.jsonl", prompts="prompts.jsonl", out="runs/mine")
        for step, batch in enumerate(batches):
            if step % 100 == 0:
                probe.score(model, tokenizer, step)
            ...
        probe.finish()

    Args:
        pairs: a file of preference pairs, or rows of prompt, chosen, rejected; a file that cannot be read ends it here.
        out: the run folder. The first call of `score` opens it: at step 0 it must hold no run, later it is continued.
        prompts: a file, the name of a shipped set, or rows; None for none.
        reference: what log-ratios are taken against. None: the adapter switched off where there is one, else the model
            at step 0. "adapter" or "start": one of these. A folder or hub id: that model, loaded once. A run folder:
            the reference that was scored there. False: none.
        split, split_role: name of the pairs in the records, and what they are to the training.
        loss: what is trained with (LossSpec or its fields), for rewards, margins and the loss of the pairs.
        max_length, truncation_mode: as training cuts pairs.
        decoding: how prompts are answered (Decoding or its fields); None for greedy answers of up to 256 tokens.
        batch_size: responses in one forward, and answers written at once.
        shared_prefix: as for `score_pairs`.
        record_tokens: pairs whose tokens are kept: those with the smallest ids, the same at every step.
        reference_store: a folder where references' rows are kept for other trainings and scorings, and taken from where
            model, adapter, tokenizer, template and cut are the same; weights are read once for it.
        autocast: the precision that training computes in, where that is not the weights' own.
        say: gets a line about what was decided.

    Raises:
        DiagError: pairs or prompts that cannot be read.
    """

    def __init__(
        self,
        pairs: Pairs,
        *,
        out: str | os.PathLike[str],
        prompts: Prompts | None = None,
        reference: Reference = None,
        split: str = PROBE_SPLIT,
        split_role: Role = "held_out",
        loss: LossSpec | Mapping[str, Any] | None = None,
        max_length: int | None = 1024,
        truncation_mode: Literal["keep_start", "keep_end"] = "keep_start",
        decoding: Decoding | Mapping[str, Any] | None = None,
        batch_size: int = 16,
        shared_prefix: SharedPrefix = "auto",
        record_tokens: int = 256,
        reference_store: str | os.PathLike[str] | None = None,
        autocast: torch.dtype | None = None,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.out, self.split, self.split_role = out, split, split_role
        self.loss = loss if loss is None or isinstance(loss, LossSpec) else LossSpec.from_dict(loss)
        self.max_length, self.truncation_mode = max_length, truncation_mode
        self.decoding = Decoding(**(decoding or {})) if not isinstance(decoding, Decoding) else decoding
        self.batch_size, self.shared_prefix = batch_size, shared_prefix
        self.record_tokens, self.autocast, self.say = record_tokens, autocast, say
        self._given = GivenIds()
        named = isinstance(pairs, (str, os.PathLike))
        read = read_pairs(os.fspath(pairs)).require() if named else None  # type: ignore[arg-type]
        rows: Sequence[Row] = read.rows if read is not None else pairs  # type: ignore[assignment]
        self.data = read.summary() if read is not None else {"n_pairs": len(rows)}
        self.rows = with_ids(rows, self._given)
        if not self.rows:
            raise DiagError("no pair to score", where="pairs", expected="at least one")
        self.prompts_from = os.fspath(prompts) if isinstance(prompts, (str, os.PathLike)) else None
        self.prompts = load_prompts(self.prompts_from) if self.prompts_from else to_prompts(prompts or ())  # type: ignore[arg-type]
        self.reference = ProbeReference(reference, split)
        self.store = open_store(reference_store)
        self._key: ReferenceKey | None = None
        self.writer: RunWriter | None = None
        """Rank 0's, once the folder is open; None on every other process."""
        self._opened = False
        self._done: set[int] = set()
        self._encoded: tuple[Any, PairTokens] | None = None
        self._proved: Proved | None = None

    # ---- the run folder ----

    @property
    def steps(self) -> frozenset[int]:
        """Steps that are recorded."""
        return frozenset(self._done)

    def close(self) -> None:
        """The next call opens a folder anew: another training, maybe of another model that is cut otherwise."""
        self._opened, self._done, self.writer = False, set(), None
        self._encoded = self._proved = self._key = None

    def open(self, step: int, *, again: bool = False, **facts: Any) -> None:
        """Open the run folder at this step; later calls do nothing. Every process must call it.

        Args:
            again: the training begins once more at this step: what the folder holds of it beyond is removed, at step 0
                all.
            facts: fields of run.json.

        Raises:
            DiagError: at step 0 a folder that holds a run, or one whose split holds other pairs.
        """
        if self._opened:
            return

        def opened() -> tuple[set[int], bool]:
            if place()[0]:
                return set(), False
            self.writer = RunWriter(self.out, resume_step=step or (-1 if again else None))
            return self._prepare(self.writer, facts)

        self._done, self.reference.known = together(opened)[0]
        self._opened = True

    def _prepare(self, writer: RunWriter, facts: Mapping[str, Any]) -> tuple[set[int], bool]:
        """(steps that are recorded, whether the reference is) of a folder that was opened."""
        run = Run(writer.path, whole=True)
        refuse_other_pairs(run, self.rows, self.split)
        data = {key: value for key, value in self.data.items() if key != "readings"}
        asked = {"kind": "file" if self.prompts_from else None, "path": self.prompts_from, "n": len(self.prompts)}
        writer.update(
            **{"logps": "sum", "loss": self.loss, "data": data, **facts},
            **({"decoding": self.decoding.to_dict(), "prompts": asked | {"hash": prompts_hash(self.prompts)}}
               if self.prompts else {}),
        )  # fmt: skip
        writer.describe_split(
            self.split, self.split_role, role_from="given", n_pairs=len(self.rows), **self._given.facts()
        )
        if not run.has("texts") or run.read("texts", ["split"], splits=[self.split]).empty:
            writer.write("texts", text_rows(self.rows, self.split), split=self.split)
        recorded = scored_already(run, self.split)
        return {step for role, step in recorded if role == POLICY}, (REFERENCE, 0) in recorded

    def finish(self, status: Status = "finished", error: str | None = None) -> None:
        """Close the run; `error` is what ended a failed one, in a line."""
        if self.writer is not None:
            if self._encoded is not None:
                write_vocabulary(self.writer.path, self._encoded[0])
            self.writer.finish(status, error)

    # ---- measuring ----

    def score(self, model: Any, tokenizer: Any, step: int) -> dict[str, float]:
        """Measure the model as it stands and write the rows; a step that is recorded is not measured again. Every
        process must call it.

        Args:
            model: a causal LM, wrapped or not.
            tokenizer: its tokenizer.
            step: optimizer steps done.

        Returns: the pairs' metrics by their names in history/; {} where nothing was measured.

        Raises:
            DiagError: no pair left under this tokenizer, a model that cannot be asked, prompts that it cannot answer
                (then the pairs are recorded).
        """
        self.open(step)
        if step in self._done:
            return {}
        model = inner_model(model)
        sharded = is_sharded(model)
        encoded = self._tokens(tokenizer)

        def share() -> Measured:
            with as_it_stands(model, self.autocast):
                return self._measured(model, tokenizer, self._share(encoded, sharded), step, POLICY, True)

        # The policy first: FSDP2 remembers from the first forward which weights take gradients.
        policy = self._joined(together(share), sharded)
        reference = self._reference(model, tokenizer, encoded, sharded, step, policy)

        def written() -> dict[str, float]:
            writer = self.writer
            return {} if writer is None else self._write(writer, model, tokenizer, policy, reference, step)

        # A full disk on rank 0 must not leave the others waiting for it.
        metrics = together(written)[0]
        self.reference.known |= reference is not None
        self._done.add(step)
        if policy.unanswered is not None:
            raise DiagError("the prompts were not answered", where=f"step {step}", got=policy.unanswered)
        return metrics

    def _tokens(self, tokenizer: Any) -> PairTokens:
        if self._encoded is None or self._encoded[0] is not tokenizer:
            self._encoded = tokenizer, PairTokens.of(self.rows, tokenizer, self.max_length, self.truncation_mode)
            if note := begin_note(tokenizer, self.prompts):
                self.say(note)
            dropped = self._encoded[1].dropped
            if dropped:
                self.say(f"{len(dropped)} probe pairs are left out, e.g. {dropped[0][1]}")
        return self._encoded[1]

    def _with_tokens(self, encoded: PairTokens) -> list[str]:
        """Pairs whose tokens are kept."""
        return sorted(pair.pair_id for pair in encoded.pairs)[: self.record_tokens]

    def _share(self, encoded: PairTokens, sharded: bool) -> tuple[PairTokens, list[Prompt]]:
        """What this process measures."""
        rank, world = place()
        if sharded or world == 1:
            return encoded, self.prompts
        return replace(encoded, pairs=encoded.pairs[rank::world]), self.prompts[rank::world]

    def _measured(
        self, model: Any, tokenizer: Any, share: tuple[PairTokens, list[Prompt]], step: int, role: str, trained: bool
    ) -> Measured:
        encoded, prompts = share
        found = Measured()
        if encoded.pairs:
            # What was proved of the policy holds of it without its adapter, and of no other model.
            proved = self._proved if trained else None
            way = "off" if is_sharded(model) else proved or self.shared_prefix
            scores = score_pairs(
                model, encoded, step=step, split=self.split, role=role, batch_size=self.batch_size, shared_prefix=way,
                progress=False,
            )  # fmt: skip
            self._proved = scores.proved if trained else self._proved
            tokens = scores.tokens[scores.tokens["pair_id"].isin(self._with_tokens(self._tokens(tokenizer)))]
            found = Measured(scores.pairs, tokens, way=scores.proved)
        if prompts:
            try:
                found.outputs = generate(
                    model, tokenizer, prompts, self.decoding, step=step, model_name=role, batch_size=self.batch_size,
                    progress=False,
                )  # fmt: skip
            except Exception as error:  # what was scored is kept all the same; `score` raises this in the end
                found.unanswered = f"{type(error).__name__}: {error}"
        return found

    def _reference(
        self, model: Any, tokenizer: Any, encoded: PairTokens, sharded: bool, step: int, policy: Measured
    ) -> Measured | None:
        """The reference's rows, once; None where they are recorded or there is none."""

        rank, alone = place()[0], replace(encoded, pairs=[])

        def look_up(reference: Any, kind: str) -> Measured | None:
            return None if rank else self._stored(reference, tokenizer, encoded, kind)

        def measure(reference: Any, everyone: bool, stored: Measured | None) -> Measured:
            wanted = encoded if stored is None else alone  # answers are not in the store
            share = self._share(wanted, sharded) if everyone else (wanted, self.prompts)
            with as_it_stands(reference, self.autocast if everyone else None):
                return self._measured(reference, tokenizer, share, 0, REFERENCE, everyone)

        kind = self.reference.kind(model, step, self.say)
        if kind is None:
            return None
        if kind == "start":
            found: Measured | None = policy.as_reference()
            together(lambda: look_up(model, kind))
        elif kind == "adapter":
            stored = together(lambda: look_up(model, kind))[0]
            measured = together(lambda: self.reference.adapter_off(model, lambda m: measure(m, True, stored)))
            found = self._joined(measured, sharded).with_rows_of(stored)
        else:

            def other(reference: Any) -> Measured:
                stored = look_up(reference, kind)
                return measure(reference, False, stored).with_rows_of(stored)

            # Another model is loaded by rank 0 alone: memory beside the one that trains is scarce.
            found = together(lambda: None if rank else self.reference.other(model, encoded, tokenizer, other))[0]
        return found

    def _stored(self, model: Any, tokenizer: Any, encoded: PairTokens, kind: str) -> Measured | None:
        """The reference's rows out of the store; None, and the key to keep them under, where it has none that fit."""
        if self.store is None or is_sharded(model):
            return None
        self._key = reference_key(
            model, tokenizer, self.max_length, self.truncation_mode, adapter_off=kind == "adapter",
            autocast=None if kind == "model" else self.autocast,
        )  # fmt: skip
        if kind == "start":
            return None  # measured already
        found, why = self.store.find(self._key, encoded, tokenizer, content_ids(self.rows), self._with_tokens(encoded))
        self.say(why)
        if found is None:
            return None
        self._key = None
        return Measured(found.pairs.assign(split=self.split), found.tokens.assign(split=self.split))

    def _joined(self, parts: Sequence[Measured], sharded: bool) -> Measured:
        """The parts of all processes as one, in the order of the pairs and prompts."""
        if sharded or len(parts) == 1:
            return parts[0]
        pairs = {row["pair_id"]: i for i, row in enumerate(self.rows)}
        prompts = {prompt.id: i for i, prompt in enumerate(self.prompts)}
        return Measured.joined(parts, pairs, prompts)

    # ---- writing ----

    def _write(
        self, writer: RunWriter, model: Any, tokenizer: Any, policy: Measured, reference: Measured | None, step: int
    ) -> dict[str, float]:
        described = describe_policy(model)
        if policy.way is not None:
            way = policy.way
            described["shared_prefix"] = PrefixInfo(way.way.name, way.difference, dict(way.refused))
        own = describe_tokenizer(tokenizer)
        writer.update(model=described, tokenizer=own)
        run = Run(writer.path, whole=True)
        if reference is not None:
            if reference.outputs is not None:
                writer.write("outputs", reference.outputs, split=REFERENCE)
            write_scores(writer, run, reference.pairs, reference.tokens, None, REFERENCE, 0, self.split)
        writer.update(reference=self.reference.describe())
        if policy.outputs is not None:
            writer.write("outputs", policy.outputs, split=POLICY)
        metrics = write_scores(writer, run, policy.pairs, policy.tokens, None, POLICY, step, self.split)
        if reference is not None:
            self._keep(reference, tokenizer)
        return metrics

    def _keep(self, reference: Measured, tokenizer: Any) -> None:
        """The reference into the store, where it was not from there. A store that takes nothing costs no records."""
        key, self._key = self._key, None
        if self.store is None or key is None:
            return
        try:
            described = self.reference.describe()
            self.store.put(key, reference.pairs, reference.tokens, described, tokenizer, content_ids(self.rows))
        except (OSError, DiagError) as error:
            self.say(f"the reference is not kept for others: {error}")
