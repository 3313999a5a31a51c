"""The frame of dpo-diag: help, usage errors, exit statuses, what starting it costs."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from dpo_diag.commands import diag

EXAMPLE = str(Path(__file__).resolve().parents[2] / "runs" / "example")


def test_help_names_the_project_and_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert diag.main(["--help"]) == 0
    out = capsys.readouterr().out
    assert "Why did the DPO loss fall while perplexity rose" in out and "add_arguments" not in out
    assert [name for name in diag.COMMANDS if f" {name} " not in out] == []


def test_help_is_plain_where_no_color_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal's help has bold words, which rich itself leaves in under NO_COLOR."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    for no_color in (False, True):
        if no_color:
            monkeypatch.setenv("NO_COLOR", "1")
        terminal = Terminal()
        monkeypatch.setattr("sys.stdout", terminal)
        assert diag.main(["gate", "--help"]) == 0
        assert "Usage: " in terminal.getvalue()
        assert ("\x1b" in terminal.getvalue()) != no_color


@pytest.mark.parametrize("name", sorted(diag.COMMANDS))
def test_every_command_has_its_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert diag.main([name, "--help"]) == 0
    assert f"dpo-diag {name}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["explan", "RUN"], 'Did you mean "explain"?; hint: dpo-diag --help'),
        (["explain"], "requires an argument; hint: dpo-diag explain --help"),
        (["explain", EXAMPLE, "--tops", "3"], "Did you mean --top?"),
        (["explain", EXAMPLE, "--top", "many"], 'unable to convert "many" into int'),
        (["explain", EXAMPLE, "--checkpoint-to", "x"], "belong to --destination"),
    ],
)
def test_a_mistake_in_the_call_is_one_line_and_2(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert diag.main(arguments) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_an_interrupt_is_one_line_and_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("dpo_diag.commands.ppl.compare_levels", interrupt)
    assert diag.main(["ppl", "1.2"]) == 130
    assert capsys.readouterr().err == "dpo-diag ppl: interrupted\n"


def test_thresholds_may_stand_anywhere(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["explain", EXAMPLE, "--json", "--no-write", "verdict.least_harm=0.5"]
    assert diag.main(arguments) == 0
    assert '"verdict.least_harm": 0.5' in capsys.readouterr().out


def test_no_command_is_a_usage_error_that_shows_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert diag.main([]) == 2
    assert "explain" in capsys.readouterr().out


def test_a_failure_is_one_line_and_debug_shows_where(capsys: pytest.CaptureFixture[str]) -> None:
    assert diag.main(["explain", "no/such/run"]) == 1
    assert capsys.readouterr().err.startswith("dpo-diag explain: ")
    with pytest.raises(Exception, match="no/such/run"):
        diag.main(["explain", "no/such/run", "--debug"])


ANSWERED_AT_ONCE = [
    ["--help"], ["ppl", "2.3"], ["nosuch"], *([name, "--nosuch"] for name in diag.COMMANDS if name != "submit"),
    *([name, "no/such/run"] for name in ("explain", "outputs", "report", "review", "track", "play")),
    ["explain", "no/such/run", "nosuch=1"], ["explain", "no/such/run", "--from", "x"], ["outputs", "x", "--steps", "x"],
    ["import"], ["import", "nosuch"], ["import", "x", "--loss", "nosuch"], ["gate", "x"], ["longppl", "x"],
]  # fmt: skip


def test_help_ppl_and_usage_errors_wait_for_no_table() -> None:
    """Nothing that is answered from the command line alone imports what reads or tests records (numpy is the scale:
    a twelfth of pandas with scipy). What submit takes is overrides, which Hydra reads."""
    code = (
        "import json, sys; from dpo_diag.commands.diag import main\n"
        "for call in json.loads(sys.argv[1]): main(call)\n"
        "print(sorted({'pandas', 'pyarrow', 'scipy', 'hydra', 'torch', 'matplotlib'} & set(sys.modules)))"
    )
    call = [sys.executable, "-c", code, json.dumps(ANSWERED_AT_ONCE)]
    done = subprocess.run(call, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert len(done.stderr.splitlines()) == len(ANSWERED_AT_ONCE) - 2  # one line each but --help and ppl
