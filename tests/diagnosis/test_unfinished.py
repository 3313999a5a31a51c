"""What is said of a work that did not come to its end: that it did not, how far it came, what goes on with it."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from dpo_diag import RunWriter, load_run
from dpo_diag.commands.diag import main
from dpo_diag.diagnosis import explain
from dpo_diag.diagnosis.checks import all_checks
from dpo_diag.diagnosis.labels import LABELS, OF_THE_WHOLE
from dpo_diag.diagnosis.unfinished import Unfinished
from dpo_diag.diagnosis.verdict import OPEN, PRECEDENCE, Facts, decide
from dpo_diag.records.health import check_run
from dpo_diag.records.process import this
from dpo_diag.records.run_lock import OWNER
from dpo_diag.text import to_json
from tests.diagnosis.builders import SIGMOID, pair_rows

START = [-10.0] * 40, [-12.0] * 40
FELL = [-14.0 - i / 40 for i in range(40)], [-22.0 - i / 40 for i in range(40)]
KILLED = Unfinished("killed", "1 of 3 checkpoints", None, ("dpo-score out=r",))


def half(folder: Path, steps: dict[int, Any], end: str = "killed", kind: str = "scored", **facts: Any) -> Path:
    """A run whose reference is START; `end`: "killed", or the status that it ends with."""
    writer = RunWriter(folder, kind=kind)
    writer.write("pairs", pair_rows(0, *START, role="ref"), split="eval-ref")
    for step, sums in steps.items():
        writer.write("pairs", pair_rows(step, *sums), split="eval")
    writer.update(loss=SIGMOID, **facts)
    if end != "killed":
        writer.finish(end, facts.get("error"))  # type: ignore[arg-type]
        return folder
    writer.release()
    (folder / OWNER).write_text(to_json(asdict(replace(this(), began=-1))))  # no process began then
    return folder


def hydra(folder: Path, config_name: str, overrides: list[str]) -> None:
    (folder / ".hydra").mkdir()
    (folder / ".hydra" / "hydra.yaml").write_text(f"hydra: {{job: {{config_name: {config_name}}}}}")
    (folder / ".hydra" / "overrides.yaml").write_text(json.dumps(overrides))


def test_a_scoring_killed_behind_its_reference_is_no_dead_run(tmp_path: Path) -> None:
    """The first of three checkpoints equals the reference: of the other two nothing is known."""
    run = half(tmp_path / "run", {1: START}, checkpoints_asked=3)
    hydra(run, "score", ["checkpoints=m/checkpoint-*", "data.path=p.jsonl", "out=elsewhere"])
    document = explain(run)
    verdict, go_on = document["verdict"], f"dpo-score 'checkpoints=m/checkpoint-*' data.path=p.jsonl out={run}"
    assert (verdict["label"], verdict["harm"], verdict["confidence"]) == ("unfinished", "cannot_tell", "low")
    assert verdict["headline"] == "Not finished: killed after 1 of 3 checkpoints."
    assert verdict["text"] == f"{verdict['headline']} To go on: {go_on}"
    assert [c["code"] for c in document["checks"] if c["outcome"] == "speaks"] == []
    assert document["unfinished"] == {
        "how": "killed", "reached": "1 of 3 checkpoints", "error": None, "go_on": [go_on],
        "line": "killed after 1 of 3 checkpoints",
    }  # fmt: skip


def test_a_kept_call_goes_on_as_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """run.json's call, which is the last one, comes before what Hydra kept; secrets are left out, and from another
    folder the line goes to where it was called. The doctor sends to explain."""
    called = tmp_path / "a b"
    called.mkdir()
    words = ("dpo-generate", "checkpoints=m/*", "prompts.path=p.jsonl", "+hub_token=abcdefghij", "out=elsewhere")
    run = half(tmp_path / "run", {1: START}, call={"words": words, "cwd": str(called)})
    hydra(run, "score", ["checkpoints=m/*", "data.path=p.jsonl"])
    monkeypatch.chdir(called)
    again = f"dpo-generate 'checkpoints=m/*' prompts.path=p.jsonl '+hub_token=[redacted]' out={run}"
    assert explain(run)["unfinished"]["go_on"] == [again]
    monkeypatch.chdir(tmp_path)
    assert explain("run")["unfinished"]["go_on"] == [f"cd '{called}' && {again}"]
    main(["doctor", "run", "--quick"])
    assert capsys.readouterr().out.splitlines()[-1] == "next: dpo-diag explain run"


def test_a_step_without_a_reference_is_compared_with_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """40 pairs at one step, and no reference's rows: the first line says both, not "the reference", "0 pairs"."""
    writer = RunWriter(tmp_path / "run", kind="scored")
    writer.write("pairs", pair_rows(6, *START), split="eval")
    writer.finish()
    assert main(["explain", str(tmp_path / "run")]) == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert first.endswith("(scored): step 6 without a reference on eval, 40 pairs")


def test_the_same_records_of_a_finished_scoring_are_a_dead_run(tmp_path: Path) -> None:
    document = explain(half(tmp_path / "run", {1: START}, "finished"))
    assert document["verdict"]["label"] == "dead_run" and "unfinished" not in document


def test_a_training_that_measured_nothing_behind_its_start_is_no_dead_run(tmp_path: Path) -> None:
    """Before its first step a training is its reference: stopped there, or finished without a later evaluation."""
    steps: dict[str, Any] = {"training": {"max_steps": 80}, "kind": "trained"}
    stopped = explain(half(tmp_path / "stopped", {0: START}, "interrupted", **steps))["verdict"]
    assert (stopped["label"], stopped["headline"]) == ("unfinished", "Not finished: stopped at step 0 of 80.")
    finished = explain(half(tmp_path / "finished", {0: START}, "finished", **steps))
    assert finished["verdict"]["label"] == "cannot_tell"
    assert [c["code"] for c in finished["checks"] if c["outcome"] == "speaks"] == []


def test_what_half_a_training_shows_is_said_as_what_is_so_far(tmp_path: Path) -> None:
    error = "OutOfMemoryError: no room"
    facts: dict[str, Any] = {"training": {"num_train_epochs": 3}, "kind": "trained", "error": error}
    run = half(tmp_path / "run", {0: START, 20: FELL}, "failed", **facts)
    verdict = explain(run)["verdict"]
    assert verdict["label"] == "likelihood_displacement"
    so_far = "so far the loss fell while the chosen answers became less likely"
    assert verdict["title"] == f"not finished, failed at step 20: {so_far}"
    assert verdict["text"].endswith(f"What ended it: {error}.")


def test_a_run_that_still_runs_is_followed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And what was said of it is not said again when its process is gone, though no record changed."""
    run = half(tmp_path / "run", {1: START})
    (run / OWNER).write_text(to_json(asdict(this())))
    for how in ("running, 1 checkpoint", "killed after 1 checkpoint"):
        assert main(["explain", str(run)]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[1].startswith(f"Not finished: {how}.")
        go_on = f"dpo-score checkpoints=CHECKPOINTS data.path=PAIRS.jsonl out={run}"
        assert lines[-1] == f"next  {f'dpo-diag explain {run} --watch' if how[0] == 'r' else go_on}"
        (run / OWNER).write_text(to_json(asdict(replace(this(), began=-1))))
    (status,) = (found for found in check_run(run) if found.name == "status")
    assert status.outcome == "fail" and "is gone: killed" in status.found
    assert main(["explain", str(run), "--watch"]) == 0  # nothing more is coming


@pytest.mark.parametrize(
    ("checkpoint", "app", "expected"),
    [
        (True, "config", "dpo-train resume={run}"),
        (False, "config", "dpo-train loss=ipo"),
        (True, None, "trainer.train(resume_from_checkpoint='{run}/checkpoints/checkpoint-20')"),
        (False, None, None),
    ],
)
def test_how_a_training_goes_on(tmp_path: Path, checkpoint: bool, app: str | None, expected: str | None) -> None:
    run = half(tmp_path / "run", {0: START, 20: FELL}, kind="trained")
    if app is not None:
        hydra(run, app, ["loss=ipo"])
    for step in (8, 20) if checkpoint else ():
        (run / "checkpoints" / f"checkpoint-{step}").mkdir(parents=True)
        (run / "checkpoints" / f"checkpoint-{step}" / "trainer_state.json").write_text("{}")
    assert explain(run)["unfinished"]["go_on"] == ([] if expected is None else [expected.format(run=run)])


def test_a_generation_counts_its_answers(tmp_path: Path) -> None:
    """Three answers by two of four checkpoints; no loss, no pair."""
    writer = RunWriter(tmp_path / "run", kind="scored")
    row = {"model": "policy", "sample": 0, "text": "a", "decoding_hash": "d", "token_ids": [1], "n_tokens": 1,
           "finish_reason": "stop"}  # fmt: skip
    writer.write("outputs", [{**row, "step": step, "prompt_id": q} for step, q in ((1, "q0"), (1, "q1"), (2, "q0"))])
    writer.update(checkpoints_asked=4)
    writer.finish("interrupted")
    document = explain(tmp_path / "run")
    assert document["verdict"]["headline"] == "Not finished: stopped after 3 answers by 2 of 4 checkpoints."
    assert document["unfinished"]["go_on"] == [
        f"dpo-generate checkpoints=CHECKPOINTS prompts.path=general_en out={tmp_path / 'run'}"
    ]


def test_no_label_of_a_whole_work_is_given_to_half_a_one() -> None:
    """Whatever check speaks: the label is one that half a work can show, or says that it is not finished; and every
    headline says so."""
    severities = {c.code: c.severity for c in all_checks()} | {"DVG028": "error"}
    for cause in PRECEDENCE:
        outcome = {"speaks": ("speaks", "why"), "silent": ("silent", "why")}
        said, reason = outcome.get(cause.answer, ("not_applicable", "cannot tell: noise"))
        severity = cause.severity or severities[cause.code]
        found = {"code": cause.code, "title": "t", "outcome": said, "reason": reason, "evidence": dict(cause.has),
                 "severity": severity}  # fmt: skip
        verdict = decide(Facts([found], n_pairs=100, has_intervals=True, unfinished=KILLED))
        assert verdict.label == ("unfinished" if cause.label in OF_THE_WHOLE else cause.label)
        assert verdict.headline.startswith("Not finished") and "killed after 1 of 3 checkpoints" in verdict.headline
        assert LABELS["dead_run"] not in verdict.text
    for facts in (Facts([]), Facts([], supervised=True), Facts([], rows=1)):
        assert decide(replace(facts, unfinished=KILLED)).label == "unfinished"
    assert {*OF_THE_WHOLE, "unfinished"} >= OPEN


def test_a_run_that_does_not_say_how_it_stands_is_none(tmp_path: Path) -> None:
    run = half(tmp_path / "run", {1: START}, "finished")
    RunWriter(run, kind="scored", resume_step=9).update(status=None)
    assert load_run(run).info.status is None and "unfinished" not in explain(run)
