"""Weights compared by hand-made checkpoints: norms, ranks, bfloat16, adapters, broken files."""

from __future__ import annotations

import json
import math
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dpo_diag.commands import diag
from dpo_diag.errors import DiagError
from dpo_diag.inference.weights import compare_weights, effective_rank
from dpo_diag.models.weight_files import Weights

NAME = "model.layers.{}.self_attn.q_proj.weight"


def save(folder: Path, tensors: dict[str, np.ndarray], file: str = "model.safetensors") -> Path:
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / file)
    return folder


def raw(path: Path, header: dict[str, Any], data: bytes) -> Path:
    document = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(document)) + document + data)
    return path


def test_full_models_by_hand(tmp_path: Path) -> None:
    """A = 2 I (norm 2 sqrt 2), B - A = diag(0.3, 0.4): norm 0.5, relative 0.5 / 2.828; singular values .4, .3:
    p = 4/7, 3/7, entropy 0.6829, effective rank 1.9797; top share .16 / .25."""
    eye = np.eye(2, dtype=np.float32)
    a = save(tmp_path / "a", {NAME.format(0): 2 * eye, NAME.format(1): eye, "norm.weight": np.ones(2, np.float32)})
    b = save(
        tmp_path / "b",
        {
            NAME.format(0): 2 * eye + np.diag([0.3, 0.4]).astype(np.float32),
            NAME.format(1): eye,
            "norm.weight": np.ones(2, np.float32),
            "extra": eye,
        },
    )
    change = compare_weights(a, b)
    row = change.tensors.set_index("tensor").loc[NAME.format(0)]
    assert row["change"] == pytest.approx(0.5, rel=1e-5)
    assert row["relative"] == pytest.approx(0.5 / (2 * math.sqrt(2)), rel=1e-5)
    p = np.array([4 / 7, 3 / 7])
    assert row["effective_rank"] == pytest.approx(math.exp(-(p * np.log(p)).sum()), rel=1e-4)
    assert row["top_share"] == pytest.approx(0.64, rel=1e-4)
    layers = change.layers.set_index("layer")
    assert layers.loc[1, "change"] == 0 and layers.loc[1, "relative"] == 0
    assert layers.loc[-1, "n"] == 1
    assert change.only_b == ["extra"] and change.only_a == []
    same = compare_weights(a, a)
    assert same.tensors["change"].sum() == 0 and (same.tensors["effective_rank"].dropna() == 0).all()


def test_bfloat16_and_shards(tmp_path: Path) -> None:
    """1.5 is 0x3FC0 and -2 is 0xC000 in bfloat16."""
    header = {"x": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}}
    raw(tmp_path / "model-00001-of-00002.safetensors", header, struct.pack("<2H", 0x3FC0, 0xC000))
    header = {"y": {"dtype": "F16", "shape": [1], "data_offsets": [0, 2]}}
    raw(tmp_path / "model-00002-of-00002.safetensors", header, np.array([0.5], "<f2").tobytes())
    index = {"weight_map": {"x": "model-00001-of-00002.safetensors", "y": "../model-00002-of-00002.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    weights = Weights(tmp_path)
    assert weights["x"].tolist() == [1.5, -2.0] and weights["y"].tolist() == [0.5]
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(DiagError, match="a shard is missing"):
        Weights(tmp_path)


def adapter(folder: Path, a: np.ndarray, b: np.ndarray, **config: Any) -> Path:
    module = "base_model.model.model.layers.0.self_attn.q_proj"
    save(folder, {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}, "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "lora_alpha": 4, "r": len(a), "base_model_name_or_path": "nowhere"}
    (folder / "adapter_config.json").write_text(json.dumps(settings | config))
    return folder


def test_lora_equals_the_built_matrix(tmp_path: Path) -> None:
    """delta = alpha / r * B A, with r 2 and alpha 4: twice B A; rslora: 4 / sqrt 2."""
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 6)).astype(np.float32), rng.normal(size=(5, 2)).astype(np.float32)
    weight = rng.normal(size=(5, 6)).astype(np.float32)
    base = save(tmp_path / "base", {NAME.format(0): weight})
    for options, scale in (
        ({}, 2.0),
        ({"use_rslora": True}, 4 / math.sqrt(2)),
        ({"alpha_pattern": {"q_proj": 1}}, 0.5),
    ):
        change = compare_weights(base, adapter(tmp_path / "ad", a, b, **options))
        row = change.tensors.iloc[0]
        delta = scale * b.astype(float) @ a.astype(float)
        assert row["change"] == pytest.approx(np.linalg.norm(delta), rel=1e-6)
        assert row["relative"] == pytest.approx(np.linalg.norm(delta) / np.linalg.norm(weight), rel=1e-6)
        values = np.linalg.svd(delta, compute_uv=False)[:2]
        assert row["effective_rank"] == pytest.approx(effective_rank(values), rel=1e-6)
        assert row["max_rank"] == 2
    other = adapter(tmp_path / "ad2", a, 2 * b)
    change = compare_weights(adapter(tmp_path / "ad1", a, b), other)
    assert change.tensors["change"].iloc[0] == pytest.approx(np.linalg.norm(2.0 * b @ a), rel=1e-5)
    assert math.isnan(change.tensors["relative"].iloc[0]) and "not a local folder" in change.notes[0]
    with pytest.raises(DiagError, match="swap them"):
        compare_weights(other, base)
    with pytest.raises(DiagError, match="only LoRA"):
        compare_weights(base, adapter(tmp_path / "ia3", a, b, peft_type="IA3"))


def test_broken_and_foreign_files(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"\xff" * 20)
    with pytest.raises(DiagError, match="not a whole safetensors file"):
        Weights(tmp_path / "x.safetensors")
    raw(tmp_path / "y.safetensors", {"x": {"dtype": "F32", "shape": [9], "data_offsets": [0, 36]}}, b"1234")
    with pytest.raises(DiagError, match="not a whole safetensors file"):
        Weights(tmp_path / "y.safetensors")
    pickled = tmp_path / "p"
    pickled.mkdir()
    (pickled / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(DiagError, match="pickled weights only"):
        Weights(pickled)
    with pytest.raises(DiagError, match="no such checkpoint"):
        Weights(tmp_path / "absent")
    eight = {"x": {"dtype": "F8_E4M3", "shape": [1], "data_offsets": [0, 1]}}
    with pytest.raises(DiagError, match="F8_E4M3"):
        Weights(raw(tmp_path / "z.safetensors", eight, b"1"))["x"]
    a = save(tmp_path / "a", {"x": np.ones(1, np.float32)})
    b = save(tmp_path / "b", {"y": np.ones(1, np.float32)})
    with pytest.raises(DiagError, match="no weight in common"):
        compare_weights(a, b)


def test_command_prints_a_table_and_strict_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = save(tmp_path / "a", {NAME.format(0): np.zeros((2, 2), np.float32)})
    b = save(tmp_path / "b", {NAME.format(0): np.ones((2, 2), np.float32)})
    assert diag.main(["weights", str(a), str(b)]) == 0
    assert "1 of 1 weights changed" in capsys.readouterr().out
    assert diag.main(["weights", str(a), str(b), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["tensors"][0]["change"] == 2.0 and document["tensors"][0]["relative"] is None
    assert document["tensors"][0]["effective_rank"] == pytest.approx(1.0, abs=1e-6)


def test_needs_no_torch(tmp_path: Path) -> None:
    code = "import sys, dpo_diag.inference.weights, dpo_diag.commands.weights; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
