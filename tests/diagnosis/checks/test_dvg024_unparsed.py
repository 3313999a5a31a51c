"""DVG024: lines that the importer could not read."""

from __future__ import annotations


def test_skipped_lines(means, finding):
    run = means({"loss": [0.69] * 6}, source={
        "read": 6, "skipped": [{"line": 4, "why": "a row is cut off"}], "skipped_count": 1,
    })  # fmt: skip
    found = finding(run, "DVG024")
    assert found["outcome"] == "speaks" and found["evidence"]["count"] == 1
    assert (found["reason"], found["severity"]) == (
        "1 of 7 lines or rows of the source (14.3 %) could not be read", "warning"
    )  # fmt: skip
    assert found["evidence"]["skipped"] == [{"line": 4, "why": "a row is cut off"}]


def test_every_line_read(means, finding):
    run = means({"loss": [0.69] * 6}, source={"read": 6, "skipped_count": 0})
    assert finding(run, "DVG024")["outcome"] == "silent"


def test_not_imported(pairs, finding):
    run = pairs({0: ([-10.0] * 4, -10.0), 5: (-9.0, -12.0)})
    assert finding(run, "DVG024")["outcome"] == "not_applicable"


def test_a_line_of_many_is_no_warning(means, finding):
    """1 of 100 is 1 %, below 5 %."""
    run = means({"loss": [0.69] * 99}, source={"read": 99, "skipped_count": 1})
    assert finding(run, "DVG024")["severity"] == "info"
