"""From what the trainer measured to rows in a run folder: buffered, flushed before anything that can be resumed from.

Every rank writes its own pairs and tokens; rank 0 writes history, texts, alerts and run.json. Reference rows stand
once per split and pair, in the same folder. Training rows carry the optimizer step that their batch was used for
(their weights are one update older), as `loss` in TRL's log does.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from dpo_diag.records import RunWriter
from dpo_diag.records.files import Part, to_label
from dpo_diag.records.merging import Parts
from dpo_diag.records.reader import Run
from dpo_diag.records.schemas import SIDES, TABLES, TRAIN_SPLIT
from dpo_diag.records.tables import to_frame
from dpo_diag.text import to_json
from dpo_diag.training.batch import Batch, BoolArray, ResponseTokens, TokenRows

FLUSH_SECONDS = 10.0
"""Training rows wait at most this long for their file at a log call: three files cost as much as a tenth of a small
model's step. Evaluating, saving and ending flush; so a run that is killed and resumed lacks nothing, and one that is
never resumed lacks the training rows of its last seconds."""
TRAIN_TEXTS = 1000
"""Texts of training pairs that are kept (evaluation sets keep all): the data set itself is elsewhere."""
_COUNTS = ("n_tokens", "n_bytes", "n_truncated")
_SUMS = ("sum_logp", "entropy_sum", "greedy_logp_sum", "kl_reverse_sum", "kl_forward_sum", "loss_logp")


def pair_frame(
    batch: Batch, keep: BoolArray, role: str, steps: npt.NDArray[np.int64], split: str
) -> pd.DataFrame:  # fmt: skip
    """Rows of the pairs table for one role: two rows a pair, all of chosen first; `steps` is (pairs,).

    A pair that occurs twice in a step stands once.
    """
    values = batch.policy if role == "policy" else batch.reference
    ids = np.asarray(batch.pair_ids, dtype=object)[keep]
    flat = {name: value[:, keep].reshape(-1) for name, value in values.items()}
    columns: dict[str, Any] = {
        "step": np.tile(steps[keep], 2),
        "split": split,
        "role": role,
        "pair_id": np.tile(ids, 2),
        "side": np.repeat(np.asarray(SIDES, dtype=object), len(ids)),
    } | {name: flat[name] for name in _SUMS if name in flat}
    for name in _COUNTS:
        if name in flat:
            columns[name] = pd.array(np.where(np.isnan(flat[name]), -1, flat[name]), dtype="Int32")
            columns[name][np.isnan(flat[name])] = pd.NA
    for name in ("top1", "top5"):
        if f"{name}_hits" in flat and "n_tokens" in flat:
            with np.errstate(divide="ignore", invalid="ignore"):
                columns[name] = flat[f"{name}_hits"] / flat["n_tokens"]
    for name in ("weight", "beta"):
        if role == "policy" and name in batch.of_row:
            columns[name] = np.tile(batch.of_row[name][keep], 2)
    return pd.DataFrame(columns).drop_duplicates(["step", "pair_id", "side"])


class Recorder:
    """Writes one run for one trainer.

    Args:
        writer: the run folder's writer, with this process's rank.
    """

    def __init__(self, writer: RunWriter) -> None:
        self.writer = writer
        self.main = writer.rank == 0
        self._history: list[dict[str, Any]] = []
        self._train: list[tuple[Batch, int]] = []
        self._train_reference = False
        self._waiting_texts: list[dict[str, Any]] = []
        self._began = False
        self._last: dict[tuple[str, str], tuple[tuple[int, int], pd.DataFrame]] = {}
        self._flushed = time.monotonic()
        # (table, split) -> pair_id -> the step whose file holds the reference's rows: writing that step again replaces
        # the file, and needs them again.
        self._references: dict[tuple[str, str], dict[str, int]] = defaultdict(dict)
        self._texts: dict[str, set[str]] = defaultdict(set)
        self._remember()

    def _remember(self) -> None:
        """What an earlier part of this run already wrote once and for all: references and texts."""
        if not (self.writer.path / "run.json").exists():
            return
        run = Run(self.writer.path, whole=True)
        for table in ("pairs", "tokens"):
            if run.has(table):
                rows = run.read(table, ["step", "split", "pair_id"], roles=["ref"]).drop_duplicates()
                for split, part in rows.astype({"split": str, "pair_id": str}).groupby("split", observed=True):
                    self._references[table, str(split)] = dict(
                        zip(part["pair_id"], part["step"].astype(int), strict=True)
                    )
        if run.has("texts"):
            for split, ids in run.read("texts", ["split", "pair_id"]).groupby("split", observed=True)["pair_id"]:
                self._texts[str(split)] = set(ids)

    # ---- pairs and tokens ----

    def _wants_reference(self, table: str, split: str, pair_id: str, step: int) -> bool:
        """Whether a pair's reference rows stand in no other file yet; from now on they stand in this step's."""
        return self._references[table, split].setdefault(pair_id, step) == step

    def _pair_rows(
        self, batch: Batch, steps: npt.NDArray[np.int64], split: str, keep: BoolArray, *, reference: bool
    ) -> pd.DataFrame:
        """The policy's rows of the pairs where `keep`, and the reference's of those that have none in this split.

        `reference` is False for one that moves during training: one row per set cannot describe it.
        """
        rows = pair_frame(batch, keep, "policy", steps, split)
        if not reference or not batch.reference:
            return rows
        ref = pair_frame(batch, keep, "ref", steps, split)
        new = [self._wants_reference("pairs", split, p, s) for p, s in zip(ref["pair_id"], ref["step"], strict=True)]
        return pd.concat([rows, ref[new]], ignore_index=True) if any(new) else rows

    def train_batch(self, batch: Batch, step: int, *, reference: bool) -> None:
        """Keep one micro-batch for the next flush; building its rows waits until then, which is many times cheaper."""
        self._train.append((batch.without_tokens(), step))
        self._train_reference = reference

    def evaluation(
        self, batch: Batch, keep: BoolArray, tokens: Mapping[str, tuple[TokenRows | ResponseTokens, int]],
        step: int, split: str, *, reference: bool,
    ) -> None:  # fmt: skip
        """Write one evaluation of one set: this rank's pairs where `keep`, and the tokens of those in `tokens`."""
        steps = np.full(len(batch), step, dtype=np.int64)
        self.writer.write("pairs", self._pair_rows(batch, steps, split, keep, reference=reference), split=split)
        self.tokens(tokens, step, split, reference=reference)

    def tokens(
        self, tokens: Mapping[str, tuple[TokenRows | ResponseTokens, int]], step: int, split: str, *, reference: bool
    ) -> None:
        """Write the tokens of one evaluation of one set: id -> its batch's tokens, and its row there."""
        parts = []
        for pair_id, (values, position) in tokens.items():
            parts.append(values.frame(position, pair_id, "policy"))
            if reference and self._wants_reference("tokens", split, pair_id, step):
                parts.append(values.frame(position, pair_id, "ref"))
        parts = [p for p in parts if len(p)]
        if parts:
            self.writer.write("tokens", pd.concat(parts, ignore_index=True).assign(step=step, split=split), split=split)

    # ---- history, texts, alerts ----

    def history(
        self, step: int, epoch: float | None, split: str, values: Mapping[str, Any], weights: Mapping[str, float]
    ) -> None:
        """Keep one log call; values that are not numbers are left out."""
        self._history += [
            {"step": step, "epoch": epoch, "split": split, "name": name, "value": float(value),
             "weight": weights.get(name)}
            for name, value in values.items()
            if self.main and isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
        ]  # fmt: skip

    def texts(self, split: str, rows: Iterable[Mapping[str, Any]], step: int) -> None:
        """Write texts of pairs whose texts this split does not have yet: dicts of pair_id, prompt, chosen, rejected.

        Those of training batches wait for the next flush: a file a step would be a file a pair.
        """
        new = {r["pair_id"]: {**r, "split": split} for r in rows if self.lacks_text(split, r["pair_id"])}
        self._texts[split].update(new)
        if split == TRAIN_SPLIT:
            self._waiting_texts += [{**row, "_step": step} for row in new.values()]
        elif new:
            self.writer.write("texts", list(new.values()), split=f"{split}-{step:08d}")

    def lacks_text(self, split: str, pair_id: str) -> bool:
        """Whether this split has no text of this pair yet."""
        return pair_id not in self._texts[split]

    def room_for_texts(self, split: str) -> int:
        """How many training pairs' texts may still be written."""
        return TRAIN_TEXTS - len(self._texts[split])

    def alert(self, step: int, code: str, message: str, evidence: Mapping[str, Any]) -> None:
        """Write one alert at once: it may be the last thing that this run says."""
        row = {"step": step, "code": code, "message": message, "evidence": to_json(evidence)}
        self._write("alerts", f"{code}-rank{self.writer.rank}", pd.DataFrame([row]))

    # ---- flushing ----

    def _write(self, table: str, label: str, frame: pd.DataFrame) -> None:
        """Write a part; rows of the same steps as the part before join it, since the file's name is the same."""
        steps = (int(frame["step"].min()), int(frame["step"].max()))
        before = self._last.get((table, label)) or self._written_before(table, label, steps)
        if before is not None and before[0] == steps:
            frame = pd.concat([before[1], frame], ignore_index=True).drop_duplicates(
                list(TABLES[table].key), keep="last"
            )
        self._last[table, label] = (steps, frame)
        self.writer.write(table, frame, split=label)

    def _written_before(
        self, table: str, label: str, steps: tuple[int, int]
    ) -> tuple[tuple[int, int], pd.DataFrame] | None:
        """What an earlier process wrote of the very steps: a run that goes on from its last one only adds to that."""
        resumed = self.writer.resume_step
        if resumed is None or steps[1] > resumed:
            return None
        rank = self.writer.rank
        rows = Parts(self.writer.path, TABLES[table], rank).rows(Part(*steps, to_label(label), rank))
        return None if rows is None else (steps, to_frame(rows))

    def flush(self, *, force: bool = True) -> None:
        """Write what waits; without `force` only if the last flush is `FLUSH_SECONDS` ago."""
        if not force and time.monotonic() - self._flushed < FLUSH_SECONDS:
            return
        if self._train:
            batch = Batch.concat([b for b, _ in self._train])
            steps = np.concatenate([np.full(len(b), s, dtype=np.int64) for b, s in self._train])
            everything = np.ones(len(batch), dtype=bool)
            rows = self._pair_rows(batch, steps, TRAIN_SPLIT, everything, reference=self._train_reference)
            self._write("pairs", TRAIN_SPLIT, rows)
            self._train = []  # not before: a write that is stopped or fails is done again at the end
        if self._waiting_texts:
            frame = pd.DataFrame(self._waiting_texts)
            self.writer.write("texts", frame.drop(columns="_step"), split=f"{TRAIN_SPLIT}-{frame['_step'].max():08d}")
            self._waiting_texts = []
        if self._history:
            frame = pd.DataFrame(self._history)
            for split, part in frame.groupby("split", sort=False, observed=True):
                self._write("history", str(split), part.reset_index(drop=True))
            self._history = []
        self._flushed = time.monotonic()

    def begin(self, step: int) -> None:
        """A training loop begins at this step. A second one starts over (a smaller batch after running out of memory,
        or a second call of train()): what the first one wrote beyond the step is removed."""
        if self._began:
            self._train, self._history, self._waiting_texts, self._last = [], [], [], {}
            self.writer.drop_after(step)
            self._references.clear()
            self._texts.clear()
            self._remember()
        self._began = True
