"""Runs that an earlier version imported (schema 1.0, kept as they were) are explained like a new import of the log."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from dpo_diag.diagnosis import explain
from dpo_diag.importers import Options, import_path
from dpo_diag.records import RunWriter, load_run
from dpo_diag.records.files import SCHEMA_VERSION

TESTS = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(
    ("old", "log", "loss_names", "beta"),
    [("trl_displaced", "trl_displaced", (), 0.1), ("orpo", "orpo_log.jsonl", ("orpo",), None)],
)
def test_an_old_import_is_explained_like_a_new_one(
    old: str, log: str, loss_names: tuple[str, ...], beta: float | None, tmp_path: Path
) -> None:
    before = load_run(TESTS / "fixtures" / "schema_1_0" / old)
    assert before.info.schema_version == "1.0"
    after = load_run(import_path(TESTS / "golden" / "inputs" / log, tmp_path / "run", None, Options())["run"])
    assert after.info.schema_version == "1.1"
    for info in (before.info, after.info):
        assert info.loss_names == loss_names
        assert info.beta == beta
        assert info.reference_free is bool(loss_names)  # ORPO's rewards hold no reference
    assert (before.info.logps, before.info.loss, before.info.loss_like) == (
        after.info.logps, after.info.loss, after.info.loss_like,
    )  # fmt: skip
    assert before.role("train") == after.role("train") == "train"
    old_explanation, new_explanation = dict(explain(before)), dict(explain(after))
    for explanation in (old_explanation, new_explanation):
        explanation.pop("run")
    assert rounded(old_explanation) == rounded(new_explanation)


def rounded(value: object) -> object:
    """Twelve digits of each number: where a table lies in memory decides the last ones of its sums."""
    if isinstance(value, dict):
        return {key: rounded(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(inner) for inner in value]
    return float(f"{value:.12g}") if isinstance(value, float) else value


def test_a_writer_brings_an_old_run_up_to_date(tmp_path: Path) -> None:
    """What schema 1.0 left to its readers stands in run.json once something is added to the run."""
    RunWriter(tmp_path / "r", kind="imported")
    (tmp_path / "r" / "run.json").write_text(
        '{"schema_version": "1.0", "kind": "imported", "logps_reduction": "mean", "hub": 3, "loss": {"not_applicable": '
        '"beta is not known", "types": ["ipo"]}, "data": {"n": 2, "splits": {"eval_train_probe": {"n_pairs": 4}}}}'
    )
    RunWriter(tmp_path / "r", kind="imported", resume_step=0).finish()
    document = load_run(tmp_path / "r").meta
    kept = {k: v for k, v in document.items() if k not in ("created", "ended", "packages")}
    assert kept == {
        "schema_version": "1.1", "kind": "imported", "status": "finished", "loss_reason": "beta is not known",
        "loss_names": ["ipo"], "logps": "mean", "reference_free": False, "data": {"n": 2}, "other": {"hub": 3},
        "splits": {"eval_train_probe": {"role": "train_probe", "n_pairs": 4}},
    }  # fmt: skip


RELEASED = sorted((TESTS / "fixtures").glob("schema_*"))


@pytest.mark.parametrize("folder", RELEASED, ids=lambda folder: folder.name)
def test_a_trained_run_of_every_schema_is_read_with_its_values(folder: Path) -> None:
    """124 held-out pairs at steps 0 and 80. The sums were taken from the files with pyarrow alone: chosen -668.196 to
    -1124.786 nats, rejected -314.516 to -1178.629. So the margin is 0.1 (-456.590 + 864.113) / 124 = 0.32865, which the
    trainer logged too, and the loss at step 0 is ln 2."""
    run = load_run(folder / "trained")
    assert (run.info.schema_version, run.kind) == (folder.name.removeprefix("schema_").replace("_", "."), "trained")
    assert run.info.loss is not None and (run.info.loss.types, run.info.beta) == (("sigmoid",), 0.1)
    assert (run.role("eval"), run.info.splits["eval"].n_pairs, run.info.seed) == ("held_out", 124, 0)
    sums = run.pairs.groupby(["step", "side"])[["sum_logp", "ref_sum_logp", "n_tokens"]].sum()
    assert sums["sum_logp"].to_list() == pytest.approx([-668.1962, -314.5156, -1124.7860, -1178.6290], abs=1e-3)
    assert sums["ref_sum_logp"].to_list() == pytest.approx([-668.1962, -314.5156] * 2, abs=1e-3)
    assert sums["n_tokens"].to_list() == [2361, 2325, 2361, 2325]
    logged = run.history.set_index(["name", "step"])["value"]
    assert logged["loss", 0] == pytest.approx(math.log(2), abs=1e-6)
    assert logged["rewards/margins", 80] == pytest.approx(0.32865, abs=1e-5)
    document = explain(run)
    assert (document["from_step"], document["to_step"], document["n_pairs"]) == ("ref", 80, 124)
    assert document["loss"]["delta"] == pytest.approx(0.560504 - math.log(2), abs=1e-5)


def test_this_schema_has_a_golden_run() -> None:
    """Who raises the version adds a run that it wrote: later ones must read it."""
    assert f"schema_{SCHEMA_VERSION.replace('.', '_')}" in {folder.name for folder in RELEASED}
