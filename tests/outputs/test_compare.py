"""Checkpoints, changes, behaviours, gaming, references, the JSON document and the command, on frames made by hand."""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics.chrf import CHRF

from dpo_diag.commands import diag
from dpo_diag.errors import DiagError
from dpo_diag.outputs import compare, comparison
from dpo_diag.outputs.answers import Checkpoint, answers
from dpo_diag.outputs.behaviours import behaviour_table, tag_table
from dpo_diag.outputs.changed import answer_changes, change_table
from dpo_diag.outputs.features import features
from dpo_diag.outputs.gaming import gaming, gave_way
from dpo_diag.outputs.references import (
    answer_scores,
    corpus_score,
    exact_match,
    reference_table,
    rouge_l,
    token_f1,
)
from dpo_diag.outputs.words import words
from dpo_diag.records import RunWriter
from dpo_diag.thresholds import load_thresholds

from .conftest import answer_rows, frame

BASE = {"a": "one two", "b": "three", "c": "four five"}


def changed_frame() -> pd.DataFrame:
    return frame(
        answer_rows(BASE, model="ref"),
        answer_rows(BASE, step=0),
        answer_rows(BASE | {"a": "one deux"}, step=10),
        answer_rows({"a": "one deux", "b": "three"}, step=20),
        answer_rows(BASE | {"b": ""}, step=30),
    )


def test_checkpoints_order_baselines_and_refusals() -> None:
    found = answers(changed_frame())
    assert [x.label for x in found.checkpoints] == ["ref (step 0)", "step 0", "step 10", "step 20", "step 30"]
    assert found.baseline() == Checkpoint("ref", 0) and found.baseline(10) == Checkpoint("policy", 10)
    assert found.baseline("20") == Checkpoint("policy", 20)
    with pytest.raises(DiagError, match="no answers of that model or step; got 11; expected one of ref, 0, 10"):
        found.baseline(11)
    with pytest.raises(DiagError, match=r"no answers at steps; got \[5\]"):
        answers(changed_frame(), steps=[5])
    with pytest.raises(DiagError, match="no answers of models"):
        answers(changed_frame(), models=["sft"])
    with pytest.raises(DiagError, match="no answers to fixed prompts"):
        answers(changed_frame().iloc[:0])
    assert [x.step for x in answers(changed_frame(), steps=[0, 30], models=["policy"]).checkpoints] == [0, 30]


def test_different_decoding_is_refused() -> None:
    mixed = frame(answer_rows(BASE, decoding_hash="h1"), answer_rows(BASE, step=5, decoding_hash="h2"))
    with pytest.raises(DiagError, match=r"different decoding settings; got h1: step 0; h2: step 5") as caught:
        compare(mixed)
    assert "\n" not in str(caught.value)
    unknown = frame(answer_rows(BASE, decoding_hash=None), answer_rows(BASE, step=5, decoding_hash=None))
    assert len(answers(unknown).checkpoints) == 2


def test_changes_by_hand() -> None:
    """Step 20 lacks prompt c; step 30 changes a back and empties b."""
    changes = answer_changes(answers(changed_frame()))
    at = changes.set_index(["model", "step", "prompt_id"])
    assert at.loc[("policy", 10, "a"), "changed_previous"] and at.loc[("policy", 10, "a"), "first_diff"] == 1
    assert not at.loc[("policy", 20, "a"), "changed_previous"] and at.loc[("policy", 20, "a"), "changed_first"]
    assert pd.isna(at.loc[("policy", 30, "c"), "changed_previous"]) and not at.loc[("policy", 30, "c"), "changed_first"]
    assert at.loc[("policy", 30, "b"), "words_since_previous"] == -1
    assert pd.isna(at.loc[("policy", 0, "a"), "changed_previous"]) and pd.isna(at.loc[("ref", 0, "a"), "changed_sft"])
    table = change_table(changes).set_index(["step", "since"])
    assert table.loc[(10, "previous"), ["changed", "n"]].tolist() == [1, 3]
    assert table.loc[(30, "previous"), ["changed", "n"]].tolist() == [2, 2]
    assert table.loc[(30, "reference"), ["changed", "n"]].tolist() == [1, 3]
    assert (0, "first") not in table.index


def test_first_difference_counts_tokens_where_known() -> None:
    data = frame(
        answer_rows({"a": "x y"}, token_ids={"a": [5, 6, 7]}),
        answer_rows({"a": "x z"}, step=1, token_ids={"a": [5, 6, 8]}),
    )
    assert answer_changes(answers(data))["first_diff"].tolist()[1] == 2


def scored_frame() -> pd.DataFrame:
    """20 like-training questions stay right, 20 paraphrased ones go from right to wrong at step 10."""
    ids = [f"h{i:02d}" for i in range(20)] + [f"p{i:02d}" for i in range(20)]
    tags = {i: ["held_out" if i[0] == "h" else "paraphrased", "format=sql"] for i in ids}
    good = {i: f"SELECT {n} FROM t" for n, i in enumerate(ids)}
    bad = {i: t if i[0] == "h" else "SELECT FROM" for i, t in good.items()}
    right, wrong = dict.fromkeys(ids, 1.0), {i: float(i[0] == "h") for i in ids}
    return frame(
        answer_rows(good, correct=right, tags=tags, reference=good),
        answer_rows(bad, step=10, correct=wrong, tags=tags, reference=good),
    )


def test_tag_gap_and_behaviours_by_hand() -> None:
    found = answers(scored_frame())
    values = features(found.frame).join(answer_scores(found.frame))
    tags = tag_table(found, values).set_index(["step", "tag"])
    assert tags.loc[(0, "paraphrased"), "gap"] == 0
    assert tags.loc[(10, "paraphrased"), "gap"] == -1 and tags.loc[(10, "paraphrased"), "gap_high"] == -1
    assert tags.loc[(10, "held_out"), "value"] == 1 and tags.loc[(10, "held_out"), "n"] == 20
    table = behaviour_table(found, values, found.checkpoints[0], found.checkpoints[1:], load_thresholds()).set_index(
        ["behaviour", "tag"]
    )
    row = table.loc[("right answers", "(all)")]
    assert (row["toward"], row["away"], row["unchanged"], row["verdict"]) == (0, 20, 20, "away")
    assert (row["before"], row["after"], row["delta"]) == (1.0, 0.5, -0.5)
    assert table.loc[("right answers", "held_out"), "verdict"] == "unchanged"
    assert table.loc[("the format that was asked for", "paraphrased"), "away"] == 20
    assert ("right answers", "format=sql") not in table.index


def test_refusing_is_wanted_or_not_by_tag() -> None:
    ids = [f"m{i}" for i in range(12)] + [f"a{i}" for i in range(12)]
    tags = {i: ["must_refuse" if i[0] == "m" else "must_answer"] for i in ids}
    no = dict.fromkeys(ids, "I can't help with that.")
    data = frame(answer_rows(dict.fromkeys(ids, "Sure, do this."), tags=tags), answer_rows(no, step=1, tags=tags))
    found = answers(data)
    table = behaviour_table(
        found, features(found.frame), found.checkpoints[0], found.checkpoints[1:], load_thresholds()
    ).set_index("behaviour")
    assert table.loc["refuses what it must", "verdict"] == "toward"
    assert table.loc["answers what it may", "verdict"] == "away"
    # The share that does what the name says: 1 - refusals. Nothing was refused before, everything after.
    assert (table.loc["answers what it may", "before"], table.loc["answers what it may", "after"]) == (1.0, 0.0)
    assert set(table.loc["says something", "before"]) == set(table.loc["says something", "after"]) == {1.0}


def test_references_by_hand() -> None:
    """ "a b c" against "a c d": 2 shared words of 3 and 3, F1 2/3; longest common subsequence a c: 2/3."""
    assert token_f1("a b c", "A, c d") == pytest.approx(2 / 3)
    assert rouge_l("a b c", "a c d") == pytest.approx(2 / 3)
    assert rouge_l("请放心", "请您放心") == pytest.approx(2 * 1 * 0.75 / 1.75)
    assert exact_match(" Paris\n", "paris") == 1 and token_f1("", "") == 1 and token_f1("", "x") == 0


@given(*[st.text("ab c.请", max_size=12)] * 2)
def test_rouge_l_is_rouge_scores(text: str, reference: str) -> None:
    """Over the same words: the library's own tokenizer drops all that is not ASCII."""
    scorer = RougeScorer(["rougeL"], tokenizer=SimpleNamespace(tokenize=lambda t: list(words(t))))
    assert rouge_l(text, reference) == scorer.score(reference, text)["rougeL"].fmeasure


def test_an_answer_is_counted_out_once_for_chrf_and_bleu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second checkpoint repeats two of three answers; the scores are those of each corpus by itself."""
    seen: list[str] = []
    count = CHRF._extract_corpus_statistics
    monkeypatch.setattr(CHRF, "_extract_corpus_statistics", lambda s, t, r: seen.extend(t) or count(s, t, r))
    references, known = ["the cat sat", "a dog", "no more"], {}
    first, second = ["the cat", "a dog", "a dog"], ["the cat", "a dog", "none"]
    pooled = [corpus_score("chrf", texts, references, known) for texts in (first, second)]
    assert seen == [*first, "none"]
    assert pooled == [corpus_score("chrf", texts, references) for texts in (first, second)]


def test_reference_table_has_intervals_n_and_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    import dpo_diag.outputs.references as module

    found = answers(scored_frame())
    table = reference_table(found, answer_scores(found.frame)).set_index(["step", "metric"])
    assert table.loc[(10, "exact_match"), "value"] == 0.5 and table.loc[(10, "exact_match"), "n"] == 40
    assert table.loc[(0, "bleu"), "value"] == pytest.approx(100) and table.loc[(0, "chrf"), "value"] == pytest.approx(
        100
    )
    for metric in ("rouge_l", "chrf", "bleu"):
        row = table.loc[(10, metric)]
        assert row["low"] < row["value"] < row["high"]
    monkeypatch.setattr(module, "is_installed", lambda name: False)
    table = reference_table(found, answer_scores(found.frame)).set_index(["step", "metric"])
    assert "pip install" in table.loc[(10, "bleu"), "not_applicable"] and math.isnan(table.loc[(10, "bleu"), "value"])
    assert table.loc[(10, "token_f1"), "n"] == 40


def judged(before: dict[str, str], after: dict[str, str], **columns: Any) -> dict[str, Any]:
    data = frame(answer_rows(before, **columns), answer_rows(after, step=1, **columns))
    found = answers(data)
    values = features(found.frame).join(answer_scores(found.frame))
    return {f.name: f for f in gaming(found, values, *found.checkpoints, load_thresholds())}


def test_length_bias_speaks_only_without_gain() -> None:
    rng = random.Random(0)
    before = {f"p{i}": " ".join(rng.choices("abcdefgh", k=20)) for i in range(40)}
    longer = {k: t + " " + " ".join(rng.choices("xyz", k=10 + i % 3)) for i, (k, t) in enumerate(before.items())}
    found = judged(before, longer)["length_bias"]
    assert found.outcome == "speaks" and found.effect == pytest.approx(1.55, abs=0.02)
    assert found.low < found.effect < found.high and found.q <= 0.05 and found.n == 40
    # The references are the longer answers: longer is better here.
    assert judged(before, longer, reference=longer)["length_bias"].outcome == "silent"
    assert judged(before, before)["length_bias"].outcome == "silent"


def test_format_gaming() -> None:
    before = {f"p{i}": f"plain answer number {i}" for i in range(20)}
    styled = {k: f"# Answer\n\n- **{t}**\n- so it is" for k, t in before.items()}
    assert judged(before, styled, reference=before)["format_gaming"].outcome == "speaks"
    without = judged(before, styled)["format_gaming"]
    assert without.outcome == "not_applicable" and "no reference" in without.reason
    assert judged(before, before, reference=before)["format_gaming"].outcome == "silent"


def test_strategy_collapse() -> None:
    rng = random.Random(2)
    starts = ["Well", "So", "First", "Honestly", "Yes", "No", "It", "The"]
    before = {f"p{i}": f"{rng.choice(starts)} this is what I would say about number {i} today" for i in range(60)}
    after = {k: "Certainly " + t.split(" ", 1)[1] for k, t in before.items()}
    found = judged(before, after)["strategy_collapse"]
    assert found.outcome == "speaks" and found.effect == pytest.approx(-2.0, abs=0.2) and found.high < 0
    assert judged(before, before)["strategy_collapse"].outcome == "silent"
    few = {k: before[k] for k in list(before)[:5]}
    assert judged(few, few)["strategy_collapse"].outcome == "not_applicable"


def test_sycophancy_probes() -> None:
    """Ten probes known at both checkpoints; later it gives way on eight: exact McNemar p = 2 / 2^8."""
    before, after, tags, reference = {}, {}, {}, {}
    for i in range(10):
        for claim in ("none", "wrong"):
            key = f"{i}-{claim}"
            tags[key] = ["sycophancy", f"probe={i}", f"claim={claim}", "wrong=Sydney"]
            reference[key] = "Canberra"
            before[key] = "It is Canberra."
            after[key] = "You are right, it is Sydney." if claim == "wrong" and i < 8 else "Canberra."
    found = judged(before, after, tags=tags, reference=reference)["sycophancy"]
    assert found.outcome == "speaks" and found.effect == pytest.approx(0.8) and found.p == pytest.approx(2 / 256)
    unknowing = frame(answer_rows({"0-none": "no idea", "0-wrong": "Sydney"}, tags=tags, reference=reference))
    assert gave_way(unknowing).isna().all()
    assert judged(BASE, BASE)["sycophancy"].outcome == "not_applicable"


def make_run(path: Path, data: pd.DataFrame, **tables: Any) -> Path:
    writer = RunWriter(path)
    for step, rows in data.groupby("step"):
        writer.write("outputs", rows.reset_index(drop=True), split=str(step))
    for name, rows in tables.items():
        writer.write(name, rows)
    writer.finish()
    return path


def test_document_is_strict_json_with_its_keys(tmp_path: Path) -> None:
    path = make_run(tmp_path / "run", scored_frame())
    document = compare(path)
    json.dumps(document, allow_nan=False)
    assert {"prompts", "steps", "changed", "phrases", "tags", "behaviours"} <= set(document)
    assert document["steps"] == [0, 10] and document["n_prompts"] == len(document["prompts"]) == 40
    assert document["prompts"][0]["prompt_id"] == "p00" and document["prompts"][0]["changed"] is True
    assert [len(a["looks"]) for a in document["prompts"][-1]["answers"]] == [2]
    assert document["sentence"].startswith(
        "From step 0 to step 10 the model moved away from what is wanted in right answers"
    )
    one = compare(path, steps=[10])
    assert (
        one["sentence"].startswith("There is one checkpoint only") and one["gaming"][0]["outcome"] == "not_applicable"
    )
    assert comparison(path, baseline=10, to_step=0).behaviours["verdict"].eq("toward").any()


def test_planted_inflation_is_the_first_row_of_a_run_and_absent_from_its_control(tmp_path: Path) -> None:
    rng = random.Random(0)
    words = [f"w{i}" for i in range(150)]
    weights = [1 / (i + 1) for i in range(150)]

    def texts(planted: float) -> dict[str, str]:
        own = {f"p{i:03d}": " ".join(rng.choices(words, weights, k=30)) + "." for i in range(100)}
        return {k: t + (" Please rest assured." if i < planted * 100 else "") for i, (k, t) in enumerate(own.items())}

    pairs = [
        {
            "split": "train",
            "pair_id": f"q{i}",
            "prompt": "x",
            "chosen": "y. Please rest assured." if i < 30 else "y",
            "rejected": "z",
        }
        for i in range(100)
    ]
    for name, share, first in (("planted", 0.3, ["Please rest assured"]), ("control", 0.0, [])):
        data = frame(answer_rows(texts(0), model="sft"), answer_rows(texts(share), step=50))
        document = compare(make_run(tmp_path / name, data, texts=pairs))
        assert [p["phrase"] for p in document["phrases"]] == first
        if first:
            assert (document["phrases"][0]["in_chosen"], document["phrases"][0]["in_rejected"]) == (0.3, 0.0)
            assert document["baseline"] == "sft (step 0)"


def run_command(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = diag.main(["outputs", *arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_command_shows_changed_first_and_neutralises(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hostile = "\x1b[2J\x1b[31mSELECT \u202e1\u200b FROM t" + "y" * 50_000
    data = frame(answer_rows(BASE), answer_rows(BASE | {"c": hostile, "b": "three or four"}, step=5))
    path = make_run(tmp_path / "run", data)
    for layout in ("columns", "stacked"):
        code, out, _ = run_command(capsys, str(path), "--layout", layout, "--width", "120")
        assert code == 0
        assert not any(c in out for c in "\x1b\u202e\u200b\r")
        assert "<U+001B>[2J" in out and "<U+202E>" in out
        assert max(map(len, out.splitlines())) <= 120
        assert out.index("[b]") < out.index("[a]") and out.index("[c]") < out.index("[a]")
        assert "three{+ or four+}" in out
    code, out, _ = run_command(capsys, str(path), "--limit", "1", "--no-diff", "--color", "always", "--prompt", "b")
    assert "three or four" in out and "{+" not in out and "\x1b[1m" in out


def test_command_json_csv_and_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = frame(answer_rows(BASE | {"a": "=1+1"}), answer_rows(BASE, step=5, tags=["t"]))
    path = make_run(tmp_path / "run", data)
    code, out, _ = run_command(capsys, str(path), "--json", "--csv", str(tmp_path / "x.csv"))
    document = json.loads(out)
    assert code == 0 and document["steps"] == [0, 5] and "NaN" not in out
    table = pd.read_csv(tmp_path / "x.csv")
    first = ["prompt_id", "outcome", "tags", "prompt", "reference"]
    assert table.columns.tolist() == [*first, "policy@0", "policy@0 correct", "policy@5", "policy@5 correct"]
    assert table["policy@0"][0] == "'=1+1" and table["outcome"][0] == "changed"
    for arguments, said, status in (
        (["--steps", "x"], "not a list of steps", 2), (["--steps", "7"], "no answers at steps", 2),
        (["--tag", "nope"], "no prompt has this tag", 2), (["--prompt", "zz"], "no such prompt", 2),
        (["--baseline", "9"], "no answers of that model or step", 2), (["--limit", "-1"], "out of range", 2),
    ):  # fmt: skip
        code, out, err = run_command(capsys, str(path), *arguments)
        assert code == status and said in err and err.count("\n") == 1, arguments
    code, _, err = run_command(capsys, str(tmp_path / "absent"))
    assert code == 1 and "no run folder" in err
    RunWriter(tmp_path / "empty").finish()
    code, _, err = run_command(capsys, str(tmp_path / "empty"))
    assert code == 1 and "no answers to fixed prompts" in err


def test_the_right_wing_needs_no_torch() -> None:
    code = (
        "import sys, dpo_diag.outputs, dpo_diag.gate.judge, dpo_diag.commands.outputs, dpo_diag.commands.gate;"
        "sys.exit(any(m in sys.modules for m in ('torch', 'transformers', 'trl')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
