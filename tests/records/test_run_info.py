"""run.json as typed records, and a run of schema 1.0 brought up to this version."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from dpo_diag.errors import DiagError
from dpo_diag.losses import LossSpec
from dpo_diag.records import RunWriter, load_run
from dpo_diag.records.run_info import declared_fields

EXAMPLE = Path(__file__).resolve().parents[2] / "runs" / "example"


def old_run(folder: Path, history: list[dict[str, Any]] = (), **fields: Any) -> Any:  # type: ignore[assignment]
    """A run of schema 1.0: its run.json holds exactly `fields` beside version and kind."""
    writer = RunWriter(folder, kind="imported")
    if history:
        writer.write("history", history)
    document = {"schema_version": "1.0", "kind": "imported", "status": "finished", **fields}
    (folder / "run.json").write_text(json.dumps(document), encoding="utf-8")
    return load_run(folder)


def rows(split: str, **metrics: list[float]) -> list[dict[str, Any]]:
    return [
        {"step": i, "split": split, "name": name.replace("__", "/"), "value": v}
        for name, values in metrics.items()
        for i, v in enumerate(values)
    ]


def test_the_example_of_schema_1_0_reads() -> None:
    info = load_run(EXAMPLE).info
    assert (info.kind, info.status, info.seed, info.task) == ("trained", "finished", 0, "sql")
    assert info.loss == LossSpec(types=("sigmoid",), weights=(1.0,), beta=0.1)
    assert (info.beta, info.logps, info.reference_free, info.loss_reason) == (0.1, "sum", False, None)
    assert info.model.n_parameters == 475776
    assert (info.tokenizer.eos_token, info.tokenizer.eos_token_id) == ("<|eos|>", None)
    assert (info.reference.kind, info.reference.fixed) == ("frozen copy", True)
    assert info.splits["eval"].role == "held_out"
    assert (info.splits["eval"].n_pairs, info.splits["eval"].fingerprint) == (124, "4c44f8985c35a2d1")
    assert "splits" not in info.data
    assert info.data["n_pairs"] == 620
    assert (info.decoding.max_new_tokens, info.prompts.n) == (64, 300)
    assert info.other == {}


def test_every_field_says_what_it_means() -> None:
    fields = list(declared_fields())
    names = [f.name for f in fields]
    assert len(names) == len(set(names))
    assert {"kind", "loss", "splits", "tokenizer.eos_token_id", "reference.tokenizer", "training.max_length"} <= {
        *names
    }
    assert [f.name for f in fields if not f.meaning] == []
    assert {f.name: f.type for f in fields}["training.max_steps"] == "int | None"


def test_an_old_run_whose_loss_is_not_known_keeps_what_is_known(tmp_path: Path) -> None:
    loss = {"not_applicable": "no per-pair form of the loss orpo is known here", "types": ["orpo"], "beta": 0.2}
    info = old_run(tmp_path / "r", loss=loss, logps_reduction="mean", source={"format": "hf", "points": 7}).info
    assert (info.loss, info.loss_reason) == (None, "no per-pair form of the loss orpo is known here")
    assert (info.loss_names, info.beta, info.logps, info.reference_free) == (("orpo",), 0.2, "mean", True)
    assert (info.source.format, info.source.details) == ("hf", {"points": 7})


def test_an_old_run_s_loss_that_is_none_is_said(tmp_path: Path) -> None:
    info = old_run(tmp_path / "r", loss={"types": ["no_such"], "beta": 0.1}).info
    assert info.loss is None
    assert info.loss_reason is not None
    assert info.loss_reason.startswith("run.json's loss is not understood: unknown loss type; got ['no_such']")
    nested = old_run(tmp_path / "nested", loss={"types": [["sigmoid"]], "beta": 0.1}).info
    assert nested.loss is None and not nested.reference_free


def test_beta_and_the_formula_are_inferred_from_an_old_log_s_means(tmp_path: Path) -> None:
    """logps = -40 + rewards / 0.25 on a fixed set: the slope is 4; the loss is softplus(-margin) exactly."""
    rewards = [0.0, 0.1, 0.3, 0.6]
    logs = rows(
        "eval",
        rewards__chosen=rewards,
        logps__chosen=[-40 + 4 * r for r in rewards],
        rewards__margins=[2 * r for r in rewards],
        loss=[math.log1p(math.exp(-2 * r)) for r in rewards],
    )
    info = old_run(tmp_path / "r", logs).info
    assert info.beta == pytest.approx(0.25, rel=1e-9)
    assert (info.loss_like, info.logps, info.reference_free) == ("sigmoid", "sum", False)
    assert info.loss_reason == "the run does not say which loss it used"


def test_rewards_proportional_to_logps_have_no_reference_in_them(tmp_path: Path) -> None:
    """rewards = 0.1 logps on both sides; |logps| below 8: means over tokens."""
    logs = rows(
        "eval", logps__chosen=[-2.0, -1.5, -1.0], rewards__chosen=[-0.2, -0.15, -0.1],
        logps__rejected=[-3.0, -3.5, -4.0], rewards__rejected=[-0.3, -0.35, -0.4],
    )  # fmt: skip
    info = old_run(tmp_path / "r", logs).info
    assert (info.reference_free, info.logps) == (True, None)


def test_the_training_split_does_not_tell_beta(tmp_path: Path) -> None:
    """Batches of training pairs have other references at each step: the slope says nothing."""
    rewards = [0.0, 0.1, 0.3, 0.6]
    logs = rows("train", rewards__chosen=rewards, logps__chosen=[-40 + 4 * r for r in rewards])
    assert old_run(tmp_path / "r", logs).info.beta is None


def test_fields_that_are_not_known_are_kept_aside(tmp_path: Path) -> None:
    info = old_run(tmp_path / "r", hub={"id": 3}, model="a name alone").info
    assert info.other == {"hub": {"id": 3}}
    assert info.model.name is None


def test_a_wrong_type_in_a_run_of_this_version_is_named(tmp_path: Path) -> None:
    run = old_run(tmp_path / "r", schema_version="1.1", seed="three")
    with pytest.raises(DiagError, match=r"run\.json\.seed; got 'three'; expected an integer"):
        _ = run.info
