"""Two runs held against each other: what was set, where they part, what came of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dpo_diag import RunWriter, load_run
from dpo_diag.commands.diag import main
from dpo_diag.diagnosis.differences import AREAS, Difference, differences
from dpo_diag.diagnosis.two_runs import compare_runs
from dpo_diag.errors import DiagError

PAIRS = [f"p{i:02d}" for i in range(20)]
LOSS = {"types": ["sigmoid"], "weights": [1.0], "beta": 0.1}


def written(
    folder: Path, further: dict[str, float], wrote: dict[str, tuple[str, float]], loss_at_10: float, **facts: Any
) -> Path:
    """Steps 0, 5, 10; responses of 10 tokens, chosen at -10 and rejected at -20 nats as in the reference, until step
    10, where a chosen answer lies `further` nats lower. `wrote`: prompt -> (answer at step 10, right)."""
    writer = RunWriter(folder)
    writer.write("pairs", [
        {"step": step, "split": "eval", "role": role, "pair_id": i, "side": side, "n_tokens": 10, "n_bytes": 40,
         "sum_logp": total - (further.get(i, 0.0) if (step, role, side) == (10, "policy", "chosen") else 0.0)}
        for i in PAIRS for side, total in (("chosen", -10.0), ("rejected", -20.0))
        for step, role in ((0, "policy"), (5, "policy"), (10, "policy"), (0, "ref"))
    ])  # fmt: skip
    writer.write("history", [
        {"step": step, "split": "eval", "name": "loss", "value": value, "weight": 20}
        for step, value in ((0, 0.5), (5, 0.5 * (1 + 1e-8)), (10, loss_at_10))
    ])  # fmt: skip
    writer.write("outputs", [
        {"step": 10, "model": "policy", "prompt_id": i, "sample": 0, "prompt": f"{i}?", "text": text,
         "correct": right, "decoding_hash": "d"} for i, (text, right) in wrote.items()
    ])  # fmt: skip
    writer.update(**{"loss": LOSS, "splits": {"eval": {"role": "held_out"}}, **facts})
    writer.finish()
    return folder


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    """b's chosen answers lie 1 nat lower in ten pairs and 3 nats in the other ten."""
    further = {i: 1.0 if n < 10 else 3.0 for n, i in enumerate(PAIRS)}
    a = written(tmp_path / "a", {}, {"q1": ("x", 1), "q2": ("x", 1), "q3": ("x", 0), "q4": ("x", 0)}, 0.5,
                training={"learning_rate": 1e-5, "seed": 1}, packages={"torch": "2.13"})  # fmt: skip
    b = written(tmp_path / "b", further, {"q1": ("x", 1), "q2": ("y", 0), "q3": ("y", 1), "q4": ("y", 0)}, 0.6,
                training={"learning_rate": 2e-5, "seed": 1}, packages={"torch": "2.14"})  # fmt: skip
    return a, b


def test_what_was_set_comes_from_run_json_where_no_configuration_was_composed(two: tuple[Path, Path]) -> None:
    found = differences(*map(load_run, two))
    assert found == [
        Difference("config", "training.learning_rate", 1e-5, 2e-5),
        Difference("versions", "packages.torch", "2.13", "2.14"),
    ]


def test_composed_configurations_are_compared_without_secrets_and_places(two: tuple[Path, Path]) -> None:
    for folder, lr, key in zip(two, ("1e-05", "2e-05"), ("one", "two"), strict=True):
        (folder / ".hydra").mkdir()
        (folder / ".hydra" / "config.yaml").write_text(
            f"name: {key}\noutput_root: /{key}\ntrainer: {{learning_rate: {lr}, args: {{hub_token: {key}}}}}\n"
            f"tracking: {{project: {key}}}\n"
        )
    found = differences(*map(load_run, two))
    assert [d.name for d in found] == ["trainer.learning_rate", "packages.torch"]
    assert [AREAS.index(d.area) for d in found] == [0, 3]


def test_runs_part_where_more_than_rounding_differs(two: tuple[Path, Path]) -> None:
    """History: at step 5 the loss differs by 1e-8 of itself, which is rounding; at step 10 by 0.1. Pairs: by up to 3
    nats, in all 20. Outputs: three of four answers."""
    found = {(p.what, p.split): p for p in compare_runs(*map(str, two)).partings}
    history, pairs, outputs = (found[k] for k in (("history", "eval"), ("pairs", "eval"), ("outputs", "")))
    assert (history.step, history.last_alike, history.n_different, history.n) == (10, 5, 1, 1)
    assert history.text == "loss 0.5000 → 0.6000"
    assert (pairs.step, pairs.last_alike, pairs.n_different, pairs.n) == (10, 5, 20, 20)
    assert pairs.text == "by up to 3 nats per response"
    assert (outputs.step, outputs.last_alike, outputs.n_different, outputs.n) == (10, None, 3, 4)
    alike = compare_runs(str(two[0]), str(two[0])).partings
    assert [p.step for p in alike] == [None, None, None] and {p.shared for p in alike} == {1, 3}


def test_changes_are_paired(two: tuple[Path, Path]) -> None:
    """Cross-entropy of chosen 1.0 in a; in b 1.1 and 1.3: 0.2 more. The changes' standard deviation is 0.1
    sqrt(20/19) = 0.10260, over sqrt(20) 0.02294; t(19) at 99 % is 2.861: give or take 0.06564. The margin falls by 2
    nats in the mean and every pair stays right; the perplexity of rejected answers stays e^2."""
    found = compare_runs(*map(str, two))
    changes = {c.name: c for c in found.changes}
    ce = changes["ce/chosen"]
    assert (ce.a, ce.b, ce.change.value) == pytest.approx((1.0, 1.2, 0.2))
    assert ce.change.bounds == pytest.approx([0.2 - 0.06564, 0.2 + 0.06564], abs=1e-4)
    assert changes["log-ratio/margin"].change.value == pytest.approx(-2)
    assert changes["ppl_seq_geomean/rejected"].change.value == 0
    # -log sigmoid(0.1 m): ln 2 at m = 0; at -1 and -3 0.744397 and 0.854355.
    assert (changes["loss"].a, changes["loss"].b) == pytest.approx((0.693147, 0.799376), abs=1e-6)
    assert found.pairs["chosen_change"].tolist() == pytest.approx([0.3] * 10 + [0.1] * 10)
    assert dict(zip(found.answers["prompt_id"], found.answers["outcome"], strict=True)) == {
        "q2": "lost", "q3": "won", "q4": "wrong", "q1": "alike",
    }  # fmt: skip


def test_other_tokenizers_are_compared_per_byte_and_other_references_not_by_ratios(tmp_path: Path) -> None:
    """40 bytes each: -10 nats are 0.25 nats per byte."""
    a = written(tmp_path / "a", {}, {}, 0.5, tokenizer={"fingerprint": "one"})
    b = written(tmp_path / "b", dict.fromkeys(PAIRS, 4.0), {}, 0.5, tokenizer={"fingerprint": "two"})
    found = compare_runs(str(a), str(b))
    ce = next(c for c in found.changes if c.name == "ce/chosen")
    assert (ce.unit, ce.a, ce.change.value) == ("nats/byte", pytest.approx(0.25), pytest.approx(0.1))
    assert any("tokenizers differ" in note for note in found.notes)


def test_runs_without_a_common_set_say_so(two: tuple[Path, Path], tmp_path: Path) -> None:
    log = RunWriter(tmp_path / "log", kind="imported")
    log.write("history", [{"step": 0, "split": "eval", "name": "loss", "value": 0.7, "weight": 2}])
    log.finish()
    found = compare_runs(str(two[0]), str(tmp_path / "log"))
    assert found.notes == ("the runs share no measured set of pairs",) and found.changes == []
    assert found.pairs.empty and found.answers.empty
    with pytest.raises(DiagError, match="no such set in both runs"):
        compare_runs(str(two[0]), str(two[1]), split="nowhere")
    with pytest.raises(DiagError, match="no pair records at this step"):
        compare_runs(str(two[0]), str(two[1]), step=7)


def test_the_command_prints_80_columns_or_one_document(
    two: tuple[Path, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(two[0].parent)
    monkeypatch.delenv("COLUMNS", raising=False)
    assert main(["diff", "a", "b"]) == 0
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    assert "training.learning_rate" in shown and "step 10 (alike until step 5)" in shown
    assert "1 right in a, wrong in b, 1 wrong in a, right in b" in " ".join(shown.split())
    assert shown.splitlines()[-1] == "next: dpo-diag explain b"
    assert main(["diff", "a", "b", "--step", "5", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["steps"] == [5, 5] and len(document["pairs"]) == 20 and document["next"] == ["dpo-diag explain b"]
    assert {c["name"]: c["change"] for c in document["changes"]}["ce/chosen"] == 0
