"""The precedence of the checks, the further causes that the text names, and that harm needs more than likelihoods."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dpo_diag.diagnosis.checks import all_checks
from dpo_diag.diagnosis.labels import LABELS
from dpo_diag.diagnosis.measure import Measure
from dpo_diag.diagnosis.verdict import MUST_BE_SILENT, PRECEDENCE, Facts, Verdict, decide, precedence_page
from dpo_diag.stats import Interval

SEVERITIES = {check.code: check.severity for check in all_checks()} | {"DVG028": "error"}
FALL = {"from_best": False, "loss_fell": True, "material": True}


def finding(code: str, outcome: str = "speaks", reason: str = "why", severity: str = "", **evidence: Any) -> Any:
    given = FALL | evidence if code == "DVG001" else evidence
    return {
        "code": code, "title": f"title of {code}", "outcome": outcome, "reason": reason, "evidence": given,
        "severity": severity or SEVERITIES[code],
    }  # fmt: skip


def verdict(*findings: Any, **facts: Any) -> Verdict:
    """All checks that could contradict "healthy" are silent, but for these findings."""
    given = {f["code"]: f for f in findings}
    silent = [finding(code, "silent", material=False) for code in MUST_BE_SILENT if code not in given]
    return decide(Facts([*silent, *findings], **({"n_pairs": 100, "has_intervals": True} | facts)))


def score(direction: str, kind: str = "score") -> tuple[Measure, str]:
    change = Interval(-0.3, -0.37, -0.22, 300)
    return Measure("accuracy", "held_out", kind, 0, 9, 0.7, 0.4, change, "m"), direction


UNSURE = {"outcome": "not_applicable", "reason": "cannot tell: inside the noise"}


@pytest.mark.parametrize(
    ("findings", "label", "harm"),
    [
        ([], "healthy", "none"),
        ([finding("DVG028")], "implausible_numbers", "cannot_tell"),
        ([finding("DVG011", severity="error")], "broken_numbers", "cannot_tell"),
        ([finding("DVG011", severity="warning")], "healthy", "none"),  # NaN that went away: named, not the headline
        ([finding("DVG008")], "dead_run", "none"),
        ([finding("DVG007")], "reference_mismatch", "cannot_tell"),
        ([finding("DVG007", severity="warning")], "summed_numbers", "cannot_tell"),
        ([finding("DVG001")], "likelihood_displacement", "cannot_tell"),
        ([finding("DVG001", from_best=True)], "late_divergence", "cannot_tell"),
        ([finding("DVG001", loss_fell=None)], "loss_unknown", "cannot_tell"),
        ([finding("DVG001", "silent", loss_fell=False)], "chosen_fell", "cannot_tell"),
        ([finding("DVG001", **UNSURE)], "within_noise", "cannot_tell"),
        ([finding("DVG003")], "sign_depends_on_aggregator", "cannot_tell"),
        ([finding("DVG002")], "rejected_collapse", "cannot_tell"),
        ([finding("DVG010")], "saturated", "none"),
        ([finding("DVG009")], "not_learning", "none"),
        ([finding("DVG009", **UNSURE)], "loss_unclear", "cannot_tell"),
        ([finding("DVG022")], "loss_rose", "cannot_tell"),
        ([finding("DVG020")], "loss_rose", "cannot_tell"),
        ([finding("DVG020", severity="warning"), finding("DVG001")], "likelihood_displacement", "cannot_tell"),
        ([finding("DVG020", severity="error"), finding("DVG002")], "loss_rose", "cannot_tell"),
        # Two causes: the first of the precedence is the headline.
        ([finding("DVG009"), finding("DVG020")], "loss_rose", "cannot_tell"),
        ([finding("DVG007"), finding("DVG001"), finding("DVG011", severity="error")], "broken_numbers", "cannot_tell"),
        ([finding("DVG001"), finding("DVG007")], "reference_mismatch", "cannot_tell"),
        ([finding("DVG001"), finding("DVG002"), finding("DVG010")], "likelihood_displacement", "cannot_tell"),
        ([finding("DVG002"), finding("DVG010")], "rejected_collapse", "cannot_tell"),
        ([finding("DVG001", from_best=True), finding("DVG003")], "sign_depends_on_aggregator", "cannot_tell"),
        ([finding("DVG009", rose=True), finding("DVG001", "silent", material=True)], "loss_rose", "cannot_tell"),
        ([finding("DVG009", rose=False), finding("DVG001", "silent", material=True)], "chosen_fell", "cannot_tell"),
        ([finding("DVG009"), finding("DVG001")], "likelihood_displacement", "cannot_tell"),
        ([finding("DVG002"), finding("DVG009")], "rejected_collapse", "cannot_tell"),
        ([finding("DVG004"), finding("DVG016")], "healthy", "none"),  # what only informs
    ],
)
def test_the_precedence(findings: list[Any], label: str, harm: str) -> None:
    found = verdict(*findings)
    assert (found.label, found.harm) == (label, harm)


@pytest.mark.parametrize("code", MUST_BE_SILENT)
def test_healthy_needs_every_check_that_could_contradict_it(code: str) -> None:
    found = verdict(finding(code, "not_applicable", "not recorded"))
    assert (found.label, found.harm) == ("cannot_tell", "cannot_tell")
    assert f"it does not show {MUST_BE_SILENT[code]} ({code}: not recorded)" in found.text


def test_a_loss_without_a_reference_can_have_no_wrong_one() -> None:
    assert verdict(finding("DVG007", "not_applicable", "no reference"), reference_free=True).label == "healthy"


def test_further_causes_are_named() -> None:
    """A wrong reference, and chosen fell besides, and rejected collapsed: one headline, three causes in the text."""
    found = verdict(finding("DVG001"), finding("DVG002"), finding("DVG007", reason="rewards/chosen is 5 at step 0"))
    assert found.text.startswith(
        "The run did not start at its reference: its rewards and margins are no gains. DVG007: rewards/chosen is 5 at "
        "step 0. Also: the chosen answers became less likely (DVG001). Also: the rejected answers lost"
    )
    assert [cause[:2] for cause in found.causes] == [
        ("reference_mismatch", "DVG007"), ("likelihood_displacement", "DVG001"), ("rejected_collapse", "DVG002"),
    ]  # fmt: skip


@pytest.mark.parametrize("headline", ["DVG008", "DVG001", "DVG010", None])
def test_a_speaking_error_is_always_named(headline: str | None) -> None:
    """Also one that no row of the precedence knows: a plugin's."""
    plugin = finding("XYZ001", severity="error", reason="its reason")
    errors = [finding("DVG007", reason="reward 5"), finding("DVG020", severity="error", reason="loss to 9"), plugin]
    text = verdict(*errors, *([finding(headline)] if headline else [])).text
    assert all(said in text for said in ("DVG007: reward 5", "DVG020: loss to 9", "XYZ001: its reason"))


def test_a_restart_is_named_beside_nan() -> None:
    found = verdict(finding("DVG011", severity="error"), finding("DVG021"))
    assert found.label == "broken_numbers" and "Noted besides: title of DVG021 (DVG021)" in found.text


def test_one_row_has_nothing_to_compare_but_its_errors_count() -> None:
    nothing = [finding(c, "not_applicable", "too few rows") for c in ("DVG001", "DVG002", "DVG009")]
    found = decide(Facts(nothing, rows=1))
    assert found.label == "one_row" and found.text.startswith("One row: nothing to compare.")
    assert decide(Facts([*nothing, finding("DVG011", severity="error")], rows=1)).label == "broken_numbers"


def test_a_loss_that_rose_is_named_where_the_table_may_show_another_one() -> None:
    """The training loss (DVG020), the held-out loss (DVG022), or the compared one itself (DVG009); title too."""
    for code, title in (
        ("DVG020", "the training loss rose beyond its noise"),
        ("DVG022", "the held-out loss rose beyond its noise"),
    ):
        found = decide(Facts([finding(code)], n_pairs=40, has_intervals=True))
        assert found.headline == f"{title.capitalize()}." and found.document()["title"] == title
    assert (
        decide(Facts([finding("DVG009", rose=True)], n_pairs=40, has_intervals=True)).headline
        == "The loss rose beyond its noise."
    )
    also = decide(Facts([finding("DVG001", from_best=False), finding("DVG022")])).text
    assert "Also: the held-out loss rose beyond its noise (DVG022)." in also


def test_a_supervised_run_is_not_told_what_it_lacks() -> None:
    assert decide(Facts([finding("DVG001", "not_applicable", "no pairs")], supervised=True)).label == "supervised"


def test_every_row_names_a_check_and_a_title_and_every_title_is_used() -> None:
    assert {c.code for c in PRECEDENCE} <= set(SEVERITIES)
    rest = {"healthy", "cannot_tell", "one_row", "supervised", "unfinished"}
    assert {c.label for c in PRECEDENCE} | rest == set(LABELS)


def test_errors_come_first_and_only_errors() -> None:
    """Severity and place agree: no row below the first warning can be an error; but for a score, which `harm` tells."""
    errors = [c.severity == "error" or (not c.severity and SEVERITIES[c.code] == "error") for c in PRECEDENCE
              if c.answer == "speaks" and c.label not in ("summed_numbers", "score_fell")]  # fmt: skip
    first_warning = errors.index(False)
    assert not any(errors[first_warning:])


def test_the_handbook_holds_the_table() -> None:
    """Where it differs: paste `dpo_diag.diagnosis.verdict.precedence_page()`."""
    text = (Path(__file__).resolve().parents[2] / "docs" / "verdict.md").read_text(encoding="utf-8")
    assert precedence_page() in text
    assert all(f"| {code} | {what} |" in text for code, what in MUST_BE_SILENT.items())


# --- harm -------------------------------------------------------------------------------------------------------------


def test_likelihoods_alone_never_are_harm() -> None:
    decision = verdict(finding("DVG001"))
    assert (decision.harm, decision.because) == ("cannot_tell", ())
    assert "no outputs and no task score" in decision.text
    # Outputs that are there are not denied.
    asked = decide(Facts(checks=[finding("DVG001")], n_pairs=40, has_intervals=True, answers=True))
    assert asked.harm_text == "Likelihoods alone do not say whether that is harm: nobody judged the recorded outputs."


def test_a_score_that_fell_is_harm_and_is_cited() -> None:
    decision = verdict(finding("DVG001"), evidence=[score("worse")])
    assert (decision.harm, decision.confidence) == ("harmful", "high")
    assert "0.700 → 0.400" in decision.text and "n = 300" in decision.text
    assert decision.because[0][0].what == "accuracy"


def test_a_score_that_held_makes_the_fall_benign() -> None:
    assert verdict(finding("DVG001"), evidence=[score("no_worse")]).harm == "benign"


def test_an_unclear_score_leaves_it_open() -> None:
    assert verdict(finding("DVG001"), evidence=[score("unclear")]).harm == "cannot_tell"
    assert verdict(finding("DVG001"), evidence=[score("no_worse"), score("unclear")]).harm == "cannot_tell"


def test_that_answers_still_end_is_no_proof_of_benefit() -> None:
    assert verdict(finding("DVG001"), evidence=[score("no_worse", kind="unfinished")]).harm == "cannot_tell"


def test_a_score_that_fell_is_no_healthy_run() -> None:
    decision = verdict(finding("DVG025"), evidence=[score("worse")])
    assert (decision.label, decision.harm) == ("score_fell", "harmful")


def test_means_alone_never_give_high_confidence() -> None:
    assert verdict(finding("DVG001"), rows=50).confidence == "low"
