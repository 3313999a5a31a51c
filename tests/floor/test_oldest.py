"""The callback and the probe on the oldest versions that they bear (`make test-floor`, requirements.txt beside this)
and, as any other test, on the newest: torch, transformers and the records, no TRL, no datasets."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

from dpo_diag.records import load_run, make_pair_id
from dpo_diag.training import DiagCallback, Probe
from tests.inference.conftest import make_model, make_tokenizer

# What other versions of the libraries warn about is theirs.
pytestmark = pytest.mark.filterwarnings("ignore")
PAIRS = [
    {"prompt": f"question {i}: ", "chosen": f"answer {i}" + "!" * i, "rejected": "no " * (i + 1)} for i in range(4)
]
PROMPTS = [{"id": "plain", "prompt": "question 1: "}, {"id": "chat", "messages": [{"role": "user", "content": "hi"}]}]


class Seen(TrainerCallback):
    def __init__(self) -> None:
        self.states: list[Any] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        modes = [(name, m.training) for name, m in model.named_modules()]
        weights = {k: v.clone() for k, v in model.state_dict().items()}
        self.states.append((random.getstate(), torch.get_rng_state().tolist(), modes, weights))


def trained(folder: Path, callbacks: list[Any], model: Any) -> list[float]:
    tokenizer = make_tokenizer()
    rows = [tokenizer(row["prompt"] + row["chosen"]) for row in PAIRS]
    examples = [{"input_ids": r["input_ids"], "labels": r["input_ids"]} for r in rows]
    args = TrainingArguments(
        str(folder), max_steps=4, logging_steps=1, per_device_train_batch_size=1, learning_rate=1e-2, seed=3,
        report_to=[], save_strategy="no", disable_tqdm=True, use_cpu=True,
    )  # fmt: skip
    trainer = Trainer(
        model, args, train_dataset=examples, callbacks=callbacks, processing_class=tokenizer,
        data_collator=lambda batch: {k: torch.tensor([e[k] for e in batch]) for k in batch[0]},
    )  # fmt: skip
    trainer.train()
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


def sums(model: Any) -> dict[tuple[str, str], float]:
    """Each response's log-prob sum, one sequence at a time, from full logits."""
    tokenizer, found = make_tokenizer(), {}
    for row in PAIRS:
        for side in ("chosen", "rejected"):
            prompt, whole = tokenizer(row["prompt"])["input_ids"], tokenizer(row["prompt"] + row[side])["input_ids"]
            ids = torch.tensor([[*whole, tokenizer.eos_token_id]])
            with torch.no_grad():
                logp = model.eval()(input_ids=ids).logits[0, :-1].double().log_softmax(-1)
            own = logp.gather(1, ids[0, 1:, None])[len(prompt) - 1 :, 0]
            found[make_pair_id(row["prompt"], row["chosen"], row["rejected"]), side] = float(own.sum())
    return found


def test_a_training_with_and_without(tmp_path: Path) -> None:
    """Losses, random states, modes and weights are the same to the last bit with dropout; rows are those of a plain
    loop over the weights of their step; every row stands once, and the run is whole."""
    found = []
    for name in ("with", "without"):
        seen = Seen()
        own = [DiagCallback(PAIRS, PROMPTS, tmp_path / "run", every=3, decoding={"max_new_tokens": 3})]
        losses = trained(tmp_path / name, [*(own if name == "with" else []), seen], make_model(1))
        found.append((losses, seen.states))
    (a, b), (x, y) = found
    assert a == x and len(a) == 4
    for one, two in zip(b, y, strict=True):
        assert one[:3] == two[:3]
        assert all(torch.equal(one[3][name], two[3][name]) for name in one[3])
    run = load_run(tmp_path / "run")
    assert run.alerts["message"].tolist() == [] and run.info.status == "finished"
    assert sorted(set(run.pairs["step"])) == [0, 3, 4]
    for step in (0, 3):
        model = make_model(1)
        model.load_state_dict(b[step][3])
        rows = run.pairs[run.pairs["step"] == step].set_index(["pair_id", "side"])["sum_logp"]
        assert rows.to_dict() == {key: pytest.approx(value, abs=1e-4) for key, value in sums(model).items()}
    assert run.outputs.groupby(["model", "step"]).size().to_dict() == {
        ("policy", 0): 2, ("policy", 3): 2, ("policy", 4): 2, ("ref", 0): 2,
    }  # fmt: skip
    logged = run.history.query("split == 'train' and name == 'loss'")["value"]
    np.testing.assert_array_equal(logged, a)
    assert run.info.model.architecture == "LlamaForCausalLM"


def test_an_adapter_is_its_own_reference(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    lora = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    probe = Probe(PAIRS, out=tmp_path / "run", loss={"beta": 0.5}, reference_store=tmp_path / "store")
    metrics = probe.score(peft.get_peft_model(make_model(1), lora), make_tokenizer(), 0)
    probe.finish()
    rows = load_run(tmp_path / "run").pairs.set_index(["pair_id", "side"])
    assert rows["ref_sum_logp"].to_dict() == {
        key: pytest.approx(value, abs=1e-4) for key, value in sums(make_model(1)).items()
    }
    ratios = (rows["sum_logp"] - rows["ref_sum_logp"]).groupby("side", observed=True).mean()
    assert metrics["rewards/margins"] == pytest.approx(0.5 * (ratios["chosen"] - ratios["rejected"]), abs=1e-6)
