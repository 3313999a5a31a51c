"""What an import leaves out or overrides, it says: how many, and which."""

from __future__ import annotations

import json
from pathlib import Path

from dpo_diag.importers import Options, import_path
from dpo_diag.importers.scores import read_scores
from dpo_diag.records.row_files import BadRow, read_rows
from dpo_diag.records.text_files import Skipped


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


def test_a_key_that_stands_twice_in_a_trainers_state_is_told(tmp_path: Path) -> None:
    """Two of three rows hold loss twice; the state itself holds nothing twice."""
    state = tmp_path / "trainer_state.json"
    row = '{"step": %d, "loss": 0.6, "loss": 0.5}'
    rows = ", ".join((row % 1, row % 2, '{"step": 3, "loss": 0.4}'))
    state.write_text('{"log_history": [' + rows + '], "max_steps": 3}')
    told = import_path(state, tmp_path / "run", None, Options())
    assert "'loss' stands twice in 2 objects: the last value was taken" in told["notes"]
    assert told["read"] == 3


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
