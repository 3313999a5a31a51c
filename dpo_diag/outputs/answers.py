"""Rows of outputs/ by checkpoint: what one model wrote at one step. Only answers of equal decoding are compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from dpo_diag.errors import DiagError
from dpo_diag.records import Run
from dpo_diag.stats import Interval

POLICY, REFERENCE, SFT = "policy", "ref", "sft"
SOURCE = "source="
"""Tag of prompts that share a source: their answers are clustered in every interval and test."""
_ORDER = {SFT: 0, REFERENCE: 1, POLICY: 3}
_OTHER = 2
"""Place of any other model (a base model, say): after the reference, before the policy."""


class Checkpoint(NamedTuple):
    """A model at a step."""

    model: str
    step: int

    @property
    def label(self) -> str:
        return f"step {self.step}" if self.model == POLICY else f"{self.model} (step {self.step})"

    @property
    def name(self) -> str:
        """What a user types for it."""
        return str(self.step) if self.model == POLICY else self.model


@dataclass(frozen=True)
class Answers:
    """The answers of all checkpoints to the same prompts: one sample each to read, all alike samples to measure.

    Attributes:
        frame: rows of outputs/ of the sample that is shown, ordered by checkpoint and prompt; some of `samples`.
        samples: rows of outputs/ of every sample that is measured (see `alike`): a prompt's numbers are their means.
        checkpoints: others (sft, ref, ...) first, then the policy by step.
        prompt_ids: all prompts in the order in which they were first answered.
    """

    frame: pd.DataFrame
    samples: pd.DataFrame
    checkpoints: tuple[Checkpoint, ...]
    prompt_ids: tuple[str, ...]

    @cached_property
    def _by_checkpoint(self) -> dict[Checkpoint, pd.DataFrame]:
        frame = self.frame.assign(row=self.frame.index)
        by_checkpoint = {}
        for c in self.checkpoints:
            rows = frame[(frame["model"] == c.model) & (frame["step"] == c.step)].set_index("prompt_id")
            by_checkpoint[c] = rows.loc[[p for p in self.prompt_ids if p in rows.index]]
        return by_checkpoint

    def of(self, checkpoint: Checkpoint) -> pd.DataFrame:
        """One checkpoint's rows, indexed by prompt_id, in the order of `prompt_ids`; prompts without an answer are
        absent. Column `row`: the row's place in `frame`."""
        return self._by_checkpoint[checkpoint]

    def texts(self, checkpoint: Checkpoint) -> dict[str, str]:
        """prompt_id -> one checkpoint's answer."""
        rows = self.of(checkpoint)
        return {str(prompt_id): str(text) for prompt_id, text in zip(rows.index, rows["text"], strict=True)}

    @cached_property
    def _prompts(self) -> dict[Checkpoint, tuple[npt.NDArray[np.intp], npt.NDArray[np.object_]]]:
        """Of each checkpoint its rows among `samples` and their prompts; where each prompt has one sample, in the order
        of `of`."""
        rows, found = self.samples, {}
        for c in self.checkpoints:
            places = np.flatnonzero(((rows["model"] == c.model) & (rows["step"] == c.step)).to_numpy())
            prompts = rows["prompt_id"].to_numpy(dtype=object)[places]
            order = pd.Index(prompts)
            if order.is_unique and len(order) == len(self.of(c)):
                places, prompts = places[(at := order.get_indexer(self.of(c).index))], prompts[at]
            found[c] = places, prompts
        return found

    @property
    def n_samples(self) -> int:
        """Samples a prompt and checkpoint have at most."""
        return int(self.samples.groupby(["model", "step", "prompt_id"], observed=True).size().max())

    def values(self, measured: pd.DataFrame, checkpoint: Checkpoint, column: str) -> pd.Series:
        """One checkpoint's numbers of a measure that lies on the index of `samples`, indexed by prompt_id: the mean of
        a prompt's samples that have one, NaN without any."""
        (places, prompts), index = self._prompts[checkpoint], self.of(checkpoint).index
        numbers = measured[column].to_numpy(dtype=float)[places]
        if len(prompts) == len(index):
            return pd.Series(numbers, index=index)
        return pd.Series(numbers).groupby(prompts, observed=True).mean().reindex(index)

    def measures(self, measured: pd.DataFrame, checkpoint: Checkpoint) -> pd.DataFrame:
        """Every measure of one checkpoint, indexed by prompt_id: numbers as `values`, others of the sample shown."""
        shown = self.of(checkpoint)["row"]
        own = measured.loc[shown].set_axis(shown.index)
        numbers = own.select_dtypes("number").columns
        return own.assign(**{str(c): self.values(measured, checkpoint, str(c)) for c in numbers})

    def tags(self) -> dict[str, list[str]]:
        """tag -> prompt ids; key=value tags (probe=..., format=...) are fields, not kinds of prompt, and stay out."""
        if "tags" not in self.frame:
            return {}
        first = self.frame.drop_duplicates("prompt_id").set_index("prompt_id")["tags"]
        by_tag: dict[str, list[str]] = {}
        for prompt_id in self.prompt_ids:
            for tag in tags_of(first[prompt_id]):
                if "=" not in tag:
                    by_tag.setdefault(tag, []).append(prompt_id)
        return by_tag

    @cached_property
    def sources(self) -> pd.Series[str]:
        """prompt_id -> what the prompt belongs to: its tag `source=NAME` (paraphrases of one question, questions on one
        text), else itself."""
        first = self.frame.drop_duplicates("prompt_id").set_index("prompt_id")
        return prompt_sources(first["tags"] if "tags" in first else pd.Series(None, index=first.index, dtype=object))

    def policy_checkpoints(self) -> list[Checkpoint]:
        """The policy's by step; another model's where there is no policy."""
        return [c for c in self.checkpoints if c.model == POLICY] or list(self.checkpoints)

    def baseline(self, name: str | int | None = None) -> Checkpoint:
        """What others are held against: by name or step, else the reference, the SFT model, the first step.

        Raises:
            DiagError: no checkpoint of that name or step.
        """
        if name is not None:
            return find_checkpoint(self.checkpoints, str(name))
        return next(
            (c for model in (REFERENCE, SFT) for c in self.checkpoints if c.model == model), self.checkpoints[0]
        )


def alike(outputs: pd.DataFrame) -> pd.DataFrame:
    """The samples that measure one thing: the greedy answers where sample 0 is one beside seeded samples; else all."""
    seeded = outputs["seed"].notna() if "seed" in outputs else pd.Series(False, index=outputs.index)
    return outputs[seeded == bool(seeded[outputs["sample"].fillna(0) == 0].any())]


def tags_of(value: Any) -> list[str]:
    """A row's tags; [] where none are recorded."""
    return [] if value is None or isinstance(value, float) else [str(tag) for tag in value]


def prompt_sources(tags: pd.Series[Any]) -> pd.Series[str]:
    """What each prompt belongs to, from the prompts' tags (index prompt_id); see `Answers.sources`."""
    named = [next((tag for tag in tags_of(own) if tag.startswith(SOURCE)), f"prompt={i}") for i, own in tags.items()]
    return pd.Series(named, index=tags.index, dtype=object)


def columns_of(estimate: Interval, name: str = "") -> dict[str, Any]:
    """An estimate as columns of a table: `value`, `low`, `high`, `n`; of a named quantity NAME, NAME_low, ..."""
    numbers = (estimate.value, estimate.low, estimate.high, estimate.n)
    names = (name, f"{name}_low", f"{name}_high", f"{name}_n") if name else ("value", "low", "high", "n")
    return dict(zip(names, numbers, strict=True))


def checkpoints_in(frame: pd.DataFrame) -> tuple[Checkpoint, ...]:
    """The checkpoints of rows of outputs/: sft, ref, others, then the policy by step."""
    pairs = frame[["model", "step"]].drop_duplicates()
    present = [Checkpoint(str(m), int(s)) for m, s in zip(pairs["model"], pairs["step"], strict=True)]
    return tuple(sorted(present, key=lambda c: (_ORDER.get(c.model, _OTHER), c.model, c.step)))


def find_checkpoint(checkpoints: Sequence[Checkpoint], name: str, *, last: bool = False) -> Checkpoint:
    """The checkpoint that a user names: a step of the policy, or a model (its first step, or its last).

    Raises:
        DiagError: no such checkpoint.
    """
    for checkpoint in reversed(checkpoints) if last else checkpoints:
        if name in (checkpoint.model, checkpoint.name):
            return checkpoint
    known = ", ".join(c.name for c in checkpoints)
    raise DiagError("no answers of that model or step", got=name, expected=f"one of {known or 'none'}", usage=True)


def check_comparable(frame: pd.DataFrame, where: object = None) -> None:
    """Raise DiagError if answers of the same sample were written under different decoding settings.

    Another decoding length or temperature changes answers without any change of the model.
    """
    for sample, rows in frame.groupby("sample", observed=True):
        by_hash = rows.assign(decoding_hash=rows["decoding_hash"].fillna("unknown")).groupby(
            "decoding_hash", observed=True
        )
        if by_hash.ngroups > 1:
            parts = [f"{h}: {', '.join(sorted(c.label for c in checkpoints_in(g))[:4])}" for h, g in by_hash]
            raise DiagError(
                f"answers (sample {sample}) were written under different decoding settings", where=where,
                got="; ".join(parts), expected="one decoding hash",
                hint="write them again with one setting (dpo-generate), or select steps or models of one hash",
            )  # fmt: skip


def answers(
    source: Run | pd.DataFrame,
    *,
    sample: int | None = None,
    steps: list[int] | None = None,
    models: list[str] | None = None,
    where: object = None,
) -> Answers:
    """The answers of a run (or of rows of outputs/).

    Args:
        sample: which one is shown, and measured alone; None to measure all that are alike (see `alike`) and to show the
            lowest of them (0: the greedy one).
        steps: of the policy; None for all. Other models keep theirs.
        models: None for all.
        where: for errors, whose answers these rows are.

    Raises:
        DiagError: no such answers, or answers of different decoding settings.
    """
    if isinstance(source, Run):
        source, where = source.outputs, source.path
    frame = source
    if frame.empty:
        raise DiagError(
            "the run holds no answers to fixed prompts", where=where,
            hint="train with prompts=..., or write them with dpo-generate",
        )  # fmt: skip
    # Read from Parquet these may be dictionary-encoded; comparing and grouping categories is full of surprises.
    frame = frame.astype(dict.fromkeys(("model", "prompt_id", "text"), object))
    frame = alike(frame) if sample is None else frame[frame["sample"] == sample]
    if frame.empty:
        raise DiagError("no answers of that sample", where=where, got=sample, usage=True)
    policy = frame["model"] == POLICY
    if steps is not None:
        _check_known("no answers at steps", steps, {int(s) for s in frame.loc[policy, "step"]}, where)
        frame = frame[~policy | frame["step"].isin(steps)]
    if models is not None:
        _check_known("no answers of models", models, set(frame["model"]), where)
        frame = frame[frame["model"].isin(models)]
    check_comparable(frame, where)
    samples = frame.drop_duplicates(["model", "step", "prompt_id", "sample"], keep="last").reset_index(drop=True)
    shown = samples[samples["sample"] == samples["sample"].min()]
    return Answers(shown, samples, checkpoints_in(shown), tuple(dict.fromkeys(shown["prompt_id"])))


def _check_known(what: str, wanted: list[Any], known: set[Any], where: object) -> None:
    if absent := [x for x in wanted if x not in known]:
        raise DiagError(what, where=where, got=absent, expected=f"some of {sorted(known)}", usage=True)
