"""`dpo-diag explain` as a user meets it, and the pandas script."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pandas as pd
import pytest
from builders import SIGMOID, build_run, pair_rows
from rich.cells import cell_len

from dpo_diag import RunWriter
from dpo_diag.commands.diag import main
from dpo_diag.diagnosis import explain
from dpo_diag.diagnosis.printed import render_document
from dpo_diag.errors import DiagError

REPOSITORY = Path(__file__).resolve().parents[2]
STEPS = {0: ([-5.0] * 12, [-5.0] * 12), 9: ([-6.0] * 12, [-9.0] * 12)}
WORSE = [{"step": s, "split": "x", "name": "score/acc", "value": v, "weight": 500.0} for s, v in ((0, 0.8), (9, 0.2))]


def test_prints_narrative_and_tables_and_writes_findings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = build_run(tmp_path / "run", STEPS)
    assert main(["explain", str(run.path), "--full"]) == 0
    said = capsys.readouterr().out
    assert said.index("What happened") < said.index("How sure") < said.index("Why") < said.index("Which pairs")
    assert "ppl_seq_mean chosen" in said and f"wrote {run.path / 'findings.json'}" in said
    findings = json.loads((run.path / "findings.json").read_text(encoding="utf-8"))
    assert findings["n_pairs"] == 12


def test_json_is_one_document_and_nothing_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = build_run(tmp_path / "run", STEPS)
    assert main(["explain", str(run.path), "--json", "--no-write", "--from", "ref", "--to", "9"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["from_step"] == "ref" and captured.err == ""
    assert not (run.path / "findings.json").exists()


def test_fail_on_sets_the_exit_status(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fine = build_run(tmp_path / "fine", STEPS)
    harmful = build_run(tmp_path / "harmful", STEPS, history=WORSE)
    assert main(["explain", str(fine.path), "--fail-on", "harmful"]) == 0
    assert main(["explain", str(harmful.path), "--fail-on", "harmful"]) == 1
    assert "fail-on harmful" in capsys.readouterr().err
    assert main(["explain", str(fine.path), "--fail-on", "speaks:DVG001"]) == 1
    assert "fail-on DVG001" in capsys.readouterr().err
    assert main(["explain", str(fine.path), "--fail-on", "speaks:DVG011"]) == 0
    assert main(["explain", str(fine.path), "--fail-on", "speaks:DVG999"]) == 2
    assert main(["explain", str(fine.path), "--fail-on", "harmful,speaks:DVG011"]) == 0
    assert main(["explain", str(fine.path), "--fail-on", "harmful,speaks:DVG011,DVG001"]) == 1
    assert main(["explain", str(fine.path), "--fail-on", "harmful,speak"]) == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--from", "3"], "no pair records at this step"),
        (["--split", "nope"], "no such split"),
        (["--fail-on", "bad"], "not a rule"),
        (["colour"], "not a threshold; got colour"),
        (["no.such.threshold=3"], "unknown threshold"),
    ],
)
def test_mistakes_are_one_line_and_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    run = build_run(tmp_path / "run", STEPS)
    assert main(["explain", str(run.path), *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error and len(error.strip().splitlines()) == 1


def test_a_path_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", str(tmp_path / "nowhere")]) == 1
    error = capsys.readouterr().err
    assert "no such file or folder" in error and "a run folder or a log" in error


def test_watch_says_what_changed_and_ends_with_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    writer = RunWriter(tmp_path / "run")
    writer.update(loss=SIGMOID)
    for role in ("policy", "ref"):
        writer.write("pairs", pair_rows(0, *STEPS[0], role=role), split=f"eval.{role}")

    def train() -> None:
        time.sleep(1.0)
        writer.write("pairs", pair_rows(9, *STEPS[9]))
        time.sleep(1.0)
        writer.finish()

    trainer = threading.Thread(target=train)
    trainer.start()
    assert main(["explain", str(tmp_path / "run"), "--watch", "--interval", "0.1"]) == 0
    trainer.join()
    said = capsys.readouterr().out
    assert "step 0" in said and "step 9, loss 0.6931 → " in said
    assert "verdict: likelihood_displacement, harm cannot_tell" in said


def test_watch_of_an_ended_run_ends_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = build_run(tmp_path / "run", STEPS, history=WORSE)
    assert main(["explain", str(run.path), "--watch", "--fail-on", "harmful"]) == 1
    assert "harm harmful" in capsys.readouterr().out


def test_watch_of_an_ended_run_that_cannot_be_explained_ends(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is wrong with an ended run's records, nothing more is coming: the reason ends the command."""
    run = build_run(tmp_path / "run", STEPS, history=WORSE)

    def wrong(*_: object) -> None:
        raise DiagError("the records do not fit")

    monkeypatch.setattr("dpo_diag.diagnosis.explain", wrong)
    assert main(["explain", str(run.path), "--watch", "--interval", "0.1"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("waiting: ") and lines[-1] == f"dpo-diag explain: {lines[0].removeprefix('waiting: ')}"


def test_a_log_with_kl_is_asked_for_kto(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """KTO starts at 0.5, and its trainer logs kl: the reason names the option; without kl it does not."""
    for kl in (True, False):
        rows = [
            {"step": s, "loss": 0.5 - s / 1000, "rewards/chosen": s / 1000, "rewards/rejected": -s / 1000,
             "rewards/margins": s / 500, **({"kl": s / 10} if kl else {})}
            for s in range(1, 9)
        ]  # fmt: skip
        log = tmp_path / "trainer_state.json"
        log.write_text(json.dumps({"global_step": 8, "max_steps": 8, "log_history": rows}), encoding="utf-8")
        assert main(["explain", str(log), "--json"]) == 0
        checks = {c["code"]: c["reason"] for c in json.loads(capsys.readouterr().out)["checks"]}
        assert ("--loss kto" in checks["DVG007"]) == kl, checks["DVG007"]


def test_another_trainers_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """TRL's trainer_state.json: means only; the run that it becomes is temporary."""
    log = tmp_path / "trainer_state.json"
    rows = [
        {"step": s, "epoch": s / 100, "eval_loss": loss, "eval_rewards/chosen": c, "eval_rewards/rejected": r,
         "eval_rewards/margins": c - r, "eval_rewards/accuracies": 0.7, "eval_logps/chosen": -100 + 10 * c,
         "eval_logps/rejected": -90 + 10 * r}
        for s, loss, c, r in ((10, 0.69, 0.0, 0.0), (20, 0.55, -0.5, -1.0), (30, 0.45, -1.0, -2.0))
    ]  # fmt: skip
    log.write_text(json.dumps({"global_step": 30, "max_steps": 30, "log_history": rows}), encoding="utf-8")
    assert main(["explain", str(log), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["run"] == str(log) and document["kind"] == "imported"
    assert document["verdict"]["label"] == "likelihood_displacement"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["trainer_state.json"]


def test_analysis_script_saves_its_frames(tmp_path: Path) -> None:
    run = build_run(tmp_path / "run", STEPS)
    script = REPOSITORY / "analysis" / "explain_divergence.py"
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [sys.executable, "-W", "error", str(script), str(run.path), "--out", str(tmp_path / "out")],
        capture_output=True, text=True, check=True, env=environment,
    )  # fmt: skip
    assert "wrote steps.csv, loss.csv, perplexity.csv, pairs.csv" in done.stdout
    pairs = pd.read_csv(tmp_path / "out" / "pairs.csv")
    assert pairs["cumulative_share"].iloc[-1] == pytest.approx(1.0)


def test_no_torch_behind_the_command(tmp_path: Path) -> None:
    run = build_run(tmp_path / "run", STEPS)
    code = (
        "import sys; from dpo_diag.commands.diag import main; "
        f"main(['explain', {str(run.path)!r}, '--json', '--no-write']); "
        "sys.exit(1 if {'torch', 'transformers', 'trl', 'datasets'} & set(sys.modules) else 0)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, stdout=subprocess.DEVNULL).returncode == 0


def test_a_terminal_gets_the_full_text_wrapped_and_no_table_is_broken() -> None:
    """At 80 cells nothing is wider, at a file's width sentences are whole; the numbers are the same."""
    document = explain(REPOSITORY / "runs" / "example")
    narrow, wide = render_document(document, 3, 80), render_document(document, 3)
    assert max(map(cell_len, narrow.splitlines())) <= 80 < max(map(cell_len, wide.splitlines()))
    sentences = [s["text"] for section in document["narrative"] for s in section["sentences"]]
    assert all(f"  {sentence}\n" in wide for sentence in sentences)
    flat = " ".join(narrow.split())
    assert all(sentence in flat for sentence in sentences)
    assert any(line.split()[:3] == ["ppl_token", "chosen", "1.327"] for line in narrow.splitlines())
    assert next(line for line in narrow.splitlines() if line.startswith("ppl_seq_mean chosen")).endswith("–")
