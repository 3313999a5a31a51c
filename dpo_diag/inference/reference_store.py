"""Reference log-probs that were computed once, for whoever needs them again: training, scoring, a callback (trl 3985).

A store is a folder; every entry is a run folder of its own that holds the rows of one reference, under the fingerprint
of all that decides them. What does not fit is not used, and the reason is said.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from dpo_diag.data.pairs import Row
from dpo_diag.errors import DiagError
from dpo_diag.inference.run_folders import added_to
from dpo_diag.inference.scored_reference import ScoredReference, reference_rows
from dpo_diag.models.adapters import reference_adapter, split_weights
from dpo_diag.models.loading import weights_fingerprint
from dpo_diag.models.packed.verify import Proved
from dpo_diag.models.packed.ways import Way
from dpo_diag.models.tokenizers import describe_tokenizer, tokenizer_fingerprint
from dpo_diag.records import Run
from dpo_diag.records.files import RUN_FILE
from dpo_diag.records.model_info import ReferenceKey
from dpo_diag.records.pair_id import content_hash, pair_id_of
from dpo_diag.records.schemas import EVAL_SPLIT

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from dpo_diag.inference.scoring import PairTokens, Scores

_WORDS = {
    "model": "the model's weights", "settings": "the model's configuration", "revision": "the revision",
    "adapter": "the adapter", "tokenizer": "the tokenizer", "template": "the chat template",
    "max_length": "max_length", "truncation_mode": "truncation_mode", "autocast": "autocast",
}  # fmt: skip
_NOT_COMPUTED = {
    "architectures", "transformers_version", "dtype", "torch_dtype", "use_cache", "return_dict", "output_attentions",
    "output_hidden_states", "initializer_range", "id2label", "label2id", "problem_type", "gradient_checkpointing",
}  # fmt: skip
"""Of a model's configuration what decides no log-prob, or is told by the weights; ids of special tokens and dropouts
neither."""
_SCALES = ("peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern")
"""Of an adapter's configuration what its weights do not tell."""


def reference_key(
    model: Any, tokenizer: PreTrainedTokenizerBase, max_length: int | None, truncation_mode: str, *,
    adapter_off: bool = False, autocast: torch.dtype | None = None,
) -> ReferenceKey:  # fmt: skip
    """The key of a model in memory as a reference. Reads every weight: about a second for a gigabyte.

    Args:
        model: not wrapped, not sharded.
        adapter_off: the reference is the model under its adapter, or with the one called "ref" where it has that.
        autocast: the type that its products are rounded to, where that is not the weights'.
    """
    with reference_adapter(model) if adapter_off else nullcontext():
        base, weights = split_weights(model)
        adapter = _adapter(model, weights) if weights and not (adapter_off and "ref" not in model.peft_config) else None
    template = getattr(tokenizer, "chat_template", None)
    return ReferenceKey(
        model=weights_fingerprint(base),
        revision=getattr(model.config, "_commit_hash", None),
        settings=_settings(model),
        adapter=adapter,
        tokenizer=tokenizer_fingerprint(tokenizer),
        template=content_hash(template) if template else None,
        max_length=max_length,
        truncation_mode=truncation_mode,
        autocast=None if autocast is None else str(autocast).removeprefix("torch."),
    )


def _settings(model: Any) -> str:
    """A hash of how a model uses its weights: the same ones under other rotary embeddings are another model."""
    return content_hash({
        name: str(value)
        for name, value in model.config.to_dict().items()
        if name not in _NOT_COMPUTED and not (name.startswith("_") or name.endswith("token_id") or "dropout" in name)
    })  # fmt: skip


def _adapter(model: Any, weights: Mapping[str, Any]) -> str:
    """A hash of the active adapter: its weights, and what they are scaled by."""
    active = [model.active_adapter] if isinstance(model.active_adapter, str) else model.active_adapter
    scales = [{name: str(getattr(model.peft_config[of], name, None)) for name in _SCALES} for of in active]
    return content_hash([weights_fingerprint(weights), scales])


@dataclass(frozen=True)
class ReferenceStore:
    """References' rows by their keys, in a folder that is made when it is first written to."""

    folder: Path

    def entry(self, key: ReferenceKey) -> Path:
        """The run folder of a key."""
        # A commit's name beside equal weights says nothing more.
        return self.folder / content_hash({k: v for k, v in asdict(key).items() if k != "revision"})

    def find(
        self, key: ReferenceKey, encoded: PairTokens, tokenizer: PreTrainedTokenizerBase, content: Mapping[str, str],
        tokens_of: Collection[str] = (), sums_alone: bool = False,
    ) -> tuple[ScoredReference | None, str]:  # fmt: skip
        """(the rows of these pairs or None, why not or where they are from).

        Args:
            content: pair_id -> the id that the pair's content gives it (`content_ids`): by that the store knows it.
            tokens_of: pairs whose tokens are wanted, too; those of others are not given.
            sums_alone: rows of sums and counts do, as a training keeps them; others want entropies and ranks.
        """
        entry = self.entry(key)
        if not (entry / RUN_FILE).is_file():
            return None, self._nearest(key)
        try:
            found = reference_rows(entry, encoded, tokenizer, content)
        except DiagError as error:
            return None, str(error)
        if not sums_alone and (bare := found.pairs["entropy_sum"].isna()).any():
            return None, f"{entry} holds {bare.sum()} of {len(bare)} responses as sums alone, which do for a training"
        scored = found.pairs.loc[found.pairs["n_tokens"].fillna(0) > 0, "pair_id"]
        wanted = set(tokens_of) & set(scored)
        if lacking := wanted - set(found.tokens["pair_id"]):
            return None, f"{entry} lacks the tokens of {len(lacking)} of {len(wanted)} pairs"
        tokens = found.tokens[found.tokens["pair_id"].isin(wanted)]
        return replace(found, tokens=tokens), f"the reference is taken from {entry}"

    def scores(
        self, key: ReferenceKey, encoded: PairTokens, tokenizer: PreTrainedTokenizerBase, content: Mapping[str, str],
        split: str, tokens: bool = True,
    ) -> tuple[Scores | None, str]:  # fmt: skip
        """`find`, as what scoring the reference on a split would have given, with or without its tokens."""
        from dpo_diag.inference.scoring import Scores

        found, why = self.find(
            key, encoded, tokenizer, content, [pair.pair_id for pair in encoded.pairs] if tokens else ()
        )
        if found is None:
            return None, why
        pairs, by_token = (frame.assign(split=split) for frame in (found.pairs, found.tokens))
        return Scores(pairs, by_token, None, Proved(Way())), why

    def put(
        self, key: ReferenceKey, pairs: pd.DataFrame, tokens: pd.DataFrame, described: Mapping[str, Any],
        tokenizer: PreTrainedTokenizerBase, content: Mapping[str, str],
    ) -> None:  # fmt: skip
        """Keep rows in the reference's role; a pair's rows of a table that the entry holds already stay as they are,
        but whole ones are laid beside sums alone."""
        with added_to(self.entry(key)) as (writer, _):
            run = Run(writer.path)
            writer.update(
                reference={**described, "key": asdict(key)}, tokenizer=describe_tokenizer(tokenizer), logps="sum"
            )
            for table, frame in (("tokens", tokens), ("pairs", pairs)):
                ids = frame["pair_id"].map(content)
                known = run.read(table)
                if table == "pairs" and "entropy_sum" in frame:
                    known = known[known["entropy_sum"].notna()]
                there = set(known["pair_id"])
                new = frame.assign(pair_id=ids, split=EVAL_SPLIT)[~ids.isin(there)]
                writer.write(table, new, split=f"ref-{content_hash(sorted(set(new['pair_id'])))}")

    def _nearest(self, key: ReferenceKey) -> str:
        """Why nothing fits: by the entry that has most in common."""
        best: tuple[int, list[str]] | None = None
        for file in sorted(self.folder.glob(f"*/{RUN_FILE}")):
            other = Run(file.parent).info.reference.key
            if other is None:
                continue
            unlike = unlike_parts(key, other)
            if best is None or len(unlike) < best[0]:
                best = len(unlike), unlike
        if best is None:
            return f"the reference store {self.folder} is empty"
        return f"nothing in the reference store {self.folder} fits: {'; '.join(best[1])}"


def unlike_parts(key: ReferenceKey, other: ReferenceKey) -> list[str]:
    """What two keys do not share, a few words each: here, and there."""
    parts = []
    for name, words in _WORDS.items():
        here, there = getattr(key, name), getattr(other, name)
        if name == "revision" or here == there or (name == "tokenizer" and key.template != other.template):
            continue
        plain = name in ("max_length", "truncation_mode", "autocast")
        parts.append(
            f"{words} is {here} here and {there} there" if plain else f"{words} differ{'' if name == 'model' else 's'}"
        )
    return parts


def content_ids(rows: Sequence[Row]) -> dict[str, str]:
    """pair_id -> the id that the pair's content gives it."""
    return {row["pair_id"]: pair_id_of(row) for row in rows}


def open_store(folder: str | os.PathLike[str] | None) -> ReferenceStore | None:
    """The store of a folder; None for None."""
    return None if folder is None else ReferenceStore(Path(folder).expanduser())
