"""What the judgements say: counts by hand, reviewers averaged, stale answers left out, judges apart; the command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dpo_diag.commands.diag import main
from dpo_diag.records import RunWriter, load_run
from dpo_diag.review import judgements, results
from dpo_diag.review.conclusion import conclude
from dpo_diag.review.items import choose_items
from tests.review.builders import judgement, output_rows


def test_win_rate_by_hand(run_path: Path) -> None:
    """b, b, tie, both bad, a of 5 items: (1 + 1 + 1/2 + 1/2 + 0) / 5 = 0.6; two against one without the ties."""
    items = choose_items(load_run(run_path), n=6)
    for item, outcome in zip(items, ("b", "b", "tie", "both_bad", "a", "skip"), strict=True):
        judgements.append(run_path, judgement(item, outcome))
    document = results(run_path)
    (c,) = document["comparisons"]
    assert (c["a"], c["b"], c["n"], c["win_rate"]) == ("ref (step 0)", "step 40", 5, 0.6)
    assert (c["low"], c["high"]) == (None, None)  # five items are too few for an interval
    assert (c["a_wins"], c["b_wins"], c["ties"], c["both_bad"], c["p"]) == (1, 2, 1, 1, 1.0)
    assert (c["differ"], c["of"]) == (24, 30)
    assert sum(t["n"] for t in c["by_tag"]) == 5
    assert document["reviewers"] == [{"reviewer": "ann", "kind": "person", "n": 5, "skipped": 1, "notes": []}]
    assert "not_applicable" not in document
    json.dumps(document, allow_nan=False)


def test_the_conclusion_names_the_better_one_or_how_many_more_would_tell() -> None:
    """12 of 20: Wilson's interval with z = 1.96 and z^2 / 20 = 0.1921 has its centre at (0.6 + 0.0960) / 1.1921 =
    0.5839 and half of its width 1.96 sqrt(0.24 / 20 + 3.8415 / 1600) / 1.1921 = 0.1973: 39 % to 78 %. So the standard
    error is 0.1973 / 1.96 = 0.1007, and 20 ((1.96 + 0.8416) 0.1007 / 0.1)^2 = 159.1 items tell a preference of 0.1:
    140 more. 18 of 20: centre (0.9 + 0.0960) / 1.1921 = 0.8356, half 1.96 sqrt(0.09 / 20 + 0.0024) / 1.1921 = 0.1366.
    """
    said = {"a": "step 0", "b": "step 40", "n": 20, "q": 0.5, "differ": 24}
    unclear = conclude({**said, "win_rate": 0.6})
    assert (unclear["preferred"], unclear["more"]) == (None, 140)
    assert unclear["conclusion"] == (
        "Neither step 0 nor step 40 is preferred so far: step 40 won 60 % of 20 items (ties count half; 95 % interval "
        "39 % to 78 %). About 140 more judgements would tell a preference of this size from none (power 80 %); the run "
        "holds 4 more answers that differ."
    )
    clear = conclude({**said, "win_rate": 0.9, "q": 0.0004})
    assert (clear["preferred"], clear["more"]) == ("step 40", 0)
    assert clear["conclusion"] == (
        "step 40 is preferred over step 0: it won 90 % of 20 items (ties count half; 95 % interval 70 % to 97 %)."
    )
    turned = conclude({**said, "win_rate": 0.1, "q": 0.0004})
    assert turned["conclusion"].startswith("step 0 is preferred over step 40: it won 90 % of 20 items")
    assert turned["conclusion"].endswith("95 % interval 70 % to 97 %).")
    # Excluded by the interval, but not by the test that is corrected for all comparisons.
    assert conclude({**said, "win_rate": 0.9, "q": 0.06})["preferred"] is None
    few = conclude({**said, "n": 5, "win_rate": 0.6})
    assert (few["preferred"], few["more"]) == (None, 3)
    assert few["conclusion"].endswith("(ties count half); 3 more judgements at least give an interval.")
    # An equal split has no size of its own: what 60 to 40 would take. 8 items: z^2 / 8 = 0.4802, half of the width
    # 1.96 sqrt(0.25 / 8 + 3.8415 / 256) / 1.4802 = 0.2848, error 0.1453, 8 (2.8016 x 1.453)^2 = 132.6.
    equal = conclude({**said, "n": 8, "win_rate": 0.5, "differ": None})
    assert equal["more"] == 125 and "a preference of 60 % from none (power 80 %)." in equal["conclusion"]


def test_two_reviewers_of_an_item_are_one_item(run_path: Path) -> None:
    """ann: b b a a, ben: b a on the first two: items 1, 1/2, 0, 0 -> 1.5/4. Agreement 1/2; ann b b, ben b a."""
    items = choose_items(load_run(run_path), n=4)
    for item, outcome in zip(items, "bbaa", strict=True):
        judgements.append(run_path, judgement(item, outcome))
    for item, outcome in zip(items[:2], "ba", strict=True):
        judgements.append(run_path, judgement(item, outcome, "ben"))
    document = results(run_path)
    (c,) = document["comparisons"]
    assert (c["n"], c["n_verdicts"], c["win_rate"]) == (4, 6, 1.5 / 4)
    (agreement,) = document["agreement"]
    assert (agreement["reviewers"], agreement["n"], agreement["agreement"]) == (["ann", "ben"], 2, 0.5)
    # Observed 1/2; ann always says b, so chance is ben's share of b, 1/2: kappa 0.
    assert agreement["kappa"] == 0


def test_ranking_over_all_checkpoints(run_path: Path) -> None:
    """Later checkpoints always win: the ranking is 40, 20, then ref and the first step, which tie by symmetry."""
    for item in choose_items(load_run(run_path), every=True, n=60):
        judgements.append(run_path, judgement(item, "b" if item.b.step > item.a.step else "a"))
    ranking = results(run_path)["ranking"]
    assert [x["look"] for x in ranking["looks"]][:2] == ["step 40", "step 20"]
    assert {x["look"] for x in ranking["looks"][2:]} == {"step 0", "ref (step 0)"}
    assert ranking["looks"][2]["ability"] == pytest.approx(ranking["looks"][3]["ability"], abs=0.3)
    assert ranking["groups"] == 1
    assert sum(x["ability"] for x in ranking["looks"]) == pytest.approx(0, abs=1e-9)
    assert all(x["low"] < x["ability"] < x["high"] for x in ranking["looks"])


def test_a_behaviour_that_moved_and_one_that_did_not(run_path: Path) -> None:
    """structure: b alone on all 12 items (McNemar 2 * 0.5**12); careful: both always."""
    for item in choose_items(load_run(run_path), n=12):
        marks = {"structure": ["b"], "careful": ["a", "b"]}
        judgements.append(run_path, judgement(item, "b", behaviours=marks, asked=["structure", "careful", "polite"]))
    rows = {b["behaviour"]: b for b in results(run_path)["behaviours"]}
    assert (rows["structure"]["delta"], rows["structure"]["moved"], rows["structure"]["n"]) == (1.0, "more", 12)
    assert rows["structure"]["p"] == pytest.approx(2 * 0.5**12)
    assert rows["structure"]["q"] == pytest.approx(3 * 2 * 0.5**12)
    assert (rows["careful"]["delta"], rows["careful"]["moved"], rows["careful"]["b_shows"]) == (0.0, "unchanged", 1.0)
    assert (rows["polite"]["a_shows"], rows["polite"]["b_shows"]) == (0.0, 0.0)


def test_verdicts_on_answers_that_were_written_anew_are_left_out(run_path: Path) -> None:
    for item in choose_items(load_run(run_path), n=24):
        judgements.append(run_path, judgement(item, "b"))
    rows = [r for r in output_rows() if r["model"] == "policy" and r["step"] == 40]
    rows[1]["text"] = "another answer"
    RunWriter(run_path, kind="trained", resume_step=10**9).write("outputs", rows, split="policy")
    document = results(run_path)
    assert (document["stale"], document["n_verdicts"]) == (1, 23)


def test_a_judge_is_not_counted_with_the_people(run_path: Path) -> None:
    items = choose_items(load_run(run_path), n=10)
    for item in items:
        judgements.append(run_path, judgement(item, "a"))
        judgements.append(run_path, judgement(item, "b", "judge:m", "judge"))
    document = results(run_path)
    assert document["comparisons"][0]["win_rate"] == 0
    assert document["judge"]["comparisons"][0]["win_rate"] == 1
    assert document["agreement"] == []
    assert document["judge"]["agreement"][0]["kinds"] == ["person", "judge"]
    assert document["judge"]["agreement"][0]["agreement"] == 0


def test_nothing_judged_yet(run_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = results(run_path)
    assert document["not_applicable"].startswith("nobody has judged")
    assert document["ranking"] == {"not_applicable": "no two checkpoints were compared"}
    assert main(["review", str(run_path), "--results"]) == 0
    assert "nobody has judged" in capsys.readouterr().out


def test_the_command_prints_a_table_or_one_document(run_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for item in choose_items(load_run(run_path), every=True, n=30):
        judgements.append(run_path, judgement(item, "b", note="\x1b[31mred", behaviours={"x": ["b"]}, asked=["x"]))
    path = judgements.file_of(run_path, "ann")
    path.write_bytes(path.read_bytes() + b'{"torn')
    assert main(["review", str(run_path), "--results"]) == 0
    text = capsys.readouterr().out
    assert "Bradley-Terry" in text and "Behaviours" in text and "left out: torn" in text
    assert "\x1b" not in text and "<U+001B>[31mred" in text
    assert main(["review", str(run_path), "--results", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["n_verdicts"] == 30


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [(["--json"], 2, "--json goes with --results"), (["--all", "--a", "0"], 2, "leave one out"),
     (["--a", "7"], 2, "expected one of"), (["--judge-url", "http://127.0.0.1:1/v1"], 2, "needs --judge-model"),
     (["--reviewer", "../x"], 2, "not a reviewer's name"), (["--behaviours", "absent.txt"], 2, "no such file"),
     (["--port", "70000", "--no-browser"], 1, "the port cannot be used")],
)  # fmt: skip
def test_mistakes_are_one_line(
    run_path: Path, arguments: list[str], status: int, words: str, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("dpo_diag.review.page.review_app", lambda session: None)
    assert main(["review", str(run_path), *arguments]) == status
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


def test_without_gradio_the_command_says_how_to_get_it(
    run_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dpo_diag.extras.is_installed", lambda package: package != "gradio")
    assert main(["review", str(run_path), "--no-browser"]) == 1
    assert '[review]"' in capsys.readouterr().err


def test_the_report_shows_what_people_said(run_path: Path) -> None:
    """Five verdicts, win rate 0.6: the page holds them; without verdicts it says how to get some."""
    from dpo_diag.report import write_report

    page = write_report(load_run(run_path)).read_text(encoding="utf-8")
    assert "nobody has judged an answer yet" in page
    items = choose_items(load_run(run_path), n=5)
    for item, outcome in zip(items, ("b", "b", "tie", "both_bad", "a"), strict=True):
        judgements.append(run_path, judgement(item, outcome))
    page = write_report(load_run(run_path)).read_text(encoding="utf-8")
    assert "5 verdicts on 5 items by 1 reviewers" in page
    assert "1 / 2 / 1 / 1" in page
