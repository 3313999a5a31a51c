"""Tables of one file: rows replace those that they stand for, and are read with their declaration checked."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from dpo_diag.errors import DiagError
from dpo_diag.records.schemas import ANSWER_LOGPS, CHES
from dpo_diag.records.side_tables import read_side_table, write_side_table

HEAD = "pair_id,ches,ln_ches,n_chosen,n_rejected,split\n"


def rows(pair: str, ches: float, split: str) -> pd.DataFrame:
    values = {"ches": ches, "ln_ches": ches / 4, "n_chosen": 2, "n_rejected": 2, "split": split}
    return pd.DataFrame({"pair_id": [pair], **values})


def test_splits_stand_side_by_side_and_replace_their_own(tmp_path: Path) -> None:
    write_side_table(tmp_path, CHES, rows("a", 1.0, "eval"))
    write_side_table(tmp_path, CHES, rows("a", 8.0, "eval_other"))
    write_side_table(tmp_path, CHES, rows("b", 2.0, "eval"))
    assert read_side_table(tmp_path, CHES, "eval")[["pair_id", "ches", "ln_ches"]].values.tolist() == [["b", 2.0, 0.5]]
    assert read_side_table(tmp_path, CHES, "eval_other")["ches"].tolist() == [8.0]
    assert len(read_side_table(tmp_path, CHES)) == 2
    assert read_side_table(tmp_path, CHES, "train").empty
    assert [p.name for p in tmp_path.iterdir()] == [CHES.file]


def test_the_file_of_an_earlier_version_is_read_and_its_rows_move(tmp_path: Path) -> None:
    """ches.csv held split eval; a new score of eval_other writes both into ches.parquet."""
    (tmp_path / str(CHES.older)).write_text(HEAD + "a,1.5,0.5,3,4,eval\n")
    write_side_table(tmp_path, CHES, rows("b", 2.0, "eval_other"))
    assert read_side_table(tmp_path, CHES)[["pair_id", "ches"]].values.tolist() == [["a", 1.5], ["b", 2.0]]
    assert [p.name for p in tmp_path.iterdir()] == [CHES.file]


def test_no_file_is_no_rows(tmp_path: Path) -> None:
    empty = read_side_table(tmp_path, CHES)
    assert list(empty.columns) == CHES.names
    assert empty.empty


def test_a_digits_only_pair_id_keeps_its_zeros_and_an_empty_field_is_unknown(tmp_path: Path) -> None:
    (tmp_path / str(CHES.older)).write_text(HEAD + "007,1.5,,3,4,eval\n")
    row = read_side_table(tmp_path, CHES).iloc[0]
    assert row["pair_id"] == "007" and row["ches"] == 1.5 and pd.isna(row["ln_ches"])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("pair_id,ches\na,1\n", "column is missing"),
        (HEAD + "a,1,1,2,2,eval\nb,one,1,2,2,eval\n", "row 3, column ches"),
        (HEAD + "a,1,1,2,2,eval\na,2,1,2,2,eval\n", "a duplicate row"),
        ("", "not a table"),
        ("a,b\n1,2,3\n4,5,6,7\n", "not a table"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / str(CHES.older)).write_text(content)
    with pytest.raises(DiagError, match=said) as error:
        read_side_table(tmp_path, CHES)
    assert str(CHES.older) in str(error.value) and "\n" not in str(error.value)


def test_rows_of_the_same_key_are_replaced_and_types_hold(tmp_path: Path) -> None:
    """The second log-prob of one answer takes the first one's place; another writer's answer stays."""
    row = {"model": "policy", "step": 5, "of_model": "sft", "of_step": 0, "prompt_id": "q", "sample": 0}
    write_side_table(
        tmp_path, ANSWER_LOGPS, pd.DataFrame([row | {"sum_logp": -1.0}, row | {"step": 9, "sum_logp": -3.0}])
    )
    write_side_table(tmp_path, ANSWER_LOGPS, pd.DataFrame([row | {"sum_logp": -2.0}]))
    read = read_side_table(tmp_path, ANSWER_LOGPS)
    assert sorted(read[["step", "sum_logp"]].to_numpy().tolist()) == [[5.0, -2.0], [9.0, -3.0]]
    with pytest.raises(DiagError, match="column sum_logp does not fit"):
        write_side_table(tmp_path, ANSWER_LOGPS, pd.DataFrame([row | {"sum_logp": "far"}]))
