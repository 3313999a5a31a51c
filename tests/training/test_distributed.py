"""Several processes give the records and metrics of one, to 1e-5, and those of a plain loop: DPO and SFT, uneven sets,
whose last batches are padded with repeated examples. TRL counts those twice (trl issue 7010)."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dpo_diag import load_run
from dpo_diag.records import make_pair_id

from .plain import logged_means, score_pairs
from .tiny import make_model, make_pairs, make_tokenizer

# One worker runs them all: what they look at is trained once.
pytestmark = [pytest.mark.xdist_group("distributed"), pytest.mark.slow]

SCRIPT = """
import json, os, sys
sys.path.insert(0, {tests!r})
from datasets import Dataset
from trl import SFTConfig
from dpo_diag.training import DiagDPOTrainer, DiagSFTTrainer
from training.tiny import arguments, make_model, make_pairs, make_tokenizer

folder, batch = sys.argv[1], int(sys.argv[2])
rows, held, few = make_pairs(11), make_pairs(7, seed=1), make_pairs(1, seed=2)
# Step 3 is the epoch's last: 3 of 4 pairs, the fourth repeated where there are two processes.
common = dict(max_steps=3, logging_steps=3, eval_strategy="steps", eval_steps=2)
trainer = DiagDPOTrainer(
    model=make_model(1), ref_model=make_model(2), processing_class=make_tokenizer(), recorder=folder + "/dpo",
    args=arguments(folder + "/out", per_device_train_batch_size=batch, per_device_eval_batch_size=3,
                   accelerator_config={{"dispatch_batches": False}}, **common),
    train_dataset=Dataset.from_list(rows), record_tokens=4, extra_metrics=("top5", "greedy_logp"),
    shared_prefix="off" if os.environ.get("WORLD_SIZE") == "3" else "auto",
    eval_dataset={{"held": Dataset.from_list(held + held[:1]), "few": Dataset.from_list(few),
                   "stream": Dataset.from_list(held).to_iterable_dataset()}},
)
trainer.train()
history = [trainer.state.log_history]
sft = [{{"prompt": r["prompt"], "completion": r["chosen"]}} for r in rows]
trainer = DiagSFTTrainer(
    model=make_model(3), processing_class=make_tokenizer(), recorder=folder + "/sft",
    args=SFTConfig(folder + "/out", use_cpu=True, bf16=False, gradient_checkpointing=False, report_to=[],
                   disable_tqdm=True, save_strategy="no", per_device_train_batch_size=batch,
                   per_device_eval_batch_size=3, **common),
    train_dataset=Dataset.from_list(sft), eval_dataset=Dataset.from_list(sft[:7]),
)
trainer.train()
history.append(trainer.state.log_history)
if trainer.accelerator.is_main_process:
    json.dump(history, open(folder + "/log.json", "w"))
trainer.accelerator.end_training()
"""


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def launch(folder: Path, processes: int, batch: int, source: str = SCRIPT) -> subprocess.Popen[str]:
    folder.mkdir()
    script = folder / "script.py"
    script.write_text(source.format(tests=str(Path(__file__).parents[1])))
    command = [sys.executable]
    if processes > 1:
        # Not `accelerate launch --cpu --num_processes 2`: accelerate 1.15 starts a single process for it.
        command += ["-m", "torch.distributed.run", "--nproc_per_node", str(processes)]
        command += ["--master_addr", "127.0.0.1", "--master_port", str(free_port())]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    with (folder / "console.txt").open("w") as log:
        return subprocess.Popen(
            [*command, str(script), str(folder), str(batch)], env=environment, stdout=log, stderr=log, text=True
        )


def finished(process: subprocess.Popen[str], folder: Path) -> list[list[dict[str, Any]]]:
    try:
        code = process.wait(280)
    finally:
        process.kill()
    assert code == 0, (folder / "console.txt").read_text()[-3000:]
    found: list[list[dict[str, Any]]] = json.loads((folder / "log.json").read_text())
    return found


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Any, Any]:
    folder = tmp_path_factory.mktemp("distributed")
    one, two = folder / "one", folder / "two"
    first, second = launch(one, 1, 4), launch(two, 2, 2)
    return one, two, finished(first, one), finished(second, two)


OF_A_PROCESS = ("trl/", "runtime", "per_second", "loss_residual", "num_tokens", "train_loss", "total_flos", "grad_norm")
"""Names whose values are those of a process, and the gradient, in which a repeated example has two shares."""


def ours(row: dict[str, Any]) -> dict[str, float]:
    return {k: v for k, v in row.items() if not any(part in k for part in OF_A_PROCESS)}


def test_metrics(both: tuple[Path, Path, Any, Any]) -> None:
    _, _, one, two = both
    for a, b in zip(one, two, strict=True):
        assert len(a) >= 4
        for x, y in zip(a, b, strict=True):
            assert ours(x).keys() == ours(y).keys()
            if x["step"] == 3 and "loss" not in x:
                continue  # after an update in which the repeated example had two shares
            for name, value in ours(x).items():
                assert y[name] == pytest.approx(value, rel=1e-5, abs=1e-5), name
        assert all(v < 1e-5 for r in b for k, v in r.items() if k.endswith("loss_residual"))


def test_records(both: tuple[Path, Path, Any, Any]) -> None:
    one, two = load_run(both[0] / "dpo"), load_run(both[1] / "dpo")
    assert two.meta["training"]["world_size"] == 2
    for run in (one, two):
        found = run.info.training.shared_prefix
        assert found is not None and found.way == "packed"
    assert one.info.splits == two.info.splits
    files = {p.name.split(".")[-2] for p in (both[1] / "dpo" / "pairs").glob("*.parquet")}
    assert files == {"r0", "r1"}  # every rank wrote its own
    for table, key in (
        ("pairs", ["step", "split", "role", "pair_id", "side"]),
        ("tokens", ["step", "split", "role", "pair_id", "side", "position"]),
        ("history", ["step", "split", "name"]),
        ("texts", ["split", "pair_id"]),
    ):
        a, b = (f[(f["split"] == "train") | (f.get("step", 0) < 3)] for f in (one.read(table), two.read(table)))
        if table == "history":
            a, b = (f[~f["name"].astype(str).str.contains("|".join(OF_A_PROCESS))] for f in (a, b))
        assert not b.duplicated(key).any(), table  # raw rows: no repeated example was written twice
        merged = a.merge(b, on=key, how="outer", indicator=True)
        assert (merged["_merge"] == "both").all(), (table, merged[merged["_merge"] != "both"])
        for column in a.select_dtypes("number").columns.difference(key):
            x, y = merged[f"{column}_x"].astype(float), merged[f"{column}_y"].astype(float)
            assert (x.isna() == y.isna()).all(), (table, column)
            assert ((x - y).abs().fillna(0) <= 1e-5 * (1 + x.abs().fillna(0))).all(), (table, column)


def plain_means(rows: list[dict[str, str]], times: dict[str, int] | None = None) -> dict[str, float]:
    tokenizer = make_tokenizer()
    return logged_means(*(score_pairs(make_model(k), tokenizer, rows) for k in (1, 2)), beta=0.1, times=times)


def assert_plain(logged: list[dict[str, Any]], folder: Path) -> None:
    """At step 0 the sets' means are the plain loop's: 7 pairs and one of them again are 8, whatever fills the batch."""
    held, few = make_pairs(7, seed=1), make_pairs(1, seed=2)
    history = load_run(folder / "dpo").history.set_index(["split", "step", "name"])["value"]
    again = make_pair_id(held[0]["prompt"], held[0]["chosen"], held[0]["rejected"])
    for name, expected in {
        "held": plain_means(held, {again: 2}), "few": plain_means(few), "stream": plain_means(held)
    }.items():  # fmt: skip
        row = next(r for r in logged if f"eval_{name}_loss" in r)
        assert {k: row[f"eval_{name}_{k}"] for k in expected} == pytest.approx(expected, rel=2e-5, abs=2e-5)
        assert {k: history[f"eval_{name}", 0, k] for k in expected} == pytest.approx(expected, rel=2e-5, abs=2e-5)


def test_repeated_examples_count_once_and_true_duplicates_twice(both: tuple[Path, Path, Any, Any]) -> None:
    """7 pairs and one of them again: 8 responses, though 2 x 3 rows a step make 12."""
    for folder, log in ((both[0], both[2]), (both[1], both[3])):
        assert_plain(log[0], folder)
    history = load_run(both[1] / "dpo").history.set_index(["split", "step", "name"])
    assert history.loc[("eval_held", 0, "ce/chosen"), "weight"] == 8
    assert history.loc[("eval_few", 0, "rewards/margins"), "weight"] == 1
    assert history.loc[("train", 3, "rewards/margins"), "weight"] == 11
    assert ("eval_held", 0, "trl/rewards/margins") in history.index  # TRL takes the mean of 12 rows


def test_three_processes(tmp_path: Path) -> None:
    """Batches of 3 x 2 and 3 x 3: every set's last batch is filled up, and the step's last has 5 of 6 pairs."""
    three = tmp_path / "three"
    logged = finished(launch(three, 3, 2), three)
    assert_plain(logged[0], three)
    history = load_run(three / "dpo").history.set_index(["split", "step", "name"])
    assert history.loc[("train", 3, "rewards/margins"), "weight"] == 17  # 11 of one epoch, then 6
