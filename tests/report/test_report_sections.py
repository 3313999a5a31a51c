"""What each section draws."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from dpo_diag.diagnosis import Explanation, explain_run
from dpo_diag.errors import DiagError
from dpo_diag.records import RunWriter, load_run, make_pair_id
from dpo_diag.report import answers, tokens, vocabulary
from dpo_diag.report.headline import headline
from dpo_diag.report.panels import panels
from dpo_diag.report.run_page import compared, draw
from dpo_diag.report.section import SECTIONS, Context, NotApplicable
from dpo_diag.report.sections import checks, curves, loss, outputs, pairs, perplexity, quadrants

NO_PAIRS = pd.DataFrame()


def section(name: str, document: dict[str, Any], comparison: dict[str, Any] | None = None, run: Any = None) -> str:
    """A section's markup, or the reason why it has none."""
    drawn = draw(name, SECTIONS[name], Context(run, Explanation(document, None, NO_PAIRS), comparison or {}))
    return drawn.missing or str(drawn.body)


def history_run(folder: Path, rows: list[tuple[int, str, str, float, float]]) -> Any:
    writer = RunWriter(folder)
    frame = pd.DataFrame(rows, columns=["step", "split", "name", "value", "weight"])
    writer.write("history", frame, "all")
    return load_run(folder)


def test_curves_take_the_evaluation_and_never_mix_splits(tmp_path: Path) -> None:
    run = history_run(
        tmp_path,
        [
            (0, "eval", "loss", 0.7, 4),
            (10, "eval", "loss", 0.6, 4),
            (5, "train", "loss", 9.0, 8),
            (0, "eval", "ppl_seq_mean/chosen", 2.0, 4),
            (10, "eval", "ppl_seq_mean/chosen", 3.0, 4),
            (0, "held_out", "score/acc", 0.5, 100),
            (10, "held_out", "score/acc", 0.25, 100),
        ],
    )
    frame = curves.curves_frame(run, "eval").set_index(["line", "step"])
    assert frame.loc[("DPO loss", 10), "value"] == 0.6
    assert frame.loc[("training batches", 5), "value"] == 9.0
    assert frame.loc[("acc, held out", 10), ["low", "high"]].tolist() == pytest.approx([0.1754, 0.3430], abs=1e-4)
    parting = curves.parting_frame(frame.reset_index()).set_index(["line", "step"])["ratio"]
    assert parting.to_dict() == pytest.approx(
        {
            ("DPO loss", 0): 1.0,
            ("DPO loss", 10): 0.6 / 0.7,
            ("chosen perplexity", 0): 1.0,
            ("chosen perplexity", 10): 1.5,
            ("acc, held out", 0): 1.0,
            ("acc, held out", 10): 0.5,
        }
    )


def test_a_log_without_perplexities_shows_its_log_probs(tmp_path: Path) -> None:
    run = history_run(tmp_path, [(1, "train", "loss", 0.7, 4), (1, "train", "logps/chosen", -120.0, 4)])
    frame = curves.curves_frame(run, "train")
    assert frame[["panel", "value"]].to_numpy().tolist() == [["loss", 0.7], ["log-probs", -120.0]]


@pytest.mark.parametrize(
    ("names", "apart", "titles"),
    [
        (["ce/chosen", "ce/rejected"], False, ["Cross-entropy (nats/token)"]),
        (
            ["ce/chosen", "ce/rejected"],
            True,
            ["Chosen cross-entropy (nats/token)", "Rejected cross-entropy (nats/token)"],
        ),
        (["rewards/rejected"], False, ["Rejected reward, nats"]),
        (["pairs/chosen_fell"], False, ["Share of pairs where chosen fell"]),
        (["entropy", "entropy/chosen"], False, ["Entropy, nats/token"]),
        (["ppl_token/response", "score/x", "num_tokens", "own"], False, ["Response ppl_token"]),
    ],
)
def test_a_panel_is_called_what_people_call_the_metric(names: list[str], apart: bool, titles: list[str]) -> None:
    assert [panel.title for panel in panels(names, apart=apart)] == titles


def test_a_scored_run_draws_the_explanations_own_values(tmp_path: Path) -> None:
    RunWriter(tmp_path, kind="scored")
    trajectory = [
        {"step": s, "loss": v, "ppl_seq_mean_chosen": 2 * v, "ppl_token_chosen": None} for s, v in ((0, 1.0), (4, 0.5))
    ]
    frame = curves.curves_frame(load_run(tmp_path), "eval", trajectory)
    assert frame[["line", "step", "value"]].to_numpy().tolist() == [
        ["DPO loss", 0, 1.0],
        ["DPO loss", 4, 0.5],
        ["chosen perplexity", 0, 2.0],
        ["chosen perplexity", 4, 1.0],
    ]


def test_a_line_that_starts_at_zero_or_nan_has_no_ratio(tmp_path: Path) -> None:
    run = history_run(
        tmp_path,
        [
            (0, "eval", "loss", math.nan, 4),
            (1, "eval", "loss", 0.5, 4),
            (2, "eval", "loss", 0.25, 4),
            (1, "eval", "ppl_token/chosen", 2.0, 4),
            (2, "eval", "ppl_token/chosen", 3.0, 4),
            (0, "h", "score/acc", 0.0, 4),
            (1, "h", "score/acc", 0.5, 4),
        ],
    )
    parting = curves.parting_frame(curves.curves_frame(run, "eval"))
    assert set(parting["line"]) == {"DPO loss", "chosen perplexity"}
    assert parting["ratio"].tolist()[1:] == [1.0, 0.5, 1.0, 1.5]


def test_one_line_alone_parts_from_nothing(tmp_path: Path) -> None:
    run = history_run(tmp_path, [(s, "eval", "loss", v, 4) for s, v in ((0, 0.7), (1, 0.5))])
    assert curves.parting_frame(curves.curves_frame(run, "eval")).empty


def test_a_log_draws_all_that_it_has_in_the_metric_tables_words(tmp_path: Path) -> None:
    """Loss and log-probs stand above; both rewards are one chart, the counter and unknown names are none; a metric of
    one row is no line. Training batches beside evaluations are thin."""
    names = ("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies", "entropy", "grad_norm",
             "learning_rate", "num_tokens", "my/own", "loss", "logps/chosen", "logps/rejected")  # fmt: skip
    rows = [(s, "train", name, 0.5 + s, 1) for s in (1, 2, 3) for name in names]
    rows += [(s, "eval", name, 0.4 + s, 9) for s in (2, 3) for name in ("loss", "rewards/margins")]
    run = history_run(tmp_path, [*rows, (3, "train", "nll_loss", 1.0, 1)])
    drawn = curves.small_charts(run.history, "eval", {"loss", "logps/chosen", "logps/rejected"}, "step")
    assert [one.title for one in drawn] == [
        "Reward, nats", "Reward margin, nats", "Reward accuracy, share", "Gradient norm", "Learning rate",
        "Entropy, nats/token",
    ]  # fmt: skip
    rewards, margins = str(drawn[0].chart), str(drawn[1].chart)
    assert 'class="line chosen thin"' in rewards and 'class="line rejected thin"' in rewards
    assert '"n":"chosen, training"' in rewards.replace('": ', '":')
    values = json.loads(margins.partition('class="values">')[2].partition("</script>")[0])
    assert [(line["n"], line["x"], line["t"]) for line in values["lines"]] == [
        ("Reward margin, nats", [2.0, 3.0], ["2.400", "3.400"]),
        ("training", [1.0, 2.0, 3.0], ["1.500", "2.500", "3.500"]),
    ]


def test_the_loss_waterfall_joins_start_and_end() -> None:
    """0.7 + 0.1 - 0.3 = 0.5."""
    parts = {"from": 0.7, "to": 0.5, "delta": -0.2, "chosen_part": 0.1, "rejected_part": -0.3, "residual": 0.0}
    frame = loss.loss_frame(parts)
    assert frame["to"].tolist() == pytest.approx([0.7, 0.8, 0.5, 0.5])
    drawn = section("loss", {"loss": parts})
    assert "rejected side alone (-0.300); the chosen side pushed it up (+0.100)" in drawn
    assert section("loss", {"loss": {"not_applicable": "aot couples pairs"}}) == "aot couples pairs"


@pytest.mark.parametrize(
    ("chosen", "rejected", "sentence"),
    [
        (-0.1, -0.1, "The loss fell by 0.200, 50 % of it through the chosen side."),
        (0.2, -0.1, "by more than the rejected"),
        (-0.2, 0.1, "The chosen side pulled the loss down"),
        (0.0, 0.0, "The loss did not move."),
    ],
)
def test_the_split_in_words(chosen: float, rejected: float, sentence: str) -> None:
    assert sentence in loss.loss_text(chosen, rejected)


def test_the_perplexity_split_names_a_sign_that_depends_on_the_aggregate() -> None:
    """DESIGN's worked example: CE [1, 1, 9, 1] to [4, 4, 4, 4]: level +1, ppl_seq_mean 2027.81 to 54.60."""
    dlog = math.log(54.598 / 2027.81)
    perplexities = {
        "perplexity": {
            "chosen": {
                "ppl_seq_mean": {
                    "from": 2027.81,
                    "to": 54.598,
                    "dlog": dlog,
                    "level": 1.0,
                    "dispersion": dlog - 1,
                    "residual": 0.0,
                },
                "ppl_seq_geomean": {"from": 20.09, "to": 54.598, "dlog": 1.0, "level": 1.0, "residual": 0.0},
            },
            "rejected": {"not_applicable": "no token counts"},
        }
    }
    frame = perplexity.perplexity_frame(perplexities["perplexity"])
    assert frame["term"].tolist() == ["dispersion", ""]
    assert (frame["level"] + frame["term_value"]).tolist() == pytest.approx(frame["dlog"].tolist())
    text = perplexity.perplexity_text(frame)
    assert text.startswith("The sign depends on the aggregate: ppl_seq_geomean rose, ppl_seq_mean fell.")
    assert "(ppl_seq_mean) or length weight" in section("perplexity", perplexities)
    assert section("perplexity", {"perplexity": {"not_applicable": "x"}}) == "x"


def pair_run(folder: Path) -> tuple[Any, list[str]]:
    """Three pairs at steps 0 and 5: changes (chosen, rejected) = (-2, -3), (+1, -1), (0, +1)."""
    writer = RunWriter(folder)
    texts = [(f"p{i}", "ab", "ac") for i in range(3)]
    ids = [make_pair_id(*t) for t in texts]
    changes = [(-2.0, -3.0), (1.0, -1.0), (0.0, 1.0)]
    for step in (0, 5):
        rows = [
            {
                "step": step,
                "split": "eval",
                "role": "policy",
                "pair_id": i,
                "side": side,
                "n_tokens": 2,
                "sum_logp": -4.0 + (change[k] if step else 0.0),
            }
            for i, change in zip(ids, changes, strict=True)
            for k, side in enumerate(("chosen", "rejected"))
        ]
        writer.write("pairs", rows, "eval")
    tokens_at = {0: [-1.0, -3.0], 5: [-0.5, -5.5]}
    for step, logps in tokens_at.items():
        rows = [
            {
                "step": step,
                "split": "eval",
                "role": "policy",
                "pair_id": ids[0],
                "side": side,
                "position": k,
                "token_id": token,
                "logp": logps[k],
            }
            for side, second in (("chosen", 11), ("rejected", 12))
            for k, token in enumerate((10, second))
        ]
        writer.write("tokens", rows, "eval")
    writer.write(
        "texts",
        [
            {"split": "eval", "pair_id": i, "prompt": t[0], "chosen": t[1], "rejected": t[2]}
            for i, t in zip(ids, texts, strict=True)
        ],
    )
    return load_run(folder), ids


def context(folder: Path) -> tuple[Context, list[str]]:
    run, ids = pair_run(folder)
    return Context(run, explain_run(run), {}), ids


def test_each_pair_lands_in_its_quadrant(tmp_path: Path) -> None:
    """Of three pairs one lost on both sides; it alone has a falling chosen answer and so is ranked first."""
    made, ids = context(tmp_path)
    frame = quadrants.changes_frame(made).set_index("pair_id")
    assert frame.loc[ids, "quadrant"].tolist() == ["both_fell", "chosen_rose", "both_rose"]
    assert frame.loc[ids, "delta_chosen"].tolist() == [-2.0, 1.0, 0.0]
    assert frame.loc[ids[0], "rank"] == "1"
    caption = quadrants.build(made)["caption"]
    assert "Of 3 pairs, 33 % lost log-prob on both sides and 33 % lost it on the chosen answer" in caption
    assert "33 % moved as wanted" in caption


def test_a_run_without_pairs_has_no_quadrants() -> None:
    assert section("quadrants", {"quadrants": {"not_applicable": "means only"}}) == "means only"
    assert section("quadrants", {}) == "the explanation has no quadrants"


def spelled(made: Context, ids: list[str]) -> pd.DataFrame:
    """The first pair's tokens with their texts."""
    frame = made.explanation.tokens(ids[:1])
    answers = {(ids[0], "chosen"): "ab", (ids[0], "rejected"): "ac"}
    return frame.assign(text=tokens.token_texts(made.run, frame, answers))


def test_token_changes_and_texts_from_the_answer(tmp_path: Path) -> None:
    """Two characters, two tokens; 10 is always a, 11 b and 12 c: the characters align."""
    frame = spelled(*context(tmp_path))
    assert frame["delta"].tolist() == [0.5, -2.5, 0.5, -2.5]
    assert frame["text"].tolist() == ["a", "b", "a", "c"]
    own = frame.loc[frame["side"] == "chosen"]
    assert tokens.tokens_text(own) == "-2 nats over 2 tokens; largest fall -2.50 at token 2, “b”"
    assert [tokens.level(v) for v in (0.05, -0.1, -9, 0.6)] == ["z", "d1", "d4", "u2"]


def test_a_pair_is_drawn_with_its_change_token_by_token(tmp_path: Path) -> None:
    """Chosen CE of the first pair: 4 nats over 2 tokens before, 6 after."""
    made, _ = context(tmp_path)
    drawn = draw("pairs", SECTIONS["pairs"], made).body
    assert "1. ab" in drawn
    assert '<span class="tok d3 glued"><span class="t">b</span><b>-2.5</b></span>' in drawn
    row = pairs.build(made)["overview"].rows[0]
    assert [cell.text for cell in row[2:]] == ["2", "3", "-2", "-3"]


def test_a_vocabulary_file_comes_first_and_a_broken_one_is_named(tmp_path: Path) -> None:
    made, ids = context(tmp_path)
    (tmp_path / "vocab.json").write_text(json.dumps({"10": "A", "11": " B"}))
    assert spelled(made, ids)["text"].tolist()[:2] == ["A", " B"]
    (tmp_path / "vocab.json").write_text("[")
    with pytest.raises(DiagError, match=r"vocab\.json"):
        spelled(made, ids)


def test_ids_are_shown_where_nothing_aligns(tmp_path: Path) -> None:
    made, ids = context(tmp_path)
    frame = made.explanation.tokens(ids[:1])
    answers = {(ids[0], "chosen"): "ab", (ids[0], "rejected"): "ba"}  # 10 would be both a and b
    texts = tokens.token_texts(made.run, frame, answers)
    assert texts.isna().all()
    line = tokens.token_line(frame.assign(text=texts))
    assert (line.tokens[0].text, line.tokens[0].is_id) == ("#10", True)


def test_a_tokenizer_file_gives_texts_back() -> None:
    """Byte-level BPE writes a space as Ġ and é as Ã©; half a character shows as its byte."""
    document = {
        "model": {"type": "BPE", "vocab": {"ĠSELECT": 5, "Ã©": 6, "Ã": 7}},
        "pre_tokenizer": {"type": "ByteLevel"},
        "decoder": None,
        "added_tokens": [{"id": 0, "content": "<|eos|>"}],
    }
    assert vocabulary.tokenizer_vocabulary(document) == {5: " SELECT", 6: "é", 7: "⟨C3⟩", 0: "<|eos|>"}
    unigram = {"model": {"type": "Unigram", "vocab": [["<unk>", 0.0], ["▁the", -1.0]]}}
    assert vocabulary.tokenizer_vocabulary(unigram) == {0: "<unk>", 1: " the"}
    assert len(vocabulary.byte_letters()) == 256


def test_a_long_response_shows_the_stretch_with_the_largest_change() -> None:
    n = 1_000
    frame = pd.DataFrame({"position": range(n), "token_id": 1, "delta": 0.0, "text": "x"})
    frame.loc[700, "delta"] = -5.0
    line = tokens.token_line(frame)
    assert [t.style for t in line.tokens].count("z") == tokens.MAX_TOKENS - 1
    assert line.tokens[53].change == "-5"
    assert pairs.Side("chosen", "", "", line).left_out == "647 tokens before, 193 tokens after"


def outputs_run(folder: Path, rows: list[tuple[int, str, str, str, str]]) -> Any:
    writer = RunWriter(folder)
    frame = [
        {"step": s, "model": m, "prompt_id": p, "sample": 0, "prompt": f"ask {p}", "text": t, "decoding_hash": h}
        for s, m, p, t, h in rows
    ]
    writer.write("outputs", frame)
    return load_run(folder)


def judged_run(folder: Path, judged: dict[str, tuple[int, int]]) -> Any:
    """Prompts answered at steps 0 and 9, each right (1) or wrong (0) there; the text says which."""
    writer = RunWriter(folder)
    rows = [
        {"step": step, "model": "policy", "prompt_id": name, "sample": 0, "prompt": f"ask {name}", "decoding_hash": "g",
         "text": f"SELECT {correct}", "correct": float(correct), "tags": [f"kind{len(name)}", "source=x"]}
        for name, both in judged.items() for step, correct in zip((0, 9), both, strict=True)
    ]  # fmt: skip
    writer.write("outputs", rows)
    return load_run(folder)


def test_regressions_come_first_and_every_filter_has_its_counts(tmp_path: Path) -> None:
    run = judged_run(tmp_path, {"a": (1, 1), "b": (0, 0), "cc": (0, 1), "d": (1, 0), "e": (1, 0)})
    found = answers.prompts(compared(run))
    assert [(c.standing, c.changed, c.rank, c.marks) for c in found.cards] == [
        ("regression", "yes", "right → wrong", "✓✗"),
        ("regression", "yes", "right → wrong", "✓✗"),
        ("gain", "yes", "wrong → right", "✗✓"),
        ("both_right", "no", "both right", "✓✓"),
        ("both_wrong", "no", "both wrong", "✗✗"),
    ]
    assert [(c.value, c.n) for c in found.standings] == [
        ("regression", 2), ("gain", 1), ("both_wrong", 1), ("both_right", 1),
    ]  # fmt: skip
    assert [(c.label, c.n) for c in found.changed] == [("changed", 3), ("same", 2)]
    assert [(c.label, c.n) for c in found.tags] == [("kind1", 4), ("kind2", 1)]  # key=value tags are fields
    assert [c.in_tags for c in found.cards] == ["0", "0", "1", "0", "0"]
    assert found.summary == (
        "step 0 against step 9: 3 of 5 answers changed; 2 went from right to wrong, 1 from wrong to right."
    )
    drawn = section("outputs", {}, compared(run), run)
    assert 'data-standing="regression" data-changed="yes" data-tags="0" open' in drawn
    assert "SELECT <del>1</del><ins>0</ins>" in drawn


def test_a_phrase_is_asked_for_where_the_last_answer_holds_it(tmp_path: Path) -> None:
    run = judged_run(tmp_path, {"a": (1, 1), "b": (1, 0)})
    found = answers.prompts(compared(run), [{"phrase": "select 1"}, {"phrase": "select 0"}])
    assert [(c.label, c.n) for c in found.phrases] == [("select 1", 1), ("select 0", 1)]
    assert {c.title: c.in_phrases for c in found.cards} == {"ask b": "1", "ask a": "0"}


def test_answers_that_nobody_judged_have_no_outcome_filter(tmp_path: Path) -> None:
    run = outputs_run(
        tmp_path,
        [(s, "policy", "a", "same", "g") for s in (0, 5, 9)]
        + [(0, "policy", "b", "old", "g"), (5, "policy", "b", "new", "g"), (9, "policy", "b", "new", "g")]
        + [(0, "ref", "b", "old", "g"), (0, "ref", "a", "same", "g")],
    )
    found = answers.prompts(compared(run))
    assert [(c.standing, c.rank) for c in found.cards] == [("unjudged", "changed"), ("unjudged", "same")]
    assert found.standings == ()
    drawn = section("outputs", {}, compared(run), run)
    assert "<del>old</del><ins>new</ins>" in drawn
    assert "ref, step 0<b>" in drawn and "steps 5, 9<b>" in drawn
    assert "Outcome" not in drawn


def test_answers_of_another_decoding_are_left_out_and_counted(tmp_path: Path) -> None:
    run = outputs_run(
        tmp_path,
        [(s, "policy", "b", f"text {s}", "g") for s in (0, 5)] + [(9, "policy", "b", "sampled", "other")],
    )
    document = compared(run)
    assert document["steps"] == [0, 5]
    drawn = section("outputs", {}, document, run)
    assert "Left out: 1 answer that another decoding setting gave." in drawn
    assert "sampled" not in drawn


def test_a_system_turn_that_all_prompts_share_is_no_title(tmp_path: Path) -> None:
    head = "<s>system\nYou are a helpful assistant with a long description of itself</s>\n<s>user\n"
    asked = [f"{head}What is 7 x 8?</s>", f"{head}Where is Oslo?</s>"]
    assert {text[answers.shared_beginning(asked) :] for text in asked} == {"What is 7 x 8?</s>", "Where is Oslo?</s>"}
    assert answers.shared_beginning(asked[:1]) == 0  # nothing to share with


def test_the_answers_stay_inside_the_pages_budget() -> None:
    texts = ["x" * 10_000] * 4_000
    limit = answers.text_limit(texts)
    assert limit == 250
    assert 2 * 4_000 * limit <= answers.BUDGET
    assert answers.text_limit(texts[:2]) == 2_000


def test_many_short_answers_are_all_there_and_too_many_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """150 prompts with two answers of 6 characters cost 150 * 2 * (12 + 300) = 93,600 of 3.8 million; of 50,000, 80."""
    rows = [(s, "policy", f"q{i:04d}", f"look {s}", "g") for i in range(150) for s in range(2)]
    run = outputs_run(tmp_path, rows)
    document = compared(run)
    drawn = section("outputs", {}, document, run=run)
    assert drawn.count('class="card prompt"') == 150
    assert "left out" not in drawn
    monkeypatch.setattr(answers, "BUDGET", 40_000)
    monkeypatch.setattr(answers, "ROOM", 10_000)
    drawn = section("outputs", {}, document, run=run)
    assert drawn.count('class="card prompt"') == 80
    assert "The last 70 prompts are left out for the page&#39;s size." in drawn


def test_a_megabyte_line_is_cut(tmp_path: Path) -> None:
    run = outputs_run(tmp_path, [(0, "policy", "a", "x" * 2_000_000, "g"), (1, "policy", "a", "y" * 2_000_000, "g")])
    assert len(section("outputs", {}, compared(run), run=run)) < 20_000


def test_checks_that_speak_come_first_by_severity(made_explanation: Explanation) -> None:
    more = [
        {
            "code": "DVG030",
            "title": "T",
            "outcome": "speaks",
            "severity": "error",
            "reason": "R",
            "evidence": {"x": {"value": 0.5, "low": 0.4, "high": 0.6, "n": 9, "level": 0.95}},
            "try": [],
        }
    ]
    document = {"checks": made_explanation.document["checks"] + more}
    frame = checks.checks_frame(document)
    assert frame["code"].tolist() == ["DVG030", "DVG001", "DVG018", "DVG004"]
    assert frame["evidence"][0] == [("x", "0.5000 (95 % interval 0.4000 to 0.6000, n 9)")]
    drawn = section("checks", document)
    assert "2 of 4 checks speak." in drawn
    assert "No review was recorded" in drawn


def test_behaviours_of_the_last_step_and_phrases_that_grew() -> None:
    row = {
        "model": "policy",
        "behaviour": "right answers",
        "tag": "(all)",
        "n": 10,
        "toward": 1,
        "away": 4,
        "unchanged": 5,
        "before": 0.7,
        "after": 0.4,
        "delta": -0.3,
        "low": -0.6,
        "high": -0.01,
        "p": 0.04,
    }
    comparison = {
        "behaviours": [{**row, "step": 5, "delta": 9.0}, {**row, "step": 10}, {**row, "step": 10, "tag": "hard"}],
        "phrases": [
            {
                "phrase": "rest assured",
                "before": 0,
                "after": 9,
                "n": 10,
                "in_chosen": 0.3,
                "in_rejected": 0.0,
                "q": 0.01,
            },
            {"phrase": "noise", "before": 0, "after": 1, "n": 10, "q": 0.6},
        ],
        "tags": [],
        "sentence": "worse",
    }
    assert outputs.behaviours_frame(comparison)["change"].tolist() == ["-0.300 (-0.600 to -0.0100)"]
    assert outputs.phrases_frame(comparison)["phrase"].tolist() == ["rest assured"]
    tables = dict(outputs.comparison_tables(comparison))
    assert list(tables) == ["What moved", "Phrases that grew"]
    assert tables["Phrases that grew"].rows[0][4].text == "30.0 %"


def test_the_headline_leaves_out_what_is_unknown(tmp_path: Path) -> None:
    RunWriter(tmp_path / "r").finish()
    nothing = Explanation({"not_applicable": "no records"}, None, NO_PAIRS)
    top = headline(Context(load_run(tmp_path / "r"), nothing, {}))
    assert (top.harm, top.label, top.text, top.facts) == ("No verdict", "No verdict", "Not applicable: no records.", ())


def test_the_headline_says_a_thing_once(made_run: Path, made_explanation: Explanation) -> None:
    verdict = {
        "title": "the loss fell",
        "text": "The loss fell. It is harm: x.",
        "harm": "harmful",
        "confidence": "high",
    }
    blocks = [{"heading": "What happened", "sentences": [{"text": verdict["text"]}, {"text": "More."}]}]
    document = {**made_explanation.document, "verdict": verdict, "narrative": blocks}
    top = headline(Context(load_run(made_run), replace(made_explanation, document=document), {}))
    assert (top.label, top.text) == ("The loss fell", "It is harm: x.")
    assert [part.sentences for part in top.details] == [("More.",)]
    assert [f.name for f in top.facts][:3] == ["DPO loss", "chosen perplexity", "execution accuracy, held out"]
    assert np.isclose(float(top.facts[0].before), 0.6931)


def test_a_section_that_cannot_be_built_says_why() -> None:
    def build(context: Context) -> dict[str, Any]:
        raise NotApplicable("there is nothing to say")

    drawn = draw(
        "x", replace(SECTIONS["loss"], needs="", build=build), Context(None, Explanation({}, None, NO_PAIRS), {})
    )
    assert (drawn.body, drawn.missing) == ("", "there is nothing to say")


def test_a_section_without_anything_to_say_is_not_named(made_run: Path, made_explanation: Explanation) -> None:
    made = Context(load_run(made_run), replace(made_explanation, document={"remedies": [], "narrative": []}), {})
    drawn = draw("change", SECTIONS["change"], made)
    assert (drawn.body, drawn.missing) == ("", "")


PLUGIN = """
from dpo_diag.report.section import SECTIONS, Section

def build(context):
    return {"n": context.document["n_pairs"], "text": "<b>\\u202e"}

SECTIONS.add("count", Section(
    title="How many", lead="Pairs.", order=45, needs="n_pairs", build=build, template="<p>{{ n }} pairs {{ text }}</p>",
))
"""


def test_a_plugin_adds_a_section_from_one_file(made_run: Path, tmp_path: Path) -> None:
    """In a process of its own: a registered section stays for the process. It comes between 40 and 50, escaped."""
    (tmp_path / "count_section.py").write_text(PLUGIN)
    path = os.pathsep.join([str(tmp_path), *sys.path])
    environment = {**os.environ, "DPO_DIAG_PLUGINS": "count_section", "PYTHONPATH": path}
    code = "import sys; from dpo_diag.report import write_report; write_report(sys.argv[1], sys.argv[2])"
    page = tmp_path / "page.html"
    subprocess.run([sys.executable, "-c", code, str(made_run), str(page)], env=environment, check=True, timeout=120)
    text = page.read_text()
    assert "<p>60 pairs &lt;b&gt;&lt;U+202E&gt;</p>" in text
    assert re.findall('<section id="([a-z]+)"', text)[5:8] == ["quadrants", "count", "pairs"]
