"""Runs that an earlier version imported (schema 1.0, kept as they were) are explained like a new import of the log."""

from __future__ import annotations

from pathlib import Path

import pytest

from dpo_diag.diagnosis import explain
from dpo_diag.importers import Options, import_path
from dpo_diag.records import RunWriter, load_run

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
