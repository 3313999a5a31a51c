"""Broken input: every format cut anywhere, bits flipped, or random: a run or one clear error, never a traceback."""

from __future__ import annotations

import gzip
import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dpo_diag import load_run
from dpo_diag.errors import DiagError
from dpo_diag.importers import FORMATS, Options, import_path
from dpo_diag.importers.numbers import number, step_number
from tests.importers.test_trackers import OPENRLHF, event_file

ROWS: list[dict[str, Any]] = [
    {"step": s, "loss": 0.7 - s / 100, "rewards/chosen": 0.1, "eval_loss": 0.5, "logps/chosen": -30.5, "epoch": s / 9}
    for s in range(1, 9)
]
PAIRS = [
    {
        "step": s,
        "pair_id": p,
        "chosen_sum_logp": -1.5 - s,
        "rejected_sum_logp": -2.5,
        "chosen_n_tokens": 3,
        "score/x": 1.0,
    }
    for s in (0, 1, 2)
    for p in "abc"
]


def _lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(r) + "\n" for r in rows).encode()


def _trackio(folder: Path) -> bytes:
    connection = sqlite3.connect(folder / "p.db")
    connection.execute("CREATE TABLE metrics (id INTEGER PRIMARY KEY, run_name TEXT, step INTEGER, metrics TEXT)")
    connection.executemany(
        "INSERT INTO metrics (run_name, step, metrics) VALUES ('r', ?, ?)", [(r["step"], json.dumps(r)) for r in ROWS]
    )
    connection.commit()
    connection.close()
    return (folder / "p.db").read_bytes()


def _wandb() -> bytes:
    """A .wandb file by hand: the header, then one full record per row (history items with JSON values)."""
    import struct
    import zlib

    def field(number: int, content: bytes) -> bytes:
        size, out = len(content), bytes([number << 3 | 2]) if number < 16 else bytes([number << 3 & 0x7F | 0x82, 1])
        while size > 0x7F:
            out, size = out + bytes([size & 0x7F | 0x80]), size >> 7
        return out + bytes([size]) + content

    data = b":W&B\xe1\xbe\x00"
    for row in ROWS:
        items = b"".join(
            field(1, field(2, k.encode()) + field(16, json.dumps(v).encode()))
            for k, v in {**row, "train/global_step": row["step"]}.items()
        )
        record = field(2, items)
        data += struct.pack("<IHB", zlib.crc32(record, zlib.crc32(b"\x01")), len(record), 1) + record
    return data


def _parquet(folder: Path) -> bytes:
    pd.DataFrame(PAIRS).to_parquet(folder / "p.parquet")
    return (folder / "p.parquet").read_bytes()


def _h2o() -> bytes:
    charts = {"loss": {"steps": [1, 2, 3], "values": [0.7, None, 0.5]}}
    return json.dumps({"train": charts, "validation": {"Perplexity": charts["loss"]}}).encode()


def _console() -> bytes:
    return "".join(f"\r {r['step']}%|█ | {r['step']}/99 [00:01<00:02, 1it/s]\r{r}\n" for r in ROWS).encode()


def _ren_array() -> bytes:
    import io

    file = io.BytesIO()
    np.save(file, np.full((2, 2, 3), -5.0))
    return file.getvalue()


GOLDEN: dict[str, tuple[str, Callable[[Path], bytes]]] = {
    "hf": ("trainer_state.json", lambda _: json.dumps({"log_history": ROWS}, indent=1).encode()),
    "llamafactory": ("trainer_log.jsonl", lambda _: _lines([{"current_steps": r["step"], **r} for r in ROWS])),
    "swift": ("logging.jsonl", lambda _: _lines([{**r, "global_step/max_steps": f"{r['step']}/99"} for r in ROWS])),
    "jsonl": ("log.jsonl", lambda _: _lines(ROWS)),
    "gzip": ("log.jsonl.gz", lambda _: gzip.compress(_lines(ROWS))),
    "tensorboard": ("events.out.tfevents.1.x", lambda folder: event_file(folder / "tb", OPENRLHF).read_bytes()),
    "h2o": ("charts_x.json", lambda _: _h2o()),
    "torchtune": ("log_1.txt", lambda _: b"".join(b"Step %d | loss:0.5 lr:1e-6 \n" % i for i in range(9))),
    "console": ("train.log", lambda _: _console()),
    "csv": ("h.csv", lambda _: pd.DataFrame(ROWS).to_csv(index=False).encode()),
    "wandb": ("run-x.wandb", lambda _: _wandb()),
    "trackio": ("p.db", _trackio),
    "pairs": ("p.jsonl", lambda _: _lines(PAIRS)),
    "pairs-parquet": ("p.parquet", _parquet),
    "ren": ("logp.npy", lambda _: _ren_array()),
}


def try_import(path: Path, out: Path, as_name: str | None = None) -> None:
    """Either a run that can be read back, or one DiagError of one line and no folder left behind."""
    try:
        result = import_path(path, out, as_name, Options(loss=("sigmoid",), beta=0.1))
    except DiagError as error:
        assert "\n" not in str(error)
        assert not out.exists()
        return
    json.dumps(result)
    run = load_run(out)
    assert (run.history["step"] >= 0).all()
    assert result["read"] + len(result["skipped"]) > 0
    assert len(run.pairs) + len(run.history) > 0


@pytest.fixture(scope="module", params=sorted(GOLDEN))
def golden(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, bytes]:
    name, make = GOLDEN[request.param]
    return name, make(tmp_path_factory.mktemp("golden"))


@st.composite
def damage(draw: st.DrawFn) -> Callable[[bytes], bytes]:
    """A cut anywhere, then up to four flipped bits."""
    cut, flips = draw(st.floats(0, 1)), draw(st.lists(st.tuples(st.floats(0, 1), st.integers(0, 7)), max_size=4))

    def apply(content: bytes) -> bytes:
        broken = bytearray(content[: round(cut * len(content))])
        for place, bit in flips if broken else ():
            broken[min(int(place * len(broken)), len(broken) - 1)] ^= 1 << bit
        return bytes(broken)

    return apply


def _folder(factory: pytest.TempPathFactory, name: str, content: bytes) -> Path:
    folder = factory.mktemp("fuzz")
    (folder / name).write_bytes(content)
    if name.endswith(".npy"):
        row = json.dumps({"logps_eval/chosen": -5.0, "logps_eval/rejected": -5.0})
        (folder / "metrics.json").write_text(f"{row}\n{row}\n")
    return folder


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(damaged=damage())
def test_cut_and_flipped(
    tmp_path_factory: pytest.TempPathFactory, golden: tuple[str, bytes], damaged: Callable[[bytes], bytes]
) -> None:
    name, content = golden
    if name.endswith(".wandb"):
        return  # a process of the W&B client per example: below, with fewer of them
    folder = _folder(tmp_path_factory, name, damaged(content))
    try_import(folder / name, folder / "run")


@settings(max_examples=2, deadline=None)
@given(damaged=damage())
def test_a_wandb_file_cut_and_flipped(
    tmp_path_factory: pytest.TempPathFactory, damaged: Callable[[bytes], bytes]
) -> None:
    folder = _folder(tmp_path_factory, "run-x.wandb", damaged(_wandb()))
    try_import(folder / "run-x.wandb", folder / "run")


def test_whole(tmp_path_factory: pytest.TempPathFactory, golden: tuple[str, bytes]) -> None:
    """The golden files themselves are read without a complaint: the fuzzing starts from something that works."""
    name, content = golden
    folder = _folder(tmp_path_factory, name, content)
    result = import_path(folder / name, folder / "run")
    assert result["skipped"] == []
    assert result["read"] >= 3 or name == "events.out.tfevents.1.x"


@pytest.mark.parametrize("as_name", sorted(FORMATS))
def test_every_format_forced_on_every_file(tmp_path_factory: pytest.TempPathFactory, as_name: str) -> None:
    for other in sorted(GOLDEN):
        name, make = GOLDEN[other]
        folder = _folder(tmp_path_factory, name, make(tmp_path_factory.mktemp("golden")))
        try_import(folder / name, folder / "run", as_name)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
_KEYS = st.sampled_from(["loss", "eval_loss", "step", "epoch", "rewards/chosen", "logps/chosen", "train_runtime",
                         "log_history", "global_step/max_steps", "train/global_step", "pair_id", "chosen_sum_logp",
                         "rejected_sum_logp", "chosen_n_tokens", "score/x", "ref_chosen_sum_logp", "prompt",
                         "chosen", "split", "metrics", "total_steps"]) | st.text(max_size=6)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.dictionaries(_KEYS, _JSON, max_size=8), min_size=1, max_size=6),
    kind=st.sampled_from(["jsonl", "json", "log", "pairs"]),
)
def test_rows_of_any_shape(tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]], kind: str) -> None:
    folder = tmp_path_factory.mktemp("shape")
    text = {"jsonl": _lines(rows).decode(), "pairs": _lines(rows).decode(),
            "json": json.dumps({"log_history": rows}), "log": "".join(f"{r!r}\n" for r in rows)}[kind]  # fmt: skip
    path = folder / f"x.{kind}"
    path.write_text(text, encoding="utf-8", errors="replace")
    try_import(path, folder / "run", {"pairs": "pairs", "log": "console", "json": "hf", "jsonl": "jsonl"}[kind])


@settings(max_examples=40, deadline=None)
@given(content=st.binary(max_size=400))
def test_any_bytes(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    folder = tmp_path_factory.mktemp("bytes")
    (folder / "x").write_bytes(content)
    try_import(folder / "x", folder / "run")


@given(value=_JSON)
def test_numbers_and_steps_never_raise(value: Any) -> None:
    found, step = number(value), step_number(value)
    assert found is None or isinstance(found, float)
    assert step is None or step >= 0


@pytest.mark.parametrize("count", [20_000, pytest.param(1_000_000, marks=pytest.mark.slow)])
def test_a_long_log_is_read_and_its_bad_lines_are_counted(tmp_path: Path, count: int) -> None:
    """Every tenth line is broken: all are counted, the first thousand listed."""
    path = tmp_path / "log.jsonl"
    with path.open("w") as file:
        for i in range(count):
            file.write("{broken\n" if i % 10 == 0 else f'{{"step": {i}, "loss": 0.5}}\n')
    result = import_path(path, tmp_path / "run", "jsonl")
    assert (result["rows"], result["read"], result["skipped_count"]) == (count, count * 9 // 10, count // 10)
    assert len(result["skipped"]) == 1001
    assert result["skipped"][-1] == {"line": None, "why": f"and {count // 10 - 1000} more"}
