"""The whole explanation: its keys, its sums, what it says about every kind of run, and that it is strict JSON."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import SIGMOID, build_run, build_token_run, pair_rows

from dpo_diag import Run, RunWriter, load_run
from dpo_diag.diagnosis import explain, explain_run
from dpo_diag.errors import DiagError

KEYS = {"run", "kind", "from_step", "to_step", "split", "n_pairs", "loss", "perplexity", "quadrants", "pairs", "checks",
        "verdict"}  # fmt: skip


def strict(document: dict[str, Any]) -> str:
    """Fails on NaN, infinity and anything that is not JSON."""
    return json.dumps(document, allow_nan=False)


def displaced(path: Path, n: int = 60, **columns: Any) -> Run:
    """Both sides fall, rejected more; one pair carries most of it."""
    rng = np.random.default_rng(0)
    chosen, rejected = -rng.uniform(5, 15, n), -rng.uniform(5, 15, n)
    fall = np.full(n, 2.0)
    fall[0] = 60.0
    return build_run(path, {0: (chosen, rejected), 50: (chosen - fall / 2, rejected - 1.5 * fall),
                            100: (chosen - fall, rejected - 3 * fall)}, **columns)  # fmt: skip


def test_keys_and_sums(tmp_path: Path) -> None:
    document = explain(displaced(tmp_path / "run"))
    strict(document)
    assert set(document) >= KEYS
    assert (document["from_step"], document["to_step"], document["split"], document["n_pairs"]) == (
        "ref",
        100,
        "eval",
        60,
    )
    loss = document["loss"]
    assert loss["from"] == pytest.approx(math.log(2))
    assert abs(loss["delta"] - loss["chosen_part"] - loss["rejected_part"]) <= 1e-9 * abs(loss["delta"])
    for side in ("chosen", "rejected"):
        for row in document["perplexity"][side].values():
            extra = row.get("dispersion", 0.0) + row.get("length_weight", 0.0)
            assert row["dlog"] == pytest.approx(row["level"] + extra, rel=1e-9)
    shares = [pair["share_of_rise"] for pair in document["pairs"]]
    assert sum(shares) == pytest.approx(1.0) and shares == sorted(shares, reverse=True)
    assert document["pairs"][0]["pair_id"] == "p0" and document["concentration"]["pairs"] == 1
    assert sum(p["loss_delta"] for p in document["pairs"]) / 60 == pytest.approx(loss["delta"])
    assert document["quadrants"]["both_fell"] == 1.0
    assert document["verdict"]["label"] == "likelihood_displacement"
    assert document["verdict"]["harm"] == "cannot_tell"


def test_steps_telescope(tmp_path: Path) -> None:
    document = explain(displaced(tmp_path / "run"))
    along = document["along_the_run"]["loss_along_the_run"]
    assert along["delta"] == pytest.approx(document["loss"]["delta"], rel=1e-12)
    assert abs(along["residual"]) <= 1e-9 * abs(along["delta"])
    assert [row["step"] for row in document["trajectory"]] == [0, 50, 100]


def test_against_the_reference_is_there_too(tmp_path: Path) -> None:
    run = build_run(tmp_path / "run", {5: ([-5.0] * 9, [-6.0] * 9), 9: ([-4.0] * 9, [-9.0] * 9)},
                    reference=([-6.0] * 9, [-6.0] * 9))  # fmt: skip
    document = explain(run, 5)
    against = document["against_reference"]["loss"]
    assert against["from"] == pytest.approx(math.log(2))
    assert against["to"] == pytest.approx(document["loss"]["to"])
    same = explain(run)
    assert same["from_step"] == "ref" and same["loss"]["delta"] == pytest.approx(against["delta"])
    strict(same)


def test_a_score_makes_it_harm_and_another_makes_it_benign(tmp_path: Path) -> None:
    def scores(last: float) -> list[dict[str, Any]]:
        return [{"step": s, "split": "held_out", "name": "score/accuracy", "value": v, "weight": 600.0}
                for s, v in ((0, 0.7), (100, last))]  # fmt: skip

    harmful = explain(displaced(tmp_path / "a", history=scores(0.4)))["verdict"]
    assert harmful["harm"] == "harmful" and "0.700 → 0.400" in harmful["text"]
    benign = explain(displaced(tmp_path / "b", history=scores(0.73)))["verdict"]
    assert benign["harm"] == "benign"


def test_one_pair(tmp_path: Path) -> None:
    document = explain(build_run(tmp_path / "run", {0: ([-5.0], [-5.0]), 9: ([-6.0], [-9.0])}))
    strict(document)
    assert document["pairs"][0]["share_of_rise"] == 1.0
    assert document["perplexity"]["chosen"]["ppl_seq_mean"]["dispersion"] == 0.0
    assert document["loss"]["interval"] is None
    assert document["verdict"]["text"].startswith("Too little is recorded to call the run healthy: 1 pair is too few.")


def test_equal_pairs(tmp_path: Path) -> None:
    document = explain(build_run(tmp_path / "run", {0: ([-5.0] * 10, [-5.0] * 10), 9: ([-6.0] * 10, [-9.0] * 10)}))
    strict(document)
    assert {round(p["share_of_rise"], 12) for p in document["pairs"]} == {0.1}


def test_nothing_moved(tmp_path: Path) -> None:
    document = explain(build_run(tmp_path / "run", {0: ([-5.0] * 10, [-5.0] * 10), 9: ([-5.0] * 10, [-5.0] * 10)}))
    strict(document)
    assert document["loss"]["delta"] == 0.0 and document["pairs"][0]["share_of_rise"] is None
    assert document["verdict"]["label"] in ("not_learning", "dead_run")


def test_one_token_answers_and_cross_entropies_of_50(tmp_path: Path) -> None:
    run = build_run(tmp_path / "run", {0: ([-50.0, -1.0], [-1.0, -50.0]), 9: ([-1.0, -50.0], [-50.0, -1.0])}, n=1)
    document = explain(run)
    strict(document)
    row = document["perplexity"]["chosen"]["ppl_seq_mean"]
    assert abs(row["residual"]) < 1e-12 and row["from"] == pytest.approx((math.e**50 + math.e) / 2)


def test_infinite_log_probs_are_named_not_hidden(tmp_path: Path) -> None:
    run = build_run(tmp_path / "run", {0: ([-5.0] * 9, [-5.0] * 9), 9: ([-6.0] * 8 + [-math.inf], [-9.0] * 9)})
    document = explain(run)
    strict(document)
    assert document["loss"]["pairs_left_out"] == 1 and document["loss"]["left_out_pair_ids"] == ["p8"]
    assert document["perplexity"]["chosen"]["excluded"]["infinite"] == {"n": 1, "pair_ids": ["p8"]}
    said = " ".join(s["text"] for s in document["narrative"][1]["sentences"])
    assert "Left out of the chosen perplexities: 1 infinite" in said


def test_all_infinite_is_not_applicable(tmp_path: Path) -> None:
    run = build_run(tmp_path / "run", {0: ([-5.0], [-5.0]), 9: ([-math.inf], [-math.inf])})
    document = explain(run)
    strict(document)
    assert "not_applicable" in document["loss"] and "not_applicable" in document["perplexity"]


def test_without_a_reference_only_the_loss_is_lost(tmp_path: Path) -> None:
    run = build_run(tmp_path / "run", {0: ([-5.0] * 9, [-5.0] * 9), 9: ([-6.0] * 9, [-9.0] * 9)}, reference=None)
    document = explain(run)
    assert "no reference" in document["loss"]["not_applicable"]
    assert document["perplexity"]["chosen"]["ppl_token"]["dlog"] == pytest.approx(0.1)
    assert "no reference" in document["against_reference"]["not_applicable"]
    assert document["quadrants"]["both_fell"] == 1.0


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({}, "does not say which loss"),
        ({"loss_reason": "a log without its configuration"}, "a log without its configuration"),
        ({"loss": {"types": ["aot"]}}, "couples the pairs"),
    ],
)
def test_losses_that_cannot_be_split_say_why(tmp_path: Path, facts: dict[str, Any], reason: str) -> None:
    steps = {0: ([-5.0], [-5.0]), 9: ([-6.0], [-9.0])}
    document = explain(build_run(tmp_path / "run", steps, loss=facts.pop("loss", None), facts=facts))
    assert reason in document["loss"]["not_applicable"]
    assert document["perplexity"]["chosen"]["ppl_token"]["dlog"] == pytest.approx(0.1)


def test_bytes_as_the_unit(tmp_path: Path) -> None:
    steps = {0: ([-5.0] * 9, [-5.0] * 9), 9: ([-6.0] * 9, [-9.0] * 9)}
    document = explain(build_run(tmp_path / "run", steps, n=None, n_bytes=40))
    assert document["unit"] == "byte"
    assert document["perplexity"]["chosen"]["ppl_token"]["dlog"] == pytest.approx(1 / 40)
    assert document["bits_per_byte"]["chosen"]["to"] == pytest.approx(6 / (40 * math.log(2)))


def test_sft_runs_have_one_side(tmp_path: Path) -> None:
    run = build_run(tmp_path / "run", {0: ([-5.0] * 9, None), 9: ([-4.0] * 9, None)}, reference=None,
                    loss={"types": ["sft"]})  # fmt: skip
    document = explain(run)
    strict(document)
    assert document["loss"]["from"] == pytest.approx(0.5) and document["loss"]["chosen_part"] == pytest.approx(-0.1)
    assert set(document["perplexity"]) == {"chosen"}
    assert document["quadrants"] == {"not_applicable": "only one side is recorded"}
    assert document["verdict"]["label"] == "supervised"


def test_pair_sums_without_any_count_still_split_the_loss(tmp_path: Path) -> None:
    document = explain(build_run(tmp_path / "run", {0: ([-5.0] * 9, [-5.0] * 9), 9: ([-6.0] * 9, [-9.0] * 9)}, n=None))
    strict(document)
    assert document["loss"]["delta"] < 0
    assert "neither token counts nor bytes" in document["perplexity"]["not_applicable"]
    assert document["verdict"]["label"] == "likelihood_displacement" or document["verdict"]["harm"] == "cannot_tell"


def test_means_only(tmp_path: Path) -> None:
    """Evaluation means .69 -> .4 of the loss; the mean chosen reward falls: displacement, harm cannot be told."""
    writer = RunWriter(tmp_path / "run", kind="imported")
    rows = [
        {"step": step, "split": "eval", "name": name, "value": value}
        for name, values in {
            "loss": (0.69, 0.4),
            "rewards/chosen": (0.0, -1.0),
            "rewards/rejected": (0.0, -2.5),
        }.items()
        for step, value in zip((0, 100), values, strict=True)
    ]
    writer.write("history", rows)
    writer.finish()
    document = explain(load_run(tmp_path / "run"))
    strict(document)
    assert set(document) >= KEYS
    assert "means only" in document["loss"]["not_applicable"] and document["loss"]["delta"] == pytest.approx(-0.29)
    assert "not_applicable" in document["perplexity"] and "not_applicable" in document["quadrants"]
    assert (document["verdict"]["label"], document["verdict"]["harm"]) == ("likelihood_displacement", "cannot_tell")
    assert document["verdict"]["confidence"] == "low"


def test_every_kind_of_run_has_the_same_keys(tmp_path: Path) -> None:
    """A run of pairs, one of means and one without a record."""
    pairs = build_run(tmp_path / "pairs", {0: ([-5.0] * 10, [-5.0] * 10), 9: ([-6.0] * 10, [-9.0] * 10)})
    means = RunWriter(tmp_path / "means", kind="imported")
    means.write("history", [{"step": s, "split": "train", "name": "loss", "value": 0.7 / s} for s in (1, 2)])
    means.finish()
    RunWriter(tmp_path / "empty", kind="scored").finish()
    documents = [explain(run) for run in (pairs, tmp_path / "means", tmp_path / "empty")]
    assert [sorted(document) for document in documents] == [sorted(documents[0])] * 3
    assert [document["step_word"] for document in documents] == ["step"] * 3
    no_pairs = {"not_applicable": "the run holds means only, no pairs"}
    assert documents[1]["tokens"] == documents[1]["margins"] == no_pairs
    assert "not_applicable" in documents[0]["means"]


def test_rewards_begin_at_the_reference_whatever_the_loss(tmp_path: Path) -> None:
    """Two evaluations, the first at step 500: the loss is not named, so its start is not known; the rewards' is, 0.
    They fell by 1.5 since then, as DVG001 says, though the second row lies above the first."""
    writer = RunWriter(tmp_path / "run", kind="imported")
    means = {"loss": (0.28, 0.22), "rewards/chosen": (-1.6, -1.5), "rewards/rejected": (-7.2, -8.8)}
    writer.write(
        "history",
        [
            {"step": step, "split": "eval", "name": name, "value": value}
            for name, values in means.items()
            for step, value in zip((500, 1000), values, strict=True)
        ],
    )
    writer.finish()
    said = str(explain(load_run(tmp_path / "run"))["narrative"])
    assert "The logged mean rewards/chosen fell 0.000 → -1.500, from the reference to the last row" in said
    assert "the loss fell 0.2800 → 0.2200, from the first row" in said


def test_a_dip_that_came_back_and_batches_too_few(tmp_path: Path) -> None:
    """Evaluations of rewards/chosen 0, -.8, .2: healthy, and the dip is told; two training rows say nothing."""
    writer = RunWriter(tmp_path / "run", kind="imported")
    columns = {"loss": (0.69, 0.5, 0.45), "rewards/chosen": (0.0, -0.8, 0.2), "rewards/rejected": (0.0, -1.0, -0.5)}
    for name, values in columns.items():
        rows = [
            {"step": s, "split": "eval", "name": name, "value": v} for s, v in zip((0, 50, 100), values, strict=True)
        ]
        writer.write("history", rows, split=f"eval.{name}".replace("/", "_"))
    writer.finish()
    document = explain(load_run(tmp_path / "run"))
    assert document["verdict"]["label"] == "healthy" and document["verdict"]["harm"] == "none"
    said = " ".join(s["text"] for s in document["narrative"][0]["sentences"])
    assert "rewards/chosen was as low as -0.8000 (step 50) and recovered" in said
    few = RunWriter(tmp_path / "few", kind="imported")
    few.write("history", [{"step": s, "split": "train", "name": "loss", "value": v} for s, v in ((5, 0.7), (10, 0.6))])
    few.finish()
    assert explain(load_run(tmp_path / "few"))["verdict"]["label"] == "loss_unclear"


def test_margins_do_not_need_the_loss(tmp_path: Path) -> None:
    document = explain(
        build_run(tmp_path / "run", {0: ([-5.0] * 9, [-5.0] * 9), 9: ([-6.0] * 9, [-9.0] * 9)}, loss=None)
    )
    assert (document["margins"]["from"], document["margins"]["to"]) == (0.0, 3.0)
    assert (document["margins"]["accuracy_from"], document["margins"]["accuracy_to"]) == (0.0, 1.0)
    assert document["verdict"]["label"] == "loss_unknown"


def test_an_empty_run_says_so(tmp_path: Path) -> None:
    RunWriter(tmp_path / "run").finish()
    document = explain(load_run(tmp_path / "run"))
    strict(document)
    assert document["verdict"]["label"] == "cannot_tell"


def test_disjoint_evaluations(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path / "run")
    writer.write("pairs", pair_rows(0, [-1.0], [-2.0], ids=["a"]))
    writer.write("pairs", pair_rows(9, [-1.0], [-2.0], ids=["b"]))
    writer.update(loss=SIGMOID)
    writer.finish()
    document = explain(load_run(tmp_path / "run"))
    strict(document)
    assert document["loss"] == {"not_applicable": "no pair is recorded at both steps"}
    assert document["n_pairs"] == 0 and document["coverage"]["only_from"] == 1


def test_thresholds_by_name(tmp_path: Path) -> None:
    run = displaced(tmp_path / "run")
    lenient = explain(run, thresholds={"displacement_min_nats": 99.0})["verdict"]
    assert lenient["label"] == "rejected_collapse"  # chosen's fall is allowed, DVG002 still speaks
    with pytest.raises(DiagError, match="unknown threshold"):
        explain(run, thresholds={"no.such.name": 1.0})


def test_token_sections(tmp_path: Path) -> None:
    run = build_token_run(tmp_path / "run", {"q": ([4, 5, 2], [4, 6, 2])},
                          {0: {"q": ([-1, -1, -1], [-1, -1, -1])}, 9: {"q": ([-1, -2, -1], [-1, -4, -1])}})  # fmt: skip
    document = explain(run)
    strict(document)
    assert document["tokens"]["chosen_after_first_difference"]["share"] == 1.0
    roles = {(r["side"], r["role"]): r["delta"] for r in document["tokens"]["by_role"]}
    assert roles["chosen", "first_difference"] == -1.0 and roles["rejected", "first_difference"] == -3.0
    assert [r["step"] for r in document["tokens"]["along_the_run"][:1]] == [0]


def test_hostile_text_is_escaped(tmp_path: Path) -> None:
    displaced(tmp_path / "run")
    RunWriter(tmp_path / "run", resume_step=100).write(
        "texts", [{"split": "eval", "pair_id": "p0", "prompt": "x", "chosen": "\x1b[2Jgone\u202e\n" + "y" * 500}]
    )
    document = explain(load_run(tmp_path / "run"))
    lines = [s["text"] for s in document["narrative"][3]["sentences"]]
    assert any("<U+001B>[2Jgone<U+202E>\\n" in line for line in lines)
    assert all(c.isprintable() for line in lines for c in line) and max(map(len, lines)) < 400


def test_narrative_order_and_sources(tmp_path: Path) -> None:
    document = explain(displaced(tmp_path / "run"))
    headings = [section["heading"] for section in document["narrative"]]
    assert headings == ["What happened", "How sure", "Why", "Which pairs", "What to change"]
    for section in document["narrative"]:
        assert section["sentences"]
        for sentence in section["sentences"]:
            assert sentence["from"] and all(key.split(".")[0] in document for key in sentence["from"])
    verdict, first = (s["text"] for s in document["narrative"][0]["sentences"][:2])
    assert verdict == document["verdict"]["text"]
    assert first.startswith("From the reference to step 100 on eval (60 pairs) the loss fell 0.6931 → ")
    assert "1 of 60 pairs carry" in document["narrative"][3]["sentences"][0]["text"]


def test_an_explanation_carries_what_a_drawing_needs(tmp_path: Path) -> None:
    """p0: chosen -5 -> -9, rejected -5 -> -30: both fell; p1: chosen rose, rejected fell. Texts of the asked pairs."""
    run = build_run(tmp_path / "run", {0: ([-5.0, -5.0], [-5.0, -5.0]), 9: ([-9.0, -4.0], [-30.0, -6.0])}, n=[10, 20])
    RunWriter(run.path, resume_step=9).write(
        "texts", [{"split": "eval", "pair_id": "p1", "prompt": "x", "chosen": "y", "rejected": "z"}]
    )
    explanation = explain_run(load_run(run.path))
    pairs = explanation.pairs.set_index("pair_id")
    assert pairs["quadrant"].to_dict() == {"p0": "both_fell", "p1": "chosen_rose"}
    assert pairs["chosen_n_tokens"].to_dict() == {"p0": 10.0, "p1": 20.0}
    assert explanation.pairs["pair_id"].tolist() == [p["pair_id"] for p in explanation.document["pairs"]]
    texts = explanation.texts(["p1", "p0"])
    assert texts["rejected"].iloc[0] == "z" and texts["rejected"].isna().iloc[1]
    assert explanation.tokens(["p1"]).empty


def test_a_run_of_answers_alone_names_no_steps(tmp_path: Path) -> None:
    """dpo-generate's runs hold neither pairs nor losses: there is no step to stand between."""
    writer = RunWriter(tmp_path / "run")
    row = {"step": 1, "model": "policy", "prompt_id": "q", "prompt": "p", "tags": [], "sample": 0, "text": "a",
           "n_tokens": 1, "finish_reason": "stop"}  # fmt: skip
    writer.write("outputs", [row])
    writer.finish()
    verdict, loss = (s["text"] for s in explain(load_run(tmp_path / "run"))["narrative"][0]["sentences"][:2])
    assert "neither a loss nor log-probs of the answers are recorded" in verdict
    assert loss.startswith("The loss is not known (")
