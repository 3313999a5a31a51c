"""What stands between a trainer and its records: collects micro-batches, closes splits, names them, writes them."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from accelerate.logging import get_logger

from dpo_diag.losses import LossSpec
from dpo_diag.records.given_ids import GivenIds
from dpo_diag.records.metric_table import Value
from dpo_diag.records.schemas import EVAL_SPLIT, SIDES, TRAIN_SPLIT
from dpo_diag.training.batch import Batch, ResponseTokens, TokenRows
from dpo_diag.training.gather import Accumulator, Gathered
from dpo_diag.training.guards import Guards
from dpo_diag.training.measure import RESIDUAL_TOLERANCE, batch_metrics, of_trainer, trainer_weights
from dpo_diag.training.recorder import Recorder
from dpo_diag.training.roles import EvalRoles
from dpo_diag.training.same_loss import same_loss
from dpo_diag.training.texts import TextSource
from dpo_diag.training.window import Window

logger = get_logger(__name__)

_NOT_METRICS = ("epoch", "step", "num_tokens", "model_preparation_time")


class Monitor:
    """One trainer's measurements.

    Args:
        spec: a preference trainer's loss, None for any other.
        world_size, rank: of the process group.
        record_tokens: pairs per evaluation set whose tokens are kept: those with the smallest ids, which is a random
            sample that is the same at every step, in every run, and for every number of processes.
        moving_reference: the reference changes during training, so that no row per set describes it.
        tokenizer: decodes pairs whose texts no data set holds.
        with_images: pairs have images, which no decoded text shows.
        given_ids: name of a data set, as the trainer knows it -> what its own ids stand for.
    """

    def __init__(
        self,
        spec: LossSpec | None = None,
        *,
        world_size: int,
        rank: int,
        guards: Guards,
        record_tokens: int = 0,
        moving_reference: bool = False,
        tokenizer: Any = None,
        given_ids: Mapping[str, GivenIds] | None = None,
        with_images: bool = False,
    ) -> None:
        self.spec, self.world_size, self.rank = spec, world_size, rank
        self.began_with = spec
        """The loss before a schedule moved it."""
        self.record_tokens, self.moving_reference, self.tokenizer = record_tokens, moving_reference, tokenizer
        self.with_images = with_images
        self.guards, self.given_ids = guards, {} if given_ids is None else given_ids
        self.recorder: Recorder | None = None
        self.texts = TextSource()
        self.roles = EvalRoles(None, lambda: None)
        self.own_splits: set[str] = set()
        self.fingerprints: dict[str, str | None] = {}
        self.scale: dict[str, dict[str, Value]] = {"train": {}, "eval": {}}
        """Constants that stand beside the first row of a training, and every one of the set that is evaluated."""
        self.window = Window()
        self._eval: Accumulator | None = None
        self._tokens: dict[str, tuple[TokenRows | ResponseTokens, int]] = {}
        self._closed: tuple[str, str, dict[str, float]] | None = None
        """Prefix, split and weights by metric of what was measured last and not yet logged."""
        self._foreign = False
        self._warned: set[str] = set()
        self._without_text: list[str] = []
        self._step = 0

    def begin(self, step: int, window: Window | None = None) -> None:
        """A training loop begins at this step; nothing of an earlier one is carried into it but the window that was
        open at the checkpoint which it resumes."""
        self.window = window or Window()
        self._without_text = []
        if self.recorder is not None:
            self.recorder.begin(step)

    # ---- one micro-batch ----

    @property
    def evaluating(self) -> bool:
        """Whether an evaluation loop runs."""
        return self._eval is not None

    @property
    def wants_tokens(self) -> bool:
        """Whether the per-token values of the coming batch are to be kept."""
        return self.evaluating and self.recorder is not None and self.record_tokens > 0

    def observe(self, batch: Batch, step: int) -> None:
        """Take one micro-batch, of the running evaluation or else of training step `step`."""
        if batch.residual > RESIDUAL_TOLERANCE * max(1.0, abs(batch.loss)):
            self.warn_once(
                "residual",
                f"The trainer's loss ({batch.loss:.6g}) is not the loss of its log-probs: recomputed from them it "
                f"differs by {batch.residual:.3g} (logged as loss_residual). Something adds to the loss that this "
                f"configuration does not name, so its decomposition will be off by as much.",
            )
        if self._eval is not None:
            self._eval.add(batch)
            self._keep_tokens(batch)
            return
        spec, began = self.spec, self.began_with
        moved = spec is not None and began is not None and spec != began
        self.guards.batch(batch, step, same_loss(batch, spec, began) if moved and spec and began else None)
        batch = batch.without_padding()
        self.window.open.add(batch)
        if self.recorder is not None and batch.has_pairs:
            self.recorder.train_batch(batch, step, reference=not self.moving_reference)
            self._without_text += [p for p in batch.pair_ids if self.recorder.lacks_text(TRAIN_SPLIT, p)]
            self._step = step

    def warn_once(self, key: str, message: str) -> None:
        """Say something once per trainer, on the main process."""
        if key not in self._warned:
            self._warned.add(key)
            logger.warning(message)

    def _keep_tokens(self, batch: Batch) -> None:
        if batch.tokens is None:
            return
        for i, pair_id in enumerate(batch.pair_ids):
            self._tokens.setdefault(pair_id, (batch.tokens, i))
        if len(self._tokens) > 2 * self.record_tokens:
            self._trim_tokens(sorted(self._tokens)[: self.record_tokens])

    def _trim_tokens(self, keep: list[str]) -> None:
        self._tokens = {p: self._tokens[p] for p in keep if p in self._tokens}

    # ---- evaluation ----

    @contextmanager
    def foreign(self, yes: bool) -> Iterator[None]:
        """An evaluation of a set that was handed to `evaluate()`, not one of the trainer's own."""
        before, self._foreign = self._foreign, self._foreign or yes
        try:
            yield
        finally:
            self._foreign = before

    @contextmanager
    def evaluation(self) -> Iterator[None]:
        """Collect what is observed inside as one evaluation; close it with `close_evaluation` before leaving."""
        self._eval, self._tokens, self._closed = Accumulator(), {}, None
        try:
            yield
        finally:
            self._eval, self._tokens = None, {}

    def close_evaluation(
        self, prefix: str, step: int, theirs: Mapping[str, float], *, record: bool = True
    ) -> dict[str, float]:
        """Exchange over ranks, write the records, and return the set's metrics, unprefixed. Every rank must call it.

        Args:
            theirs: the trainer's own means of this evaluation, unprefixed; those that differ come back as trl/NAME.
        """
        assert self._eval is not None
        gathered = self._eval.gather(self.world_size, self.rank, padded=True)
        if gathered.rows is None:
            return {}
        values = self._metrics(gathered, theirs) | self.scale["eval"]
        if record:
            split = self._split_of(prefix, gathered)
            self._closed = (prefix, split, _weights(values, gathered.rows))
            if self.recorder is not None:
                self._record(gathered, split, step)
        return {name: v.value for name, v in values.items()}

    def _metrics(self, gathered: Gathered, theirs: Mapping[str, float]) -> dict[str, Value]:
        values = batch_metrics(gathered, self.spec)
        return values | of_trainer(theirs, values, gathered, self.spec)

    def _split_of(self, prefix: str, gathered: Gathered) -> str:
        """The split's name: the metric prefix; a foreign set never shares the name of another set."""
        assert gathered.rows is not None
        content = hashlib.sha256("".join(sorted(gathered.rows.pair_ids)).encode()).hexdigest()[:16]
        split = prefix if prefix == EVAL_SPLIT or prefix.startswith(f"{EVAL_SPLIT}_") else f"{EVAL_SPLIT}_{prefix}"
        if self._foreign:
            known = self.fingerprints.get(split)
            if split in self.own_splits or known not in (None, content):
                split = f"{split}_{content[:8]}"
        self.fingerprints[split] = content
        if self.recorder is not None:
            role, facts = self.roles.of(split, gathered.rows) if self.rank == 0 else ("other", {})
            self.recorder.writer.describe_split(
                split, role, n_pairs=len(gathered.rows), n_duplicates=gathered.n_duplicates, fingerprint=content,
                handed_to_evaluate=self._foreign, **facts, **self._facts_of(split),
            )  # fmt: skip
        return split

    def _facts_of(self, split: str) -> dict[str, Any]:
        """What is known of a split's ids: the trainer knows its set by the name behind `eval_`."""
        name = split if split in self.given_ids else split.removeprefix(f"{EVAL_SPLIT}_")
        return self.given_ids[name].facts() if name in self.given_ids else {}

    def describe_training_ids(self) -> None:
        """Say in run.json where different training pairs came under one id."""
        if self.recorder is not None and (facts := self._facts_of(TRAIN_SPLIT)):
            self.recorder.writer.describe_split(TRAIN_SPLIT, "train", **facts)

    def _record(self, gathered: Gathered, split: str, step: int) -> None:
        assert self.recorder is not None and self._eval is not None and gathered.rows is not None
        if self._eval.batches:
            own = Batch.concat(self._eval.batches)
            chosen = sorted(set(gathered.rows.pair_ids))[: self.record_tokens]
            first = {p for p, k in zip(own.pair_ids, gathered.own_first, strict=True) if k}
            self._trim_tokens([p for p in chosen if p in first])
            if not own.has_pairs:
                self.recorder.tokens(self._tokens, step, split, reference=False)
                return
            self.recorder.evaluation(
                own, gathered.own_first, self._tokens, step, split, reference=not self.moving_reference
            )
            lacking = [p for p in own.pair_ids if p in first and self.recorder.lacks_text(split, p)]
            if lacking:
                rows = self.texts.lookup(lacking)
                missing = set(lacking) - {r["pair_id"] for r in rows}
                rows += [self._decoded(p, *self._tokens[p]) for p in sorted(missing) if p in self._tokens]
                self.recorder.texts(split, rows, step)

    def _decoded(self, pair_id: str, tokens: TokenRows | ResponseTokens, pair: int) -> dict[str, Any]:
        """A pair whose texts no data set holds, as far as the model saw it."""
        assert isinstance(tokens, TokenRows)
        ids = {"prompt": tokens.prompt_ids[pair]} | {s: tokens.response_ids(pair, i) for i, s in enumerate(SIDES)}
        texts = {k: self.tokenizer.decode(v, skip_special_tokens=True) for k, v in ids.items()}
        # Pairs of equal texts and different ids differ in what no text shows.
        return {"pair_id": pair_id, "beside": pair_id if self.with_images else None, **texts}

    # ---- log calls ----

    def close_train(self, theirs: Mapping[str, float]) -> dict[str, float]:
        """Metrics of the training pairs since the last call, unprefixed; `theirs` as in `close_evaluation`. Every rank
        must call it."""
        gathered = self.window.open.gather(self.world_size, self.rank)
        self.window.open = Accumulator()
        self._closed = None
        if gathered.rows is None:
            return {}
        values = self._metrics(gathered, theirs) | self.scale["train"]
        self.scale["train"] = {}
        loss, weight = values.get("loss", (math.nan, math.nan))
        self.window.losses = self.window.losses[0] + loss * weight, self.window.losses[1] + weight
        self._closed = ("", TRAIN_SPLIT, _weights(values, gathered.rows))
        return {name: v.value for name, v in values.items()}

    @property
    def mean_loss(self) -> float:
        """The exact loss over all training steps that were logged, those before a resume included; NaN: not known."""
        total, weight = self.window.losses
        return total / weight if weight else math.nan

    def scope(self, logs: Mapping[str, Any]) -> str | None:
        """Which split a log call of the trainer's is about: an evaluation's prefix, "" for training, None: neither."""
        if self._closed is not None and self._closed[0] and f"{self._closed[0]}_runtime" in logs:
            return self._closed[0]
        return "" if "loss" in logs or "train_runtime" in logs else None

    def record_log(self, logs: Mapping[str, Any], scope: str | None, step: int, epoch: float | None) -> None:
        """Keep one log call as history rows, under names without prefix."""
        closed, self._closed = self._closed, None
        if self.recorder is None:
            return
        if scope:
            assert closed is not None
            _, split, weights = closed
        else:
            split, weights = TRAIN_SPLIT, closed[2] if scope == "" and closed is not None else {}
        values: dict[str, Any] = {}
        for name, value in logs.items():
            for prefix in (f"{scope}_", f"{EVAL_SPLIT}_") if scope else ():
                if name.startswith(prefix):
                    name = name[len(prefix) :]
                    break
            else:
                # Leftovers of an evaluation in a training row (train_runtime) describe nothing.
                if name.startswith(f"{EVAL_SPLIT}_") and scope is not None:
                    continue
            if name not in _NOT_METRICS or (name == "num_tokens" and not scope):
                values.setdefault(name, value)
        self.recorder.history(step, epoch, split, values, weights)
        self.flush(force=bool(scope))

    def flush(self, *, force: bool = True) -> None:
        """Write what waits: always with `force`, else now and then (`recorder.FLUSH_SECONDS`)."""
        if self.recorder is None:
            return
        room = self.recorder.room_for_texts(TRAIN_SPLIT)
        if self._without_text and room > 0:
            wanted = list(dict.fromkeys(self._without_text))[:room]
            self.recorder.texts(TRAIN_SPLIT, self.texts.lookup(wanted), self._step)
        self._without_text = []
        self.recorder.flush(force=force)


def _weights(values: Mapping[str, Value], rows: Batch) -> dict[str, float]:
    """What every metric of a log call is a mean over, the trainer's own and ours."""
    return trainer_weights(rows) | {name: v.weight for name, v in values.items()}
