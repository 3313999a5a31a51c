"""The generic table: required and optional columns, the reference, texts, scores, and everything that can be wrong."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from dpo_diag.errors import DiagError
from dpo_diag.losses import LossSpec, pair_losses
from dpo_diag.records import make_pair_id
from tests.importers.conftest import Importing
from tests.importers.reading import value


def row(step: int, pair: str, chosen: float, rejected: float, **more: Any) -> dict[str, Any]:
    return {"step": step, "pair_id": pair, "chosen_sum_logp": chosen, "rejected_sum_logp": rejected, **more}


ROWS = [row(0, "a", -10.0, -12.0), row(0, "b", -20.0, -21.0), row(10, "a", -11.0, -15.0), row(10, "b", -20.5, -30.0)]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    elif path.suffix == ".csv":
        pd.DataFrame(rows).to_csv(path, index=False)
    else:
        pd.DataFrame(rows).to_parquet(path)
    return path


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_step_0_is_the_reference_by_default(tmp_path: Path, imported: Importing, suffix: str) -> None:
    """beta 0.1: pair a has a - b = (-1) - (-3) = 2, pair b (-0.5) - (-9) = 8.5; loss mean log(1 + exp(-margin))."""
    result, run = imported(write(tmp_path / f"pairs{suffix}", ROWS), loss=("sigmoid",), beta=0.1)
    assert (result["format"], result["rows"], result["read"]) == ("pairs", 4, 4)
    assert run.meta["loss"]["types"] == ["sigmoid"]
    assert run.info.reference.source == "the rows of step 0"
    assert run.info.logps == "sum"
    pairs = run.pairs
    assert set(pairs["split"]) == {"eval"}
    assert len(run.read("pairs", roles=["ref"])) == 4
    last = pairs[pairs["step"] == 10].set_index(["pair_id", "side"])
    ratio = last["sum_logp"] - last["ref_sum_logp"]
    a, b = (ratio.xs(side, level="side").to_numpy() for side in ("chosen", "rejected"))
    assert a.tolist() == [-1.0, -0.5]
    assert b.tolist() == [-3.0, -9.0]
    loss = pair_losses(LossSpec.from_dict(run.meta["loss"]), a, b).mean()
    assert loss == pytest.approx((math.log1p(math.exp(-0.2)) + math.log1p(math.exp(-0.85))) / 2, rel=1e-12)


def test_training_batches_have_the_means_that_a_trainer_would_log(tmp_path: Path, imported: Importing) -> None:
    """beta 0.1. Step 1: pair a is at its reference, the loss is ln 2. Step 2: b +1 and -3, so rewards .1 and -.3,
    margin .4; c -1 and -1, margin 0: rewards/chosen 0, margins .2, accuracy 1/2, loss the mean of log(1 + e^-.4)
    and ln 2."""
    ref = {"ref_chosen_sum_logp": -50.0, "ref_rejected_sum_logp": -60.0, "chosen_n_tokens": 30, "rejected_n_tokens": 30}
    rows = [row(1, "a", -50.0, -60.0, **ref), row(2, "b", -49.0, -63.0, **ref), row(2, "c", -51.0, -61.0, **ref)]
    path = write(tmp_path / "pairs.jsonl", [{**r, "split": "train"} for r in rows])
    _, run = imported(path, loss=("sigmoid",), beta=0.1)
    assert value(run, "loss", 1) == pytest.approx(math.log(2))
    assert value(run, "loss", 2) == pytest.approx((math.log1p(math.exp(-0.4)) + math.log(2)) / 2)
    assert value(run, "rewards/chosen", 2) == pytest.approx(0.0)
    assert value(run, "rewards/margins", 2) == pytest.approx(0.2)
    assert value(run, "rewards/accuracies", 2) == 0.5
    assert value(run, "logps/rejected", 2) == -62.0
    assert run.history["derived"].all()
    _, fixed = imported(write(tmp_path / "fixed.jsonl", rows), loss=("sigmoid",), beta=0.1)
    assert fixed.history.empty


def test_named_reference_and_optional_columns(tmp_path: Path, imported: Importing) -> None:
    rows = [
        row(5, "a", -10.0, -12.0, split="held_out", ref_chosen_sum_logp=-9.0, ref_rejected_sum_logp=-8.0,
            chosen_n_tokens=4, rejected_n_tokens=5, chosen_n_bytes=20, rejected_n_bytes=25, chosen_entropy_sum=3.5,
            rejected_greedy_logp_sum=-7.0, chosen_top1=0.75, rejected_n_truncated=2),
        row(6, "a", -11.0, -13.0, split="held_out", ref_chosen_sum_logp=-9.0, ref_rejected_sum_logp=-8.0),
    ]  # fmt: skip
    _, run = imported(write(tmp_path / "p.jsonl", rows))
    first = run.pairs[run.pairs["step"] == 5].set_index("side")
    assert first.loc["chosen", "ref_sum_logp"] == -9.0
    assert (first.loc["chosen", "n_tokens"], first.loc["chosen", "n_bytes"], first.loc["chosen", "top1"]) == (
        4,
        20,
        0.75,
    )
    assert (first.loc["chosen", "entropy_sum"], first.loc["rejected", "greedy_logp_sum"]) == (3.5, -7.0)
    assert first.loc["rejected", "n_truncated"] == 2
    assert run.info.loss is None
    assert run.info.loss_reason
    second = run.pairs[run.pairs["step"] == 6].set_index("side")
    assert pd.isna(second.loc["chosen", "n_tokens"])
    assert second.loc["rejected", "ref_sum_logp"] == -8.0


def test_without_reference_the_ratios_are_unknown(tmp_path: Path, imported: Importing) -> None:
    result, run = imported(write(tmp_path / "p.jsonl", [r for r in ROWS if r["step"]]))
    assert run.pairs["ref_sum_logp"].isna().all()
    assert any("no reference" in n for n in result["notes"])


def test_texts_on_any_row_give_ids_and_bytes(tmp_path: Path, imported: Importing) -> None:
    text = {"prompt": "q", "chosen": "né", "rejected": "no"}
    rows = [{k: v for k, v in row(s, "", -1.0, -2.0).items() if k != "pair_id"} | text for s in (0, 1)]
    _, run = imported(write(tmp_path / "p.jsonl", rows))
    assert set(run.pairs["pair_id"]) == {make_pair_id("q", "né", "no")}
    assert run.pairs.loc[run.pairs["side"] == "chosen", "n_bytes"].tolist() == [3, 3]
    assert run.texts["chosen"].tolist() == ["né"]
    rows = [row(0, "a", -1.0, -2.0), row(1, "a", -1.0, -2.0) | text]
    _, run = imported(write(tmp_path / "q.jsonl", rows))
    assert run.pairs["n_bytes"].tolist() == [3, 2, 3, 2]


def test_texts_in_any_form_give_the_id_that_training_gives(tmp_path: Path, imported: Importing) -> None:
    """Alpaca's columns and hh-rlhf's whole texts; equal answers are no pair to train on, but a log has them."""
    sums = {k: v for k, v in row(0, "", -1.0, -2.0).items() if k != "pair_id"}
    alpaca = {"instruction": "Sum up.", "input": "A text.", "chosen": "a", "rejected": "b"}
    result, run = imported(write(tmp_path / "p.jsonl", [sums | alpaca]))
    user = [{"role": "user", "content": "Sum up.\nA text."}]
    good, bad = ([{"role": "assistant", "content": text}] for text in "ab")
    assert set(run.pairs["pair_id"]) == {make_pair_id(user, good, bad)}
    assert "texts read as Alpaca: prompt = instruction + input, as the user's turn, chosen, rejected" in result["notes"]
    shared = "\n\nHuman: Hi\n\nAssistant:"
    _, run = imported(write(tmp_path / "q.jsonl", [sums | {"chosen": shared + " a", "rejected": shared + " b"}]))
    assert set(run.pairs["pair_id"]) == {make_pair_id(shared, " a", " b")}
    _, run = imported(write(tmp_path / "r.jsonl", [sums | {"prompt": "p", "chosen": "a", "rejected": "a"}]))
    assert set(run.pairs["pair_id"]) == {make_pair_id("p", "a", "a")}


def test_scores_per_step_per_pair_and_from_a_file(tmp_path: Path, imported: Importing) -> None:
    rows = [r | {"score/exec": 0.5 + r["step"] / 100, "score/ok": float(r["pair_id"] == "a")} for r in ROWS]
    scores = tmp_path / "scores.jsonl"
    scores.write_text('{"step": 10, "name": "judge", "value": 0.7, "n": 300, "split": "held_out"}\n{"step": 1}\n')
    result, run = imported(write(tmp_path / "p.jsonl", rows), scores=scores)
    assert value(run, "score/exec", 10, "eval") == pytest.approx(0.6)
    assert value(run, "score/ok", 10, "eval") == 0.5
    weights = run.history.set_index(["name", "step"])["weight"]
    assert weights["score/ok", 10] == 2.0
    assert math.isnan(weights["score/exec", 10])
    assert weights["score/judge", 10] == 300
    assert value(run, "score/judge", 10, "held_out") == 0.7
    assert result["skipped"] == [{"line": 2, "why": "a score needs step, name and value", "file": "scores.jsonl"}]


def test_everything_that_can_be_wrong_is_reported_by_line(tmp_path: Path, imported: Importing) -> None:
    good = json.dumps(ROWS[0])
    lines = [
        good, "{broken", json.dumps({**ROWS[0], "step": "ten"}), json.dumps({**ROWS[0], "chosen_sum_logp": None}),
        json.dumps({k: v for k, v in ROWS[0].items() if k != "pair_id"}),
        json.dumps({**ROWS[1], "chosen_n_tokens": 2.5}),
        "[]", good, json.dumps({**ROWS[0], "step": 3, "chosen_sum_logp": math.nan}),
    ]  # fmt: skip
    path = tmp_path / "p.jsonl"
    path.write_text("\n".join(lines))
    result, run = imported(path)
    assert [s["line"] for s in result["skipped"]] == [2, 3, 4, 5, 6, 7]
    assert result["duplicates"] == 1
    chosen = run.pairs[(run.pairs["side"] == "chosen")]
    assert chosen["step"].tolist() == [0, 0, 3]
    assert math.isnan(chosen["sum_logp"].iloc[2])


def test_missing_columns_are_named(tmp_path: Path, imported: Importing) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"step": 1, "pair_id": "a", "chosen_sum_logp": -1}\n')
    with pytest.raises(DiagError, match="rejected_sum_logp"):
        imported(path)


def test_label_smoothing_makes_sigmoid_cdpo(tmp_path: Path, imported: Importing) -> None:
    """TRL 1.16's sigmoid ignores label smoothing; a user who names both means conservative DPO."""
    _, run = imported(write(tmp_path / "p.jsonl", ROWS), loss=("sigmoid",), beta=0.1, label_smoothing=0.1)
    assert (run.meta["loss"]["types"], run.meta["loss"]["label_smoothing"]) == (["cdpo"], 0.1)


def test_messages_give_the_same_id_as_everywhere(tmp_path: Path, imported: Importing) -> None:
    prompt = [{"role": "user", "content": "q"}]
    chosen, rejected = ([{"role": "assistant", "content": c}] for c in "ab")
    rows = [{"step": 0, "chosen_sum_logp": -1, "rejected_sum_logp": -2, "prompt": prompt, "chosen": chosen,
             "rejected": rejected}]  # fmt: skip
    _, run = imported(write(tmp_path / "p.jsonl", rows))
    assert run.pairs["pair_id"].iloc[0] == make_pair_id(prompt, chosen, rejected)
    assert run.texts["prompt"].iloc[0] == "user: q"


def test_ren_and_sutherland(tmp_path: Path, imported: Importing) -> None:
    """2 evaluations, 3 metrics (chosen, argmax, rejected), 2 prompts; evaluation 0 is the reference."""
    array = np.array([[[-4.0, -6.0], [-3.0, -3.0], [-5.0, -7.0]], [[-3.0, -5.0], [-2.0, np.nan], [-9.0, -8.0]]])
    np.save(tmp_path / "logp.npy", array)
    keys = ["logps_eval_probe/chosen", "argmax_prob_logits", "logps_eval_probe/rejected"]
    (tmp_path / "metrics.json").write_text(
        "".join(json.dumps(dict(zip(keys, evaluation.mean(1).tolist(), strict=True))) + "\n" for evaluation in array)
    )
    texts = [{"prompt": "p", "chosen": "ab", "rejected": "c"}, {"prompt": "q", "chosen": "é", "rejected": "d"}]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(t) + "\n" for t in texts))
    result, run = imported(tmp_path, loss=("sigmoid",), beta=0.1)
    assert (result["format"], result["rows"], len(result["merged"])) == ("ren", 4, 3)
    pairs = run.pairs.set_index(["step", "pair_id", "side"])
    first = make_pair_id("p", "ab", "c")
    assert pairs.loc[(1, first, "chosen"), ["sum_logp", "ref_sum_logp", "n_bytes"]].tolist() == [-3.0, -4.0, 2.0]
    assert pairs.loc[(1, make_pair_id("q", "é", "d"), "chosen"), "n_bytes"] == 2
    assert pairs["n_tokens"].isna().all()
    assert value(run, "logps/rejected", 1, "eval_probe") == -8.5
    assert math.isnan(value(run, "older/argmax_prob_logits", 1, "eval_probe"))
    assert len(run.texts) == 2
    other = tmp_path / "elsewhere"
    other.mkdir()
    (tmp_path / "pairs.jsonl").rename(other / "pairs.jsonl")
    _, run = imported(tmp_path, texts=other / "pairs.jsonl")
    assert first in set(run.pairs["pair_id"])
    result, run = imported(tmp_path)
    assert set(run.pairs["pair_id"]) == {"prompt-00000", "prompt-00001"}
    assert any("bytes are not known" in n for n in result["notes"])


def test_negative_log_likelihoods_under_the_wrong_name_are_refused(tmp_path: Path, imported: Importing) -> None:
    """Every value above 0: read as log-probs they would turn every finding upside down."""
    path = tmp_path / "pairs.jsonl"
    rows = [
        {"step": s, "pair_id": f"p{i}", "chosen_sum_logp": 9.5, "rejected_sum_logp": 7.0} for s in (0, 5) for i in "ab"
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DiagError, match=r"log-probs are above 0; .*got 12 of 12 values; .*negate"):
        imported(path, "pairs")
