"""Rows of outputs/ as looks: one look is what one model wrote at one step. Only equal conditions are compared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import pandas as pd

from dpo_diag.errors import DiagError
from dpo_diag.records import Run

POLICY, REFERENCE, SFT = "policy", "ref", "sft"


class Look(NamedTuple):
    """A model at a step."""

    model: str
    step: int

    @property
    def label(self) -> str:
        return f"step {self.step}" if self.model == POLICY else f"{self.model} (step {self.step})"


@dataclass(frozen=True)
class Answers:
    """The answers of all looks to the same prompts, one sample each.

    Attributes:
        frame: rows of outputs/ of that sample, ordered by look and prompt.
        looks: others (sft, ref, ...) first, then the policy by step.
        prompt_ids: all prompts in the order in which they were first answered.
    """

    frame: pd.DataFrame
    looks: tuple[Look, ...]
    prompt_ids: tuple[str, ...]

    def of(self, look: Look) -> pd.DataFrame:
        """One look's rows, indexed by prompt_id, in the order of `prompt_ids`; prompts without an answer are absent."""
        rows = self.frame[(self.frame["model"] == look.model) & (self.frame["step"] == look.step)]
        rows = rows.set_index("prompt_id")
        return rows.loc[[p for p in self.prompt_ids if p in rows.index]]

    def policy_looks(self) -> list[Look]:
        """The policy's looks by step; another model's where there is no policy."""
        own = [look for look in self.looks if look.model == POLICY]
        return own or list(self.looks)

    def baseline(self, name: str | int | None = None) -> Look | None:
        """The look that others are held against: by name or step, else the SFT model, the reference, the first step.

        Raises:
            DiagError: no look of that name or step.
        """
        if name is None:
            for model in (SFT, REFERENCE):
                found = [look for look in self.looks if look.model == model]
                if found:
                    return found[0]
            return self.looks[0] if self.looks else None
        for look in self.looks:
            if name == look.model or (look.model == POLICY and str(name) == str(look.step)):
                return look
        known = ", ".join(str(x.step) if x.model == POLICY else x.model for x in self.looks)
        raise DiagError("no answers of that model or step", got=name, expected=f"one of {known or 'none'}", usage=True)


def check_comparable(frame: pd.DataFrame, where: object = None) -> None:
    """Raise DiagError if answers of the same sample were written under different decoding settings.

    Another decoding length or temperature changes answers without any change of the model.
    """
    for sample, rows in frame.groupby("sample"):
        by_hash = rows.assign(decoding_hash=rows["decoding_hash"].fillna("unknown")).groupby("decoding_hash")
        if by_hash.ngroups > 1:
            parts = [f"{h}: " + ", ".join(sorted({Look(m, int(s)).label for m, s in zip(g["model"], g["step"], strict=True)})[:4]) for h, g in by_hash]  # fmt: skip # noqa: E501
            raise DiagError(
                f"answers (sample {sample}) were written under different decoding settings",
                where=where,
                got="; ".join(parts),
                expected="one decoding hash",
                hint="write them again with one setting (dpo-generate), or select steps or models of one hash",
            )


def answers(
    source: Run | pd.DataFrame,
    *,
    sample: int | None = None,
    steps: list[int] | None = None,
    models: list[str] | None = None,
) -> Answers:
    """The answers of a run (or of rows of outputs/), one sample of each prompt and look.

    Args:
        sample: which one; None for the lowest that exists (0: the greedy one).
        steps: of the policy; None for all. Other models keep theirs.
        models: None for all.

    Raises:
        DiagError: no such answers, or answers of different decoding settings.
    """
    frame = source.outputs if isinstance(source, Run) else source
    where = source.path if isinstance(source, Run) else None
    if frame.empty:
        raise DiagError(
            "the run holds no answers to fixed prompts",
            where=where,
            hint="train with prompts=..., or write them with dpo-generate",
        )
    for name in ("model", "prompt_id", "text"):
        if frame[name].dtype != object:
            frame = frame.assign(**{name: frame[name].astype(object)})
    if steps is not None:
        known = sorted({int(s) for s in frame.loc[frame["model"] == POLICY, "step"]})
        absent = [s for s in steps if s not in known]
        if absent:
            raise DiagError("no answers at steps", where=where, got=absent, expected=f"some of {known}", usage=True)
        frame = frame[(frame["model"] != POLICY) | frame["step"].isin(steps)]
    if models is not None:
        known_models = sorted(set(frame["model"]))
        absent_models = [m for m in models if m not in known_models]
        if absent_models:
            raise DiagError(
                "no answers of models", where=where, got=absent_models, expected=f"some of {known_models}", usage=True
            )
        frame = frame[frame["model"].isin(models)]
    number = int(frame["sample"].min()) if sample is None else sample
    frame = frame[frame["sample"] == number]
    if frame.empty:
        raise DiagError("no answers of that sample", where=where, got=number, usage=True)
    check_comparable(frame, where)
    frame = frame.drop_duplicates(["model", "step", "prompt_id"], keep="last")
    found = {Look(str(m), int(s)) for m, s in zip(frame["model"], frame["step"], strict=True)}
    rank = {SFT: 0, REFERENCE: 1, POLICY: 3}
    looks = tuple(sorted(found, key=lambda x: (rank.get(x.model, 2), x.model, x.step)))
    return Answers(frame.reset_index(drop=True), looks, tuple(dict.fromkeys(frame["prompt_id"])))
