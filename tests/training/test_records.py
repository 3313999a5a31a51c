"""A run's records: what is in pairs/, tokens/, history/, texts/ and run.json equals a plain loop over the pairs."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerFast

from dpo_diag import load_run
from dpo_diag.records import make_pair_id
from dpo_diag.training import DiagDPOTrainer
from tests.declared import assert_declared

from .tiny import arguments, copies, make_model, make_pairs


def plain(model, tokenizer, prompt: str, response: str) -> torch.Tensor:
    """Log-probs of the response's tokens (end of text included) from full logits, one sequence, float64 log-softmax."""
    context = tokenizer(prompt)["input_ids"]
    ids = tokenizer(prompt + response + tokenizer.eos_token)["input_ids"]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids])).logits[0, :-1].double()
    logp = logits.log_softmax(-1).gather(-1, torch.tensor(ids[1:]).unsqueeze(-1)).squeeze(-1)
    return logp[len(context) - 1 :]


def test_a_run_holds_what_a_plain_loop_gives(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, pairs: Dataset, held_out: Dataset
) -> None:
    policy, reference = make_model(1), make_model(2)
    start, ref = copies(policy), copies(reference)
    trainer = DiagDPOTrainer(
        model=policy, ref_model=reference, args=arguments(tmp_path / "out", eval_strategy="steps", eval_steps=2),
        train_dataset=pairs, eval_dataset=held_out, processing_class=tokenizer, recorder=tmp_path / "run",
    )  # fmt: skip
    trainer.train()
    run = load_run(tmp_path / "run")
    assert run.meta["status"] == "finished"
    assert_declared(run)
    rows = run.pairs
    at = rows[(rows["split"] == "eval") & (rows["step"] == 0)].set_index(["pair_id", "side"])
    assert len(at) == 20
    for example in held_out:
        pair_id = make_pair_id(example["prompt"], example["chosen"], example["rejected"])
        for side in ("chosen", "rejected"):
            expected = plain(start, tokenizer, example["prompt"], example[side])
            row = at.loc[(pair_id, side)]
            assert row["sum_logp"] == pytest.approx(float(expected.sum()), abs=1e-4)
            assert row["n_tokens"] == len(expected)
            assert row["n_bytes"] == len(example[side].encode())
            assert row["n_truncated"] == 0
            assert row["ref_sum_logp"] == pytest.approx(
                float(plain(ref, tokenizer, example["prompt"], example[side]).sum()), abs=1e-4
            )
    # token rows add up to the sums exactly
    tokens = run.tokens
    sums = tokens.groupby(["step", "split", "pair_id", "side"])["logp"].apply(lambda v: math.fsum(v.astype(float)))
    both = rows.set_index(["step", "split", "pair_id", "side"])["sum_logp"].loc[sums.index]
    assert np.abs(sums - both).max() < 1e-9
    # every training batch, every step
    assert rows[rows["split"] == "train"].groupby("step").size().to_dict() == {1: 6, 2: 6, 3: 6, 4: 4}
    # the last evaluation is of the model as it is now
    last = rows[(rows["split"] == "eval") & (rows["step"] == 4)].set_index(["pair_id", "side"])
    example = make_pairs(10, seed=1)[3]
    pair_id = make_pair_id(example["prompt"], example["chosen"], example["rejected"])
    now = float(plain(policy, tokenizer, example["prompt"], example["chosen"]).sum())
    assert last.loc[(pair_id, "chosen"), "sum_logp"] == pytest.approx(now, abs=1e-4)
    texts = run.texts.set_index("pair_id").loc[pair_id]
    assert (texts["prompt"], texts["chosen"], texts["rejected"]) == (
        example["prompt"], example["chosen"], example["rejected"],
    )  # fmt: skip
