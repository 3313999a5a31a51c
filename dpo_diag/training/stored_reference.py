"""The reference's sums of a training out of a reference store, and TRL's own into it (trl 3985): what a training
precomputes, the next one, a scoring or a probe of the same pairs need not."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from accelerate.utils import broadcast_object_list
from datasets import Dataset, concatenate_datasets

from dpo_diag.data.token_bytes import token_bytes
from dpo_diag.data.tokens import EncodedPair, cut
from dpo_diag.errors import DiagError
from dpo_diag.inference.reference_store import ReferenceStore, open_store, reference_key
from dpo_diag.inference.scoring import PairTokens
from dpo_diag.models.batches import padding_id
from dpo_diag.models.loading import describe_model
from dpo_diag.models.wrapped import is_sharded
from dpo_diag.records.model_info import ReferenceKey
from dpo_diag.records.pair_id import pair_id_of
from dpo_diag.records.schemas import EVAL_SPLIT, SIDES
from dpo_diag.training.pair_ids import KEY, unpack_id, with_prompt
from dpo_diag.training.trl_adapter import REF_SUMS, why_not_plain_sums

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
Found = tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]
"""Sums of each pair's chosen and rejected response under the reference, (pairs,) each, as TRL keeps them."""


class StoredReference:
    """Stands around TRL's `_precompute_ref_logps`; without a store, or where it cannot serve, TRL's own is all.

    Args:
        trainer: TRL's, whose reference it is.
        folder: of the store; None for none.
        say: gets a line: where the sums are from, or why not from the store.

    Attributes:
        facts: fields of run.json's `reference`; empty where no store is used.
    """

    def __init__(self, trainer: Any, folder: str | os.PathLike[str] | None, say: Callable[[str], None]) -> None:
        self.store: ReferenceStore | None = open_store(folder)
        self.facts: dict[str, Any] = {}
        self._trainer, self._say = trainer, say
        self._content: dict[str, str] = {}
        self._key: ReferenceKey | None = None
        self._kept = False
        self._said: set[str] = set()

    def add(self, dataset: Any) -> None:
        """Learn what the pairs of a data set hold, before it is tokenised."""
        if self.store is None or not isinstance(dataset, Dataset) or KEY not in dataset.column_names:
            return
        for row in dataset:
            if row[KEY][0]:
                self._content[unpack_id(row[KEY][0])] = pair_id_of(with_prompt(row))

    def precomputed(self, dataset: Any, compute: Callable[[], Any]) -> Any:
        """The tokenised data set with the reference's sums: from the store, or as `compute` (TRL) gives it, and kept.

        Under several processes rank 0 reads and writes the store, and all take what it found.
        """
        if self.store is None:
            return compute()
        main, answer = self._trainer.accelerator.is_main_process, list[Found | None]([None])
        ids: list[str] = []
        encoded = None
        if (why := self._unfit(dataset)) is not None:
            self._tell(f"the reference store is not used: {why}")
            return compute()
        if main:
            ids, encoded = self._encoded(dataset)
            answer = [self._find(ids, encoded)]
        broadcast_object_list(answer)
        if answer[0] is not None:
            sums = Dataset.from_dict(dict(zip(REF_SUMS, answer[0], strict=True)))
            return concatenate_datasets([dataset, sums], axis=1)
        done = compute()
        if main and encoded is not None:
            self._keep(ids, encoded, done)
        return done

    # ---- what decides ----

    @property
    def _model(self) -> Any:
        """The reference, unwrapped; the policy where it is its own."""
        trainer = self._trainer
        return trainer.accelerator.unwrap_model(trainer.ref_model or trainer.model)

    def _unfit(self, dataset: Any) -> str | None:
        """Why a store cannot hold these sums; None where it can."""
        if (why := why_not_plain_sums(self._trainer)) is not None:
            return why
        try:
            if is_sharded(self._model):
                return "the reference is sharded over processes"
        except DiagError as error:
            return str(error)
        known = isinstance(dataset, Dataset) and {KEY, "prompt_ids", "chosen_ids"} <= set(dataset.column_names)
        if not known or any(unpack_id(key[0]) not in self._content for key in dataset[KEY][:]):
            return "the data set does not bring the pairs' texts"
        return None

    def _encoded(self, dataset: Any) -> tuple[list[str], PairTokens]:
        """(each row's pair, the pairs as TRL's collator cuts them)."""
        arguments, tokenizer = self._trainer.args, self._trainer._tokenizer
        pairs: dict[str, EncodedPair] = {}
        ids = []
        for i, row in enumerate(dataset.select_columns([KEY, "prompt_ids", "chosen_ids", "rejected_ids"])):
            prompt = list(row["prompt_ids"])
            wholes = (prompt, prompt + list(row["chosen_ids"]), prompt + list(row["rejected_ids"]))
            ids.append(unpack_id(row[KEY][0]))
            about = {"row": i, "pair_id": ids[-1]}
            pairs[ids[-1]] = cut(about, wholes, arguments.max_length, arguments.truncation_mode)
        return ids, PairTokens([*pairs.values()], [], token_bytes(tokenizer), [], padding_id(tokenizer))

    # ---- reading and writing ----

    def _find(self, ids: list[str], encoded: PairTokens) -> Found | None:
        assert self.store is not None
        trainer = self._trainer
        if self._key is None:
            self._key = reference_key(
                self._model, trainer._tokenizer, trainer.args.max_length, trainer.args.truncation_mode,
                adapter_off=trainer.ref_model is None and hasattr(self._model, "peft_config"),
                autocast=_AUTOCAST.get(trainer.accelerator.mixed_precision),
            )  # fmt: skip
        self.facts = {"key": self._key, "source": str(self.store.entry(self._key))}
        wanted = {pair_id: self._content[pair_id] for pair_id in ids}
        found, why = self.store.find(self._key, encoded, trainer._tokenizer, wanted, sums_alone=True)
        if found is not None or not self._kept:
            self._tell(why)  # a store that this training itself began to fill lacks the next set's pairs
        if found is None:
            return None
        sums = found.pairs.set_index(["side", "pair_id"])["sum_logp"]
        chosen, rejected = (sums.loc[side].loc[ids].to_numpy(dtype=np.float32) for side in SIDES)
        return chosen, rejected

    def _keep(self, ids: list[str], encoded: PairTokens, done: Any) -> None:
        """TRL's sums into the store; one that takes nothing stops no training."""
        assert self.store is not None and self._key is not None
        sums = {name: dict(zip(ids, done[name][:], strict=True)) for name in REF_SUMS}
        rows = []
        for pair in encoded.pairs:
            for side, name in zip(SIDES, REF_SUMS, strict=True):
                scored = pair.scored(side)
                rows.append({
                    "step": 0, "split": EVAL_SPLIT, "role": "ref", "pair_id": pair.pair_id, "side": side,
                    "sum_logp": float(sums[name][pair.pair_id]), "n_tokens": len(scored),
                    "n_bytes": int(encoded.n_bytes[scored].sum()), "n_truncated": pair.n_truncated[side],
                })  # fmt: skip
        content = {pair_id: self._content[pair_id] for pair_id in ids}
        described = describe_model(self._model, self._model.config._name_or_path, fingerprint=False)
        tokenizer = self._trainer._tokenizer
        try:
            self.store.put(
                self._key, pd.DataFrame(rows), pd.DataFrame(columns=["pair_id"]), described, tokenizer, content
            )
            self._kept = True
        except (OSError, DiagError) as error:
            self._tell(f"the reference is not kept for others: {error}")

    def _tell(self, line: str) -> None:
        """Once, however many sets are precomputed."""
        if line not in self._said and self._trainer.accelerator.is_main_process:
            self._say(line)
        self._said.add(line)


def checked_store(args: Any, folder: str | os.PathLike[str] | None) -> None:
    """Raises DiagError: a store without precomputing, which is what reads and fills it."""
    if folder is not None and not getattr(args, "precompute_ref_log_probs", False):
        raise DiagError(
            "a reference store is read before training", where="reference_store",
            got="precompute_ref_log_probs=False", hint="DPOConfig(precompute_ref_log_probs=True)",
        )  # fmt: skip
