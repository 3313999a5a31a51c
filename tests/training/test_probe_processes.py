"""Several processes: all take part, and what one process writes is what all of them write; DDP and FSDP2."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dpo_diag import load_run

from .test_distributed import finished, launch

SCRIPT = """
import json, sys
sys.path.insert(0, {tests!r})
import torch
from datasets import Dataset
from peft import LoraConfig
from trl import DPOTrainer
from dpo_diag.inference import scoring
from dpo_diag.models.decoding import Decoding
from dpo_diag.models.processes import place
from dpo_diag.training import DiagCallback, probe
from training.tiny import arguments, make_model, make_pairs, make_tokenizer

folder, batch = sys.argv[1], int(sys.argv[2])
SHARD = {shard}
sharded = dict()
if batch == 2 and SHARD:
    from accelerate import state
    from accelerate.utils import DistributedType
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
counts = []
real = probe.score_pairs
def counted(model, encoded, *, step, **options):
    counts.append((step, len(encoded.pairs)))
    if step == 2 and place()[0] == 1 and not SHARD:
        raise torch.OutOfMemoryError("on the second process alone")
    return real(model, encoded, step=step, **options)
probe.score_pairs = counted
lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
make_model(5).save_pretrained(folder + "/ref" + str(place()[0]))
history = []
for name, own, reference in (("full", dict(ref_model=make_model(2)), None), ("lora", dict(peft_config=lora), None),
                             ("named", dict(ref_model=make_model(2)), folder + "/ref0")):
    callback = DiagCallback(make_pairs(5, seed=1), [dict(id=str(i), prompt=f"{{i}} cat:") for i in range(3)],
                            folder + "/runs/" + name, every=1, reference=reference, decoding=Decoding(max_new_tokens=3))
    trainer = DPOTrainer(
        model=make_model(1), processing_class=make_tokenizer(), callbacks=[callback],
        args=arguments(folder + "/" + name, per_device_train_batch_size=batch, max_steps=3, **sharded),
        train_dataset=Dataset.from_list(make_pairs(12)), **own,
    )
    trainer.train()
    if sharded:
        assert type(trainer.model_wrapped).__name__.startswith("FSDP"), type(trainer.model_wrapped)
    history.append([row for row in trainer.state.log_history if "loss" in row])
json.dump(counts, open(folder + "/counts" + str(place()[0]), "w"))
if trainer.accelerator.is_main_process:
    json.dump(history, open(folder + "/log.json", "w"))
trainer.accelerator.end_training()
"""


@pytest.mark.slow
@pytest.mark.parametrize("shard", [False, True], ids=["ddp", "fsdp2"])
def test_two_processes_write_what_one_does(tmp_path: Path, shard: bool) -> None:
    """Steps 0 to 3 of full weights, LoRA and a reference that is loaded. Copies of the model share the pairs (3 and 2
    of 5), shards score all 5 on both. With DDP the second process runs out of memory at step 2: nothing hangs, that
    step is missing on both, and one line says so."""
    source = SCRIPT.replace("{shard}", str(shard))
    both = tmp_path / "one", tmp_path / "two"
    processes = launch(both[0], 1, 4, source), launch(both[1], 2, 2, source)
    logs = [finished(*started) for started in zip(processes, both, strict=True)]
    assert [[row["step"] for row in rows] for rows in logs[1]] == [[1, 2, 3]] * 3
    steps = [0, 1, 2, 3] if shard else [0, 1, 3]
    for name in ("full", "lora", "named"):
        one, two = (load_run(folder / "runs" / name) for folder in both)
        assert sorted(set(one.pairs["step"])) == [0, 1, 2, 3]
        assert sorted(set(two.pairs["step"])) == steps
        for table, key in (
            ("pairs", ["step", "role", "pair_id", "side"]),
            ("tokens", ["step", "role", "pair_id", "side", "position"]),
            ("outputs", ["step", "model", "prompt_id"]),
        ):
            a, b = (run.read(table) for run in (one, two))
            assert not b.duplicated(key).any()
            a = a[a["step"].isin(steps)]
            merged = a.merge(b, on=key, how="outer", indicator=True)
            assert (merged["_merge"] == "both").all(), table
            column = "logp" if table == "tokens" else "sum_logp"
            x, y = (merged[f"{column}_{side}"].to_numpy(dtype=float) for side in "xy")
            np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-4)
        assert one.info.reference.kind == two.info.reference.kind
    counts = [(both[1] / f"counts{rank}").read_text() for rank in (0, 1)]
    assert ("[0, 5]" in counts[1]) is shard and ("[0, 2]" in counts[1]) is not shard
    console = (both[1] / "console.txt").read_text()
    said = console.count("DiagCallback could not measure step 2: DiagError: another process failed")
    assert said == (0 if shard else 3), console[-2000:]
