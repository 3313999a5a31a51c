"""Whatever a command prints acts on no terminal, and whatever it writes as CSV on no spreadsheet."""

from __future__ import annotations

import io
import json
import logging
import re
import sys
from pathlib import Path

import pandas as pd
import pytest

from dpo_diag.commands.diag import main
from dpo_diag.errors import DiagError
from dpo_diag.records.files import write_csv
from dpo_diag.safe_streams import SafeStream, safe_streams
from dpo_diag.text import HIDDEN, to_json
from tests.diagnosis.builders import build_run

ROOT = Path(__file__).resolve().parents[1]
HOSTILE = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202egpj\u2066\x1b[8mhidden"
SHOWN = "<U+001B>]0;owned<U+0007><U+001B>[2J<U+009B>31m<U+202E>gpj<U+2066><U+001B>[8mhidden"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_only_colours_reach_a_terminal_and_only_bars_move(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bold and red pass to a terminal and to no file; conceal and clear never; a bar's return on stderr only."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for stream, bold in ((Terminal(), "\x1b[1;31mx\x1b[0m"), (io.StringIO(), "<U+001B>[1;31mx<U+001B>[0m")):
        assert SafeStream(stream).write("\x1b[1;31mx\x1b[0m" + HOSTILE) == 12 + len(HOSTILE)
        assert stream.getvalue() == bold + SHOWN
    out, err = io.StringIO(), io.StringIO()
    for text in ("\r 10%|# \x1b[2J", "\x1b[A", "a\rb\n"):
        SafeStream(out).write(text)
        SafeStream(err, bars=True).write(text)
    assert err.getvalue() == "\r 10%|# <U+001B>[2J\x1b[Aa<U+000D>b\n"
    assert out.getvalue() == "<U+000D> 10%|# <U+001B>[2J<U+001B>[Aa<U+000D>b\n"


def test_prints_log_lines_and_warnings_pass_one_place(capsys: pytest.CaptureFixture[str]) -> None:
    with safe_streams(), safe_streams():
        print(HOSTILE, "\ud800")
        handler = logging.StreamHandler(sys.stderr)
        logging.getLogger("hostile").addHandler(handler)
        logging.getLogger("hostile").error("read %s", HOSTILE)
        logging.getLogger("hostile").removeHandler(handler)
    captured = capsys.readouterr()
    assert captured.out == f"{SHOWN} <U+D800>\n" and captured.err == f"read {SHOWN}\n"
    assert not isinstance(sys.stdout, SafeStream)


def test_json_keeps_the_value_and_acts_on_nothing() -> None:
    document = {HOSTILE: [HOSTILE, "\ud800", "\U000e0041", "é😀"]}
    text = to_json(document)
    assert HIDDEN.search(text) is None and "é😀" in text
    assert json.loads(text) == document


def test_commands_over_hostile_names_and_values(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run folder, a record file, a rule and a log whose names and values act on a terminal; every command that reads
    them, failed or not."""
    run = build_run(tmp_path / f"run{HOSTILE}", {0: ([-5.0] * 12, [-5.0] * 12), 9: ([-6.0] * 12, [-9.0] * 12)}).path
    (run / "pairs" / f"{HOSTILE}.parquet").write_bytes(b"")
    rules = tmp_path / "rules.yaml"
    rules.write_text(json.dumps({"rules": [{"metric": HOSTILE, "max": HOSTILE}, {"phrase": HOSTILE, "max": 1}]}))
    log = tmp_path / f"log{HOSTILE}.jsonl"
    log.write_text("".join(json.dumps({"step": i, "loss": 1.0 / i, HOSTILE: HOSTILE}) + "\n" for i in range(1, 6)))
    for command in (
        ["explain", run, "--json"], ["gate", run, "--rules", rules], ["import", log, "--out", tmp_path / f"o{HOSTILE}"],
        ["explain", f"/absent/{HOSTILE}"], [HOSTILE], ["explain", run, f"--{HOSTILE}"],
    ):  # fmt: skip
        main([str(word) for word in command])
        captured = capsys.readouterr()
        for text in (captured.out, captured.err):
            assert HIDDEN.search(text) is None, (command[0], ascii(text))
        if "--json" in command:
            assert json.loads(captured.out)["run"] == str(run)


def test_no_cell_is_a_formula(tmp_path: Path) -> None:
    """One way to write CSV: cells, column names; a place that cannot be written is one line."""
    frame = pd.DataFrame({"=1+1": ["=cmd|' /C calc'!A0", "-1.5"], "n": [-1, 2], "text": ["\t=x", HOSTILE]})
    write_csv(tmp_path / "t.csv", frame)
    assert (tmp_path / "t.csv").read_text() == ("'=1+1,n,text\n'=cmd|' /C calc'!A0,-1,'\t=x\n" + f"-1.5,2,{SHOWN}\n")
    (tmp_path / "file").write_text("")
    with pytest.raises(DiagError, match="the table cannot be written"):
        write_csv(tmp_path / "file" / "t.csv", frame)
    bare = [
        f"{p.relative_to(ROOT)}:{i}"
        for p in [*ROOT.glob("dpo_diag/**/*.py"), *ROOT.glob("analysis/*.py")]
        for i, line in enumerate(p.read_text(encoding="utf-8").splitlines(), 1)
        if re.search(r"\.to_csv\((?!index=False\)$|PATH)|csv\.(writer|DictWriter)\(", line)
        and "frame_for_csv(" not in line
    ]
    assert bare == []


def test_the_rows_that_were_dropped_are_written_without_formulas(tmp_path: Path) -> None:
    """data_issues.csv: the detail of a dropped row is the data's own text."""
    from dpo_diag.config import DataConfig
    from dpo_diag.data.source import ISSUES_FILE, load_data

    rows = [{"prompt": "p", "chosen": "=HYPERLINK(1)", "rejected": "=HYPERLINK(1)"}]
    rows += [{"prompt": f"p{i}", "chosen": "a", "rejected": "b"} for i in range(9)]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    data = load_data(DataConfig(kind="jsonl", path=str(tmp_path / "p.jsonl"), eval_share=0.2, max_bad_share=0.5))
    data.write_report(tmp_path)
    cells = pd.read_csv(tmp_path / ISSUES_FILE, dtype=str, keep_default_na=False)
    assert len(cells) == 1 and not any(str(v).startswith(("=", "+", "-", "@")) for v in cells.to_numpy().ravel())
