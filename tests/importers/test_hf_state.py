"""trainer_state.json: TRL's keys old and new, evaluation sets by name, summaries, NaN, cut-off documents."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from dpo_diag.errors import DiagError
from tests.importers.conftest import Importing
from tests.importers.reading import steps, value


def row(step: int, **values: Any) -> dict[str, Any]:
    return {"step": step, "epoch": step / 100, **values}


def state(path: Path, rows: list[dict[str, Any]], **more: Any) -> Path:
    path.write_text(json.dumps({"log_history": rows, "max_steps": 100, "best_metric": None, "epoch": 1.0, **more}))
    return path


def test_train_and_eval_rows_of_one_step_become_two_splits(tmp_path: Path, imported: Importing) -> None:
    rows = [
        row(10, loss=0.69, **{"rewards/chosen": 0.1, "logps/chosen": -50.0}),
        row(10, eval_loss=0.68, eval_runtime=3.0, **{"eval_rewards/chosen": 0.2, "eval_logps/chosen": -51.0}),
    ]
    result, run = imported(state(tmp_path / "trainer_state.json", rows))
    assert (result["format"], result["rows"], result["read"], result["skipped"]) == ("hf", 2, 2, [])
    assert value(run, "loss", 10) == 0.69
    assert value(run, "loss", 10, "eval") == 0.68
    assert value(run, "logps/chosen", 10, "eval") == -51.0
    assert "runtime" not in set(run.history["name"])
    assert run.meta["kind"] == "imported"
    assert run.info.logps == "sum"


def test_several_evaluation_sets_share_a_step(tmp_path: Path, imported: Importing) -> None:
    """HF names a set inside the key: eval_<set>_loss; nll_loss is a metric's own name, not a set `nll`."""
    rows = [
        row(5, eval_helpful_loss=0.5, **{"eval_helpful_rewards/margins": 1.5}),
        row(5, eval_harm_less_loss=0.6, eval_nll_loss=2.0, eval_harm_less_nll_loss=3.0),
    ]
    _, run = imported(state(tmp_path / "trainer_state.json", rows))
    assert value(run, "loss", 5, "eval_helpful") == 0.5
    assert value(run, "rewards/margins", 5, "eval_helpful") == 1.5
    assert value(run, "loss", 5, "eval_harm_less") == 0.6
    assert value(run, "nll_loss", 5, "eval") == 2.0
    assert value(run, "nll_loss", 5, "eval_harm_less") == 3.0


def test_eval_num_tokens_is_no_metric_but_num_tokens_is(tmp_path: Path, imported: Importing) -> None:
    rows = [row(5, loss=0.6, num_tokens=1e6), row(5, eval_loss=0.6, eval_num_tokens=1e6, eval_h_num_tokens=1e6)]
    _, run = imported(state(tmp_path / "trainer_state.json", rows))
    assert set(run.history.loc[run.history["split"] != "train", "name"]) == {"loss"}
    assert value(run, "num_tokens", 5) == 1e6
    assert run.meta["source"]["left_out"] == ["eval_h_num_tokens", "eval_num_tokens"]


def test_the_final_summary_with_leftover_metrics_is_no_step(tmp_path: Path, imported: Importing) -> None:
    summary = row(20, train_runtime=9.0, train_loss=0.5, **{"rewards/chosen": -99.0, "logps/chosen": -999.0})
    rows = [row(10, loss=0.69), row(20, loss=0.6), summary]
    result, run = imported(state(tmp_path / "trainer_state.json", rows))
    assert (result["rows"], result["read"], result["summary_rows"]) == (3, 2, 1)
    assert steps(run, "loss") == [10, 20]
    assert "rewards/chosen" not in set(run.history["name"])
    assert run.meta["source"]["summary"]["train_loss"] == 0.5


def test_nan_stays_nan_and_missing_stays_missing(tmp_path: Path, imported: Importing) -> None:
    """HF filters NaN out of `loss` while logps keep it; JSON then holds the literal NaN."""
    rows = [row(10, loss=0.0, **{"logps/chosen": math.nan}), row(20, loss=None, **{"logps/chosen": -5.0})]
    result, run = imported(state(tmp_path / "trainer_state.json", rows))
    assert math.isnan(value(run, "logps/chosen", 10))
    assert steps(run, "loss") == [10]
    assert result["skipped"] == []


def test_duplicated_steps_are_dropped_and_counted_and_the_last_wins(tmp_path: Path, imported: Importing) -> None:
    rows = [row(10, loss=0.7), row(20, loss=0.6), row(10, loss=0.65), row(20, loss=0.55), row(30, loss=0.5)]
    result, run = imported(state(tmp_path / "trainer_state.json", rows))
    assert (result["duplicates"], result["rows"], result["read"]) == (2, 5, 3)
    assert [value(run, "loss", s) for s in (10, 20, 30)] == [0.65, 0.55, 0.5]
    assert run.meta["source"]["backtracks"] == [{"split": "train", "from": 20, "to": 10}]
    assert "2 repeated rows differ" in " ".join(result["notes"])


def test_rows_of_one_step_with_different_keys_are_merged(tmp_path: Path, imported: Importing) -> None:
    result, run = imported(state(tmp_path / "t.json", [row(10, loss=0.7), row(10, grad_norm=2.0)]))
    assert (value(run, "loss", 10), value(run, "grad_norm", 10), result["duplicates"]) == (0.7, 2.0, 0)


def test_a_cut_off_document_gives_its_rows_and_a_report(tmp_path: Path, imported: Importing) -> None:
    text = json.dumps({"log_history": [row(s, loss=0.7 - s / 100) for s in (10, 20, 30)]}, indent=1)
    path = tmp_path / "trainer_state.json"
    path.write_text(text[: text.rindex('"loss"') + 5])
    result, run = imported(path)
    assert steps(run, "loss") == [10, 20]
    assert [s["why"].split(":")[0] for s in result["skipped"]] == [
        "the document is broken",
        "a row is cut off or broken",
    ]
    assert result["skipped"][1]["line"] == text.count("\n", 0, text.rindex("{")) + 1


def test_a_bare_list_columns_and_a_nested_history_are_read(tmp_path: Path, imported: Importing) -> None:
    rows = [{"step": 1, "loss": 0.7}, {"step": 2, "loss": 0.6}]
    for name, document in {
        "list.json": rows,
        "columns.json": {"step": [1, 2], "loss": [0.7, 0.6]},
        "nested.json": {"data": {"history": rows}},
    }.items():
        (tmp_path / name).write_text(json.dumps(document))
        _, run = imported(tmp_path / name)
        assert [value(run, "loss", s) for s in (1, 2)] == [0.7, 0.6]


def test_wrong_types_are_reported_by_line_and_the_rest_is_read(tmp_path: Path, imported: Importing) -> None:
    rows = [row(10, loss="bad", grad_norm=1.0), {"step": "x", "loss": 0.5}, 7, row(20, loss="0.5")]
    path = state(tmp_path / "trainer_state.json", rows)
    path.write_text(json.dumps(json.loads(path.read_text()), indent=0))
    result, run = imported(path)
    assert steps(run, "loss") == [20]
    assert value(run, "grad_norm", 10) == 1.0
    lines = path.read_text().splitlines()
    assert [(s["line"], s["why"]) for s in result["skipped"]] == [
        (lines.index('"loss": "bad",') - 2, "loss is not a number: 'bad'"),
        (lines.index('"step": "x",'), "step is not a step: 'x'"),
        (lines.index("7,") + 1, "the row is int, expected an object"),
    ]


def test_rows_without_any_step_get_numbers_and_a_note(tmp_path: Path, imported: Importing) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([{"loss": 0.7}, {"loss": 0.6}, {"eval_loss": 0.65}]))
    result, run = imported(path, logging_steps=25)
    assert steps(run, "loss") == [25, 50]
    assert steps(run, "loss", "eval") == [50]
    assert result["steps_from"] == "row number x 25 (as given)"


def test_a_file_without_rows_is_refused_in_one_line(tmp_path: Path, imported: Importing) -> None:
    path = tmp_path / "trainer_state.json"
    path.write_text('{"log_history": []}')
    with pytest.raises(DiagError, match="no row could be read"):
        imported(path)
    assert not (tmp_path / "run1").exists()


@pytest.mark.slow  # imports transformers and torch
def test_transformers_own_trainer_state_is_read_back(tmp_path: Path, imported: Importing) -> None:
    """Written by transformers' TrainerState itself: the numbers come back unchanged."""
    from transformers.trainer_callback import TrainerState

    history = [
        {"loss": 0.6931, "grad_norm": 1.25, "learning_rate": 5e-6, "epoch": 0.5, "step": 1},
        {"eval_loss": 0.7, "eval_runtime": 0.1, "epoch": 0.5, "step": 1},
    ]
    TrainerState(epoch=1.0, global_step=1, max_steps=2, log_history=history).save_to_json(
        str(tmp_path / "trainer_state.json")
    )
    result, run = imported(tmp_path / "trainer_state.json")
    assert (value(run, "loss", 1), value(run, "loss", 1, "eval"), result["read"]) == (0.6931, 0.7, 2)
    assert run.history.loc[run.history["name"] == "loss", "epoch"].tolist() == [0.5, 0.5]


def test_a_row_that_holds_lists_is_no_table_of_columns(tmp_path: Path, imported: Importing) -> None:
    """Two lists of one length in each row, and a loss under another name than `loss`."""
    rows = [{"step": step, "train_loss": 0.7 - step / 10, "lr": [1e-5], "betas": [0.9]} for step in (1, 2)]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result, _ = imported(tmp_path / "log.jsonl")
    assert (result["format"], result["read"]) == ("jsonl", 2)
