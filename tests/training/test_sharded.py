"""A model that is sharded over processes (FSDP2) gives the records and metrics of one process, to 1e-5; what is not
done then is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from accelerate.data_loader import BatchSamplerShard, DataLoaderShard, skip_first_batches
from torch.utils.data import BatchSampler, SequentialSampler

from dpo_diag import load_run
from dpo_diag.training.carrying import remainder_of

from .test_distributed import OF_A_PROCESS, finished, launch, ours

SCRIPT = """
import json, sys
sys.path.insert(0, {tests!r})
from accelerate import state
from accelerate.utils import DistributedType
from datasets import Dataset
from peft import LoraConfig
from dpo_diag.training import DiagDPOTrainer, FixedPromptCallback
from training.tiny import arguments, make_model, make_pairs, make_tokenizer

folder, batch = sys.argv[1], int(sys.argv[2])
sharded = dict()
if batch == 2:
    # accelerate 1.15 shards over accelerators alone: processes on a CPU pass for such.
    original = state.PartialState.__init__
    def several(self, cpu=False, **options):
        original(self, cpu, **options)
        if self._shared_state["distributed_type"] == DistributedType.MULTI_CPU:
            self._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    state.PartialState.__init__ = several
    sharded = dict(fsdp=True, fsdp_config={{
        "version": 2, "auto_wrap_policy": "TRANSFORMER_BASED_WRAP", "state_dict_type": "FULL_STATE_DICT",
        "transformer_layer_cls_to_wrap": ["LlamaDecoderLayer"], "reshard_after_forward": True,
    }})
rows, held = make_pairs(11), make_pairs(7, seed=1)
lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
history = []
for name, own, resumed in (
    ("full", dict(ref_model=make_model(2), shared_prefix="auto"), None),
    ("again", dict(ref_model=make_model(2)), folder + "/full/checkpoint-1"),
    ("lora", dict(peft_config=lora), None),
):
    answers = FixedPromptCallback(lambda *a, **k: [{{"prompt_id": "p", "sample": 0, "text": "x"}}], ["p"])
    trainer = DiagDPOTrainer(
        model=make_model(1), processing_class=make_tokenizer(), recorder=folder + "/runs/" + name,
        args=arguments(folder + "/" + name, per_device_train_batch_size=batch, per_device_eval_batch_size=3,
                       max_steps=3, logging_steps=3, eval_strategy="steps", eval_steps=2, save_strategy="steps",
                       save_steps=1, **sharded),
        train_dataset=Dataset.from_list(rows), record_tokens=4, extra_metrics=("top5", "greedy_logp"),
        eval_dataset={{"held": Dataset.from_list(held + held[:1])}}, callbacks=[answers] if name == "full" else [],
        **own,
    )
    trainer.train(resume_from_checkpoint=resumed)
    if sharded:
        assert type(trainer.model_wrapped).__name__.startswith("FSDP"), type(trainer.model_wrapped)
    history.append(trainer.state.log_history)
if trainer.accelerator.is_main_process:
    json.dump(history, open(folder + "/log.json", "w"))
trainer.accelerator.end_training()
"""


@pytest.mark.slow
def test_fsdp2_on_two_processes_measures_what_one_process_does(tmp_path: Path) -> None:
    """Full weights with a reference of their own, LoRA with the adapter off, and full weights resumed in the middle of
    an epoch whose last batch is filled up: evaluations at steps 0 and 2 and the window of steps 1 to 3 are equal; the
    evaluation at 3 follows an update in which the repeated example has two shares. Prompts are not shared, fixed
    prompts not answered: each is one line."""
    both = tmp_path / "one", tmp_path / "two"
    processes = launch(both[0], 1, 4, SCRIPT), launch(both[1], 2, 2, SCRIPT)
    one, two = (finished(*started) for started in zip(processes, both, strict=True))
    for a, b in zip(one, two, strict=True):
        assert [row["step"] for row in a] == [row["step"] for row in b] == [0, 2, 3, 3, 3][-len(a) :]
        for x, y in zip(a, b, strict=True):
            assert ours(x).keys() == ours(y).keys()
            assert all(v < 1e-5 for k, v in y.items() if k.endswith("loss_residual"))
            if x["step"] < 3 or "loss" in x:
                assert ours(y) == {k: pytest.approx(v, rel=1e-5, abs=1e-5) for k, v in ours(x).items()}
    window = [next(row for row in rows if "loss" in row) for rows in two[:2]]
    assert ours(window[1]) == {k: pytest.approx(v, rel=1e-5, abs=1e-5) for k, v in ours(window[0]).items()}
    for name in ("full", "again", "lora"):
        frames = [load_run(folder / "runs" / name).history for folder in both]
        kept = [f[~f["name"].str.contains("|".join(OF_A_PROCESS)) & (f["step"] < 3)] for f in frames]
        merged = kept[0].merge(kept[1], on=["step", "split", "name"], how="outer", indicator=True)
        assert len(merged) and (merged["_merge"] == "both").all()
        assert ((merged["value_x"] - merged["value_y"]).abs() <= 1e-5 * (1 + merged["value_x"].abs())).all()
    console = (both[1] / "console.txt").read_text()
    assert console.count("shared prefix: off, the usual way is taken: the model or its sequences are sharded") == 1
    assert "fixed prompts are not answered while training: the model is sharded over processes" in console
    meta: dict[str, Any] = json.loads((both[1] / "runs" / "full" / "run.json").read_text())
    assert meta["training"]["shared_prefix"]["way"] == "plain"


def test_the_last_batch_of_a_resumed_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    """11 examples, 2 processes x 2: the last batch has 3 of 4. A loader that skips a batch says -1 itself."""
    batches = BatchSampler(SequentialSampler(range(11)), 2, drop_last=False)
    loader = DataLoaderShard(range(11), batch_sampler=BatchSamplerShard(batches, num_processes=2, process_index=0))
    loader.begin()
    assert loader.remainder == remainder_of(loader) == 3
    loader.end()
    skipping = skip_first_batches(loader, 1)
    skipping.begin()
    assert skipping.remainder == -1
    assert remainder_of(skipping) == 3
    skipping.end()
