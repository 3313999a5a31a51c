"""What a run gives a pandas user beside its tables: metrics, the explanation, tokens with texts, descriptions."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from dpo_diag import DiagError, RunWriter, load_run, load_runs
from dpo_diag.diagnosis import explain
from tests.diagnosis.builders import build_run, build_token_run

EXAMPLE = Path(__file__).resolve().parents[2] / "runs" / "example"
SUMS = {0: ([-18.0], [-24.0]), 7: ([-20.0], [-30.0])}


def logged(path: Path) -> Path:
    """A run that only a log tells of: two metrics at step 1 and 2, one of them unknown to the metric table."""
    writer = RunWriter(path)
    writer.update(kind="imported", beta=0.1)
    rows = [
        {"step": 1, "epoch": 0.5, "split": "train", "name": "my/own", "value": 3.0},
        {"step": 1, "epoch": 0.5, "split": "train", "name": "loss", "value": 0.7},
        {"step": 2, "epoch": 1.0, "split": "train", "name": "loss", "value": 0.6},
        {"step": 2, "epoch": 1.0, "split": "eval", "name": "loss", "value": 0.65},
    ]
    writer.write("history", rows)
    writer.finish()
    return path


def test_opening_a_run_waits_for_no_pandas() -> None:
    code = f"import sys, dpo_diag; dpo_diag.load_run({str(EXAMPLE)!r}); print('pandas' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_metrics_is_wide(tmp_path: Path) -> None:
    """A row per step and split; the metric table's columns first."""
    metrics = load_run(logged(tmp_path / "r")).metrics
    assert list(metrics.columns) == ["step", "split", "epoch", "loss", "my/own"]
    assert metrics[["step", "split", "loss"]].to_numpy().tolist() == [
        [1, "train", 0.7], [2, "eval", 0.65], [2, "train", 0.6],
    ]  # fmt: skip
    assert metrics["epoch"].tolist() == [0.5, 1.0, 1.0]
    assert metrics["my/own"].isna().tolist() == [False, True, True]
    RunWriter(tmp_path / "none").finish()
    assert load_run(tmp_path / "none").metrics.empty


def test_the_findings_are_the_document(tmp_path: Path) -> None:
    run = build_run(tmp_path, SUMS)
    found = run.explain()
    assert dict(found) == explain(run)
    assert found.verdict == found["verdict"]["label"]
    assert found["verdict"]["text"] in str(found)
    assert list(found.checks["code"]) == [check["code"] for check in found["checks"]]
    assert list(found.texts()["pair_id"]) == list(found.pairs["pair_id"]) == ["p0"]
    assert repr(found).startswith(f"Findings({str(tmp_path)!r}, verdict=")


def test_findings_of_a_log(tmp_path: Path) -> None:
    found = load_run(logged(tmp_path / "r")).explain()
    assert found.pairs.empty and found.texts().empty
    assert "not_applicable" in found["quadrants"]


def test_html_escapes_what_a_run_holds(tmp_path: Path) -> None:
    run = build_run(tmp_path / "<b>", SUMS, facts={"model": {"name": "<script>alert(1)</script>"}})
    for shown in (run._repr_html_(), run.explain()._repr_html_(), load_runs([run.path])._repr_html_()):
        assert "<script>" not in shown
        assert "&lt;b&gt;" in shown


def test_tokens_have_their_texts(tmp_path: Path) -> None:
    responses = {"p": ([5, 6, 2], [5, 7, 2])}
    logps = {0: {"p": ([-1, -2, -3], [-1, -1, -1])}, 4: {"p": ([-2, -2, -2], [-1, -4, -1])}}
    run = build_token_run(tmp_path / "r", responses, logps)
    with pytest.raises(DiagError, match=r"nothing in the records says how the tokens are written.*vocab\.json"):
        run.tokens_text()
    (run.path / "vocab.json").write_text(json.dumps({"5": "SELECT", "6": " a", "7": " b"}), encoding="utf-8")
    tokens = run.tokens_text(steps=[4])
    chosen = tokens[tokens["side"] == "chosen"]
    assert chosen["text"].fillna("?").tolist() == ["SELECT", " a", "?"]
    assert chosen[["step", "logp", "ref_logp"]].to_numpy().tolist() == [[4, -2, -1], [4, -2, -2], [4, -2, -3]]
    assert len(run.tokens_text()) == len(run.tokens) == 12
    with pytest.raises(DiagError, match=r"no token rows.*ask for other steps"):
        run.tokens_text(steps=[9])
    with pytest.raises(DiagError, match="holds no token rows"):
        build_run(tmp_path / "pairs", SUMS).tokens_text()


def test_describe_says_every_column_once(tmp_path: Path) -> None:
    run = load_run(EXAMPLE)
    told = run.describe().set_index(["table", "column"])
    assert told.index.is_unique
    for table in ("history", "pairs", "tokens", "outputs", "texts", "metrics"):
        frame = getattr(run, table)
        of = told.loc[table]
        assert list(of.index) == list(frame.columns)
        assert of["dtype"].tolist() == [str(dtype) for dtype in frame.dtypes]
    wide = run.pairs_wide()
    assert list(told.loc["pairs_wide"].index) == list(wide.columns)
    assert told.loc["pairs_wide"]["dtype"].tolist() == [str(dtype) for dtype in wide.dtypes]
    assert told.loc[("pairs", "ref_sum_logp"), "unit"] == "nats"
    assert told.loc[("pairs", "ref_sum_logp"), "meaning"].startswith("under the reference: ")
    assert told.loc[("metrics", "rewards/accuracies"), ["unit", "better"]].tolist() == ["share", "higher"]
    assert "alerts" not in told.index.get_level_values("table")
    assert not run.describe("alerts").empty
    with pytest.raises(DiagError, match="no such table"):
        run.describe("losses")


def test_types_do_not_depend_on_what_is_null(tmp_path: Path) -> None:
    """Counts and truth values that a source may leave out are nullable whether it did or not; text is no object."""
    run = build_run(tmp_path / "known", SUMS)
    unknown = build_run(tmp_path / "unknown", SUMS, n=None, n_bytes=[4])
    for frame in (run.pairs, unknown.pairs):
        assert isinstance(frame["n_tokens"].dtype, pd.Int32Dtype)
    assert unknown.pairs["n_tokens"].isna().all()
    example = load_run(EXAMPLE)
    assert isinstance(example.outputs["seed"].dtype, pd.Int64Dtype)
    assert isinstance(example.history["derived"].dtype, pd.BooleanDtype)
    assert isinstance(example.tokens["is_top1"].dtype, pd.BooleanDtype)
    lists = {"tags", "token_ids"}
    for table in ("history", "pairs", "tokens", "outputs", "texts", "metrics"):
        frame = getattr(example, table)
        assert [c for c in frame if frame[c].dtype == object and c not in lists] == []
