"""The commands that draw a run or send it to a tracker."""

from __future__ import annotations

import html
import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

from dpo_diag import RunWriter, load_run
from dpo_diag.commands.diag import main

INPUTS = Path(__file__).resolve().parents[1] / "golden" / "inputs"


def test_report_prints_its_path_alone_on_the_last_line(
    made_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "r.html"
    assert main(["report", str(made_run), "--out", str(target), "--open-less"]) == 0
    assert capsys.readouterr().out == f"{target}\n"
    assert target.stat().st_size > 100_000


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_track_notes_where_it_went_and_touches_no_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed")
    writer = RunWriter(tmp_path / "r")
    writer.write("history", [{"step": 9, "split": "eval", "name": "loss", "value": 0.5, "weight": 8}])
    writer.finish()
    before = {p: p.read_bytes() for p in tmp_path.rglob("*.parquet")}
    meta = load_run(tmp_path / "r").meta
    assert main(["track", str(tmp_path / "r"), "--name", "mine", "--project", "p"]) == 0
    told = capsys.readouterr()
    places = json.loads(told.out)
    where = places["wandb"]
    assert (where["kind"], where["mode"], where["name"]) == ("wandb", "offline", "mine")
    assert load_run(tmp_path / "r").meta == {**meta, "tracking": places}
    assert {p: p.read_bytes() for p in tmp_path.rglob("*.parquet")} == before
    folders = list((tmp_path / "r" / "wandb").glob("offline-run-*"))
    assert f"next: wandb sync {folders[0]}" in told.err
    assert main(["track", str(tmp_path / "r"), "--project", "p"]) == 0  # all of it is there
    told = capsys.readouterr()
    assert "wandb: nothing new since it was sent" in told.err
    assert json.loads(told.out) == places
    assert list((tmp_path / "r" / "wandb").glob("offline-run-*")) == folders


@pytest.mark.parametrize("steps", [{0: -12.0}, {300: -12.0}])
def test_one_checkpoint_beside_its_reference_is_explained_and_reported(
    steps: dict[int, float], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The comparison begins at the reference, which is no number: every section must bear that. A checkpoint whose step
    nothing names stands at 0 and is called the scored checkpoint."""
    writer = RunWriter(tmp_path / "r", kind="scored")
    for role, step, chosen in [("ref", 0, -10.0), *(("policy", s, v) for s, v in steps.items())]:
        rows = [{"step": step, "split": "eval", "role": role, "pair_id": f"p{i}", "side": side, "sum_logp": value - i,
                 "n_tokens": 10, "n_bytes": 40}
                for i in range(12) for side, value in (("chosen", chosen), ("rejected", 2 * chosen))]  # fmt: skip
        writer.write("pairs", rows, split=f"eval-{role}")
    writer.update(loss={"types": ["sigmoid"], "beta": 0.1})
    writer.finish()
    assert main(["explain", str(tmp_path / "r"), "--watch"]) == 0
    step = next(iter(steps))
    assert capsys.readouterr().out.startswith(f"step {step}, loss 0.6931 → ")
    assert main(["report", str(tmp_path / "r")]) == 0
    page = (tmp_path / "r" / "report.html").read_text(encoding="utf-8")
    assert f"the reference to {f'step {step}' if step else 'the scored checkpoint'}" in page
    assert "step -1" not in page and "ref to" not in page


def test_training_batches_alone_are_explained_and_reported(tmp_path: Path) -> None:
    """Below one epoch without an evaluation set: no pair returns, each is held against the reference at its step."""
    writer = RunWriter(tmp_path / "r")
    for step in (1, 2):
        rows = [{"step": step, "split": "train", "role": role, "pair_id": f"p{step}{i}", "side": side,
                 "sum_logp": -10.0 - step * (role == "policy"), "n_tokens": 10, "n_bytes": 40}
                for i in range(4) for side in ("chosen", "rejected") for role in ("policy", "ref")]  # fmt: skip
        writer.write("pairs", rows, split="train")
    writer.update(loss={"types": ["sigmoid"], "beta": 0.1})
    writer.finish()
    assert main(["report", str(tmp_path / "r")]) == 0
    assert "the reference to step 2" in (tmp_path / "r" / "report.html").read_text(encoding="utf-8")


def test_a_logs_report_draws_it_and_says_in_one_box_what_would_tell_more(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its checkpoints lie beside it: the commands name them; nothing of what a log cannot have is an empty section."""
    shutil.copytree(INPUTS / "trl_displaced", tmp_path / "out")
    (tmp_path / "out" / "checkpoint-40").mkdir()
    run = tmp_path / "theirs"
    assert main(["import", str(tmp_path / "out" / "trainer_state.json"), "--out", str(run)]) == 0
    assert main(["report", str(run)]) == 0
    capsys.readouterr()
    page = (run / "report.html").read_text(encoding="utf-8")
    assert re.findall(r'<section id="([a-z]+)"', page)[:2] == ["verdict", "curves"]
    assert not {"loss", "quadrants", "pairs", "outputs"} & set(re.findall(r'<section id="([a-z]+)"', page))
    titles = re.findall(r"<h3>([^<]*)</h3>", page)
    logged = {row["name"].partition("/")[0] for row in load_run(run).history.to_dict("records")}
    assert {"rewards", "logps", "grad_norm"} <= logged
    assert {"Loss, nats per pair", "Reward margin, nats", "Reward accuracy, share", "Gradient norm"} <= set(titles)
    assert page.count('<section id="unknown"') == 1
    box = page.partition('<section id="unknown"')[2].partition("</section>")[0]
    commands = [shlex.split(html.unescape(line)) for line in re.findall(r"<code>([^<]*)</code></pre>", box)]
    where, out = f"checkpoints={tmp_path / 'out' / 'checkpoint'}*", f"out={run}-scored"
    assert commands == [
        ["dpo-score", where, "data.path=PAIRS.jsonl", out],
        ["dpo-generate", where, "prompts.path=general_en", out],
    ]
    names = re.findall(r"<dt>([^<]*)</dt>", page.partition('<dl class="facts">')[2].partition("</dl>")[0])
    assert names[0].endswith("loss") and "chosen reward" in names


def test_a_log_is_imported_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = shutil.copy(INPUTS / "trl_displaced" / "trainer_state.json", tmp_path / "my log.json")
    assert main(["report", str(log)]) == 1
    said = capsys.readouterr().err
    assert f"hint: dpo-diag import '{log}' --out RUN, then dpo-diag report RUN" in said
