"""findings.json is printed again only where nothing that it was made from has changed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from dpo_diag import load_run
from dpo_diag.commands import diag, explain, findings, track
from dpo_diag.records.adding import added_to
from dpo_diag.records.checksums import sealed
from dpo_diag.registry import PLUGIN_VARIABLE
from tests.diagnosis.builders import build_run

Explain = Callable[..., tuple[bool, dict[str, Any]]]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return build_run(tmp_path / "run", {0: ([-4.0] * 9, [-4.0] * 9), 10: ([-5.0] * 9, [-8.0] * 9)}).path


@pytest.fixture
def explained(run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Explain:
    """explained(options ...) -> (whether the records were read again, what was printed)."""
    made: list[None] = []
    document = explain._Request.document

    def counted(request: explain._Request) -> dict[str, Any]:
        made.append(None)
        return document(request)

    monkeypatch.setattr(explain._Request, "document", counted)

    def call(*options: str) -> tuple[bool, dict[str, Any]]:
        made.clear()
        assert diag.main(["explain", str(run), "--json", *options]) == 0
        return bool(made), json.loads(capsys.readouterr().out)

    return call


def test_unchanged_records_are_not_read_again(run: Path, explained: Explain) -> None:
    again, first = explained()
    written = (run / "findings.json").stat().st_mtime_ns
    assert again and "made_from" in json.loads((run / "findings.json").read_text())
    (run / "report.html").write_text("drawn from the records, read by nothing")
    (run / "checkpoints").mkdir()
    assert explained() == (False, first) and (run / "findings.json").stat().st_mtime_ns == written
    assert explained("confidence=0.99", "--fail-on", "speaks:DVG015") == (False, first)  # the default, and no question


@pytest.mark.parametrize("full", [(), ("--full",)])
def test_the_printed_text_is_the_same_but_for_where_it_was_written(
    run: Path, capsys: pytest.CaptureFixture[str], full: tuple[str, ...]
) -> None:
    said, told = [], []
    for _ in range(2):
        diag.main(["explain", str(run), *full])
        captured = capsys.readouterr()
        lines = [*captured.err.splitlines(), *captured.out.splitlines()]
        told += [line.split(" ")[0] for line in lines if line.endswith("findings.json")]
        said.append([line for line in lines if not line.endswith("findings.json")])
    assert said[0] == said[1] and told == ["wrote", "unchanged"]


@pytest.mark.parametrize("options", [("--from", "0"), ("--to", "0"), ("--split", "eval"), ("confidence=0.9",)])
def test_another_question_is_answered_anew(explained: Explain, options: tuple[str, ...]) -> None:
    explained()
    assert explained(*options)[0] and not explained(*options)[0] and explained()[0]


def _other_sums(run: Path) -> None:
    """Step 10's chosen sums halved, under the old name and time."""
    file = next(f for f in (run / "pairs").iterdir() if "00000010" in f.name)
    times = file.stat()
    frame = pd.read_parquet(file)
    frame.assign(sum_logp=frame["sum_logp"].where(frame["side"] != "chosen", -2.5)).to_parquet(file)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))


def _same_size_same_time(run: Path) -> None:
    file = run / "run.json"
    times, text = file.stat(), file.read_text()
    new = text.replace('"sigmoid"', '"exo_pai"') if '"sigmoid"' in text else text.replace("0.1", "0.2")
    file.write_bytes(sealed(new.encode(), ".json"))
    assert file.stat().st_size == times.st_size
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))


@pytest.mark.parametrize(
    "change",
    [
        _other_sums,
        _same_size_same_time,
        lambda run: (run / "history").mkdir(exist_ok=True) or (run / "history" / "note.txt").write_text("new"),
        lambda run: next((run / "pairs").glob("*0-*")).rename(run / "pairs" / "00000000-00000000.other.r0.parquet"),
        lambda run: (run / "findings.json").write_text('{"verdict": '),
    ],
)
def test_a_stale_explanation_is_never_printed(run: Path, explained: Explain, change: Callable[[Path], object]) -> None:
    explained()
    change(run)
    assert explained()[0]


def test_halved_sums_change_the_answer(run: Path, explained: Explain) -> None:
    """9 pairs' chosen sums from -4 to -5 and then to -2.5: the loss at step 10 falls with them."""
    before = explained()[1]["loss"]["to"]
    _other_sums(run)
    assert explained()[1]["loss"]["to"] < before


def test_other_code_libraries_and_plugins_count(explained: Explain, monkeypatch: pytest.MonkeyPatch) -> None:
    explained()
    with monkeypatch.context() as patched:
        patched.setattr(findings, "_code", lambda: "another version")
        assert explained()[0]
    assert explained()[0] and not explained()[0]
    monkeypatch.setenv(PLUGIN_VARIABLE, "json")  # a plugin that registers nothing: it could
    assert explained()[0] and explained()[0]


def test_a_folder_that_is_linked_is_followed_and_a_circle_ends(tmp_path: Path) -> None:
    (tmp_path / "away").mkdir()
    (tmp_path / "away" / "a.parquet").write_text("1")
    run = tmp_path / "run"
    run.mkdir()
    (run / "pairs").symlink_to(tmp_path / "away")
    (run / "round").symlink_to(run)
    before = findings.file_states(run)
    assert "pairs/a.parquet" in {name for name, *_ in before}
    (tmp_path / "away" / "a.parquet").write_text("12")
    assert findings.file_states(run) != before


def test_what_has_more_records_is_explained_anew_before_it_is_sent(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Explained to step 10 at a confidence of its own, then measured at step 20: a tracker gets the verdict of step 20
    under the same thresholds, and of unchanged records what lies there."""
    assert diag.main(["explain", str(run), "--json", "confidence=0.9"]) == 0
    assert diag.main(["report", str(run)]) == 0
    before = (run / "findings.json").read_bytes(), (run / "report.html").stat().st_mtime_ns
    track._explained(load_run(run))
    assert before == ((run / "findings.json").read_bytes(), (run / "report.html").stat().st_mtime_ns)
    rows = load_run(run).read("pairs")
    later = rows[rows["step"] == 10].assign(step=20)
    with added_to(run) as (writer, _):
        writer.write("pairs", later, split="later")
    track._explained(load_run(run))
    document = json.loads((run / "findings.json").read_text())
    assert (json.loads(before[0])["to_step"], document["to_step"]) == (10, 20)
    assert document["made_from"]["asked"]["thresholds"] == {"confidence": 0.9}
    assert (run / "report.html").stat().st_mtime_ns > before[1]
