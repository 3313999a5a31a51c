"""Live guards, without a training: what they say, of which step and which pairs, and what they keep quiet about."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import SafetensorError

from dpo_diag.config_guards import GuardsConfig
from dpo_diag.errors import DiagError
from dpo_diag.losses import LossSpec
from dpo_diag.training.batch import Batch
from dpo_diag.training.batch_dump import dump_batch, read_dump
from dpo_diag.training.guards import Guards
from dpo_diag.training.guards.answers import Answers
from dpo_diag.training.guards.level import Level
from dpo_diag.training.same_loss import same_loss

Alerts = list[tuple[str, str, Any]]


def batch(loss: float, pair_ids: tuple[str, ...] = ("p",), sums: Any = None, tokens: Any = None) -> Batch:
    """Pairs of 4 tokens a side and -8 nats a side, unless said otherwise; (2, pairs)."""
    n = len(pair_ids)
    policy = {
        "sum_logp": np.full((2, n), -8.0) if sums is None else np.asarray(sums, dtype=float),
        "n_tokens": np.full((2, n), 4.0) if tokens is None else np.asarray(tokens, dtype=float),
    }
    policy["n_seen"] = policy["n_tokens"]
    return Batch([*pair_ids], np.arange(n), ("chosen", "rejected"), policy, loss=loss)


def guards_of(alerts: Alerts, **options: Any) -> Guards:
    return Guards(lambda *said: alerts.append(said), **options)


def run(guards: Guards, losses: Any, first: int = 0) -> None:
    for step, loss in enumerate(losses, first):
        guards.batch(batch(loss), step)
        guards.close(step)


def test_a_spike_is_judged_by_median_and_deviation() -> None:
    """Losses 0.6 and 0.7 in turn: median 0.65, deviation 0.05, the bound 0.65 + 10 * 0.05 = 1.15. 1.1 passes, 1.2
    does not; a constant loss has deviation 0 and the bound is the smallest rise that counts, 0.1."""
    alerts: Alerts = []
    for last in (1.1, 1.2):
        run(guards_of(alerts), [0.7, 0.6] * 20 + [last])
    assert [(code, evidence["step"], evidence["loss"]) for code, _, evidence in alerts] == [("loss_spike", 40, 1.2)]
    assert alerts[0][2]["bound"] == pytest.approx(1.15, abs=1e-9)
    alerts.clear()
    guards = guards_of(alerts, stop_on=("loss_spike",))
    run(guards, [0.5] * 25 + [0.59, 0.61, 0.5])
    assert [e["step"] for *_, e in alerts] == [26]
    assert guards.should_stop and alerts[0][1].endswith("; the run ends here (guards.actions: stop)")
    alerts.clear()
    guards = guards_of(alerts, thresholds={"guards": {"spike_min": 0.2, "spike_least_steps": 3}})
    run(guards, (0.5, 0.5, 0.5, 0.69, 0.71, 0.5))
    assert [e["step"] for *_, e in alerts] == [4]
    alerts.clear()
    run(guards_of(alerts), [math.nan] * 60)
    assert len(alerts) == 20  # a run that stays broken does not fill the disk
    assert [i for i, (_, said, _) in enumerate(alerts) if "the last of 20 such alerts" in said] == [19]
    assert [i for i, (*_, evidence) in enumerate(alerts) if "last_said" in evidence] == [19]
    with pytest.raises(DiagError, match=r"unknown guard.*loss_spikes.*did you mean loss_spike"):
        Guards(lambda *a: None, stop_on=("loss_spikes",))


def test_a_level_is_not_moved_by_what_stands_out_of_it() -> None:
    """0.5 for 20 values: the bound is 0.6. Nine spikes of 1 and a value of 0.5 between them and nine more: the window
    still holds only 0.5, so that the last one stands as far out as the first. A window that took them in would have
    median 0.5 and deviation 0.5 by then (18 of 38), and a bound of 5.5: the second nine would pass."""
    level = Level(window=50, least=20, mads=10, least_rise=lambda _: 0.1, persists=10)
    assert [level.judge(0.5) for _ in range(20)] == [None] * 20
    spikes = [level.judge(v) for v in [1.0] * 9 + [0.5] + [1.0] * 9]
    assert spikes[9] is None
    said = [s for s in spikes if s is not None]
    assert len(said) == 18 and {(s.median, s.mad, s.is_level) for s in said} == {(0.5, 0.0, False)}
    assert [s.bound for s in said] == [pytest.approx(0.6)] * 18
    assert [s.held for s in said] == [*range(1, 10), *range(1, 10)]
    assert said[-1].n == 21


def test_what_stays_is_the_new_level() -> None:
    """The tenth value of 1 in a row is the last that is reported: from then on 1 is the level, judged again when 20 of
    it are known; a spike out of it is reported, and 0.5 is none."""
    level = Level(window=50, least=20, mads=10, least_rise=lambda _: 0.1, persists=10)
    for _ in range(20):
        level.judge(0.5)
    said = [level.judge(1.0) for _ in range(25)]
    assert [s is not None for s in said] == [True] * 10 + [False] * 15
    assert said[9] is not None and said[9].is_level
    assert level.judge(0.5) is None
    spike = level.judge(1.2)
    assert spike is not None and (spike.median, spike.held) == (1.0, 1)


def test_a_spike_names_the_pairs_the_longest_and_the_least_likely() -> None:
    """Two micro-batches of one step: pairs a (4 + 4 tokens, -2 nats a token), b (40 + 2, -1), c (1 + 1, -9), d."""
    alerts: Alerts = []
    guards = guards_of(alerts)
    run(guards, [0.5] * 20)
    guards.batch(batch(3.0, ("a", "b"), [[-8, -40], [-8, -2]], [[4, 40], [4, 2]]), 20)
    guards.batch(batch(0.5, ("c", "d"), [[-9, -4], [-9, -4]], [[1, 4], [1, 4]]), 20)
    guards.close(20, grad_norm=7.0)
    [(code, message, evidence)] = alerts
    assert code == "loss_spike" and message.startswith("loss 1.75 in step 20: the 20 steps before have median 0.5")
    assert message.endswith("; of its 4 rows c is the least likely (-9 nats per token), b is the longest (42 tokens)")
    assert (evidence["loss"], evidence["grad_norm"], evidence["pair_ids"]) == (1.75, 7.0, ["a", "b", "c", "d"])
    assert [(row["pair_id"], row["tokens"]) for row in evidence["longest"]] == [("b", 42.0), ("a", 8.0), ("d", 8.0)]
    assert [(row["pair_id"], row["logp_per_token"]) for row in evidence["least_likely"]] == [
        ("c", -9.0), ("a", -2.0), ("b", -1.0),
    ]  # fmt: skip


def test_a_gradient_stands_out_from_four_times_its_median_on() -> None:
    alerts: Alerts = []
    guards = guards_of(alerts)
    for step, norm in enumerate([2.0] * 20 + [7.9, 8.1, 2.0]):
        guards.batch(batch(0.5), step)
        guards.close(step, grad_norm=norm)
    assert [(code, e["step"], e["grad_norm"], e["bound"]) for code, _, e in alerts] == [("grad_spike", 21, 8.1, 8.0)]


def test_nan_in_loss_log_probs_and_gradient_and_the_scaler_that_tries_scales() -> None:
    """One micro-batch of two is NaN: the step's loss is that of the other one, and its pairs are named. A gradient that
    overflows under a scaler is silence."""
    alerts: Alerts = []
    guards = guards_of(alerts)
    guards.batch(batch(0.7, ("a", "b")), 1)
    guards.batch(batch(math.nan, ("c", "d"), [[-8, math.nan], [-8, -8]]), 1)
    guards.close(1)
    guards.batch(batch(0.7, ("a", "b"), [[-8, -math.inf], [-8, -8]]), 2)
    guards.close(2, grad_norm=math.nan)
    guards.batch(batch(0.7), 3)
    guards.close(3, grad_norm=math.inf, overflows=True)
    guards.batch(batch(0.7), 4)
    guards.close(4, grad_norm=math.inf)
    assert [(code, e["step"], e["pair_ids"]) for code, _, e in alerts] == [
        ("non_finite_loss", 1, ["d"]), ("non_finite_logp", 2, ["b"]), ("non_finite_grad", 4, ["p"]),
    ]  # fmt: skip
    assert alerts[0][1].startswith("loss is nan in step 1; 1 of 4 rows have non-finite log-probs; pair ")


def test_all_processes_judge_alike_and_one_writes() -> None:
    """Two processes, one of which sees the NaN: both are told to skip, by the rows of both; the main one writes."""
    answers = Answers.of(GuardsConfig(actions={"non_finite_loss": "skip"}))
    said: list[tuple[int, str, list[str]]] = []
    pair = [
        Guards(lambda c, _, e, r=rank: said.append((r, c, e["pair_ids"])), answers=answers)  # type: ignore[misc]
        for rank in (0, 1)
    ]
    pair[1].main = False
    pair[0].batch(batch(0.7, ("a",)), 1)
    pair[1].batch(batch(math.nan, ("b",), [[math.nan], [-8]]), 1)
    shared: list[list[Any]] = []

    def first_pass(value: Any) -> list[Any]:
        shared.append([value])
        return [value]

    probe = Guards(lambda *_: None)  # what the second process hands in, call by call
    probe.batch(batch(math.nan, ("b",), [[math.nan], [-8]]), 1)
    probe.close(1, first_pass)
    theirs = iter([values[0] for values in shared])
    raised = pair[0].close(1, lambda value: [value, next(theirs)])
    assert [(one.code, one.action) for one in raised] == [("non_finite_loss", "skip")]
    assert said == [(0, "non_finite_loss", ["b"])]
    assert [one.action for one in pair[1].close(1, lambda value: [value, value])] == ["skip"]
    assert len(said) == 1


def test_answers_are_checked() -> None:
    given = Answers.of(GuardsConfig(stop=["loss_spike"], actions={"grad_spike": "scale_lr"}))
    assert (given.to("loss_spike"), given.to("grad_spike"), given.to("non_finite_loss")) == ("stop", "scale_lr", "warn")
    for config, words in (
        (GuardsConfig(actions={"grad_spikes": "skip"}), "unknown guard.*grad_spikes"),
        (GuardsConfig(actions={"grad_spike": "jump"}), "unknown action.*guards.actions.grad_spike.*jump"),
        (GuardsConfig(actions={"reference_mismatch": "skip"}), "skip is no answer to reference_mismatch"),
        (GuardsConfig(lr_factor=1.0), "guards.lr_factor"),
        (GuardsConfig(max_restores=0), "guards.max_restores"),
    ):
        with pytest.raises(DiagError, match=words):
            Answers.of(config)


# ---- what is seen at evaluations, and of the machine: one where it must speak, one where it must not ----


def evaluated(code: str, *evaluations: dict[str, float], **limits: float) -> list[int]:
    """Steps (0, 10, 20, ...) at which a code speaks about the set eval_x."""
    alerts: Alerts = []
    guards = guards_of(alerts, thresholds={"guards": limits})
    for i, values in enumerate(evaluations):
        guards.evaluated("eval_x", values, 10 * i)
    return [e["step"] for c, _, e in alerts if c == code]


# ---- what a schedule does ----


def moving(weights: list[float], nll: list[float], norms: list[float], *, told: bool = True) -> list[tuple[str, int]]:
    """What is said of a loss ln 2 + weight x nll whose weight a schedule moves, step by step from step 1 on."""
    alerts: Alerts = []
    guards, began = guards_of(alerts), LossSpec(types=("sigmoid", "sft_sum"), weights=(1.0, weights[0]))
    for step, (weight, each, norm) in enumerate(zip(weights, nll, norms, strict=True), 1):
        spec, sums = began.with_value("sft_sum", weight), {"sum_logp": np.full((2, 1), -each)}
        of = replace(batch(math.log(2) + weight * each, sums=sums["sum_logp"]), reference=sums)
        guards.batch(of, step, same_loss(of, spec, began) if told and spec != began else None)
        guards.close(step, grad_norm=norm)
    return [(code, e["step"]) for code, _, e in alerts]


def test_what_a_schedule_moves_is_no_spike() -> None:
    """Weight 0.1 for 25 steps, then half as much again at each of ten, up to 5.8: the loss goes from 0.79 to 6.5 and
    the gradient with it, and nothing is said, where the bare numbers would speak; nor on the way back. A batch that is
    ten times as unlikely meanwhile is a spike, and so is a gradient ten times as large."""
    up = [0.1] * 25 + [0.1 * 1.5**i for i in range(1, 11)]
    weights = [*up, *up[::-1]]
    steady, norms = [1.0] * 70, [0.5 + w for w in weights]
    assert moving(weights, steady, norms) == []
    assert {code for code, _ in moving(weights, steady, norms, told=False)} == {"loss_spike", "grad_spike"}
    worse = [10.0 if step == 31 else 1.0 for step in range(1, 71)]
    assert moving(weights, worse, [n * (10 if e > 1 else 1) for n, e in zip(norms, worse, strict=True)]) == [
        ("loss_spike", 31), ("grad_spike", 31),
    ]  # fmt: skip


def test_the_same_loss_by_hand() -> None:
    """a 1, b -1: under beta 2 log(1 + e^-4), under the beta 1 of the beginning log(1 + e^-2) = .126928. Its slope is
    2 sigmoid(-4) = .035973 for each side against sigmoid(-2) = .119203: .301776 times as steep. A loss that couples the
    pairs of a batch, .6 under three times the beta: .2, and 3. Epsilon's beta of a pair follows the common one."""
    began, now = LossSpec(beta=1.0), LossSpec(beta=2.0)
    ratios = {"sum_logp": np.array([[-7.0], [-9.0]])}
    of = replace(batch(0.01815, sums=ratios["sum_logp"]), reference={"sum_logp": np.full((2, 1), -8.0)})
    assert same_loss(of, now, began) == pytest.approx((0.126928, 0.301776), abs=1e-5)
    own = replace(of, of_row={"beta": np.array([2.0])})
    pair = [LossSpec(types=("epsilon_dpo",), beta=beta) for beta in (2.0, 1.0)]
    assert same_loss(own, *pair) == pytest.approx((0.126928, 0.301776), abs=1e-5)
    coupled = [LossSpec(types=("aot",), beta=beta) for beta in (0.3, 0.1)]
    assert same_loss(replace(of, loss=0.6), *coupled) == pytest.approx((0.2, 3.0))


def test_displacement_beyond_the_bound_against_the_first_evaluation() -> None:
    """1.5 at first, the bound is 1.8: 1.79 is silence, 1.81 speaks, and so does each later evaluation beyond it."""
    ce = [{"ce/chosen": v} for v in (1.5, 1.79, 1.81, 1.9, 1.6)]
    assert evaluated("displacement", *ce) == [20, 30]
    assert evaluated("displacement", *ce, displacement_ce=0.45) == []


def test_both_fall_while_the_margin_rises_in_two_evaluations() -> None:
    """Both 0.06 and 0.5 nats a token less likely, margin up: from the second such evaluation on. Not where chosen rose,
    not where the margin fell."""
    start = {"ce/chosen": 1.0, "ce/rejected": 1.0, "rewards/margins": 0.0}
    down = {"ce/chosen": 1.06, "ce/rejected": 1.5, "rewards/margins": 0.4}
    assert evaluated("both_fall", start, down, down, down) == [20, 30]
    assert evaluated("both_fall", start, down, start, down) == []
    assert evaluated("both_fall", start, *[down | {"ce/chosen": 0.9}] * 3) == []
    assert evaluated("both_fall", start, *[down | {"rewards/margins": -0.1}] * 3) == []


def test_entropy_collapse_below_half_of_the_first() -> None:
    assert evaluated("entropy_collapse", *({"entropy/chosen": v} for v in (2.0, 1.01, 0.99))) == [20]
    assert evaluated("entropy_collapse", *({"entropy/response": v} for v in (2.0, 0.5))) == [10]
    assert evaluated("entropy_collapse", {"ce/chosen": 2.0}, {"ce/chosen": 0.5}) == []


def stepped(code: str, *steps: dict[str, Any], **limits: float) -> list[int]:
    alerts: Alerts = []
    guards = guards_of(alerts, thresholds={"guards": limits})
    for i, facts in enumerate(steps, 1):
        guards.close(i, **facts)
    return [e["step"] for c, _, e in alerts if c == code]


def test_dead_gradients_after_ten_steps_in_a_row() -> None:
    """Once at the tenth of a stretch; nine and a live one are silence."""
    dead, live = {"grad_norm": 0.0}, {"grad_norm": 1e-6}
    assert stepped("dead_gradients", *[dead] * 15, live, *[dead] * 10) == [10, 26]
    assert stepped("dead_gradients", *[*[dead] * 9, live] * 3) == []
    assert stepped("dead_gradients", *[{"grad_norm": math.nan}] * 15) == []


def test_a_log_with_a_row_every_four_steps_counts_steps() -> None:
    """Rows of steps 4, 8, 12 and 16 without a gradient: from 4 to 12 are nine, to 16 thirteen, said once; a live row
    at 12 begins anew. A spike is told against rows, not steps."""
    for norms, expected in (([0.0] * 5, [16]), ([0.0, 0.0, 1.0, 0.0, 0.0], [])):
        alerts: Alerts = []
        guards = guards_of(alerts)
        for i, norm in enumerate(norms, 1):
            guards.logged(0.5, 4 * i, norm)
        assert [e["step"] for code, _, e in alerts if code == "dead_gradients"] == expected
    alerts = []
    guards = guards_of(alerts)
    for i, loss in enumerate([0.5] * 20 + [3.0], 1):
        guards.logged(loss, 10 * i)
    assert "in step 210: the 20 logged rows before have median 0.5" in alerts[0][1]


def test_memory_near_its_limit_once_and_again_where_it_grows() -> None:
    use = [{"memory": (share, 100.0)} for share in (94.9, 95.0, 95.9, 96.1, 50.0)]
    assert stepped("memory_limit", *use) == [2, 4]
    assert stepped("memory_limit", *[{"memory": None}] * 3) == []


def test_throughput_at_half_for_ten_steps() -> None:
    """1 second for 100 positions, then 2.1: said at the tenth slow step. 1.9 is silence, and so are long steps of long
    batches, and nine slow ones."""
    usual, slow = {"seconds": 1.0, "positions": 100}, {"seconds": 2.1, "positions": 100}
    assert stepped("throughput_drop", *[usual] * 20, *[slow] * 30) == [30]
    assert stepped("throughput_drop", *[usual] * 20, *[slow | {"seconds": 1.9}] * 30) == []
    assert stepped("throughput_drop", *[usual] * 20, *[{"seconds": 3.0, "positions": 300}] * 30) == []
    assert stepped("throughput_drop", *[usual] * 20, *[*[slow] * 9, usual] * 3) == []


def test_what_the_guards_knew_comes_back() -> None:
    """The first evaluation, the second of two in which both fell, and nine steps without a gradient."""
    start = {"ce/chosen": 1.0, "ce/rejected": 1.0, "rewards/margins": 0.0}
    down = {"ce/chosen": 1.4, "ce/rejected": 1.5, "rewards/margins": 0.4}
    before, alerts = guards_of([]), []
    for step in range(9):
        before.close(step, grad_norm=0.0)
    before.evaluated("eval", start, 0)
    before.evaluated("eval", down, 9)
    after = guards_of(alerts)
    after.recall({name: np.asarray(value) for name, value in before.memory().items()})
    after.close(10, grad_norm=0.0)
    after.evaluated("eval", down, 10)
    assert [code for code, *_ in alerts] == ["dead_gradients", "displacement", "both_fall"]


def test_shares_of_a_step_are_added_up() -> None:
    """SFT's loss of a micro-batch is its share of the step's, so that 4 of 0.25 are a step of 1.0, and so is the one
    micro-batch of 1.0 at the end of an epoch: no spike, while 4 of 0.3 are 1.2, above the bound of 1.1. Micro-batches
    of pairs are a mean each: 4 of 1.0 are 1.0."""
    alerts: Alerts = []
    for is_share, share, last in ((True, 0.25, [0.3] * 4), (False, 1.0, [1.2] * 4)):
        guards = guards_of(alerts)
        for step, losses in enumerate([*[[share] * 4] * 25, [1.0], last]):
            for loss in losses:
                guards.batch(replace(batch(loss), is_share=is_share), step)
            guards.close(step)
    assert [(code, e["step"], e["loss"], e["n_pairs"]) for code, _, e in alerts] == [
        ("loss_spike", 26, pytest.approx(1.2), 4)
    ] * 2


def test_a_set_with_a_slash_in_its_name_is_remembered() -> None:
    """Of the set `org/set` the first evaluation had 1 nat per token: after a resume 1.2 is 0.2 above it, and silent,
    and 1.4 is 0.4 above it."""
    alerts: Alerts = []
    before = guards_of(alerts)
    before.evaluated("eval_org/set", {"ce/chosen": 1.0, "entropy": 2.0, "entropy/chosen": 3.0}, 0)
    after = guards_of(alerts)
    after.recall(before.memory())
    after.evaluated("eval_org/set", {"ce/chosen": 1.2, "entropy": 2.0, "entropy/chosen": 3.0}, 5)
    assert alerts == []
    after.evaluated("eval_org/set", {"ce/chosen": 1.4, "entropy": 2.0, "entropy/chosen": 3.0}, 6)
    assert [(code, e["step"], e["rise"]) for code, _, e in alerts] == [("displacement", 6, pytest.approx(0.4))]


def test_a_kept_batch_on_a_bad_disk_and_a_damaged_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk is an OSError, which the trainer bears; what cannot be read is told in a line."""
    sample = {"input_ids": torch.arange(4).view(1, 4)}
    facts = {"step": 3, "codes": ["loss_spike"], "loss": "nan", "processes": 1, "num_items": None}
    dump_batch(tmp_path, [sample], rank=0, facts=facts, weights=None)
    found, samples = read_dump(tmp_path)
    assert (found["step"], samples[0]["input_ids"].tolist()) == (3, [[0, 1, 2, 3]])

    def full(*_: Any) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    with monkeypatch.context() as patch:
        patch.setattr("dpo_diag.training.batch_dump.save_file", full)
        with pytest.raises(OSError, match="No space left"):
            dump_batch(tmp_path, [sample], rank=0, facts=facts, weights=None)
    part = tmp_path / "batch.r0.safetensors"
    part.write_bytes(part.read_bytes()[:-5])
    with pytest.raises(DiagError, match="a kept batch cannot be read"):
        read_dump(tmp_path)
    for text, what in (("{", "is not JSON"), ("[]", "no object"), ('{"step": "3"}', "description is damaged")):
        (tmp_path / "step.json").write_text(text, encoding="utf-8")
        with pytest.raises(DiagError, match=what):
            read_dump(tmp_path)


def test_pairs_are_named_and_what_ended_the_run_is_known() -> None:
    """Five rows, four of them bad: three are named, all stand in the evidence; the second stop is not what ended it."""
    alerts: Alerts = []
    guards = guards_of(alerts, stop_on=("non_finite_loss",))
    assert guards.stopped is None
    sums = np.full((2, 5), -8.0)
    sums[0, 1:] = math.nan
    for step in (3, 4):
        guards.batch(batch(math.nan, ("a", "b", "c", "d", "e"), sums), step)
        guards.close(step)
    assert "4 of 5 rows have non-finite log-probs; pairs b, c, d and 1 more; the run ends here" in alerts[0][1]
    assert alerts[0][2]["pair_ids"] == ["b", "c", "d", "e"]
    assert guards.stopped is not None and (guards.stopped.code, guards.stopped.step) == ("non_finite_loss", 3)
