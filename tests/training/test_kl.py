"""The KL from the reference on an evaluation's own tokens, against whole softmaxes of single sequences."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import PreTrainedTokenizerFast

from dpo_diag import load_run
from dpo_diag.records import make_pair_id
from dpo_diag.training import DiagDPOTrainer, DiagSFTTrainer
from tests.declared import assert_declared

from . import test_sft
from .tiny import arguments, make_model, make_pairs

ROWS = [{"prompt": r["prompt"], "completion": r["chosen"]} for r in make_pairs(5)]
LORA = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", init_lora_weights=False)


def plain(policy: Any, reference: Any, tokenizer: Any, prompt: str, response: str) -> tuple[Any, Any, int]:
    """(KL(policy || reference), KL(reference || policy)) where each token but the first is predicted, and how many of
    them are the prompt's."""
    ids = torch.tensor([tokenizer(prompt + response + tokenizer.eos_token)["input_ids"]])
    with torch.no_grad():
        p, q = (m.eval()(input_ids=ids).logits[0, :-1].double().log_softmax(-1) for m in (policy, reference))
    return (p.exp() * (p - q)).sum(-1), (q.exp() * (q - p)).sum(-1), len(tokenizer(prompt)["input_ids"]) - 1


def train_dpo(folder: Path, tokenizer: Any, *, lora: bool, **options: Any) -> tuple[Any, Any]:
    """(trainer, reference): two steps, evaluated at 0 and 2."""
    base = make_model(1)
    reference = copy.deepcopy(base) if lora else make_model(2)
    trainer = DiagDPOTrainer(
        model=base, ref_model=None if lora else reference, peft_config=LORA if lora else None,
        args=arguments(folder / "out", eval_strategy="steps", eval_steps=2, max_steps=2, learning_rate=1e-2),
        train_dataset=Dataset.from_list(make_pairs(6)), eval_dataset=Dataset.from_list(make_pairs(5, seed=1)),
        processing_class=tokenizer, recorder=folder / "run", record_tokens=3, **options,
    )  # fmt: skip
    trainer.train()
    return trainer, copy.deepcopy(reference)


@pytest.mark.parametrize(("lora", "shared"), [(False, "off"), (False, "on"), (True, "off")])
def test_a_dpo_run_holds_what_whole_softmaxes_give(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, lora: bool, shared: str
) -> None:
    """Pairs, tokens and history; prompts and padding are not in it, training batches are not measured, and a reference
    has no rows of it."""
    trainer, reference = train_dpo(tmp_path, tokenizer, lora=lora, kl=True, shared_prefix=shared)
    run = load_run(tmp_path / "run")
    assert_declared(run)
    last, tokens = (t[(t["split"] == "eval") & (t["step"] == 2)] for t in (run.pairs, run.tokens))
    of_side: dict[str, list[float]] = {"chosen": [], "rejected": []}
    for row in make_pairs(5, seed=1):
        pair_id = make_pair_id(**row)
        for side, sums in of_side.items():
            reverse, forward, prompt = plain(trainer.model, reference, tokenizer, row["prompt"], row[side])
            own = last[(last["pair_id"] == pair_id) & (last["side"] == side)].iloc[0]
            assert own["kl_reverse_sum"] == pytest.approx(float(reverse[prompt:].sum()), rel=1e-4)
            assert own["kl_forward_sum"] == pytest.approx(float(forward[prompt:].sum()), rel=1e-4)
            assert abs(own["kl_reverse_sum"] / own["kl_forward_sum"] - 1) > 1e-3
            sums += reverse[prompt:].tolist()
            at = tokens[(tokens["pair_id"] == pair_id) & (tokens["side"] == side)]
            if len(at):
                assert at["kl_reverse"].tolist() == pytest.approx(reverse[prompt:].tolist(), rel=1e-4)
                assert at["kl_forward"].tolist() == pytest.approx(forward[prompt:].tolist(), rel=1e-4)
                assert math.fsum(at["kl_reverse"].astype(float)) == pytest.approx(own["kl_reverse_sum"], abs=1e-9)
    history = run.history[(run.history["split"] == "eval") & (run.history["step"] == 2)].set_index("name")["value"]
    for side, values in of_side.items():
        assert history[f"kl_reverse/{side}"] == pytest.approx(sum(values) / len(values), rel=1e-4)
    assert tokens["pair_id"].nunique() == 3
    assert run.pairs.loc[run.pairs["split"] == "train", "kl_reverse_sum"].isna().all()
    assert "kl_reverse/chosen" not in set(run.history.loc[run.history["split"] == "train", "name"])


def test_losses_are_the_same_with_it_and_it_is_off_by_default(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    runs = [
        train_dpo(tmp_path / str(kl), tokenizer, lora=True, **({"kl": True} if kl else {}))[0] for kl in (True, False)
    ]
    pick = ("loss", "eval_loss", "grad_norm", "eval_logps/chosen")
    logs = [[{k: row[k] for k in pick if k in row} for row in t.state.log_history] for t in runs]
    assert logs[0] == logs[1]
    assert [any("kl_" in name for row in t.state.log_history for name in row) for t in runs] == [True, False]


def train_sft(folder: Path, tokenizer: Any, **options: Any) -> Any:
    trainer = DiagSFTTrainer(
        args=test_sft.arguments(folder / "out"), train_dataset=Dataset.from_list(ROWS),
        eval_dataset=Dataset.from_list(ROWS), processing_class=tokenizer, recorder=folder / "run", **options,
    )  # fmt: skip
    trainer.train()
    return trainer


@pytest.mark.parametrize(("lora", "tiled"), [(False, True), (True, False)])
def test_an_sft_run_holds_it_of_response_and_prompt(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, lora: bool, tiled: bool
) -> None:
    base = make_model(1)
    reference = copy.deepcopy(base) if lora else make_model(2)
    compared = {"peft_config": LORA} if lora else {"ref_model": copy.deepcopy(reference)}
    trainer = train_sft(tmp_path, tokenizer, model=base, kl=True, tiled_head=tiled, **compared)
    run = load_run(tmp_path / "run")
    history = run.history[(run.history["split"] == "eval") & (run.history["step"] == 2)].set_index("name")["value"]
    sums = {(way, part): [0.0, 0] for way in ("reverse", "forward") for part in ("response", "prompt")}
    tokens = run.tokens[run.tokens["step"] == 2].groupby("pair_id")["kl_reverse"].apply(list).tolist()
    for row in ROWS:
        *both, prompt = plain(trainer.model, reference, tokenizer, row["prompt"], row["completion"])
        for way, values in zip(("reverse", "forward"), both, strict=True):
            for part, own in (("response", values[prompt:]), ("prompt", values[:prompt])):
                sums[way, part][0] += float(own.sum())
                sums[way, part][1] += len(own)
        assert any(found == pytest.approx(both[0][prompt:].tolist(), rel=1e-4) for found in tokens)
    for (way, part), (total, n) in sums.items():
        assert history[f"kl_{way}/{part}"] == pytest.approx(total / n, rel=1e-4), (way, part)
    if not lora:
        assert all(
            torch.equal(a, b) for a, b in zip(trainer.ref_model.parameters(), reference.parameters(), strict=True)
        )


def test_where_nothing_can_be_compared_a_line_says_so(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    train_sft(tmp_path, tokenizer, model=make_model(1), kl=True)
    said = "KL from the reference on the data: not applicable"
    assert f"{said}, the trainer holds no reference model, and the model no adapter to switch off" in caplog.text
    assert not any(name.startswith("kl_") for name in load_run(tmp_path / "run").history["name"].unique())
    DiagDPOTrainer(
        model=make_model(1), processing_class=tokenizer, train_dataset=Dataset.from_list(make_pairs(3)), kl=True,
        args=arguments(tmp_path / "out", loss_type="sigmoid", precompute_ref_log_probs=True),
    )  # fmt: skip
    assert f"{said}, the reference was precomputed, and its sums hold no distributions" in caplog.text
    other = make_model(2)
    other.resize_token_embeddings(310)
    trainer = train_sft(tmp_path / "other", tokenizer, model=make_model(1), kl=True, ref_model=other)
    assert f"{said}, the model's head has 300 tokens and the reference's 310" in caplog.text
    assert not any("kl_" in name for row in trainer.state.log_history for name in row)
