"""A training's precomputed reference out of a store and into it: TRL's numbers to the last bit, asked for once."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from transformers import PreTrainedTokenizerFast
from trl import DPOTrainer

from dpo_diag import load_run
from dpo_diag.errors import DiagError
from dpo_diag.inference.reference_store import reference_key
from dpo_diag.inference.score_run import score_checkpoints
from dpo_diag.models.checkpoints import Checkpoint
from dpo_diag.training import DiagDPOTrainer

from .test_reference_proof import adapted
from .tiny import arguments, copies, make_model, make_pairs

SUMS = ("ref_chosen_logps", "ref_rejected_logps")


def sums_of(kind: Any, folder: Path, tokenizer: Any, asked: list[int], model: Any = None, **options: Any) -> Any:
    """(trainer, float32 (11 + 4 pairs, 2) of its sets); `asked` counts the reference's forwards."""
    given = {"reference_store": options.pop("store")} if "store" in options else {}

    class Counted(kind):  # type: ignore[misc]
        def compute_ref_log_probs(self, *args: Any) -> Any:
            asked.append(1)
            return super().compute_ref_log_probs(*args)

    trainer = Counted(
        model=make_model(1) if model is None else model,
        args=arguments(folder, precompute_ref_log_probs=True, **options), processing_class=tokenizer,
        train_dataset=Dataset.from_list(make_pairs(11)), eval_dataset=Dataset.from_list(make_pairs(4, seed=1)),
        **given,
    )  # fmt: skip
    sets = [[d[name][:] for name in SUMS] for d in (trainer.train_dataset, trainer.eval_dataset)]
    return trainer, np.concatenate([np.array(s, dtype=np.float32).T for s in sets])


def test_trls_sums_are_kept_and_taken(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    """Without and with an empty store TRL asks for 11 pairs in batches of 3 and for 4 in one of 4: five forwards; from
    the store none, and all three hold the same bits. Another cut of the pairs does not fit, and the line says so."""
    asked: list[int] = []
    theirs = sums_of(DPOTrainer, tmp_path / "trl", tokenizer, asked)[1]
    assert (len(asked), theirs.shape) == (5, (15, 2))
    said = []
    for name, options, forwards in (("first", {}, 5), ("second", {}, 0), ("cut", {"max_length": 9}, 5)):
        asked.clear()
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            own = sums_of(DiagDPOTrainer, tmp_path / name, tokenizer, asked, store=tmp_path / "store", **options)[1]
        said.append(" ".join(record.getMessage() for record in caplog.records))
        assert len(asked) == forwards, name
        assert np.array_equal(own, theirs) == (name != "cut")
    assert "is empty" in said[0] and "the reference is taken from" in said[1]
    assert "max_length is 9 here and 1024 there" in said[2]


@pytest.mark.slow
def test_scoring_and_training_share(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """A training keeps sums alone, which do not do for scoring: that computes whole rows, after which both are served.
    From rows that scoring wrote a training differs by rounding."""
    make_model(1).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    pairs, asked, lines = make_pairs(11) + make_pairs(4, seed=1), list[int](), list[str]()

    def score(name: str, store: str) -> Any:
        lines.clear()
        score_checkpoints(
            [Checkpoint(str(tmp_path / "base"), "ref")], pairs, tmp_path / name, reference_store=tmp_path / store,
            progress=False, say=lines.append, tokens=False,
        )  # fmt: skip
        return load_run(tmp_path / name).read("pairs").set_index(["pair_id", "side"])

    trained = sums_of(DiagDPOTrainer, tmp_path / "a", tokenizer, asked, store=tmp_path / "store")[1]
    for name, line in (("s1", "as sums alone, which do for a training"), ("s2", "the reference is taken from")):
        rows = score(name, "store")
        assert any(line in said for said in lines), lines
        assert len(rows) == 30 and rows["entropy_sum"].notna().all()
    asked.clear()
    score("s3", "other")
    trainer, own = sums_of(DiagDPOTrainer, tmp_path / "b", tokenizer, asked, store=tmp_path / "other", max_steps=1)
    assert not asked
    np.testing.assert_allclose(own, trained, atol=1e-5, rtol=0)
    reference = trainer.describe()["reference"]
    assert reference["kind"] == "precomputed" and reference["source"].startswith(str(tmp_path / "other"))


def test_a_store_needs_sums(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """Without precomputing nothing would read it; LD-DPO's weighted sums are no one else's."""
    with pytest.raises(DiagError, match="read before training"):
        DiagDPOTrainer(
            model=make_model(1), args=arguments(tmp_path), processing_class=tokenizer,
            train_dataset=Dataset.from_list(make_pairs(3)), reference_store=tmp_path / "store",
        )  # fmt: skip
    asked: list[int] = []
    sums_of(DiagDPOTrainer, tmp_path / "ld", tokenizer, asked, store=tmp_path / "store", ld_alpha=0.5)
    assert len(asked) == 5 and not (tmp_path / "store").exists()


def test_the_key_of_an_adapters_own_reference(tokenizer: PreTrainedTokenizerFast) -> None:
    """A model that goes on from an adapter has that one as its reference (TRL's "ref"), not the bare model; as the
    policy moves on, the reference's key stays."""
    start = adapted(make_model(1))
    key = reference_key(start, tokenizer, 64, "keep_start")
    policy = copies(start)
    policy.add_adapter("ref", policy.peft_config["default"])
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    set_peft_model_state_dict(policy, get_peft_model_state_dict(start), adapter_name="ref")
    for parameter in (p for name, p in policy.named_parameters() if ".default" in name):
        parameter.data += 1
    assert reference_key(policy, tokenizer, 64, "keep_start", adapter_off=True) == key
    assert reference_key(policy, tokenizer, 64, "keep_start").adapter != key.adapter
    assert policy.active_adapter == "default"
