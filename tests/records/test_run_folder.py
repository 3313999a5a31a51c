"""Writing and reading a run folder: values survive, a kill loses nothing that was renamed, errors name the place."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpo_diag import load_runs
from dpo_diag.commands.diag import main
from dpo_diag.errors import DamagedRecords, DiagError
from dpo_diag.records import RunWriter, load_run
from dpo_diag.records.schemas import TABLES


def pair_rows(
    step: int, pair: str = "p", *, split: str = "eval", role: str = "policy", logp: float = -2.0
) -> list[dict]:
    return [
        {
            "step": step,
            "split": split,
            "role": role,
            "pair_id": pair,
            "side": side,
            "sum_logp": logp * k,
            "n_tokens": 2 * k,
        }
        for k, side in ((1, "chosen"), (2, "rejected"))
    ]


def test_reference_rows_are_stored_once_and_joined_at_every_step(tmp_path: Path) -> None:
    """Reference -2 and -4, policy -3 and -6 at step 5: both steps see the same reference."""
    writer = RunWriter(tmp_path / "r")
    writer.write("pairs", pair_rows(0) + pair_rows(0, role="ref"), "eval")
    writer.write("pairs", pair_rows(5, logp=-3.0), "eval")
    pairs = load_run(tmp_path / "r").pairs
    assert pairs[["step", "side", "sum_logp", "ref_sum_logp"]].to_numpy().tolist() == [
        [0, "chosen", -2.0, -2.0], [0, "rejected", -4.0, -4.0], [5, "chosen", -3.0, -2.0], [5, "rejected", -6.0, -4.0],
    ]  # fmt: skip
    assert set(pairs["role"]) == {"policy"}


def test_a_split_s_reference_is_not_another_split_s(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path / "r")
    writer.write("pairs", pair_rows(0, split="eval") + pair_rows(0, split="eval", role="ref", logp=-9.0), "eval")
    writer.write("pairs", pair_rows(0, split="train"), "train")
    pairs = load_run(tmp_path / "r").pairs
    assert pairs.loc[pairs["split"] == "train", "ref_sum_logp"].isna().all()
    assert pairs.loc[pairs["split"] == "eval", "ref_sum_logp"].tolist() == [-9.0, -18.0]


def test_token_reference_joins_by_position_and_sums_to_the_pair(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path / "r")
    token = {"step": 0, "split": "eval", "pair_id": "p", "side": "chosen"}
    writer.write(
        "tokens",
        [
            token | {"role": role, "position": i, "token_id": 7 + i, "logp": base - i}
            for role, base in (("policy", -1.0), ("ref", -0.5))
            for i in range(3)
        ],
    )
    tokens = load_run(tmp_path / "r").tokens
    assert tokens["logp"].tolist() == [-1.0, -2.0, -3.0]
    assert tokens["ref_logp"].tolist() == [-0.5, -1.5, -2.5]
    assert float(tokens["logp"].astype("float64").sum()) == -6.0


def test_writing_a_step_again_replaces_it(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path / "r")
    writer.write("pairs", pair_rows(3), "eval")
    writer.write("pairs", pair_rows(3, logp=-5.0), "eval")
    assert load_run(tmp_path / "r").pairs["sum_logp"].tolist() == [-5.0, -10.0]


def test_nan_and_infinity_survive_in_history_and_null_is_not_nan(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path / "r")
    values = [float("nan"), float("inf"), float("-inf"), 1.5]
    writer.write("history", [{"step": i, "split": "train", "name": "loss", "value": v} for i, v in enumerate(values)])
    arrow = load_run(tmp_path / "r").arrow("history")
    assert arrow.column("value").null_count == 0
    assert np.array_equal(arrow.column("value").to_numpy(), np.array(values), equal_nan=True)
    assert arrow.column("weight").null_count == 4


def test_selection_is_pushed_down(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path / "r")
    for step in (0, 5, 10):
        writer.write("pairs", pair_rows(step) + pair_rows(step, "q", split="eval_b"), "all")
    run = load_run(tmp_path / "r")
    assert [p.name for p in run.files("pairs", [5])] == ["00000005-00000005.all.r0.parquet"]
    frame = run.read("pairs", ["step", "pair_id"], steps=[5, 10], splits=["eval_b"])
    assert frame.to_numpy().tolist() == [[5, "q"], [5, "q"], [10, "q"], [10, "q"]]
    with pytest.raises(DiagError, match=r"unknown columns \['nope'\]"):
        run.read("pairs", ["nope"])


def test_resuming_leaves_neither_duplicate_nor_gap(tmp_path: Path) -> None:
    """Killed at step 7 with a checkpoint at 4: steps 5 to 7 go, a file that straddles the checkpoint is cut."""
    writer = RunWriter(tmp_path / "r")
    writer.write("pairs", pair_rows(1, split="train") + pair_rows(2, split="train"), "train")
    writer.write("pairs", [r for s in (3, 4, 5) for r in pair_rows(s, split="train")], "train")
    writer.write("pairs", pair_rows(7, split="train"), "train")
    resumed = RunWriter(tmp_path / "r", resume_step=4)
    for step in (5, 6, 7):
        resumed.write("pairs", pair_rows(step, split="train", logp=-1.0), "train")
    pairs = load_run(tmp_path / "r").read("pairs").sort_values(["step", "side"])
    assert pairs["step"].tolist() == [s for s in range(1, 8) for _ in range(2)]
    assert pairs.loc[pairs["step"] >= 5, "sum_logp"].tolist() == [-1.0, -2.0] * 3


def test_a_started_folder_is_not_overwritten(tmp_path: Path) -> None:
    RunWriter(tmp_path / "r").write("pairs", pair_rows(0))
    with pytest.raises(DiagError, match="already holds a run"):
        RunWriter(tmp_path / "r")


def test_a_killed_writer_leaves_only_whole_files(tmp_path: Path) -> None:
    """SIGKILL while writing in a loop: every file that is there reads, and the steps have no gap."""
    script = textwrap.dedent(
        f"""
        import pandas as pd
        from dpo_diag.records import RunWriter
        w = RunWriter({str(tmp_path / "r")!r})
        step = 0
        names = [f"m{{i}}" for i in range(5000)]
        while True:
            w.write("history", pd.DataFrame({{"step": step, "split": "train", "name": names, "value": 1.0}}))
            print(step, flush=True)
            step += 1
        """
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for _ in range(5):
        last = int(process.stdout.readline())
    time.sleep(0.03)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    run = load_run(tmp_path / "r")
    steps = sorted(set(run.history["step"]))
    assert steps == list(range(len(steps)))
    assert len(steps) >= last
    assert len(run.history) == 5000 * len(steps)
    assert run.meta["status"] == "running"


def test_secrets_never_reach_run_json(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path / "r")
    writer.update(data={"name": "m", "hf_token": "s3cret", "nested": [{"API_KEY": "s3cret", "pad_token": "<pad>"}]})
    text = (tmp_path / "r" / "run.json").read_text()
    assert "s3cret" not in text
    assert json.loads(text)["data"]["nested"][0]["pad_token"] == "<pad>"


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ({"step": [0], "split": ["e"], "name": ["n"], "value": ["x"]}, "column value does not fit"),
        (
            {"step": [0], "split": [None], "name": ["n"], "value": [1.0]},
            "column split is null; in table history, row 0",
        ),
        ({"step": [0], "split": ["e"], "value": [1.0]}, "column name is missing"),
        ({"step": [0], "split": ["e"], "name": ["n"], "vlaue": [1.0]}, r"unknown columns \['vlaue'\]"),
    ],
)
def test_rows_that_break_the_contract_are_named(tmp_path: Path, rows: dict, said: str) -> None:
    with pytest.raises(DiagError, match=said):
        RunWriter(tmp_path / "r").write("history", rows)
    assert not list((tmp_path / "r").glob("history/*"))


def test_reading_names_file_column_and_row(tmp_path: Path) -> None:
    RunWriter(tmp_path / "r").write("pairs", pair_rows(0))
    file = next((tmp_path / "r" / "pairs").glob("*.parquet"))
    table = pq.read_table(file)
    ids = pa.array([None, "p"], pa.string()).dictionary_encode()
    pq.write_table(table.set_column(table.schema.get_field_index("pair_id"), "pair_id", ids), file)
    with pytest.raises(DiagError, match=rf"column pair_id is null; in {file}, row 0"):
        load_run(tmp_path / "r").read("pairs")
    file.write_bytes(file.read_bytes()[:100])
    with pytest.warns(DamagedRecords, match=rf"rows are left out: a record file cannot be read; in {file}"):
        assert load_run(tmp_path / "r").read("pairs").empty


def test_an_older_minor_version_reads_with_nulls(tmp_path: Path) -> None:
    RunWriter(tmp_path / "r").write("pairs", pair_rows(0))
    file = next((tmp_path / "r" / "pairs").glob("*.parquet"))
    pq.write_table(pq.read_table(file).drop_columns(["weight", "top5"]), file)
    assert load_run(tmp_path / "r").pairs[["weight", "top5"]].isna().all().all()


def test_wrong_paths_and_versions_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DiagError, match="no run folder"):
        load_run(tmp_path / "absent")
    RunWriter(tmp_path / "job" / "0").finish()
    with pytest.raises(DiagError, match="name one of the runs inside: 0"):
        load_run(tmp_path / "job")
    (tmp_path / "job" / "0" / "run.json").write_text('{"schema_version": "9.0"}')
    with pytest.raises(DiagError, match=r"unknown schema version.*got 9.0; expected 1.x"):
        load_run(tmp_path / "job" / "0")
    (tmp_path / "job" / "0" / "run.json").write_text('{"schema_')
    with pytest.raises(DiagError, match=r"run.json cannot be read"):
        load_run(tmp_path / "job" / "0")
    with pytest.raises(DiagError, match="no run found"):
        load_runs(str(tmp_path / "job" / "*x"))


def test_absent_tables_are_empty_frames_with_their_columns(tmp_path: Path) -> None:
    RunWriter(tmp_path / "r")
    run = load_run(tmp_path / "r")
    assert list(run.outputs.columns) == TABLES["outputs"].names
    assert list(run.history.columns) == TABLES["history"].names
    assert {"ref_sum_logp", "sum_logp"} <= set(run.pairs.columns)
    assert len(run.pairs) == len(run.tokens) == len(run.texts) == len(run.alerts) == 0


def test_load_runs_stacks_with_a_run_column(tmp_path: Path) -> None:
    for name in ("a", "b"):
        RunWriter(tmp_path / name).write("pairs", pair_rows(0))
    stacked = load_runs(str(tmp_path / "*")).pairs
    assert sorted(set(stacked["run"])) == [str(tmp_path / "a"), str(tmp_path / "b")]
    assert len(stacked) == 4


def test_ranks_write_side_by_side(tmp_path: Path) -> None:
    RunWriter(tmp_path / "r", rank=0).write("pairs", pair_rows(0, "p"), "eval")
    RunWriter(tmp_path / "r", rank=1).write("pairs", pair_rows(0, "q"), "eval")
    assert sorted(set(load_run(tmp_path / "r").pairs["pair_id"])) == ["p", "q"]


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 9), st.text(max_size=8), st.floats(width=64), st.floats(allow_nan=False, width=64)),
        max_size=20,
    )
)
def test_any_history_survives_a_round_trip(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple]) -> None:
    folder = tmp_path_factory.mktemp("h") / "r"
    unique = {(step, name): (value, weight) for step, name, value, weight in rows}
    frame = pd.DataFrame(
        [{"step": k[0], "split": "x/y é", "name": k[1], "value": v[0], "weight": v[1]} for k, v in unique.items()]
    )
    RunWriter(folder).write("history", frame, "x/y é")
    back = load_run(folder).history
    found = {(r.step, r.name): (r.value, r.weight) for r in back.itertuples(index=False)}
    assert found.keys() == unique.keys()
    for key, value in unique.items():
        assert np.array_equal(found[key], value, equal_nan=True)


def test_temporary_files_are_not_read(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path / "r")
    writer.write("pairs", pair_rows(0))
    (tmp_path / "r" / "pairs" / f".00000001-00000001.all.r0.parquet.{os.getpid()}.tmp").write_bytes(b"PAR1half")
    assert set(load_run(tmp_path / "r").pairs["step"]) == {0}


def test_a_file_that_may_not_be_read_now_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stale handle of a shared disk: no numbers from the rest of the rows."""
    import errno

    writer = RunWriter(tmp_path / "r")
    writer.write("history", [{"step": 1, "split": "train", "name": "loss", "value": 0.5, "weight": 1.0}])
    writer.finish()
    before = Path.read_bytes

    def stale(path: Path) -> bytes:
        if path.suffix == ".parquet":
            raise OSError(errno.ESTALE, "Stale file handle", str(path))
        return before(path)

    monkeypatch.setattr(Path, "read_bytes", stale)
    with pytest.raises(DiagError, match=r"cannot be opened.*Stale file handle"):
        load_run(tmp_path / "r").read("history")


def test_a_start_that_ended_before_its_first_record_is_called_that(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its reports of the data stay; neither reader asks for an import of its log."""
    folder = tmp_path / "r"
    (folder / ".hydra").mkdir(parents=True)
    (folder / "data_report.json").write_text("{}")
    (folder / "dpo-train.log").write_text("prompts without ids\n")
    for command in ("explain", "report"):
        assert main([command, str(folder)]) == 1
        line = capsys.readouterr().err.strip().splitlines()[0]
        said = f"hint: this start ended before its first record; {folder / 'dpo-train.log'} says why"
        assert said in line and "import" not in line
