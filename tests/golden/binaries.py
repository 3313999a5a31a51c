"""Binary formats written from the numbers of the committed text logs: TensorBoard, W&B, trackio, arrays, archives."""

from __future__ import annotations

import gzip
import json
import shutil
import sqlite3
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

INPUTS = Path(__file__).parent / "inputs"
CONFIG = {
    "beta": 0.1,
    "loss_type": ["sigmoid"],
    "model_name_or_path": "Qwen/Qwen2.5-0.5B-Instruct",
    "logging_steps": 10,
}


def _rows(name: str) -> list[dict[str, Any]]:
    """The log rows of a committed trainer_state.json or JSON lines file."""
    text = (INPUTS / name).read_text(encoding="utf-8")
    rows = json.loads(text)["log_history"] if name.endswith(".json") else [json.loads(t) for t in text.splitlines()]
    return [r for r in rows if "train_runtime" not in r]


def _tracked(name: str) -> Iterator[dict[str, Any]]:
    """Rows as Hugging Face's callbacks send them to a tracker: train/ and eval/ prefixes, train/global_step."""
    for row in _rows(name):
        renamed = {f"eval/{k[5:]}" if k.startswith("eval_") else f"train/{k}": v for k, v in row.items()}
        renamed["train/global_step"] = renamed.pop("train/step")
        yield renamed


def _event_file(folder: Path, points: list[tuple[str, float, int]], arguments: dict[str, Any] | None = None) -> Path:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.compat.proto.tensor_pb2 import TensorProto
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    writer = EventFileWriter(str(folder))
    if arguments is not None:
        text = TensorProto(dtype=7, string_val=[json.dumps(arguments).encode()])
        writer.add_event(Event(step=0, summary=Summary(value=[Summary.Value(tag="args/text_summary", tensor=text)])))
    for tag, number, step in points:
        value = Summary.Value(tag=tag, simple_value=number)
        writer.add_event(Event(step=step, wall_time=1.0, summary=Summary(value=[value])))
    writer.close()
    next(folder.glob("*tfevents*")).rename(folder / "events.out.tfevents.1700000000.host.1.0")
    return folder


def tensorboard(folder: Path) -> Path:
    """Hugging Face's callback: scalars and the arguments as text."""
    points = [
        (tag, value, row["train/global_step"])
        for row in _tracked("trl_displaced/trainer_state.json")
        for tag, value in row.items()
        if tag != "train/global_step"
    ]
    return _event_file(folder / "runs", points, CONFIG)


def openrlhf_tensorboard(folder: Path) -> Path:
    """OpenRLHF's tags: acc beside its running mean, reject_reward, evaluations of their own."""
    names = {"loss": "loss", "rewards/accuracies": "acc", "rewards/chosen": "chosen_reward",
             "rewards/rejected": "reject_reward", "learning_rate": "lr"}  # fmt: skip
    points, mean = [], 0.69
    for row in _rows("trl_displaced/trainer_state.json"):
        if "loss" in row:
            mean = 0.9 * mean + 0.1 * row["loss"]
            points += [(f"train/{new}", row[old], row["step"]) for old, new in names.items()]
            points.append(("train/loss_mean", mean, row["step"]))
        else:
            points += [("eval/eval_loss", row["eval_loss"], row["step"]),
                       ("eval/acc_mean", row["eval_rewards/accuracies"], row["step"])]  # fmt: skip
    return _event_file(folder / "tb", points)


def several_sources(folder: Path) -> Path:
    """An output folder: trainer_state.json in its last checkpoint, TensorBoard events, LLaMA-Factory's log, a card."""
    home = folder / "output"
    shutil.copytree(INPUTS / "trl_displaced", home / "checkpoint-400")
    shutil.copy(INPUTS / "trl_displaced" / "README.md", home / "README.md")
    shutil.copy(INPUTS / "llamafactory_v1" / "trainer_log.jsonl", home / "trainer_log.jsonl")
    tensorboard(home)
    return home


def wandb_file(folder: Path) -> Path:
    """An offline run's file: W&B's messages in LevelDB's framing (32 KiB blocks, CRC-32 of kind and content)."""
    from wandb.proto import wandb_internal_pb2 as messages

    records = []
    run = messages.RunRecord(run_id="abc123", display_name="sunny-7", project="dpo")
    for key, value in CONFIG.items():
        run.config.update.add(key=key, value_json=json.dumps(value))
    records.append(messages.Record(num=1, run=run))
    for number, row in enumerate(_tracked("trl_displaced/trainer_state.json")):
        history = messages.HistoryRecord(step=messages.HistoryStep(num=number))
        for key, value in {**row, "_step": number, "_runtime": 12.5 * number}.items():
            history.item.add(key=key, value_json=json.dumps(value))
        records.append(messages.Record(num=number + 2, history=history))
    data = bytearray(b":W&B\xe1\xbe\x00")
    for record in records:
        rest, first = record.SerializeToString(), True
        while rest or first:
            left = 32768 - len(data) % 32768
            if left < 7:
                data += bytes(left)
                continue
            piece, rest = rest[: left - 7], rest[left - 7 :]
            kind = (1 if first else 4) if not rest else (2 if first else 3)
            data += struct.pack("<IHB", zlib.crc32(piece, zlib.crc32(bytes([kind]))), len(piece), kind) + piece
            first = False
    home = folder / "wandb" / "offline-run-20260101_000000-abc123"
    home.mkdir(parents=True)
    (home / "run-abc123.wandb").write_bytes(bytes(data))
    return folder / "wandb"


def trackio_database(folder: Path) -> Path:
    """A project with two runs; the other one's rows must not be read."""
    path = folder / "dpo.db"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE metrics (id INTEGER PRIMARY KEY, timestamp TEXT, run_name TEXT, step INTEGER, "
                       "metrics TEXT)")  # fmt: skip
    connection.execute("CREATE TABLE configs (run_name TEXT, config TEXT, created_at TEXT)")
    for run, source in (("displaced", "trl_displaced/trainer_state.json"), ("sft", "sft_trainer_state.json")):
        connection.execute("INSERT INTO configs VALUES (?, ?, '')", (run, json.dumps(CONFIG)))
        connection.executemany("INSERT INTO metrics (timestamp, run_name, step, metrics) VALUES ('', ?, ?, ?)",
                               [(run, i, json.dumps(row)) for i, row in enumerate(_tracked(source))])  # fmt: skip
    connection.commit()
    connection.close()
    return path


def ren_folder(folder: Path) -> Path:
    """Ren and Sutherland's dump: an array (evaluation, metric, prompt), its means as JSON lines, the pairs."""
    n, evaluations = 20, 5
    prompt = np.arange(n)
    start = {"chosen": -40.0 - 3 * (prompt % 7), "argmax": -12.0 - prompt % 5, "rejected": -55.0 - 2 * (prompt % 9)}
    pace = {"chosen": -1.5 - 0.2 * (prompt % 4), "argmax": 0.4 + 0.0 * prompt, "rejected": -6.0 - 0.5 * (prompt % 6)}
    array = np.array([[start[m] + pace[m] * e for m in start] for e in range(evaluations)])
    home = folder / "dump"
    home.mkdir()
    np.save(home / "logps.npy", array)
    keys = ["logps_eval_prob_train/chosen", "argmax_prob_logits", "logps_eval_prob_train/rejected"]
    lines = [json.dumps(dict(zip(keys, row.mean(1).tolist(), strict=True))) + "\n" for row in array]
    (home / "metrics.json").write_text("".join(lines))
    shutil.copy(INPUTS / "ren_pairs.jsonl", home / "pairs.jsonl")
    return home


def parquet_pairs(folder: Path) -> Path:
    pd.read_csv(INPUTS / "pairs_healthy.csv").to_parquet(folder / "pairs.parquet")
    return folder / "pairs.parquet"


def gzipped_log(folder: Path) -> Path:
    """The Swift log, packed and cut off by 40 bytes: what came before is read."""
    packed = gzip.compress((INPUTS / "swift" / "logging.jsonl").read_bytes(), mtime=0)
    (folder / "logging.jsonl.gz").write_bytes(packed[:-40])
    return folder / "logging.jsonl.gz"


def h2o_zip(folder: Path) -> Path:
    """The zip of H2O's download: charts, configuration, a log."""
    with zipfile.ZipFile(folder / "logs_falcon.zip", "w") as archive:
        archive.write(INPUTS / "h2o" / "charts_falcon.json", "charts_falcon.json")
        archive.writestr("cfg.yaml", "training:\n  loss_function: DPOLoss\n  beta: 0.2\nllm_backbone: h2oai/danube\n")
        archive.writestr("logs.log", "2024 INFO nothing here\n")
    return folder / "logs_falcon.zip"
