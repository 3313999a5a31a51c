"""The simulated runs: one cause or a pair of causes each, at several strengths and noise levels, and healthy ones.

`truth`: codes that the plan plants. `follows`: codes that may speak too because they are true of the planted run (a
diverging run is not learning, say). Strength "clear" exceeds the noise by design and must be found; "weak" lies inside
it or near it, and may be passed over or answered with "cannot tell".
"""

from __future__ import annotations

from benchmarks.diagnosis.simulate import Plan
from dpo_diag.losses import LossSpec

HEALTHY: dict[str, Plan] = {
    "full records": Plan(),
    "full records, scores": Plan(score=(0.60, 0.63, 0.66), score_seen=(0.62, 0.66, 0.68)),
    "training means only": Plan(pairs=False, evaluations=False),
    "evaluation means only": Plan(pairs=False, train=False),
    "training and evaluation means": Plan(pairs=False, loss_known=False),
    "ten rows": Plan(pairs=False, evaluations=False, rows=10, steps=100, batch=64),
    "fifteen rows, loss unknown": Plan(pairs=False, evaluations=False, rows=15, steps=150, loss_known=False, batch=64),
    "sparse logging": Plan(pairs=False, evals=3, rows=8, steps=1600, batch=128),
    "rewards without logps": Plan(pairs=False, evaluations=False, logps=False, loss_known=False),
    "loss and accuracy only": Plan(pairs=False, evaluations=False, logps=False, rewards=False, loss_known=False,
                                   accuracy_name="accuracy", batch=64),
    "mean logps": Plan(pairs=False, mean_logps=True, rewards=False),
    "SFT term": Plan(pairs=False, nll=1.0, chosen=0.06, loss=LossSpec(types=("sigmoid",))),
    "SFT term, loss unknown": Plan(pairs=False, nll=1.0, chosen=0.06, loss_known=False),
    "label smoothing": Plan(pairs=False, loss=LossSpec(types=("cdpo",), label_smoothing=0.1)),
    "ipo": Plan(pairs=False, loss=LossSpec(types=("ipo",), beta=0.5), mean_logps=True, rejected=-0.15, chosen=0.05),
    "hinge": Plan(pairs=False, loss=LossSpec(types=("hinge",))),
    "no reference": Plan(pairs=False, reference_free=True, loss_known=False, evaluations=False, rejected=-0.3),
    "long warm-up": Plan(pairs=False, warmup=0.4),
    "no warm-up": Plan(pairs=False, warmup=0.0, evaluations=False, loss_known=False),
    "four epochs, stairs": Plan(pairs=False, epochs=4, stair=0.7, rejected=-0.2, evaluations=False),
    "batch of four": Plan(pairs=False, batch=4, rows=120, steps=600),
    "batch of one, 400 rows": Plan(pairs=False, batch=1, rows=400, steps=2000, evaluations=False, loss_known=False),
    "falls fast": Plan(pairs=False, speed=12.0, rejected=-0.15, evaluations=False,
                       loss=LossSpec(beta=0.5)),
    "long responses": Plan(length=300.0, chosen=0.004, rejected=-0.02, spread=0.008),
    "wide spread": Plan(spread=0.15, n_pairs=200, chosen=0.05, rejected=-0.2),
    "rejected longer": Plan(length_gap=25.0),
    "high beta": Plan(loss=LossSpec(beta=0.5), chosen=0.01, rejected=-0.04, spread=0.02),
}  # fmt: skip

_MEANS = Plan(pairs=False, evaluations=False)
_FALLEN = ("DVG001",)

CAUSES: dict[str, list[Plan]] = {
    "displacement": [
        Plan(truth=_FALLEN, strength="clear", chosen=-0.10, rejected=-0.30),
        Plan(truth=_FALLEN, strength="clear", chosen=-0.06, rejected=-0.20, spread=0.12, n_pairs=200),
        Plan(truth=_FALLEN, strength="weak", chosen=-0.01, rejected=-0.14, spread=0.12, n_pairs=30),
        _MEANS.but(truth=_FALLEN, strength="clear", chosen=-0.15, rejected=-0.35),
        _MEANS.but(truth=_FALLEN, strength="clear", chosen=-0.15, rejected=-0.35, logps=False, loss_known=False),
        _MEANS.but(truth=_FALLEN, strength="clear", chosen=-0.3, rejected=-0.55, rewards=False, mean_logps=True,
                   batch=128, follows=("DVG002",)),
        _MEANS.but(truth=_FALLEN, strength="weak", chosen=-0.03, rejected=-0.2, batch=2, rows=16, steps=160),
        Plan(pairs=False, train=False, truth=_FALLEN, strength="clear", chosen=-0.10, rejected=-0.3),
    ],
    "late displacement": [
        Plan(truth=_FALLEN, strength="clear", chosen=0.10, rejected=-0.2, turn=-0.12, evals=11, follows=("DVG002",)),
        _MEANS.but(truth=_FALLEN, strength="clear", chosen=0.2, rejected=-0.2, turn=-0.3, rows=80, steps=400,
                   follows=("DVG002",)),
    ],
    "rejected collapse": [
        Plan(truth=("DVG002",), strength="clear", chosen=0.03, rejected=-1.6, follows=("DVG010",)),
        Plan(pairs=False, truth=("DVG002",), strength="clear", chosen=0.03, rejected=-1.6, follows=("DVG010",)),
        _MEANS.but(truth=("DVG002",), strength="clear", chosen=0.03, rejected=-1.6, logps=False, loss_known=False,
                   follows=("DVG010",)),
        Plan(truth=("DVG002",), strength="weak", chosen=0.03, rejected=-0.33),
    ],
    "aggregator": [
        Plan(truth=("DVG003",), strength="clear", hard_pairs=4, hard_ce=2.0, chosen=0.08,
             follows=("DVG004", "DVG001", "DVG009", "DVG016", "DVG020")),
        Plan(truth=("DVG003",), strength="weak", hard_pairs=3, hard_ce=0.4, chosen=0.01, follows=("DVG004",)),
    ],
    "few hard pairs": [
        Plan(truth=("DVG004",), strength="clear", hard_pairs=5, hard_ce=2.0, chosen=-0.02,
             follows=("DVG001", "DVG003", "DVG009", "DVG016", "DVG020")),
        Plan(truth=("DVG004",), strength="clear", hard_pairs=3, hard_ce=3.0, chosen=0.0, spread=0.02,
             follows=("DVG001", "DVG003", "DVG009", "DVG016", "DVG020")),
    ],
    "length": [
        Plan(truth=("DVG005",), strength="clear", chosen=-0.10, rejected=-0.10, spread=0.04, length_gap=40.0,
             follows=("DVG001",)),
        Plan(truth=("DVG005",), strength="clear", chosen=0.0, easy_gain=0.06, spread=0.02,
             follows=("DVG003", "DVG001")),
    ],
    "truncation": [
        Plan(truth=("DVG006",), strength="clear", cut_share=0.25),
        Plan(truth=("DVG006",), strength="clear", end_token=3.0, chosen=-0.03, follows=("DVG001",)),
        Plan(truth=("DVG006",), strength="weak", cut_share=0.03),
    ],
    "reference mismatch": [
        Plan(truth=("DVG007",), strength="clear", offset=4.0),
        _MEANS.but(truth=("DVG007",), strength="clear", offset=12.0, batch=64, loss_known=True),
        _MEANS.but(truth=("DVG007",), strength="weak", offset=0.5, batch=16, loss_known=True),
    ],
    "dead": [
        _MEANS.but(truth=("DVG008",), strength="clear", frozen=True, follows=("DVG009", "DVG007")),
        Plan(truth=("DVG008",), strength="clear", frozen=True, follows=("DVG009",)),
    ],
    "not learning": [
        _MEANS.but(truth=("DVG009",), strength="clear", chosen=0.0, rejected=0.0, rows=60, steps=300),
        Plan(truth=("DVG009",), strength="clear", chosen=0.0, rejected=0.0, spread=0.004),
        _MEANS.but(truth=("DVG009",), strength="clear", chosen=0.0, rejected=0.0, rows=150, steps=600, batch=4,
                   rewards=False, logps=False, loss_known=False),
        _MEANS.but(truth=("DVG009",), strength="weak", chosen=0.0, rejected=-0.01, rows=10, steps=100, batch=2),
    ],
    "saturated": [
        Plan(truth=("DVG010",), strength="clear", chosen=0.2, rejected=-2.5, speed=6.0, follows=("DVG002",)),
        _MEANS.but(truth=("DVG010",), strength="clear", chosen=0.2, rejected=-2.5, speed=6.0, loss_known=False,
                   follows=("DVG002",)),
        _MEANS.but(truth=("DVG010",), strength="clear", chosen=0.1, rejected=-0.42, speed=6.0, spread=0.005,
                   to_floor=True, loss=LossSpec(types=("cdpo",), label_smoothing=0.1), batch=64,
                   follows=("DVG002", "DVG023")),
    ],
    "NaN": [
        _MEANS.but(truth=("DVG011",), strength="clear", nan_rows=3),
        Plan(truth=("DVG011",), strength="clear", nan_pairs=2),
    ],
    "squeezing": [
        Plan(truth=("DVG012", "DVG001"), strength="clear", chosen=-0.10, rejected=-0.30, entropy=-0.2, greedy=0.08),
        _MEANS.but(truth=("DVG012", "DVG001"), strength="clear", chosen=-0.2, rejected=-0.4, entropy=-0.3,
                   follows=("DVG002",)),
    ],
    "memorisation": [
        Plan(truth=("DVG013",), strength="clear", score=(0.60, 0.55, 0.50), score_seen=(0.60, 0.75, 0.85),
             questions=600, follows=("DVG019", "DVG025")),
        Plan(truth=("DVG013",), strength="weak", score=(0.60, 0.59, 0.58), score_seen=(0.60, 0.62, 0.65), questions=80),
    ],
    "data": [
        Plan(truth=("DVG014",), strength="clear", flipped=6),
        Plan(truth=("DVG014",), strength="clear", leaked=10),
    ],
    "tokenizers": [Plan(truth=("DVG015",), strength="clear", recounted=True, follows=("DVG003", "DVG005"))],
    "spikes": [
        _MEANS.but(truth=("DVG016",), strength="clear", spikes=1, spike_size=1.5),
        _MEANS.but(truth=("DVG016",), strength="clear", spikes=3, spike_size=0.8, rows=80, steps=400),
        _MEANS.but(truth=("DVG016",), strength="weak", spikes=1, spike_size=0.1),
    ],
    "accuracy": [Plan(truth=("DVG017",), strength="clear", accuracy_without_reference=True)],
    "benign": [
        Plan(truth=("DVG018", "DVG001"), strength="clear", chosen=-0.08, rejected=-0.25, score=(0.60, 0.64, 0.68),
             questions=1500),
        Plan(truth=("DVG018", "DVG001"), strength="weak", chosen=-0.08, rejected=-0.25, score=(0.60, 0.61, 0.60),
             questions=100),
    ],
    "best is not last": [
        Plan(truth=("DVG019",), strength="clear", score=(0.52, 0.60, 0.65, 0.57, 0.48), questions=1000,
             follows=("DVG025",)),
        Plan(truth=("DVG019",), strength="weak", score=(0.52, 0.54, 0.55, 0.545, 0.53), questions=200),
    ],
    "diverged": [
        _MEANS.but(truth=("DVG020",), strength="clear", blow_up=1.0, follows=("DVG001", "DVG009", "DVG016")),
        Plan(truth=("DVG020",), strength="clear", blow_up=1.0, evaluations=True,
             follows=("DVG001", "DVG009", "DVG022", "DVG003", "DVG004", "DVG005")),
    ],
    "backtrack": [_MEANS.but(truth=("DVG021",), strength="clear", backtrack=True)],
    "overfit": [
        Plan(truth=("DVG022",), strength="clear", held_out_turn=0.35, rejected=-0.2, evals=9, follows=("DVG009",)),
        Plan(pairs=False, truth=("DVG022",), strength="clear", held_out_turn=0.35, rejected=-0.2, evals=9,
             follows=("DVG009",)),
        Plan(truth=("DVG022",), strength="weak", held_out_turn=0.02, rejected=-0.2, evals=9),
    ],
    "stagnation": [
        _MEANS.but(truth=("DVG023",), strength="clear", plateau=True, rows=160, steps=800, batch=64, warmup=0.0,
                   rejected=-0.08),
    ],
    "unparsed": [_MEANS.but(truth=("DVG024",), strength="clear", skipped=7)],
    "score fell": [
        Plan(truth=("DVG025", "DVG001"), strength="clear", chosen=-0.12, rejected=-0.28, score=(0.70, 0.55, 0.40),
             questions=500, follows=("DVG019",)),
        Plan(truth=("DVG025", "DVG001"), strength="weak", chosen=-0.12, rejected=-0.28, score=(0.70, 0.69, 0.68),
             questions=100),
    ],
    "displacement + NaN": [
        Plan(truth=("DVG001", "DVG011"), strength="clear", chosen=-0.1, rejected=-0.3, nan_pairs=2),
    ],
    "collapse + spikes": [
        Plan(pairs=False, truth=("DVG002", "DVG016"), strength="clear", rejected=-1.6, spikes=1, spike_size=1.5,
             follows=("DVG010",)),
    ],
    "mismatch + not learning": [
        _MEANS.but(truth=("DVG007", "DVG009"), strength="clear", offset=12.0, chosen=0.0, rejected=0.0, rows=80,
                   steps=400, batch=512),
    ],
    "displacement + truncation": [
        Plan(truth=("DVG001", "DVG006"), strength="clear", chosen=-0.1, rejected=-0.3, cut_share=0.2),
    ],
    "displacement + best is not last": [
        Plan(truth=("DVG001", "DVG019"), strength="clear", chosen=-0.1, rejected=-0.3,
             score=(0.52, 0.60, 0.65, 0.57, 0.48), questions=1000, follows=("DVG025",)),
    ],
    "data + few hard pairs": [
        Plan(truth=("DVG014", "DVG004"), strength="clear", flipped=5, hard_pairs=5, hard_ce=2.5, chosen=-0.01,
             follows=("DVG001", "DVG003", "DVG009", "DVG016", "DVG020")),
    ],
}  # fmt: skip


def healthy(seeds: int = 1) -> list[Plan]:
    """Healthy runs of every kind, each with `seeds` seeds."""
    return [p.but(name=n, seed=1000 * s + i) for s in range(seeds) for i, (n, p) in enumerate(HEALTHY.items())]


def planted(seeds: int = 1) -> list[Plan]:
    """Runs with a planted cause, each with `seeds` seeds."""
    plans = [p.but(name=n) for n, group in CAUSES.items() for p in group]
    return [p.but(seed=1000 * s + 100 + i) for s in range(seeds) for i, p in enumerate(plans)]
