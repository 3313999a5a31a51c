"""A run held against another on one page: what differs, what came of it, and what must not be compared."""

from __future__ import annotations

import html
import json
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest

from dpo_diag import RunWriter, load_run
from dpo_diag.commands.diag import main
from dpo_diag.diagnosis import Explanation
from dpo_diag.diagnosis.two_runs import compare_runs
from dpo_diag.report import two_runs_page, write_two_runs
from dpo_diag.report.section import Context
from dpo_diag.report.text import told_apart
from tests.diagnosis.test_two_runs import LOSS, written

HOSTILE = "</script><img src=x onerror=alert(1)>"
NAMES = ("a", "b")


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    """Of b every chosen answer lies 1 nat lower at its end; q2 got worse, q3 better; the learning rate differs."""
    further = {f"p{i:02d}": 1.0 for i in range(20)}
    a = written(tmp_path / "a", {}, {"q1": ("x", 1), "q2": ("x", 1), "q3": ("x", 0)}, 0.5,
                training={"learning_rate": 1e-5}, packages={"torch": "2.13"})  # fmt: skip
    b = written(tmp_path / "b", further, {"q1": ("x", 1), "q2": (HOSTILE, 0), "q3": ("x y", 1)}, 0.6,
                training={"learning_rate": 2e-5}, packages={"torch": "2.13"})  # fmt: skip
    return a, b


def shown(page: str) -> str:
    """What a reader sees: the page without its data and its script."""
    return html.unescape(re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL))


def test_the_command_names_the_page_and_what_comes_next(
    two: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = two
    assert main(["report", str(b), "--against", str(a), "--open-less"]) == 0
    said = capsys.readouterr()
    assert said.out == f"{b / 'report-against-a.html'}\n"
    assert f"next: dpo-diag diff {a} {b}" in said.err
    page = (b / "report-against-a.html").read_text(encoding="utf-8")
    assert "<title>b against a: dpo-diag report</title>" in page
    assert page.count('class="harm ') == 2  # both verdicts, before anything else
    assert re.findall(r'<section id="([a-z]+)"', page) == [
        "verdict",
        "outcome",
        "differs",
        "outputs",
        "curves",
        "pairs",
    ]


def test_changes_stand_with_the_paired_interval_of_the_comparison(two: tuple[Path, Path]) -> None:
    """All 20 chosen answers of 10 tokens lie 1 nat lower: cross-entropy 1 to 1.1, the interval of a constant."""
    found = compare_runs(*map(load_run, two))
    table = two_runs_page.changes_table(found, NAMES)
    assert table is not None
    rows = {row[0].text: [cell.text for cell in row[1:]] for row in table.rows}
    assert rows["Chosen cross-entropy, nats/token"] == ["1", "1.100", "+0.100", "[+0.100, +0.100]", "20"]
    assert [cell.text for cell in table.header] == ["quantity", "a", "b", "change", "99 % interval", "n"]
    assert two_runs_page.changes_note(found) == "Over 20 pairs of eval, at step 10 and step 10."
    differing = two_runs_page.differences_table(found.differences, NAMES)
    assert differing is not None
    assert [[c.text for c in row] for row in differing.rows] == [["config", "training.learning_rate", "1e-05", "2e-05"]]


def test_the_answers_that_differ_stand_beside_each_other(two: tuple[Path, Path], tmp_path: Path) -> None:
    page = write_two_runs(two[1], two[0], tmp_path / "p.html").read_text(encoding="utf-8")
    answers = page.partition('<section id="outputs"')[2].partition("</section>")[0]
    assert re.findall(r'data-standing="(\w+)"', answers) == ["regression", "gain"]
    assert "3 prompts under the same decoding: 1 answers alike, 2 different" in answers
    assert '<ol class="answers two">' in answers
    assert "<img" not in page and "&lt;/script&gt;&lt;img" in answers
    assert "x<ins> y</ins>" in answers
    data = dict(re.findall(r'<script type="application/json" id="([a-z-]+)">(.*?)</script>', page, re.DOTALL))
    assert set(data) == {"two-runs", "explanation-a", "explanation-b"}
    document = json.loads(data["two-runs"])
    assert {row["prompt_id"]: row["text_b"] for row in document["answers"]}["q2"] == HOSTILE
    assert json.loads(data["explanation-a"])["loss"]["to"] == pytest.approx(0.6931, abs=1e-4)


def test_both_lines_stand_on_one_pair_of_axes(two: tuple[Path, Path], tmp_path: Path) -> None:
    page = write_two_runs(two[1], two[0], tmp_path / "p.html").read_text(encoding="utf-8")
    curves = page.partition('<section id="curves"')[2].partition("</section>")[0]
    assert re.findall(r"<h3>([^<]*)</h3>", curves) == ["Loss, nats"]
    values = json.loads(re.findall(r'class="values">(.*?)</script>', curves)[0])
    assert [(line["k"], line["t"]) for line in values["lines"]] == [
        ("run-a", ["0.5000", "0.5000", "0.5000"]), ("run-b", ["0.5000", "0.5000", "0.6000"]),
    ]  # fmt: skip


def perplexities(folder: Path, **facts: object) -> Path:
    """A run whose history holds a perplexity and a margin."""
    run = written(folder, {}, {}, 0.5, **facts)
    writer = RunWriter(run, resume_step=10**9)
    writer.write("history", [
        {"step": step, "split": "eval", "name": name, "value": 2.0 + step, "weight": 20}
        for step in (0, 5, 10) for name in ("ppl_token/chosen", "rewards/margins")
    ], "more")  # fmt: skip
    writer.finish()
    return run


@pytest.mark.parametrize("tokenizer", ["t1", "t2"])
def test_perplexities_of_other_tokenizers_are_not_held_against_each_other(tokenizer: str, tmp_path: Path) -> None:
    """The margin is drawn in both cases, the perplexity only where its tokens are the same; the reason stands there."""
    a = perplexities(tmp_path / "a", tokenizer={"fingerprint": "t1"}, loss=LOSS)
    b = perplexities(tmp_path / "b", tokenizer={"fingerprint": tokenizer}, loss=LOSS)
    page = shown(write_two_runs(b, a, tmp_path / "p.html").read_text(encoding="utf-8"))
    curves = page.partition('<section id="curves"')[2]
    titles = re.findall(r"<h3>([^<]*)</h3>", curves)
    same = tokenizer == "t1"
    assert ("Chosen ppl_token" in titles) is same
    assert "Reward margin, nats" in titles
    assert (
        "The tokenizers differ: their logged perplexities, cross-entropies and log-probs are not held" in page
    ) is not same


def test_of_two_logs_no_likelihood_of_one_side_is_drawn_over_another(tmp_path: Path) -> None:
    """Nothing says on which pairs they were measured: no table of changes; margins and loss are drawn."""
    for name in NAMES:
        run = perplexities(tmp_path / name)
        shutil.copytree(run, tmp_path / "logs" / name, ignore=shutil.ignore_patterns("pairs", "outputs", "texts"))
    path = write_two_runs(tmp_path / "logs" / "b", tmp_path / "logs" / "a", tmp_path / "p.html")
    page = shown(path.read_text(encoding="utf-8"))
    assert page.count("The runs share no measured pairs: their logged perplexities, cross-entropies and log-probs") == 1
    assert "over the pairs of both runs" not in page
    assert "The runs share no measured set of pairs." in page
    assert re.findall(r"<h3>([^<]*)</h3>", page) == ["Loss, nats", "Reward margin, nats"]


def test_a_metric_of_the_training_alone_is_drawn_beside_evaluations(tmp_path: Path) -> None:
    """The learning rate stands in no evaluation: its rows are those of the training batches."""
    runs = []
    for name in NAMES:
        writer = RunWriter(tmp_path / name)
        rows = [(2, "eval", "loss", 0.6), (2, "train", "learning_rate", 1e-5), (4, "train", "learning_rate", 2e-5)]
        writer.write("history", [dict(zip(("step", "split", "name", "value"), r, strict=True), weight=1) for r in rows])
        writer.finish()
        runs.append(load_run(tmp_path / name))
    contexts = [Context(run, Explanation({}, None, pd.DataFrame()), {}) for run in runs]
    found = two_runs_page.curves_over_each_other(contexts, NAMES, apart=False)
    assert [c.title for c in found.charts] == ["Loss, nats", "Learning rate"]
    assert (found.rows, found.left_out) == ("split eval", False)
    assert '"t":["1e-05","2e-05"]' in str(found.charts[1].chart).replace(" ", "")


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    """By the part of their folders that differs; one and the same by a letter."""
    folders = [tmp_path / day / "r" for day in ("mon", "tue")]
    runs = [load_run(written(folder, {}, {}, 0.5, name="dpo")) for folder in folders]
    assert two_runs_page.called(*runs) == ("mon/r", "tue/r")
    assert two_runs_page.called(runs[0], runs[0]) == ("dpo (a)", "dpo (b)")


def test_lines_are_named_by_what_tells_long_names_apart() -> None:
    """Short names stay; of long ones what all begin with, up to a whole word, becomes "…"; else the end goes."""
    assert told_apart(["a", "b"], 14) == ["a", "b"]
    assert told_apart(["runs-with-beta-0.1", "runs-with-beta-0.5"], 14) == ["…0.1", "…0.5"]
    assert told_apart(["the same name (a)", "the same name (b)"], 14) == ["…(a)", "…(b)"]
    assert told_apart(["one-long-run-name", "another-one"], 14) == ["one-long-run-…", "another-one"]
