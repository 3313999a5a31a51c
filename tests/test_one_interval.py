"""One change has one interval: in every part of the findings, in what is printed, in gate, sweep and outputs."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dpo_diag import Run, RunWriter, load_run
from dpo_diag.commands import diag
from dpo_diag.commands.sweep import document as sweep_document
from dpo_diag.diagnosis import explain
from dpo_diag.diagnosis.sweep import sweep
from dpo_diag.gate.judge import Gate
from dpo_diag.outputs.compare import compare
from dpo_diag.paired import paired_change
from tests.outputs.conftest import answer_rows

EXAMPLE = Path(__file__).resolve().parents[1] / "runs" / "example"
PRINTED = re.compile(
    r"([+-]?\d[\d.]*(?:e-?\d+)?),? \(?(?:paired |unpaired )?(\d[\d.]*) % interval "
    r"([+-]?\d\S*) to ([+-]?\d[\d.e-]*\d|\d)"
)
"""A number with its interval, as terminal and page print it."""
SAME = 1e-9


def intervals(value: Any, path: str = "") -> Iterator[tuple[str, float, list[float]]]:
    """(where, number, bounds) of everything in a document that has an interval."""
    if isinstance(value, dict):
        number = next((value[k] for k in ("delta", "dlog", "worse_by") if value.get(k) is not None), None)
        if number is not None and value.get("interval"):
            yield path, number, value["interval"]
        if {"value", "low", "high"} <= set(value) and value["low"] is not None and value["value"] is not None:
            yield path, value["value"], [value["low"], value["high"]]
        for key, inner in value.items():
            yield from intervals(inner, f"{path}.{key}")
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from intervals(inner, f"{path}[{i}]")


def contradictions(found: list[tuple[str, float, list[float]]], tolerance: float) -> list[str]:
    """Numbers that are one another but for their sign, and whose intervals are not."""
    wrong = []
    for i, (here, a, own) in enumerate(found):
        for there, b, other in found[i + 1 :]:
            if abs(a) < 1e-6 or abs(abs(a) - abs(b)) > tolerance * abs(a):
                continue
            mirrored = other if (a > 0) == (b > 0) else [-other[1], -other[0]]
            if not np.allclose(own, mirrored, rtol=tolerance, atol=tolerance * abs(a)):
                wrong.append(f"{here}: {a} {own}; {there}: {b} {other}")
    return wrong


def printed(text: str) -> list[tuple[str, float, list[float]]]:
    """The same of a printed page or terminal."""
    found = []
    for match in PRINTED.finditer(text):
        value, level, low, high = match.groups()
        found.append((f"{level} %: {match[0]}", float(value), [float(low), float(high)]))
    return found


def sampled_run(path: Path) -> Run:
    """40 pairs of 10 prompts at steps 0 and 10; 20 questions answered three times each, right or wrong, at both; their
    score over the 60 answers in the history."""
    rng = np.random.default_rng(3)
    writer = RunWriter(path)
    moved, start = np.repeat(rng.normal(-1, 1, 10), 4) + rng.normal(0, 0.1, 40), -rng.uniform(20, 30, 40)
    right = {0: rng.random((20, 3)) < 0.8, 10: rng.random((20, 3)) < 0.5}
    for step in (0, 10):
        sums = {"chosen": start + moved * (step > 0), "rejected": start + (2 * moved - 3) * (step > 0)}
        rows = [
            {"step": step, "split": "eval", "role": role, "pair_id": f"p{i:02d}", "side": side, "sum_logp": s,
             "n_tokens": 10, "entropy_sum": 5.0 + 0.1 * s * (role == "policy")}
            for role in (("policy", "ref") if step == 0 else ("policy",))
            for side, values in sums.items()
            for i, s in enumerate(values)
        ]  # fmt: skip
        writer.write("pairs", rows, split="eval")
        answers = {f"q{i:02d}": f"answer {i}" for i in range(20)}
        outputs = [
            row | {"sample": k, "seed": k, "correct": float(right[step][int(row["prompt_id"][1:])][k])}
            for k in range(3)
            for row in answer_rows(answers, step=step)
        ]
        writer.write("outputs", outputs)
        score = float(right[step].mean())
        writer.write("history", [{"step": step, "split": "eval", "name": "score/accuracy", "value": score,
                                  "weight": 60}])  # fmt: skip
    writer.write("texts", [{"split": "eval", "pair_id": f"p{i:02d}", "prompt": f"prompt {i // 4}", "chosen": "a",
                            "rejected": "b"} for i in range(40)])  # fmt: skip
    writer.update(loss={"types": ["sigmoid"], "beta": 0.1})
    writer.finish()
    return load_run(path)


@pytest.fixture(scope="module")
def sampled(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return sampled_run(tmp_path_factory.mktemp("sampled") / "run")


@pytest.mark.parametrize("which", ["example", "sampled"])
def test_one_change_has_one_interval_in_all_that_is_written(
    which: str, sampled: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The findings number by number; terminal and page as they are read: 99 % of likelihoods, 95 % of scores."""
    folder = EXAMPLE if which == "example" else sampled.path
    document = explain(folder)
    found = list(intervals(document))
    assert len(found) > 25 and not contradictions(found, SAME)
    assert document["intervals"]["level"] == 0.99
    assert diag.main(["explain", str(folder), "--no-write", "--full"]) == 0
    page = tmp_path / "report.html"
    assert diag.main(["report", str(folder), "--out", str(page)]) == 0
    terminal = capsys.readouterr().out
    read = html.unescape(re.sub(r"<[^>]+>", "", re.sub(r"(?s)<(style|script).*?</\1>", "", page.read_text("utf-8"))))
    for text in (terminal, read):
        told = printed(text)
        assert len(told) >= 6 and not contradictions(told, 0.01)
        assert {where.split()[0] for where, _, _ in told} == {"99", "95"}
        assert "over the pairs of this set" in text


def test_the_gate_has_the_explanations_intervals(sampled: Run) -> None:
    document = explain(sampled)
    chosen = document["perplexity"]["chosen"]
    gate = Gate(sampled)

    def of(metric: str) -> list[float]:
        bounds = gate.judge({"metric": metric, "max_rise": 99.0}).limits[0].interval
        assert bounds is not None
        return bounds

    assert of("loss") == pytest.approx(document["loss"]["interval"])
    assert of("ce/chosen") == pytest.approx(chosen["ppl_seq_geomean"]["interval"])
    assert of("rewards/margins") == pytest.approx([0.1 * b for b in document["margins"]["interval"]])
    assert of("entropy/chosen") == pytest.approx(document["destination"]["chosen"]["entropy"]["interval"])
    for name in ("ppl_token", "ppl_seq_mean", "ppl_seq_geomean"):
        factors = [chosen[name]["from"] * np.expm1(b) for b in chosen[name]["interval"]]
        assert of(f"{name}/chosen") == pytest.approx(factors), name


def test_samples_of_a_question_are_averaged_everywhere(sampled: Run) -> None:
    """Three answers to each of 20 questions are 20 numbers: explain, outputs, gate and sweep say the same of them."""
    correct = sampled.outputs.pivot_table(index="prompt_id", columns="step", values="correct", aggfunc="mean")
    change = paired_change(correct[0], correct[10]).delta
    expected = [change.value, change.low, change.high, 20]

    evidence = {e["kind"]: e for e in explain(sampled)["evidence"]}
    for kind in ("score", "correct"):
        entry = evidence[kind]
        assert [entry["delta"], *entry["interval"], entry["n"]] == pytest.approx(expected), kind
    outputs = compare(sampled)
    (row,) = [r for r in outputs["behaviours"] if (r["behaviour"], r["tag"]) == ("right answers", "(all)")]
    assert [row["delta"], row["low"], row["high"], row["n"]] == pytest.approx(expected)
    assert (outputs["n_samples"], outputs["level"]) == (3, 0.95)
    (limit,) = Gate(sampled).judge({"metric": "score/accuracy", "max_drop": 1.0}).limits
    assert [limit.estimate, *(limit.interval or ())] == pytest.approx(expected[:3])
    (swept,) = json.loads(json.dumps(sweep_document(sweep(sampled.path))))["runs"]
    name = "accuracy[eval]"
    changes = [swept[f"{name}_change{part}"] for part in ("", "_low", "_high")]
    assert [*changes, swept[f"{name}_n"]] == pytest.approx(expected)


def test_one_sample_alone_can_be_asked_for(sampled: Run) -> None:
    """`--sample 1`: its answers, its numbers."""
    first = sampled.outputs[sampled.outputs["sample"] == 1].pivot(index="prompt_id", columns="step", values="correct")
    outputs = compare(sampled, sample=1)
    (row,) = [r for r in outputs["behaviours"] if (r["behaviour"], r["tag"]) == ("right answers", "(all)")]
    assert (row["before"], row["after"], outputs["n_samples"]) == (first[0].mean(), first[10].mean(), 1)
