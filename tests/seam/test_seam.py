"""One toy of every kind that can be added, from outside the package: seen in training, explain, report, gate and docs.

Everything runs in processes of its own, so that no toy reaches another test.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dpo_diag.records import load_run, make_pair_id

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
Call = Callable[..., str]


@pytest.fixture(scope="module")
def call() -> Call:
    """`call("dpo_diag.commands.diag", "explain", RUN)`: standard output of a module run with the plugin."""
    path = os.pathsep.join([str(HERE), str(REPOSITORY)])
    environment = {**os.environ, "DPO_DIAG_PLUGINS": "toy", "PYTHONPATH": path}

    def run(module: str, *arguments: str) -> str:
        command = [sys.executable, "-m", module, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=REPOSITORY)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.fixture(scope="module")
def trained(call: Call, tiny_folder: Path, pair_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """dpo-train with the toy loss and the toy tracker, four steps."""
    out = call(
        "dpo_diag.commands.train", "model=hub", f"model.name={tiny_folder}", "data=jsonl", f"data.path={pair_file}",
        f"output_root={tmp_path_factory.mktemp('runs')}", "loss.types=[toy_hinge]", "tracking.kind=toy",
        "trainer.max_steps=4", "trainer.eval_steps=2", "trainer.batch_size=4", "trainer.learning_rate=1e-3",
        "data.eval_share=0.3", "data.max_bad_share=0.1", "model.device=cpu",
    )  # fmt: skip
    return Path(out.splitlines()[-1])


@pytest.fixture(scope="module")
def findings(call: Call, trained: Path) -> dict[str, Any]:
    return dict(json.loads(call("dpo_diag.commands.diag", "explain", str(trained), "--json")))


@pytest.mark.slow
def test_the_loss_is_trained_recorded_and_split(trained: Path, findings: dict[str, Any]) -> None:
    """(1 - 0)^2 = 1 at the reference; what the trainer used is what the records give; both parts add up."""
    history = load_run(trained).history.query("split == 'eval'").set_index(["name", "step"])["value"]
    assert history["loss", 0] == pytest.approx(1.0, abs=1e-6)
    assert history["loss_residual"].max() < 1e-5
    loss = findings["loss"]
    assert loss["chosen_part"] + loss["rejected_part"] == pytest.approx(loss["delta"], abs=1e-9)


def test_the_metric_is_measured(trained: Path) -> None:
    names = set(load_run(trained).history.query("split == 'eval'")["name"])
    assert {"toy_longest/chosen", "toy_longest/rejected"} <= names


def test_the_row_form_reads_its_rows_and_is_in_the_docs(call: Call, tmp_path: Path) -> None:
    """Its pair is a pair for imports, too: the id is that of the question with both replies."""
    path = tmp_path / "pairs.jsonl"
    sums = {"step": 1, "chosen_sum_logp": -1.0, "rejected_sum_logp": -2.0}
    path.write_text(json.dumps({"toy_asked": "Hi", "toy_replies": "a > b", **sums}))
    call("dpo_diag.commands.diag", "import", str(path), "--out", str(tmp_path / "run"), "--as", "pairs")
    (user, good, bad) = (
        [{"role": r, "content": c}] for r, c in (("user", "Hi"), ("assistant", "a"), ("assistant", "b"))
    )
    assert set(load_run(tmp_path / "run").pairs["pair_id"]) == {make_pair_id(user, good, bad)}
    assert "| the toy's form | `toy` |" in call("dpo_diag.rows.page")


def test_the_tracker_is_told(trained: Path) -> None:
    lines = (trained / "toy_tracker.txt").read_text().splitlines()
    assert any("toy_longest/chosen" in line for line in lines)
    # The verdict and the page were there before the end: no tracker's service can hold them up.
    harm = json.loads((trained / "findings.json").read_text(encoding="utf-8"))["verdict"]["harm"]
    assert lines[-2:] == [f"harm {harm} True", "finished"]


def test_the_check_is_run_with_its_threshold_and_has_its_page(
    call: Call, trained: Path, findings: dict[str, Any]
) -> None:
    found = {check["code"]: check for check in findings["checks"]}["TOY001"]
    assert found["evidence"]["ratio"] > 0
    low = call("dpo_diag.commands.diag", "explain", str(trained), "--json", "--no-write", "toy_least_ratio=0")
    assert {c["code"]: c["outcome"] for c in json.loads(low)["checks"]}["TOY001"] == "speaks"
    assert "TOY001" in call("dpo_diag.commands.diag", "checks")
    assert "Chosen answers are twice as long." in call("dpo_diag.commands.diag", "checks", "TOY001")


def test_the_section_is_on_the_page(call: Call, trained: Path, findings: dict[str, Any], tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    call("dpo_diag.commands.diag", "report", str(trained), "--out", str(page))
    assert f"<p>{findings['n_pairs']} toys</p>" in page.read_text()


def test_the_rule_is_judged(call: Call, trained: Path, tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text("rules:\n  - toy: finished\n")
    assert "the run is finished" in call(
        "dpo_diag.commands.diag", "gate", str(trained), "--rules", str(tmp_path / "rules.yaml")
    )


def test_the_format_is_imported_and_listed(call: Call, tmp_path: Path) -> None:
    (tmp_path / "toy.log").write_text("".join(f"@{s} loss={0.7 - s / 100}\n" for s in range(1, 20)))
    out = tmp_path / "run"
    document = json.loads(
        call("dpo_diag.commands.diag", "import", str(tmp_path / "toy.log"), "--out", str(out), "--json")
    )
    assert (document["format"], document["read"]) == ("toy", 19)
    assert "toy's log" in call("dpo_diag.commands.diag", "import", "--formats")
