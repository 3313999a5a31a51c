import pytest

from tests.faults.table import MARKED, count, markdown


def test_the_table_sums_what_was_tried_and_lost():
    """3 + 1,200 tried and 0 + 1 lost: 1,203 and 1 at the foot."""
    assert markdown([("kill", 3, 0), ("bit flip", 1200, 1)]) == (
        "| fault | tried | lost |\n| --- | ---: | ---: |\n"
        "| bit flip | 1,200 | 1 |\n| kill | 3 | 0 |\n| all | 1,203 | 1 |\n"
    )


def test_a_fault_that_lost_something_is_recorded_and_fails_its_test():
    rows = []
    with pytest.raises(AssertionError, match="kill: 1 of 2 lost"):
        count(lambda *row: rows.append(row), "kill", tried=2, lost=1)
    assert rows == [("fault", {"fault": "kill", "tried": 2, "lost": 1})]


def test_the_page_keeps_what_stands_around_the_table():
    page = "before\n<!-- faults -->\nold\n<!-- /faults -->\nafter\n"
    assert MARKED.sub("new\n", page) == "before\n<!-- faults -->\nnew\n<!-- /faults -->\nafter\n"
