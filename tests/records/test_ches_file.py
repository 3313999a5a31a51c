"""ches.csv: written per split, read with its schema checked."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from dpo_diag.errors import DiagError
from dpo_diag.records.ches_file import CHES_FILE, has_ches, read_ches, write_ches

HEAD = "pair_id,ches,ln_ches,n_chosen,n_rejected,split\n"


def rows(pair: str, ches: float) -> pd.DataFrame:
    return pd.DataFrame({"pair_id": [pair], "ches": ches, "ln_ches": ches / 4, "n_chosen": 2, "n_rejected": 2})


def test_splits_stand_side_by_side_and_replace_their_own(tmp_path: Path) -> None:
    write_ches(tmp_path, rows("a", 1.0), "eval")
    write_ches(tmp_path, rows("a", 8.0), "eval_other")
    write_ches(tmp_path, rows("b", 2.0), "eval")
    assert read_ches(tmp_path, "eval")[["pair_id", "ches", "ln_ches"]].values.tolist() == [["b", 2.0, 0.5]]
    assert read_ches(tmp_path, "eval_other")["ches"].tolist() == [8.0]
    assert len(read_ches(tmp_path)) == 2
    assert has_ches(tmp_path, "eval") and not has_ches(tmp_path, "train")
    assert [p.name for p in tmp_path.iterdir()] == [CHES_FILE]


def test_no_file_is_no_rows(tmp_path: Path) -> None:
    assert read_ches(tmp_path).empty and not has_ches(tmp_path, "eval")


def test_a_digits_only_pair_id_keeps_its_zeros_and_an_empty_field_is_unknown(tmp_path: Path) -> None:
    (tmp_path / CHES_FILE).write_text(HEAD + "007,1.5,,3,4,eval\n")
    row = read_ches(tmp_path).iloc[0]
    assert row["pair_id"] == "007" and row["ches"] == 1.5 and pd.isna(row["ln_ches"])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("pair_id,ches\na,1\n", "column is missing"),
        (HEAD + "a,1,1,2,2,eval\nb,one,1,2,2,eval\n", "row 3, column ches"),
        (HEAD + "a,1,1,2,2,eval\na,2,1,2,2,eval\n", "stands twice"),
        ("", "not a table"),
        ("a,b\n1,2,3\n4,5,6,7\n", "not a table"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / CHES_FILE).write_text(content)
    with pytest.raises(DiagError, match=said) as error:
        read_ches(tmp_path)
    assert CHES_FILE in str(error.value) and "\n" not in str(error.value)
