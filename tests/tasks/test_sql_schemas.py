"""The databases: the same rows everywhere, and the properties that the questions rely on."""

import hashlib
import json
import subprocess
import sys

import pytest

from dpo_diag.tasks.sql import schemas
from dpo_diag.tasks.sql.stream import Stream

TABLES = [(db.name, table) for db in schemas.DATABASES for table in db.tables]


def test_six_databases_with_two_tables_each():
    assert [db.name for db in schemas.DATABASES] == ["library", "clinic", "airline", "orchard", "school", "museum"]
    assert all(len(schemas.rows(db.name, db.parent.name)) == 9 for db in schemas.DATABASES)
    assert all(len(schemas.rows(db.name, db.child.name)) == 36 for db in schemas.DATABASES)


def test_rows_are_these_on_every_machine():
    everything = [[db, t.name, schemas.rows(db, t.name)] for db, t in TABLES]
    digest = hashlib.sha256(json.dumps(everything, separators=(",", ":")).encode()).hexdigest()
    assert digest[:16] == "11fb00dc23422b9f"
    assert schemas.rows("library", "author")[0] == (1, "Leon", "Japan", 1947)
    assert schemas.rows("library", "book")[35] == (36, "Glacier", "Satire", 480, 2004, 6)


@pytest.mark.parametrize(("db", "table"), TABLES, ids=lambda v: getattr(v, "name", v))
def test_names_and_numbers_are_unique_and_every_category_occurs(db, table):
    """Unique numbers: an ORDER BY has no ties, and `>` differs from `>=` at every value."""
    for at, column in enumerate(table.columns, start=1):
        values = [row[at] for row in schemas.rows(db, table.name)]
        if column.kind == "category":
            assert set(values) == set(column.values)
        else:
            assert len(set(values)) == len(values)
        if column.kind == "number":
            assert all(column.values[0] <= v <= column.values[1] for v in values)


def test_the_last_parent_has_no_child_and_all_others_do():
    for db in schemas.DATABASES:
        assert {row[-1] for row in schemas.rows(db.name, db.child.name)} == set(range(1, 9))


def test_stream_is_splitmix64_seeded_by_its_keys():
    stream = Stream("a", 1)
    assert [stream.below(100) for _ in range(5)] == [65, 93, 26, 30, 69]
    assert Stream("a", 1).shuffled(range(6)) == [2, 5, 0, 1, 4, 3]
    assert Stream("a", "1").below(1 << 40) != Stream("a", 1).below(1 << 40)
    with pytest.raises(ValueError, match="n >= 1"):
        stream.below(0)


def test_stream_weights_zero_never_and_share():
    stream = Stream("weights")
    drawn = [stream.weighted("abc", (1, 0, 3)) for _ in range(4000)]
    assert "b" not in drawn
    assert 900 < drawn.count("a") < 1100  # expectation 1000, deviation 27


def test_generator_and_sandbox_import_without_torch():
    code = (
        "import sys, dpo_diag.tasks.sql.case, dpo_diag.tasks.sql.sft\n"
        "print([m for m in ('torch', 'transformers', 'trl', 'datasets', 'tokenizers') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
