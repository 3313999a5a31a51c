"""What an import leaves out or overrides, it says: how many, and which."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest

from dpo_diag import load_run
from dpo_diag.documents import parse_json
from dpo_diag.errors import DiagError
from dpo_diag.importers import Options, import_path
from dpo_diag.importers.facts import facts_from_file
from dpo_diag.importers.formats import wandb_run
from dpo_diag.importers.scores import read_scores
from dpo_diag.records.row_files import BadRow, read_rows
from dpo_diag.records.text_files import Skipped
from dpo_diag.rows.cells import printed
from dpo_diag.rows.pair import read_messages, template_options


def test_a_score_that_stands_twice_is_told_with_both_lines(tmp_path: Path) -> None:
    """Line 3 overrides line 1; line 2 is of another step."""
    rows = [{"step": s, "name": "acc", "value": v} for s, v in ((0, 0.5), (10, 0.6), (0, 0.7))]
    (tmp_path / "s.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    skipped = Skipped()
    scores = read_scores(tmp_path / "s.jsonl", skipped)
    assert scores[["step", "value"]].to_numpy().tolist() == [[0, 0.7], [10, 0.6]]
    assert [(row["line"], row["why"]) for row in skipped.listed] == [
        (1, "a score that stands again: score/acc at step 0 in line 3, which counts")
    ]


def test_every_row_of_a_log_is_read_or_told(tmp_path: Path) -> None:
    """Eight rows: two read, one repeated and different, a null, an empty one, one without a number, two summaries."""
    log = tmp_path / "log.jsonl"
    log.write_text(
        '{"step": 1, "loss": 0.69, "rewards/chosen": 0.1}\nnull\n{}\n{"step": 2, "loss": null}\n'
        '{"step": 3, "loss": 0.6, "rewards/chosen": 0.2}\n{"step": 3, "loss": 0.61, "rewards/chosen": 0.2}\n'
        '{"train_runtime": 10.0, "train_loss": 0.5, "step": 3}\n{"train_runtime": 11.0, "train_loss": 0.6, "step": 3}\n'
    )
    told = import_path(log, tmp_path / "run", None, Options())
    counts = {key: told[key] for key in ("rows", "read", "duplicates", "summary_rows", "skipped_count")}
    assert counts == {"rows": 8, "read": 2, "duplicates": 1, "summary_rows": 2, "skipped_count": 1}
    assert told["notes"] == [
        "2 final summary rows: the last one counts", "2 rows without a number of a metric left out",
        "1 repeated rows differ from the one kept (the last of each step)",
    ]  # fmt: skip
    assert [(row["line"], row["why"]) for row in told["skipped"]] == [(2, "the row is NoneType, expected an object")]


def test_a_row_with_a_key_twice_is_told_and_none_of_its_values_taken(tmp_path: Path) -> None:
    """Text that only looks like keys is a value."""
    (tmp_path / "p.jsonl").write_text(
        '{"prompt": "p", "chosen": "a", "chosen": "b"}\n{"prompt": "{\\"a\\": 1, \\"a\\": 2}", "chosen": "c"}\n'
        '{"prompt": [{"role": "user", "role": "system"}], "chosen": "d"}\n'
    )
    rows = [row for _, row in read_rows(tmp_path / "p.jsonl")]
    assert [str(row) if isinstance(row, BadRow) else row["chosen"] for row in rows] == [
        "a key that stands twice: chosen", "c", "a key that stands twice: role",
    ]  # fmt: skip


def test_a_printed_row_with_a_key_twice_is_told_and_none_of_its_values_taken(tmp_path: Path) -> None:
    """Three ways to read a printed row: plain, with a word of Python's, as a literal. A time's colon is no key."""
    log = tmp_path / "train.log"
    log.write_text(
        "{'loss': 0.69, 'step': 1, 'elapsed': '0:01:22'}\n{'loss': 0.6, 'step': 2, 'loss': 0.5}\n"
        "{'loss': nan, 'step': 3, 'loss': 0.4}\n{'loss': 0.3, 'step': 4, 'it\\'s': (1, 2), 'loss': 0.2}\n"
        "{'loss': 0.6, 'step': 5, 'it\\'s': (1, 2)}\n"
    )
    told = import_path(log, tmp_path / "run", None, Options())
    assert (told["read"], told["skipped_count"]) == (2, 3)
    assert [row["line"] for row in told["skipped"]] == [2, 3, 4]
    assert {row["why"] for row in told["skipped"]} == {"a key that stands twice: loss"}


def _told(path: Path) -> tuple[int, list[tuple[int | None, str]]]:
    """(rows that were read, (line, why) of what was not)."""
    told = import_path(path, path.with_suffix(".run"), None, Options())
    return told["read"], [(row["line"], row["why"]) for row in told["skipped"]]


def test_a_key_that_stands_twice_in_a_trainers_state_is_told(tmp_path: Path) -> None:
    """Two of three rows hold loss twice: left out, as a line would be. The state itself holds max_steps twice."""
    state = tmp_path / "trainer_state.json"
    row = '{"step": %d, "loss" : 0.6, "loss" : 0.5}'
    rows = ",\n".join((row % 1, row % 2, '{"step": 3, "loss": 0.4}'))
    state.write_text('{"log_history": [' + rows + '], "max_steps": 9, "max_steps": 3}')
    assert _told(state) == (1, [
        (None, "a key that stands twice, of which the last counts: 'max_steps'"),
        (1, "a key that stands twice: loss"), (2, "a key that stands twice: loss"),
    ])  # fmt: skip
    whole = tmp_path / "whole.json"
    whole.write_text('{"log_history": [{"step": 3, "loss": 0.4, "x": "{\\"a\\": 1, \\"a\\": 2}"}], "max_steps": 3}')
    assert _told(whole) == (1, [])


@pytest.mark.parametrize("name", ["pairs.json", "pairs.jsonl"])
@pytest.mark.parametrize("form", ["[%s]", "[\n%s\n]", '{"data": [%s]}', "%s", "%s\n%s"])
def test_a_key_that_stands_twice_in_rows_of_any_form_is_told(tmp_path: Path, form: str, name: str) -> None:
    """Rows in an array, in an object, over several lines, one after another; three that are whole and one that is not,
    with the colon beside the key or apart."""
    whole = '{\n "prompt": "p%d: \\"chosen\\": x, \\"chosen\\": y",\n "chosen": "a",\n "rejected": "b"\n}'
    for bad in ('{\n "prompt": "q",\n "chosen" : "a",\n "chosen" : "b"\n}',
                '{\n "prompt": [{"role": "user", "chosen": 1, "chosen": 2}]\n}'):  # fmt: skip
        rows = [whole % 0, whole % 1, bad, whole % 2]
        comma = ",\n" if form.startswith(("[", "{")) else "\n"
        (tmp_path / name).write_text(form.replace("%s", comma.join(rows), 1).replace("%s", whole % 3))
        read = [row for _, row in read_rows(tmp_path / name)]
        assert [str(row) for row in read if isinstance(row, BadRow)] == ["a key that stands twice: chosen"]
        n = 4 if form.count("%s") == 2 else 3
        assert [row["prompt"][:2] for row in read if not isinstance(row, BadRow)] == [f"p{i}" for i in range(n)]


@pytest.mark.parametrize(
    ("name", "text", "what"),
    [
        ("a.json", '{"data": [{"prompt": "lost"}], "data": [{"prompt": "kept"}]}', "data"),
        ("a.json", '{"chosen": {"0": "a", "1": "b", "1": "c"}, "rejected": {"0": "d", "1": "e"}}', "1"),
        ("a.csv", "prompt,chosen,chosen\n1,2,3\n", "chosen"),
    ],
)
def test_a_name_that_stands_twice_around_the_rows_is_refused(tmp_path: Path, name: str, text: str, what: str) -> None:
    """An array of rows, a row of a table of columns, a column: which of the two is meant cannot be said."""
    (tmp_path / name).write_text(text)
    with pytest.raises(DiagError, match=f"a name that stands twice.*got {what}; hint: keep one of them"):
        list(read_rows(tmp_path / name))


def test_columns_without_a_name_are_no_name_that_stands_twice(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("prompt,chosen,,\n1,2,,\n")
    assert [row["chosen"] for _, row in read_rows(tmp_path / "a.csv")] == ["2"]


def test_a_key_that_stands_twice_in_documents_of_trackers_and_evaluations_is_told(tmp_path: Path) -> None:
    """What is no row keeps the last value: of two charts 0.5 is read, of two scores 0.75."""
    last = "a key that stands twice, of which the last counts: "
    charts = tmp_path / "charts.json"
    charts.write_text('{"train": {"loss": {"steps": [1], "values": [0.7]}, "loss": {"steps": [1], "values": [0.5]}}}')
    assert _told(charts) == (1, [(None, last + "'loss'")])
    results = tmp_path / "results.json"
    results.write_text('{"results": {"t": {"alias": "t", "acc,none": 0.5, "acc,none": 0.75}}, "versions": {}}')
    assert _told(results)[1] == [(None, last + "'acc,none'")]
    assert load_run(tmp_path / "results.run").history["value"].tolist() == [0.75]


def test_a_key_that_stands_twice_in_trackios_database_is_told(tmp_path: Path) -> None:
    file = tmp_path / "p.db"
    with sqlite3.connect(file) as db:
        db.execute("CREATE TABLE metrics (id INTEGER PRIMARY KEY, run_name TEXT, step INTEGER, metrics TEXT)")
        db.execute("CREATE TABLE configs (run_name TEXT, config TEXT)")
        rows = ['{"loss": 0.7, "loss": 0.6}', '{"loss": 0.5}', "[1]", "{"]
        db.executemany("INSERT INTO metrics VALUES (NULL, 'r', ?, ?)", list(enumerate(rows)))
        db.execute('INSERT INTO configs VALUES (\'r\', \'{"loss_type": "ipo", "beta": 0.1, "beta": 0.2}\')')
    db.close()
    assert _told(file) == (1, [
        (1, "a key that stands twice: loss"), (3, "the row is list, expected an object"),
        (4, "metrics are not a JSON object"), (None, "a key that stands twice, of which the last counts: 'beta'"),
    ])  # fmt: skip
    assert load_run(tmp_path / "p.run").info.loss.beta == 0.2


def test_a_key_that_stands_twice_in_a_wandb_record_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = [
        '{"config": {"update": {"beta": 0.1, "beta": 0.2}}}', '{"history": {"item": {"loss": 0.7, "loss": 0.6}}}',
        '{"history": {"item": {"loss": 0.5, "_step": 1}}}',
    ]  # fmt: skip
    monkeypatch.setattr(wandb_run, "_records", lambda *_: map(parse_json, records))
    (tmp_path / "run.wandb").write_bytes(b":W&B")
    assert _told(tmp_path / "run.wandb") == (1, [
        (1, "a key that stands twice, of which the last counts: 'beta'"), (2, "a key that stands twice: loss"),
    ])  # fmt: skip


def test_a_key_that_stands_twice_in_a_configuration_is_told(tmp_path: Path) -> None:
    """The last, as the trainer's own reader takes it."""
    skipped = Skipped()
    for name, text in (("args.json", '{"beta": 0.1, "beta": 0.2}'), ("config.yaml", "beta: 0.1\nbeta: 0.2\n")):
        (tmp_path / name).write_text(text)
        assert facts_from_file(tmp_path / name, skipped).beta == 0.2
    why = "a key that stands twice, of which the last counts: 'beta'"
    assert [(row["why"], row["file"]) for row in skipped.listed] == [(why, "args.json"), (why, "config.yaml")]


def test_a_cell_that_prints_a_key_twice_is_told(tmp_path: Path) -> None:
    cell = '[{"role": "user", "content": "a", "content": "b"}]'
    with pytest.raises(BadRow, match="a key that stands twice: content"):
        read_messages(printed(cell), "prompt")
    with pytest.raises(BadRow, match="a key that stands twice: name"):
        template_options({"tools": '[{"name": "f", "name": "g"}]'})
    assert template_options({"tools": '[{"name": "f"}]'}) == {"tools": '[{"name": "f"}]'}


def test_a_count_that_no_answer_has_is_told_and_its_row_kept(tmp_path: Path) -> None:
    """Infinite, beyond 32 bits, half a token: none is a number of tokens; 3 is."""
    rows = [
        f'{{"step": 1, "pair_id": "{n}", "chosen_sum_logp": -1, "rejected_sum_logp": -2, "chosen_n_tokens": {text}}}\n'
        for n, text in enumerate(("1e999", "1e308", "2147483648", "2.5", "3"))
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(rows))
    told = import_path(tmp_path / "pairs.jsonl", tmp_path / "run", None, Options())
    assert (told["read"], told["skipped_count"]) == (5, 4)
    assert [row["line"] for row in told["skipped"]] == [1, 2, 3, 4]
    assert {row["why"].split(":")[0] for row in told["skipped"]} == {"chosen_n_tokens is not a count"}
