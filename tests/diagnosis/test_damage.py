"""Records that could not be read are told in the first lines, and so is another set of pairs that is judged instead."""

from __future__ import annotations

from pathlib import Path

import pytest

from dpo_diag import Run, RunWriter, load_run
from dpo_diag.diagnosis import explain
from dpo_diag.diagnosis.short import short_lines
from dpo_diag.errors import DamagedRecords
from dpo_diag.translated import catalogue
from tests.diagnosis.builders import SIGMOID, pair_rows


def run_of_two_sets(folder: Path) -> Run:
    writer = RunWriter(folder)
    for split in ("eval", "held_out"):
        for step, (chosen, rejected) in {0: (-10.0, -12.0), 5: (-11.0, -15.0), 9: (-12.0, -18.0)}.items():
            sums = [[value - i / 10 for i in range(8)] for value in (chosen, rejected)]
            writer.write("pairs", pair_rows(step, *sums, split=split), split=split)
            if step == 0:
                writer.write("pairs", pair_rows(0, *sums, split=split, role="ref"), split=f"{split}-ref")
    writer.update(loss=SIGMOID)
    writer.finish()
    return load_run(folder)


def cut(run: Run, *names: str) -> None:
    for name in names:
        (file,) = (run.path / "pairs").glob(f"*{name}*")
        file.write_bytes(file.read_bytes()[:40])


ALL = ("00000000.eval.", "00000005.eval.", "00000009.eval.")


def test_another_set_that_is_judged_is_named_in_the_first_lines(tmp_path: Path) -> None:
    run = run_of_two_sets(tmp_path / "run")
    cut(run, *ALL)
    with pytest.warns(DamagedRecords):
        document = explain(run.path)
    lost = "3 record files cannot be read and are left out: pairs of eval, steps 0 to 9."
    lost += " So this is about held_out, not eval."
    assert (document["split"], document["left_out"]) == ("held_out", lost)
    assert document["verdict"]["text"].startswith(f"{document['verdict']['headline']} {lost} ")
    lines = [str(line) for line in short_lines(document, 100)]
    assert lines[3:5] == [lost[:93], "held_out, not eval."] and len(lines) <= 15
    assert catalogue("zh")(lost).endswith("因此以下说的是 held_out，不是 eval。")


@pytest.mark.parametrize(
    ("names", "split", "lost"),
    [
        (ALL[2:], None, "1 record file cannot be read and is left out: pairs of eval, step 9."),
        (ALL, "held_out", "3 record files cannot be read and are left out: pairs of eval, steps 0 to 9."),
        (("00000009.held_out.",), "eval", "1 record file cannot be read and is left out: pairs of held_out, step 9."),
    ],
)
def test_damage_that_moves_no_set_is_told_without_one(
    tmp_path: Path, names: tuple[str, ...], split: str | None, lost: str
) -> None:
    """The last step of the set; a set that was not asked for; another set than the one that is judged."""
    run = run_of_two_sets(tmp_path / "run")
    cut(run, *names)
    with pytest.warns(DamagedRecords):
        assert explain(run.path, split=split)["left_out"] == lost


def test_whole_records_are_not_spoken_of(tmp_path: Path) -> None:
    document = explain(run_of_two_sets(tmp_path / "run"))
    assert "left_out" not in document and "cannot be read" not in document["verdict"]["text"]
