"""Scoring and generation as work that several processes share: what is to do, how one part is measured, and how the
parts are put together into the run that one process would have written.

A part is measured by the same functions, into a small run folder of its own; nothing of them knows that there are
others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import pandas as pd

from dpo_diag.data.pairs import Row, text_rows
from dpo_diag.data.tokens import with_ids
from dpo_diag.errors import DiagError
from dpo_diag.inference.generate_run import answered, generate_checkpoints
from dpo_diag.inference.prompts import Prompt, prompts_hash, to_prompts
from dpo_diag.inference.run_folders import Checkpoints, added_to, as_checkpoints
from dpo_diag.inference.score_run import (
    models_to_score,
    refuse_other_pairs,
    score_checkpoints,
    scored_already,
    write_scores,
)
from dpo_diag.inference.work_list import Item, Shelf, packed, unpacked, work_list
from dpo_diag.models.checkpoints import POLICY, REFERENCE, Checkpoint, Loader
from dpo_diag.models.decoding import Decoding
from dpo_diag.models.held import HeldLoader
from dpo_diag.records import Run, RunWriter
from dpo_diag.records.files import RUN_FILE, to_label
from dpo_diag.records.given_ids import GivenIds
from dpo_diag.records.pair_id import pair_id_of
from dpo_diag.records.run_info import CallInfo, RunInfo
from dpo_diag.records.schemas import CHES, EVAL_SPLIT
from dpo_diag.records.scratch import scratch_folder
from dpo_diag.records.side_tables import read_side_table
from dpo_diag.records.splits import Role, role_from_name
from dpo_diag.records.typed_json import to_document

_SIZES = ("batch_size", "row_tokens")
"""Settings of a scoring that move its numbers by rounding alone: parts of other sizes are taken as they are."""


class Job(Protocol):
    """Work of one kind: sent to every worker once.

    Attributes:
        kind: names the folder of its parts.
        call: the command that asked for it, which the run keeps until it is finished; None for a script.
    """

    call: CallInfo | None

    @property
    def kind(self) -> str: ...

    def items(self, out: Path, size: int) -> list[Item]:
        """What the run folder `out` lacks, in parts of `size` rows."""

    def measure(self, item: Item, folder: Path, loader: HeldLoader) -> None:
        """One part, into a run folder of its own."""

    def assemble(self, parts: Iterable[tuple[Item, Path]], writer: RunWriter, before: RunInfo) -> None:
        """All parts, by checkpoint and in the order of their rows, into a run, of which `before` was known."""


def measured(job: Job, item: Item, loader: HeldLoader) -> bytes:
    """One part as the file that is put on the shelf."""
    with scratch_folder("part") as folder:
        job.measure(item, folder / "part", loader)
        return packed(folder / "part")


def assemble(job: Job, items: Sequence[Item], shelf: Shelf, writer: RunWriter, before: RunInfo) -> None:
    """Put the run together and clear the shelf; again after a kill: what the run holds by then stays as it is."""

    def parts(folder: Path) -> Iterator[tuple[Item, Path]]:
        for number, item in enumerate(items):
            yield item, unpacked(shelf.get(item.name), folder / str(number))

    with scratch_folder("parts") as folder:
        job.assemble(parts(folder), writer, before)
    shelf.clear(items)


class _Rows(NamedTuple):
    pairs: pd.DataFrame
    tokens: pd.DataFrame
    ches: pd.DataFrame | None


@dataclass
class ScoreJob:
    """`score_checkpoints` on `pairs`; `settings` are its keywords that decide what is measured."""

    checkpoints: list[Checkpoint]
    pairs: list[Row]
    split: str = EVAL_SPLIT
    split_role: Role | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    given: Mapping[str, Any] = field(default_factory=dict)
    """Of run.json's SplitInfo: what ids that the rows bring stand for."""
    loading: Mapping[str, Any] = field(default_factory=dict)
    """The loader's settings: with others, what was measured is not taken again."""
    call: CallInfo | None = None

    @classmethod
    def of(
        cls,
        checkpoints: Checkpoints,
        pairs: Sequence[Row],
        *,
        reference: str | None = None,
        say: Callable[[str], None] = lambda line: None,
        **more: Any,
    ) -> ScoreJob:
        """From what `score_checkpoints` is given."""
        given = GivenIds()
        rows = with_ids(pairs, given)
        if note := given.note():
            say(f"note: {note}")
        models = models_to_score(as_checkpoints(checkpoints), reference)
        for left_out in [c for c in models if c.model not in (REFERENCE, POLICY)]:
            say(f"{left_out.model}: only policy and ref have a place in pairs/, left out")
        kept = [c for c in models if c.model in (REFERENCE, POLICY)]
        return cls(kept, rows, given=given.facts(), **more)

    @property
    def kind(self) -> str:
        return f"score-{to_label(self.split)}"

    @property
    def policy(self) -> Checkpoint | None:
        return next((c for c in self.checkpoints if c.model == POLICY), None)

    def items(self, out: Path, size: int) -> list[Item]:
        done: set[tuple[str, int]] = set()
        if (out / RUN_FILE).is_file():
            run = Run(out, whole=True)
            refuse_other_pairs(run, self.pairs, self.split)
            done = scored_already(run, self.split)
            if self.settings.get("ches") and read_side_table(out, CHES, self.split).empty:
                done -= {(REFERENCE, 0)}
        todo = [c for c in self.checkpoints if (c.model, _step(c)) not in done]
        policy = self.policy.path if self.policy else None
        settings = {name: value for name, value in self.settings.items() if name not in _SIZES}
        deciding = {**settings, "tokens_of": policy, "loading": dict(self.loading)}
        # Ids that the rows bring say nothing of their content.
        return work_list(todo, [f"{row['pair_id']} {pair_id_of(row)}" for row in self.pairs], size, deciding)

    def measure(self, item: Item, folder: Path, loader: HeldLoader) -> None:
        rows, loader.policy = self.pairs[item.first : item.last], self.policy
        try:
            score_checkpoints(
                [item.checkpoint], rows, folder, reference=False, split=self.split, loader=loader,
                proofs=loader.proofs, progress=False, **self.settings,
            )  # fmt: skip
        except DiagError as error:
            if error.what != "no pair to score":
                raise
            dropped = [{"pair_id": row["pair_id"], "why": str(error.got)} for row in rows]
            with added_to(folder) as (writer, _):
                writer.update(dropped_pairs=dropped)

    def assemble(self, parts: Iterable[tuple[Item, Path]], writer: RunWriter, before: RunInfo) -> None:
        known = to_document(before)
        writer.update(logps="sum", **{k: v for k, v in self.facts.items() if k not in known})
        run = Run(writer.path, whole=True)
        if self.split not in before.splits:
            role = self.split_role or role_from_name(self.split)
            writer.describe_split(self.split, role, n_pairs=len(self.pairs), **self.given)
        if not run.has("texts") or run.read("texts", ["split"], splits=[self.split]).empty:
            writer.write("texts", text_rows(self.pairs, self.split), split=self.split)
        for checkpoint, folders in _by_checkpoint(parts):
            runs = [Run(folder, whole=True) for folder in folders]
            scores = _scores_of(runs, self.split)
            if scores.pairs.empty:
                raise DiagError(
                    "no pair to score", where=checkpoint.path, got="every pair is left out",
                    hint="check the pairs and max_length",
                )  # fmt: skip
            write_scores(writer, run, *scores, checkpoint.model, _step(checkpoint), self.split)
            writer.update(**_described(runs))


def _step(checkpoint: Checkpoint) -> int:
    return checkpoint.step if checkpoint.model == POLICY else 0


def _scores_of(runs: Sequence[Run], split: str) -> _Rows:
    """What was measured of one checkpoint, in the order of the set's rows."""
    pairs, tokens = (pd.concat([run.read(table) for run in runs], ignore_index=True) for table in ("pairs", "tokens"))
    parts = [read_side_table(run.path, CHES, split) for run in runs]
    found = [part for part in parts if len(part)]
    return _Rows(pairs, tokens, pd.concat(found, ignore_index=True) if found else None)


def _described(runs: Sequence[Run]) -> dict[str, Any]:
    """Fields of run.json that measuring fills in: the model's are those of any part, dropped pairs those of all."""
    documents = [to_document(run.info) for run in runs]
    described = {k: d[k] for d in documents for k in ("model", "reference", "tokenizer") if k in d}
    dropped = [pair for d in documents for pair in d.get("dropped_pairs", [])]
    return described | ({"dropped_pairs": dropped[:100]} if dropped else {})


@dataclass
class GenerateJob:
    """`generate_checkpoints` on `prompts`."""

    checkpoints: list[Checkpoint]
    prompts: list[Prompt]
    decoding: Decoding
    batch_size: int = 32
    loading: Mapping[str, Any] = field(default_factory=dict)
    """As ScoreJob's."""
    call: CallInfo | None = None
    kind: str = "generate"

    @classmethod
    def of(cls, checkpoints: Checkpoints, prompts: Iterable[Prompt], decoding: Decoding, **more: Any) -> GenerateJob:
        """From what `generate_checkpoints` is given."""
        return cls(as_checkpoints(checkpoints), to_prompts(prompts), decoding, **more)

    def items(self, out: Path, size: int) -> list[Item]:
        done = answered(Run(out, whole=True), self.decoding) if (out / RUN_FILE).is_file() else set()
        # Not `batch_size`, which moves an answer by rounding alone: a start with smaller batches, after one that ran
        # out of memory, takes the finished parts.
        deciding = {
            "decoding": self.decoding.to_dict(), "prompts": prompts_hash(self.prompts), "loading": dict(self.loading)
        }  # fmt: skip
        every = work_list(self.checkpoints, [p.id for p in self.prompts], size, deciding)
        return [item for item in every if self._missing(item, done)]

    def _missing(self, item: Item, done: set[tuple[str, int, str]]) -> list[Prompt]:
        place = item.checkpoint.model, item.checkpoint.step
        return [p for p in self.prompts[item.first : item.last] if (*place, p.id) not in done]

    def measure(self, item: Item, folder: Path, loader: HeldLoader) -> None:
        prompts = self.prompts[item.first : item.last]
        generate_checkpoints(
            [item.checkpoint], prompts, folder, decoding=self.decoding, loader=loader, batch_size=self.batch_size,
            chunk=len(prompts), progress=False,
        )  # fmt: skip

    def assemble(self, parts: Iterable[tuple[Item, Path]], writer: RunWriter, before: RunInfo) -> None:
        done = answered(Run(writer.path, whole=True), self.decoding)
        for item, folder in parts:
            missing = self._missing(item, done)
            rows = Run(folder, whole=True).read("outputs")
            rows = rows[rows["prompt_id"].isin([p.id for p in missing])]
            writer.write("outputs", rows, split=f"{item.checkpoint.model}-{prompts_hash(missing)}")
        writer.update(
            decoding=self.decoding.to_dict(), prompts={"n": len(self.prompts), "hash": prompts_hash(self.prompts)}
        )


def _by_checkpoint(parts: Iterable[tuple[Item, Path]]) -> Iterator[tuple[Checkpoint, list[Path]]]:
    """The folders of each checkpoint; the reference's come first, since history needs its rows."""
    found: dict[Checkpoint, list[Path]] = {}
    for item, folder in parts:
        found.setdefault(item.checkpoint, []).append(folder)
    yield from sorted(found.items(), key=lambda entry: entry[0].model != REFERENCE)


@contextmanager
def held(loader: Loader) -> Iterator[HeldLoader]:
    """A loader of the same settings that keeps its model; freed at the end."""
    settings = {k: getattr(loader, k) for k in ("device", "dtype", "tokenizer", "trust_remote_code", "allow_pickle")}
    keeping = HeldLoader(**settings, attn_implementation=loader.attn_implementation)
    try:
        yield keeping
    finally:
        keeping.release()
