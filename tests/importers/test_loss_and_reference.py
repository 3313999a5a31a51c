"""What the loss is and whether rewards hold a reference: from fields, options and numbers, never from a file's name."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from dpo_diag.diagnosis import explain
from dpo_diag.diagnosis.checks import CheckContext
from dpo_diag.errors import DiagError
from dpo_diag.importers import Options
from dpo_diag.importers.facts import facts_from_file, facts_from_mapping, facts_from_text
from dpo_diag.records.text_files import Skipped
from tests.importers.conftest import Importing
from tests.importers.reading import value


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def displaced(rows: int = 40) -> list[dict[str, Any]]:
    """DPO, beta 0.1: chosen falls by 8 nats, rejected by 25."""
    moves = [(-8.0 * i / rows, -25.0 * i / rows) for i in range(1, rows + 1)]
    return [
        {
            "step": 10 * i, "loss": softplus(-0.1 * (a - b)), "rewards/chosen": 0.1 * a, "rewards/rejected": 0.1 * b,
            "logps/chosen": -200 + a, "logps/rejected": -220 + b,
        }
        for i, (a, b) in enumerate(moves, start=1)
    ]  # fmt: skip


def simpo(logps: str | None, rows: int = 30) -> list[dict[str, Any]]:
    """SimPO, beta 2, gamma 1: rewards are 2 x mean log-probs, chosen -0.9 to -1.1, rejected -1 to -1.9."""
    out = []
    for i in range(1, rows + 1):
        c, r = -0.9 - 0.2 * i / rows, -1.0 - 0.9 * i / rows
        row = {"step": 10 * i, "loss": softplus(1 - 2 * (c - r)), "rewards/chosen": 2 * c, "rewards/rejected": 2 * r}
        out.append(row | ({logps.format("chosen"): c, logps.format("rejected"): r} if logps else {}))
    return out


def spoken(run: Any) -> set[str]:
    return {c["code"] for c in explain(run)["checks"] if c["outcome"] == "speaks"}


@pytest.mark.parametrize(
    "name", ["run.jsonl", "dpo-not-orpo.jsonl", "simpo_baseline/cpo.jsonl", "reference-free.jsonl"]
)
def test_a_file_s_name_says_nothing(name: str, tmp_path: Path, imported: Importing) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    _, run = imported(write(path, displaced()))
    assert (run.info.reference_free, run.info.loss_like) == (False, "sigmoid")
    assert "DVG001" in spoken(run)


@pytest.mark.parametrize("logps", ["logps/{}", "avg_logps/{}", None])
def test_simpo_shows_in_its_numbers(logps: str | None, tmp_path: Path, imported: Importing) -> None:
    """By rewards / log-probs = 2 in every row; without log-probs by log(exp(loss) - 1) + margin = 1 in every row."""
    _, run = imported(write(tmp_path / "log.jsonl", simpo(logps)))
    assert (run.info.reference_free, run.info.loss_like) == (True, None)
    said = run.info.source.said["reference_free"]
    assert said.startswith("rewards / logps is the same" if logps else "loss = softplus(1 - margins)")
    assert "DVG007" not in spoken(run)


def test_a_wrong_reference_is_not_taken_for_simpo(tmp_path: Path, imported: Importing) -> None:
    """Rewards start at -3 and -2.4 and the loss is softplus(-margin): sigmoid, and not at its reference."""
    rows = [
        {"step": i, "rewards/chosen": -3.0 - 0.1 * i, "rewards/rejected": -2.4 - 0.3 * i,
         "loss": softplus(0.6 - 0.2 * i)}
        for i in range(1, 31)
    ]  # fmt: skip
    _, run = imported(write(tmp_path / "log.jsonl", rows))
    assert run.info.reference_free is False
    assert "DVG007" in spoken(run)


def test_mean_log_probs_are_a_cross_entropy(tmp_path: Path, imported: Importing) -> None:
    """ce = -(mean log-prob), and its perplexity; a sum is never made of it."""
    rows = [{"step": 5, "eval_loss": 0.6, "eval_avg_logps/chosen": -1.25, "eval_avg_logps/rejected": -2.0}]
    _, run = imported(write(tmp_path / "log.jsonl", rows))
    assert value(run, "mean_logps/chosen", 5, "eval") == -1.25
    assert value(run, "ce/chosen", 5, "eval") == 1.25
    assert value(run, "ppl_seq_geomean/rejected", 5, "eval") == pytest.approx(math.exp(2.0))
    assert not {"logps/chosen", "ref_logps/chosen"} & set(run.history["name"])


@pytest.mark.parametrize(
    ("loss", "free"),
    [
        ("simpo", True),
        ("orpo", True),
        ("cpo", True),
        ("CPO-SimPO", True),
        ("kto", False),
        ("ipo", False),
        ("dpo", False),
    ],
)
def test_every_loss_is_sayable(loss: str, free: bool, tmp_path: Path, imported: Importing) -> None:
    _, run = imported(write(tmp_path / "log.jsonl", displaced()), loss=(loss,), beta=0.1)
    assert run.info.reference_free is free
    assert run.info.source.said["loss"] == "--loss"
    assert run.info.beta == 0.1


def test_reference_free_as_an_option(tmp_path: Path, imported: Importing) -> None:
    """Also over a named sigmoid, which then has no form over log-ratios."""
    _, run = imported(write(tmp_path / "log.jsonl", displaced()), loss=("sigmoid",), beta=0.1, reference_free=True)
    assert (run.info.reference_free, run.info.loss, run.info.loss_names) == (True, None, ("sigmoid",))
    assert run.info.source.said["reference_free"] == "--reference-free"
    assert "ref_logps/chosen" not in set(run.history["name"])


def test_a_loss_that_averages_is_not_believed_of_sums(tmp_path: Path, imported: Importing) -> None:
    """|logps| of 200 nats is no token mean, whatever the loss is called: no perplexity of e^200."""
    _, run = imported(write(tmp_path / "log.jsonl", displaced()), loss=("simpo",), beta=2.0)
    assert run.info.logps == "sum"
    _, run = imported(write(tmp_path / "means.jsonl", simpo("logps/{}")), loss=("simpo",), beta=2.0, trainer="mine")
    assert run.info.logps == "mean"
    assert value(run, "ce/chosen", 300) == pytest.approx(1.1)


@pytest.mark.parametrize(
    ("what", "options"),
    [
        ("unknown loss type", {"loss": ("no_such",)}),
        ("beta is a positive number", {"beta": 0.0}),
        ("one weight per loss type", {"loss": ("sigmoid",), "loss_weights": (1.0, 2.0)}),
    ],
)
def test_options_that_cannot_be_meant(what: str, options: dict[str, Any]) -> None:
    with pytest.raises(DiagError, match=what) as raised:
        Options(**options)
    assert raised.value.usage


def test_methods_in_configurations(tmp_path: Path) -> None:
    """ms-swift, Axolotl, LLaMA-Factory: the method stands above the loss type, which may be one of its variants."""
    assert facts_from_mapping({"loss_type": "sigmoid", "rlhf_type": "cpo"}, "args.json").loss == ("cpo",)
    assert facts_from_mapping({"rl": "simpo"}, "c.yaml").loss == ("simpo",)
    assert facts_from_mapping({"stage": "kto", "pref_loss": "sigmoid"}, "c.yaml").loss == ("kto",)
    assert facts_from_mapping({"stage": "dpo", "pref_loss": "orpo"}, "c.yaml").loss == ("orpo",)
    assert facts_from_mapping({"stage": "sft"}, "c.yaml").loss == ()
    free = facts_from_mapping({"loss": {"reference_free": True}}, "config.yaml")
    assert (free.reference_free, free.stated_in["reference_free"]) == (True, "config.yaml: loss.reference_free")
    assert facts_from_mapping({"reference_free": False}, "config.yaml").reference_free is None
    assert facts_from_text(b"swift rlhf --rlhf_type orpo --model x", "log").loss == ("orpo",)
    assert facts_from_text(b"loading data/dpo-not-orpo.jsonl", "log").loss == ()
    card = tmp_path / "README.md"
    card.write_text("---\nbase_model: a/b\n---\n\nThis model was trained with CPO, a method introduced in [...]\n")
    facts = facts_from_file(card, Skipped())
    assert (facts.loss, facts.model) == (("cpo",), {"name": "a/b"})


def losses(formula: Callable[[float], float], margins: Sequence[float], scale: float = 1.0) -> list[dict[str, Any]]:
    """Rows whose loss is a formula of their margin; chosen and rejected part by half of it each."""
    return [
        {
            "step": i, "loss": round(formula(m), 4), "rewards/margins": scale * m,
            "rewards/chosen": scale * m / 2, "rewards/rejected": -scale * m / 2,
        }
        for i, m in enumerate(margins)
    ]  # fmt: skip


RISING = [0.05 * i for i in range(12)]
"""Margins from 0 to 0.55."""


@pytest.mark.parametrize(
    ("formula", "like", "beta", "start"),
    [
        (lambda m: max(1 - m, 0.0), "hinge", None, 1.0),
        (lambda m: (m - 0.5) ** 2 / 0.01, "ipo", 0.1, 25.0),  # 1 / (4 x 0.1^2)
        (lambda m: (m - 0.5) ** 2 / 0.25, "ipo", 0.5, 1.0),  # starts where the hinge does
        (lambda m: (m - 0.5) ** 2 / 0.09, "ipo", 0.3, 1 / 0.36),  # 2.7778, beside 4 ln 2 = 2.7726
    ],
)
def test_hinge_and_ipo_show_in_loss_and_margins(
    formula: Any, like: str, beta: float | None, start: float, tmp_path: Path, imported: Importing
) -> None:
    _, run = imported(write(tmp_path / "log.jsonl", losses(formula, RISING)))
    assert (run.info.loss_like, run.info.beta) == (like, beta)
    assert f"those of {like}, inferred from the numbers (--loss NAME says which it is)" in str(run.info.loss_reason)
    document = explain(run)
    assert "DVG007" not in {c["code"] for c in document["checks"] if c["outcome"] == "speaks"}
    found = CheckContext.from_run(run).start
    assert (found.value, found.known) == (pytest.approx(start), True)
    _, named = imported(write(tmp_path / "named.jsonl", losses(formula, RISING)), loss=("sigmoid",), beta=0.1)
    assert named.info.loss is not None and named.info.loss.types == ("sigmoid",)


@pytest.mark.parametrize(
    ("formula", "margins", "scale", "like"),
    [
        (lambda m: softplus(-m) + 0.1 * m, RISING, 1.0, "sigmoid"),  # label smoothing 0.1
        (lambda m: softplus(-m) + 1 - math.log(2), RISING, 1.0, None),  # an NLL term that lifts the start to 1
        (lambda m: 4 * softplus(-m), RISING, 1.0, None),  # loss summed over four micro-batches, margins not
        (lambda m: 4 * softplus(-m), RISING, 4.0, None),  # both summed: from 2.7726, where ipo of beta 0.3 starts too
        (lambda m: 1 - m, [0.0] * 12, 1.0, None),  # a loss of 1 that stays there is the start of several
        (lambda m: 25.0, [0.0] * 12, 1.0, None),
        (lambda m: softplus(-m), RISING, 1.0, "sigmoid"),
        # Saturated: a loss that is logged with four digits is 0 in most rows.
        (lambda m: round(softplus(-m), 4), [2.25, 4.5, 6.75, *[13.5 + i / 10 for i in range(9)]], 1.0, "sigmoid"),
    ],
)
def test_nothing_but_their_own_curves_is_taken_for_hinge_or_ipo(
    formula: Any, margins: list[float], scale: float, like: str | None, tmp_path: Path, imported: Importing
) -> None:
    _, run = imported(write(tmp_path / "log.jsonl", losses(formula, margins, scale)))
    assert run.info.loss_like == like


def test_ipo_of_another_beta_than_the_source_states_is_not_inferred(tmp_path: Path, imported: Importing) -> None:
    """The loss was scaled, or is none of IPO's: its start is not 1 / (4 beta^2)."""
    path = write(tmp_path / "log.jsonl", losses(lambda m: (m - 0.5) ** 2 / 0.01, RISING))
    assert imported(path, beta=0.2)[1].info.loss_like is None
