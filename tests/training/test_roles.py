"""An evaluation set's role is what the caller says, else what its pairs say; its name only where neither does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from transformers import PreTrainedTokenizerFast

from dpo_diag import load_run
from dpo_diag.errors import DiagError
from dpo_diag.training import DiagDPOTrainer

from .tiny import arguments, make_model, make_pairs


def splits_of(folder: Path, tokenizer: Any, train: Any, sets: Any, roles: Any = None) -> dict[str, Any]:
    trainer = DiagDPOTrainer(
        model=make_model(1), ref_model=make_model(2), processing_class=tokenizer, recorder=folder / "run",
        args=arguments(folder / "out", max_steps=1, eval_strategy="steps", eval_steps=1,
                       accelerator_config={"dispatch_batches": False}),
        train_dataset=train, eval_dataset=sets, eval_roles=roles,
    )  # fmt: skip
    trainer.train()
    trainer.evaluate(Dataset.from_list(make_pairs(3)), metric_key_prefix="eval_again")
    splits = load_run(folder / "run").info.splits
    return {name: (s.role, s.role_from, s.in_training) for name, s in splits.items() if name != "train"}


def test_pairs_say_what_names_cannot(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """`unseen_train` has no training pair and `check` nothing else; 2 of 6 leave `mixed` a held-out set."""
    train, other = make_pairs(11), make_pairs(6, seed=1)
    sets = {"unseen_train": other, "check": train[:4], "mixed": [*other[:4], *train[:2]], "said": other[:2]}
    found = splits_of(
        tmp_path, tokenizer, Dataset.from_list(train), {k: Dataset.from_list(v) for k, v in sets.items()},
        {"said": "other"},
    )  # fmt: skip
    assert found == {
        "eval_unseen_train": ("held_out", "pairs", 0), "eval_check": ("train_probe", "pairs", 4),
        "eval_mixed": ("held_out", "pairs", 2), "eval_said": ("other", "given", 0),
        "eval_again": ("train_probe", "pairs", 3),
    }  # fmt: skip


def test_where_the_training_pairs_are_not_known_the_name_says_it(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    """A stream's pairs are not known before it is read."""
    stream = Dataset.from_list(make_pairs(11)).to_iterable_dataset()
    found = splits_of(tmp_path, tokenizer, stream, Dataset.from_list(make_pairs(4)), {"": "train_probe"})
    assert found == {"eval": ("train_probe", "given", None), "eval_again": ("held_out", "name", None)}


def test_an_unknown_role_is_an_error(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(DiagError, match=r"unknown role; in eval_roles; got probe; expected one of held_out, train_p"):
        DiagDPOTrainer(
            model=make_model(1), args=arguments(tmp_path), train_dataset=Dataset.from_list(make_pairs(3)),
            ref_model=make_model(2), processing_class=tokenizer, eval_roles={"": "probe"},
        )  # fmt: skip
