"""Tables in the forms in which people save a log: pandas' to_json, printed frames, cells with commas."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from dpo_diag.errors import DiagError
from dpo_diag.importers.cells import Cells
from dpo_diag.importers.columns import rows_of_table
from dpo_diag.importers.numbers import number
from tests.importers.conftest import Importing
from tests.importers.reading import steps, value


def frame(n: int = 6, with_step: bool = True) -> pd.DataFrame:
    """log_history with evaluations at half and at the end, and its final summary."""
    rows: list[dict[str, Any]] = []
    for i in range(1, n + 1):
        rows.append({"loss": 0.7 - 0.02 * i, "rewards/chosen": -0.05 * i, "epoch": i / n, "step": 10 * i})
        if i in (n // 2, n):
            rows.append({"eval_loss": 0.71 - 0.02 * i, "epoch": i / n, "step": 10 * i})
    rows.append({"train_runtime": 3.5, "train_loss": 0.6, "epoch": 1.0, "step": 10 * n})
    table = pd.DataFrame(rows)
    return table if with_step else table.drop(columns="step")


@pytest.mark.parametrize("n", [6, 1200])  # the long one is longer than the head that a format is known by
@pytest.mark.parametrize("orient", ["columns", "index", "split", "records", "table"])
def test_pandas_to_json(orient: Any, n: int, tmp_path: Path, imported: Importing) -> None:
    frame(n).to_json(tmp_path / "log.json", orient=orient)
    result, run = imported(tmp_path / "log.json")
    assert (steps(run, "loss"), steps(run, "loss", "eval")) == (list(range(10, 10 * n + 1, 10)), [5 * n, 10 * n])
    assert (value(run, "loss", 20), value(run, "rewards/chosen", 20)) == (pytest.approx(0.66), -0.1)
    assert (result["summary_rows"], result["skipped_count"], run.info.source.kept_under_own_name) == (1, 0, ())


def test_numbers_of_rows_are_steps_where_they_are_no_count() -> None:
    columns = {"loss": {"10": 0.7, "20": 0.6}, "rewards/chosen": {"10": 0.0, "20": 0.1}}
    assert rows_of_table(columns) == [
        {"step": 10, "loss": 0.7, "rewards/chosen": 0.0}, {"step": 20, "loss": 0.6, "rewards/chosen": 0.1}
    ]  # fmt: skip
    assert rows_of_table({"loss": {"0": 0.7, "1": 0.6}, "lr": {"0": 1.0, "1": 1.0}}) == [
        {"loss": 0.7, "lr": 1.0}, {"loss": 0.6, "lr": 1.0}
    ]  # fmt: skip
    assert rows_of_table({"0": {"loss": 0.7, "step": 5}}) == [{"loss": 0.7, "step": 5}]
    assert rows_of_table({"100": {"loss": 0.7}}) == [{"step": 100, "loss": 0.7}]
    assert rows_of_table({"columns": ["loss"], "index": [3, 4], "data": [[0.7], [0.6]]}) == [
        {"step": 3, "loss": 0.7}, {"step": 4, "loss": 0.6}
    ]  # fmt: skip
    assert rows_of_table({"train": {"loss": [0.7]}, "eval": {"loss": [0.8]}}) == [{"loss": 0.7}, {"eval/loss": 0.8}]
    # Rows that hold objects or lists of their own are no tables.
    for row in ({"config": {"0": 1}}, {"loss": [0.1]}, {"prompt": ["a"], "chosen": ["b"]}, {"train": {"loss": 0.7}}):
        assert rows_of_table(row) is None


@pytest.mark.parametrize("orient", ["columns", "index", "split", "table"])
def test_an_index_of_steps_is_the_step(orient: Any, tmp_path: Path, imported: Importing) -> None:
    """Rows 10, 20, 30 without a column step, the index without a name; whole floats are steps too."""
    for index in ([10, 20, 30], [10.0, 20.0, 30.0]):
        pd.DataFrame({"loss": [0.7, 0.6, 0.5]}, index=index).to_json(tmp_path / "log.json", orient=orient)
        _, run = imported(tmp_path / "log.json")
        assert (steps(run, "loss"), value(run, "loss", 20)) == ([10, 20, 30], 0.6)


@pytest.mark.parametrize("n", [6, 5000])
def test_a_table_without_names_is_refused(n: int, tmp_path: Path, imported: Importing) -> None:
    frame(n).to_json(tmp_path / "log.json", orient="values")
    with pytest.raises(DiagError, match=r"^a table without the names of its columns; .*; hint: .*orient=\"records\""):
        imported(tmp_path / "log.json")


def test_columns_of_different_lengths_are_refused(tmp_path: Path, imported: Importing) -> None:
    (tmp_path / "history.json").write_text(json.dumps({"loss": [0.7, 0.6], "val_loss": [0.7]}))
    with pytest.raises(DiagError, match=r"columns of different lengths; .*; got loss: 2, val_loss: 1"):
        imported(tmp_path / "history.json")


def test_objects_over_several_lines(tmp_path: Path, imported: Importing) -> None:
    rows = [{"step": s, "loss": 0.7 - s / 100, "note": {"lr": 1}} for s in (1, 2, 3)]
    (tmp_path / "log.jsonl").write_text("\n".join(json.dumps(r, indent=2) for r in rows) + "\n{\n  broken\n}\n")
    result, run = imported(tmp_path / "log.jsonl")
    assert (steps(run, "loss"), result["skipped_count"]) == ([1, 2, 3], 1)


@pytest.mark.parametrize("form", ["to_string", "no_index", "step_index", "markdown", "drawn", "after_prose", "wrapped"])
def test_printed_frames(form: str, tmp_path: Path, imported: Importing) -> None:
    table = frame()
    with pd.option_context("display.width", 40, "display.max_columns", 20, "display.max_rows", 100):
        text = {
            "to_string": table.to_string(),
            "no_index": table.to_string(index=False),
            "step_index": table.set_index("step").to_string(),
            "markdown": table.to_markdown(),
            "drawn": table.to_markdown(tablefmt="grid", index=False).replace("|", "\u2502"),
            "after_prose": f"Loading the model ...\nThe history:\n\n{table}\n\n[9 rows x 6 columns]\nDone.\n",
            "wrapped": str(table),
        }[form]
    (tmp_path / "frame.txt").write_text(text)
    result, run = imported(tmp_path / "frame.txt")
    assert (result["format"], result["skipped_count"], result["summary_rows"]) == ("table", 0, 1)
    assert (steps(run, "loss"), steps(run, "loss", "eval")) == ([10, 20, 30, 40, 50, 60], [30, 60])
    assert (value(run, "loss", 60), value(run, "rewards/chosen", 60)) == (0.58, -0.3)


@pytest.mark.parametrize("form", ["to_html", "no_index", "notebook"])
def test_tables_in_a_page(form: str, tmp_path: Path, imported: Importing) -> None:
    """pandas' own page, and a trainer's table in a saved notebook, behind a long head and another table."""
    table, path = frame(), tmp_path / "page.html"
    other = "<table><tr><th>name</th><th>size</th></tr><tr><td>model</td><td>7</td></tr></table>"
    head = f"<!DOCTYPE html>\n<html><head><style>{'p {{}} ' * 20_000}</style></head><body>{other}<p>Training | log</p>"
    pages = {
        "to_html": table.to_html(),
        "no_index": table.to_html(index=False),
        "notebook": f"{head}{table.to_html(index=False)}</body></html>",
    }
    path.write_text(pages[form])
    result, run = imported(path)
    assert (result["format"], result["skipped_count"], result["summary_rows"]) == ("html", 0, 1)
    assert (steps(run, "loss"), steps(run, "loss", "eval")) == ([10, 20, 30, 40, 50, 60], [30, 60])
    assert (value(run, "loss", 60), value(run, "rewards/chosen", 60)) == (0.58, -0.3)


def test_a_page_without_a_log_says_what_to_export(tmp_path: Path, imported: Importing) -> None:
    (tmp_path / "page.html").write_text("<html><table><tr><th>a</th><th>b</th></tr><tr><td>1</td></tr></table></html>")
    with pytest.raises(DiagError, match=r"no table of a log in the page; .*; got 1 tables; .*hint: .*to_csv"):
        imported(tmp_path / "page.html")


def test_a_frame_printed_without_its_middle_is_refused(tmp_path: Path, imported: Importing) -> None:
    """print(df) of 200 rows shows ten and `...`; the size below says how many there are."""
    (tmp_path / "frame.txt").write_text(str(frame(200)))
    with pytest.raises(
        DiagError, match=r"left out when it was printed; .*; got 10 rows; expected 203 rows; hint: .*to_csv"
    ):
        imported(tmp_path / "frame.txt")


def test_columns_left_out_are_named(tmp_path: Path, imported: Importing) -> None:
    table = frame().dropna(subset="loss").assign(**{f"logps/{i}": 1.0 for i in range(20)})
    with pd.option_context("display.width", 60, "display.max_columns", 4):
        (tmp_path / "frame.txt").write_text(str(table[["step", "loss", *table.columns[5:], "rewards/chosen", "epoch"]]))
    result, run = imported(tmp_path / "frame.txt")
    assert result["notes"] == ["columns were left out when the table was printed (...)"]
    assert value(run, "loss", 60) == 0.58


SEMICOLONS = "Step;Training Loss;rewards / chosen\n900;0,6931;-0,05\n950;0,65;-1,5\n1.000;0,6;-1.234,5\n"


@pytest.mark.parametrize(
    ("text", "last"),
    [
        (SEMICOLONS, (1000, 0.6, -1234.5)),  # decimal commas, points between thousands
        ('Step,loss,rewards/chosen\n900,0.7,0\n"1,000",0.6,"-1,234.5"\n', (1000, 0.6, -1234.5)),
        ("step\tloss\trewards/chosen\n1\t0,693\t-0,125\n2\t0,693\t-1,125\n", (2, 0.693, -1.125)),  # three decimals
        ("step;loss;rewards/chosen\n1;6,9E-01;0\n2;1,0E-05;5%\n", (2, 1e-5, 0.05)),
        ("step;loss;rewards/chosen\n1;0.5D0;0\n2;2.5D-01;\u22120.5\n", (2, 0.25, -0.5)),
        ("step;loss;rewards/chosen\n1\u00a0000;0,5;0\n2\u202f000;0,25;nan\n", (2000, 0.25, None)),
    ],
)
def test_decimal_marks(text: str, last: tuple[int, float, float | None], tmp_path: Path, imported: Importing) -> None:
    (tmp_path / "log.csv").write_text(text, encoding="utf-8")
    result, run = imported(tmp_path / "log.csv")
    step, loss, reward = last
    assert (result["skipped_count"], steps(run, "loss")[-1], value(run, "loss", step)) == (0, step, loss)
    assert reward is None or value(run, "rewards/chosen", step) == pytest.approx(reward)


def test_a_mark_that_can_be_read_two_ways_is_refused(tmp_path: Path, imported: Importing) -> None:
    """1,000 and 2,000 beside decimal commas: steps 1 and 2, or 1000 and 2000."""
    path = tmp_path / "log.csv"
    path.write_text("step;loss\n1,000;0,693\n2,000;0,65\n")
    with pytest.raises(
        DiagError, match=r"read two ways; .*column step; got 1,000; .*--decimal point or --decimal comma"
    ):
        imported(path)
    _, run = imported(path, decimal="comma")
    assert steps(run, "loss") == [1, 2]
    path.write_text('step,loss\n"1,000",2\n"2,000",1\n')
    _, run = imported(path, decimal="point")
    assert steps(run, "loss") == [1000, 2000]


def test_cells_by_column() -> None:
    """A column without a mark of its own follows the others; points before three digits are decimals by default."""
    rows = [{"step": "950", "loss": "0,7", "ref": "-123,456", "n": "1.000"}, {"step": "1,000", "loss": "0,6"}]
    cells = Cells(rows, None, Path("log.csv"))
    assert [cells.plain(k, v) for k, v in {**rows[0], **rows[1]}.items()] == ["1000", "0.6", "-123.456", "1000"]
    assert Cells([{"loss": "1.234"}], None, Path("log.csv")).plain("loss", "1.234") == "1.234"
    assert cells.plain("run", "a, b.c") == "a, b.c"


@pytest.mark.parametrize(
    ("text", "read"),
    [("77.3%", 0.773), ("1.5d+02", 150.0), ("12 345.5", 12345.5), ("1'000", 1000.0), ("\u22120.5", -0.5), ("1 2", None),
     ("1,000", None), ("3 %", 0.03), ("0x10", None)],
)  # fmt: skip
def test_spellings_of_one_meaning(text: str, read: float | None) -> None:
    assert number(text) == (None if read is None else pytest.approx(read))
