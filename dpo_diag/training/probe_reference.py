"""What a probe's log-ratios are taken against: which reference there is, and its rows."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from dpo_diag.errors import DiagError
from dpo_diag.inference.scored_reference import reference_rows
from dpo_diag.inference.scoring import PairTokens
from dpo_diag.models.adapters import reference_adapter
from dpo_diag.models.batches import device_of
from dpo_diag.models.checkpoints import REFERENCE, Checkpoint, Loader
from dpo_diag.models.packed.verify import Proved
from dpo_diag.records.files import RUN_FILE
from dpo_diag.records.schemas import TABLES

Reference = str | os.PathLike[str] | Literal[False] | None
Kind = Literal["start", "adapter", "model", "records"]
Measure = Callable[[Any], "Measured"]
"""What is measured of a model."""


def _none(table: str) -> pd.DataFrame:
    return pd.DataFrame(columns=TABLES[table].names)


@dataclass
class Measured:
    """Rows of one model at one step: those of this process, or of all; `unanswered`: why there are no `outputs`."""

    pairs: pd.DataFrame = field(default_factory=lambda: _none("pairs"))
    tokens: pd.DataFrame = field(default_factory=lambda: _none("tokens"))
    outputs: pd.DataFrame | None = None
    way: Proved | None = None
    unanswered: str | None = None

    @classmethod
    def joined(cls, parts: Sequence[Measured], pairs: Mapping[str, int], prompts: Mapping[str, int]) -> Measured:
        """Several processes' rows as one; `pairs` and `prompts` say the places of their ids."""

        def one(frames: Sequence[pd.DataFrame], key: str, places: Mapping[str, int]) -> pd.DataFrame:
            filled = [frame for frame in frames if len(frame)] or list(frames[:1])
            frame = pd.concat(filled, ignore_index=True)
            return frame.sort_values(key, key=lambda ids: ids.map(places), kind="stable", ignore_index=True)

        answers = [part.outputs for part in parts if part.outputs is not None]
        return cls(
            one([part.pairs for part in parts], "pair_id", pairs),
            one([part.tokens for part in parts], "pair_id", pairs),
            one(answers, "prompt_id", prompts) if answers else None,
            next((part.way for part in parts if part.way is not None), None),
            next((part.unanswered for part in parts if part.unanswered is not None), None),
        )

    def with_rows_of(self, stored: Measured | None) -> Measured:
        """Its answers, and the rows that were taken from a store instead."""
        return self if stored is None else replace(self, pairs=stored.pairs, tokens=stored.tokens)

    def as_reference(self) -> Measured:
        """The same rows as the reference's."""
        frames = (self.pairs, self.tokens)
        pairs, tokens = (frame.assign(role=REFERENCE, step=0) if len(frame) else frame for frame in frames)
        outputs = None if self.outputs is None else self.outputs.assign(model=REFERENCE, step=0)
        return replace(self, pairs=pairs, tokens=tokens, outputs=outputs)


class ProbeReference:
    """One probe's reference.

    Args:
        given: as the caller named it, see `Probe`.
        split: of the probe's pairs.

    Raises:
        DiagError: something that names none.
    """

    def __init__(self, given: Reference, split: str) -> None:
        if given not in (None, False) and not isinstance(given, (str, os.PathLike)):
            raise DiagError(
                "not a reference", where="reference", got=repr(given),
                expected='None, "adapter", "start", a model, a run folder, or False',
            )  # fmt: skip
        self.given, self.split = given, split
        self.known = False
        """Whether its rows are recorded."""
        self._facts: dict[str, Any] = {}
        self._said = False

    def kind(self, model: Any, step: int, say: Callable[[str], None]) -> Kind | None:
        """What is to be measured now; None where nothing is."""
        if self.known or self.given is False:
            return None
        if self.given not in (None, "adapter", "start"):
            return "records" if (Path(self.given) / RUN_FILE).is_file() else "model"
        has_adapter = hasattr(model, "disable_adapter") and hasattr(model, "peft_config")
        if self.given == "adapter" or (self.given is None and has_adapter):
            if not has_adapter:
                raise DiagError(
                    "the model has no adapter to switch off", where="reference", got=type(model).__name__,
                    expected="a PEFT model", hint='reference="start" takes the model at step 0',
                )  # fmt: skip
            self._facts = {"kind": "ref adapter" if "ref" in model.peft_config else "adapter switched off"}
            return "adapter"
        if step == 0:
            self._facts = {"kind": "the policy before the first step", "step": 0}
            return "start"
        if not self._said:
            self._said = True
            say(f"no reference: it is the model at step 0, and the first step that was seen is {step}")
        return None

    def adapter_off(self, model: Any, measure: Measure) -> Measured:
        """The model without its adapter."""
        with reference_adapter(model):
            return measure(model)

    def other(self, model: Any, encoded: PairTokens, tokenizer: Any, measure: Measure) -> Measured:
        """The rows of a run that was scored before, or of a model that is loaded for it.

        Raises:
            DiagError: records that do not fit, a model that cannot be loaded or has another vocabulary.
        """
        name = os.fspath(self.given)  # type: ignore[arg-type]
        if (Path(name) / RUN_FILE).is_file():
            rows = reference_rows(name, encoded, tokenizer)
            self._facts = {"kind": "records", "source": name, **rows.described}
            split = {"split": self.split}
            return Measured(rows.pairs.assign(**split), rows.tokens.assign(**split))
        from dpo_diag.models.loading import describe_model, n_embeddings

        loader = _Loader(device=str(device_of(model)), policys=tokenizer)
        with loader.open(Checkpoint(name, REFERENCE)) as (reference, _):
            ours, theirs = n_embeddings(model), n_embeddings(reference)
            if ours != theirs:
                raise DiagError(
                    "the reference has another vocabulary than the policy", where="reference", expected=ours,
                    got=f"{theirs} embeddings", hint="take a reference of the same family",
                )  # fmt: skip
            self._facts = {"kind": "named model", **describe_model(reference, name, fingerprint=False)}
            return measure(reference)

    def describe(self) -> dict[str, Any]:
        """Fields of run.json's `reference`, as far as they are known here."""
        return {"fixed": True, **self._facts} if self._facts else {}


@dataclass
class _Loader(Loader):
    """The reference is given the policy's tokens, as in training: its folder needs no tokenizer."""

    policys: Any = None

    def tokenizer_of(self, checkpoint: Checkpoint) -> Any:
        return self.policys
