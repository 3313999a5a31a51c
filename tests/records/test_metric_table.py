"""The metric table: one entry a quantity, its value from sums and counts, its aliases in other trainers."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from dpo_diag.losses import LossSpec
from dpo_diag.records.metric_aliases import ALIASES, canonical, logged_names
from dpo_diag.records.metric_table import METRICS, PairSums, label_of, measure, metric_of, pair_sums, side_of


def sums() -> PairSums:
    """Two pairs: chosen -2 over 2 and -6 over 3 tokens, rejected -4 over 2 and -3 over 1; reference 0.5 and 1 off."""
    return PairSums(
        policy={
            "sum_logp": np.array([[-2.0, -6.0], [-4.0, -3.0]]),
            "n_tokens": np.array([[2.0, 3.0], [2.0, 1.0]]),
            "n_bytes": np.array([[8.0, 12.0], [8.0, 4.0]]),
            "top1_hits": np.array([[2.0, 1.0], [1.0, 0.0]]),
            "entropy_sum": np.array([[1.0, 2.0], [3.0, 0.0]]),
        },
        reference={"sum_logp": np.array([[-2.5, -5.0], [-3.0, -2.0]])},
    )


def test_values_of_a_side() -> None:
    """Chosen: ce 1 and 2, so mean 1.5; 8 nats over 5 tokens and 20 bytes; 3 of 5 tokens first; entropy 3 over 5."""
    values = measure(sums())
    expected = {
        "ce/chosen": (1.5, 2), "ppl_token/chosen": (math.exp(1.6), 5),
        "ppl_seq_mean/chosen": ((math.e + math.e**2) / 2, 2), "ppl_seq_geomean/chosen": (math.exp(1.5), 2),
        "bits_per_byte/chosen": (8 / (20 * math.log(2)), 20), "top1/chosen": (0.6, 5), "entropy/chosen": (0.6, 5),
        "ce/rejected": (2.5, 2), "top1/rejected": (1 / 3, 3),
    }  # fmt: skip
    for name, (value, weight) in expected.items():
        assert values[name].value == pytest.approx(value), name
        assert values[name].weight == weight, name
    assert "top5/chosen" not in values  # not recorded
    assert "greedy_logp/chosen" not in values


def test_values_of_pairs() -> None:
    """Log-ratios: chosen 0.5 and -1, rejected -1 and -1. Margins at beta 0.1: 0.15 and 0; chosen fell in one pair, and
    rejected with it."""
    names = ["rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies", "loss", "logps",
             "pairs/both_fell", "pairs/chosen_fell"]  # fmt: skip
    values = {n: v.value for n, v in measure(sums(), LossSpec(beta=0.1), names).items()}
    loss = (math.log1p(math.exp(-0.15)) + math.log(2)) / 2
    assert values == pytest.approx({
        "logps/chosen": -4.0, "logps/rejected": -3.5, "rewards/chosen": -0.025, "rewards/rejected": -0.1,
        "rewards/margins": 0.075, "rewards/accuracies": 0.5, "loss": loss, "pairs/both_fell": 0.5,
        "pairs/chosen_fell": 0.5,
    })  # fmt: skip


def test_what_cannot_be_known_is_absent() -> None:
    bare = PairSums({"sum_logp": np.zeros((2, 1)), "n_tokens": np.zeros((2, 1))})
    assert measure(bare, LossSpec()) == {}  # no response of any token, no reference
    assert measure(PairSums({"sum_logp": np.zeros((2, 0)), "n_tokens": np.zeros((2, 0))})) == {}
    assert "rewards/margins" not in measure(sums(), None, ["rewards/margins"])  # beta is not known
    assert "loss" not in measure(sums(), LossSpec(types=("aot",)), ["loss"])  # couples the pairs of a batch


def test_packed_rows_have_no_metric_per_response() -> None:
    rows = PairSums(sums().policy, sides=("response", "prompt"), packed=True)
    assert {n for n in measure(rows) if n.endswith("/response")} == {
        "ppl_token/response", "bits_per_byte/response", "top1/response", "entropy/response",
    }  # fmt: skip


def test_pair_records_give_the_same_as_a_batch() -> None:
    """The same two pairs as records, in another order, with a third that has one side only."""
    policy, reference = sums().policy, sums().reference
    rows = [
        {"pair_id": f"p{i}", "side": side, "sum_logp": policy["sum_logp"][s][i], "n_tokens": policy["n_tokens"][s][i],
         "n_bytes": policy["n_bytes"][s][i], "top1": policy["top1_hits"][s][i] / policy["n_tokens"][s][i],
         "entropy_sum": policy["entropy_sum"][s][i], "greedy_logp_sum": None}
        for i in (1, 0) for s, side in enumerate(("chosen", "rejected"))
    ]  # fmt: skip
    alone = {**rows[0], "pair_id": "alone"}
    of = [
        {"pair_id": f"p{i}", "side": side, "sum_logp": reference["sum_logp"][s][i]}
        for i in (0, 1) for s, side in enumerate(("chosen", "rejected"))
    ]  # fmt: skip
    measured = measure(pair_sums(pd.DataFrame([*rows, alone]), pd.DataFrame(of)))
    expected = measure(sums())
    assert measured.keys() == expected.keys()
    for name, value in expected.items():
        assert measured[name] == pytest.approx(value), name


def test_names_labels_and_sides() -> None:
    assert [label_of(n) for n in ("ce/chosen", "rewards/margins", "ppl_token/prompt", "score/exact_match", "mine")] == [
        "chosen cross-entropy (nats/token)", "reward margin", "prompt ppl_token", "exact match", "mine",
    ]  # fmt: skip
    assert [side_of(n) for n in ("ce/chosen", "rewards/chosen", "score/chosen_format", "loss")] == [
        "chosen", None, None, None,
    ]  # fmt: skip
    assert metric_of("top1/rejected") is METRICS["top1"]
    assert metric_of("eval_loss") is None


def test_every_alias_stands_for_a_metric() -> None:
    """Names that ORPO and other losses add are kept, too; `eval/` only says the split. GRPO's reward is none: it is
    named so that a log of it can be refused."""
    unknown = {a.name for a in ALIASES if metric_of(a.name.removeprefix("eval/")) is None}
    assert unknown == {"reward"}


def test_a_key_on_which_trainers_disagree_needs_the_trainer() -> None:
    """OpenRLHF's acc is the share of positive margins, ms-swift's the token accuracy."""
    assert canonical("acc", "openrlhf") == "rewards/accuracies"
    assert canonical("acc", "ms-swift") == "mean_token_accuracy"
    assert canonical("acc") is None
    assert canonical("policy_chosen_logps") == "logps/chosen"
    assert canonical("validation loss", "unsloth") == "eval/loss"
    assert "acc" not in logged_names("rewards/accuracies")
    assert "reward_margins" in logged_names("rewards/margins")
    assert logged_names("loss")[0] == "loss"
    assert "preference_loss" not in logged_names("loss")  # the preference part alone is another quantity


def test_every_entry_is_whole() -> None:
    for name, metric in METRICS.items():
        assert metric.description and metric.unit and metric.label, name
        assert metric.better in ("higher", "lower", "neither"), name
        assert not (metric.of_side and not metric.sides), name
        assert not (metric.of_side and metric.of_each), name
        assert all(metric_of(other) for other in metric.stand_ins), name
