"""The fifteen lines: how many, how wide, what is left out first, and what they say of each kind of run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from dpo_diag import RunWriter
from dpo_diag.diagnosis import explain
from dpo_diag.diagnosis.said import against_baselines
from dpo_diag.diagnosis.short import LINES, _fits, _Item, _pairs, _table, _through_which_side, short_lines
from dpo_diag.importers import import_path
from dpo_diag.translated import catalogue

REPOSITORY = Path(__file__).resolve().parents[2]
INPUTS = REPOSITORY / "tests" / "golden" / "inputs"


def lines(document: dict[str, Any], width: int = 80, following: tuple[str, ...] = ("dpo-diag report x",)) -> list[str]:
    return [line.plain for line in short_lines(document, width, following)]


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """A trained run, and logs: displaced, dead, of batches, of pairs, of a supervised training, of scores alone."""
    made = {"example": explain(REPOSITORY / "runs" / "example")}
    folder = tmp_path_factory.mktemp("logs")
    for name in ("trl_displaced", "wandb_history_dead.csv", "openrlhf_console.log", "pairs_displaced.jsonl",
                 "sft_trainer_state.json", "scores.csv", "h2o"):  # fmt: skip
        import_path(INPUTS / name, folder / name)
        made[name] = explain(folder / name)
    return made


@pytest.mark.parametrize("width", [60, 80, 200])
def test_at_most_fifteen_lines_none_too_wide_and_the_commands_whole(
    documents: dict[str, dict[str, Any]], width: int
) -> None:
    following = ("dpo-score 'checkpoints=" + "a folder/" * 12 + "checkpoint*'", "dpo-generate x")
    for name, document in documents.items():
        said = lines(document, width, following)
        assert len(said) <= LINES, name
        assert all(cell_len(line) <= min(width, 100) for line in said[:-2]), name
        assert said[-2:] == [f"next  {following[0]}", f"      {following[1]}"]


def test_nothing_is_said_twice(documents: dict[str, dict[str, Any]]) -> None:
    """No six words in a row stand twice."""
    for name, document in documents.items():
        said = [" ".join(line.split()) for line in lines(document, 200)]
        runs = [tuple(line.split()[i : i + 6]) for line in said for i in range(len(line.split()) - 5)]
        assert len(runs) == len(set(runs)), name


def test_an_sft_log_is_no_preference_run_with_half_of_its_numbers_missing(
    documents: dict[str, dict[str, Any]],
) -> None:
    """Token accuracy and no two sides: TRL's SFT. The same log with rewards is DPO, which logs both."""
    document = documents["sft_trainer_state.json"]
    assert document["verdict"]["label"] == "supervised"
    assert "it does not show" not in "\n".join(lines(document))
    assert documents["trl_displaced"]["verdict"]["label"] == "likelihood_displacement"


@pytest.mark.parametrize(
    ("nll", "said"),
    [
        (2.5, "plain NLL 2.500 is below the unigram baseline 2.900 (token frequencies alone), below ln |V| 5.704"),
        (3.0, "plain NLL 3 is above the unigram baseline 2.900 (token frequencies alone), below ln |V| 5.704"),
        (5.7041, "plain NLL 5.704 is above the unigram baseline 2.900 (token frequencies alone), at ln |V| 5.704"),
        (None, "plain NLL 2.950 is above the unigram baseline 2.900 (token frequencies alone), below ln |V| 5.704"),
    ],
)
def test_a_supervised_run_says_where_its_nll_lies_and_shows_the_prompt_beside_the_response(
    tmp_path: Path, nll: float | None, said: str
) -> None:
    """The loss, 2.95, is smoothed and lies above the unigram baseline whatever the NLL does; where nothing is added to
    it the loss is the NLL. The baselines of an earlier row hold for the later one."""
    values = {"loss": 2.95, "ppl_token/response": 12.0, "ppl_token/prompt": 240.0}
    values |= {} if nll is None else {"nll_loss": nll}
    rows = [(step, name, value) for step in (0, 6, 9) for name, value in values.items()]
    rows += [(0, "baseline/uniform", 5.704), (0, "baseline/unigram", 2.9)]
    writer = RunWriter(tmp_path / "run")
    writer.write("history", [{"step": s, "split": "eval", "name": n, "value": v} for s, n, v in rows])
    writer.finish()
    document = explain(tmp_path / "run", from_step=6)
    shown = [line.split()[:4] for line in lines(document) if "ppl_token" in line]
    assert shown == [["response", "ppl_token", "12", "12"], ["prompt", "ppl_token", "240", "240"]]
    assert f"note {said} (a uniform guess)" in " ".join(" ".join(lines(document)).split())
    assert catalogue("zh").has(against_baselines(document))
    del document["means"]["scale"]
    assert not [line for line in lines(document) if line.startswith("note")]


@pytest.mark.parametrize(("share", "last", "said"), [(0.0, 250.0, True), (0.0, 230.0, False), (0.4, 250.0, False)])
def test_a_prompts_perplexity_that_rose_is_told_as_what_no_loss_is_on(
    tmp_path: Path, share: float, last: float, said: bool
) -> None:
    """240 at first, of a loss on answers alone; silent where it fell, and where 40 % of the loss is on prompts."""
    writer = RunWriter(tmp_path / "run")
    ends = {"loss": (3.0, 2.0), "loss_on_prompt": (share, share), "ppl_token/prompt": (240.0, last)}
    rows = [(step, name, values[i]) for i, step in enumerate((0, 6)) for name, values in ends.items()]
    writer.write("history", [{"step": s, "split": "eval", "name": n, "value": v} for s, n, v in rows])
    writer.finish()
    text = "prompts carry no loss, so their perplexity is free to rise"
    assert (text in " ".join(lines(explain(tmp_path / "run")))) == said
    assert catalogue("zh").has(text)


def test_which_of_several_runs_is_meant_is_said_among_the_fifteen(documents: dict[str, dict[str, Any]]) -> None:
    document = documents["trl_displaced"]
    taken = "2 runs; taken: a; left out: b (--run NAME chooses)"
    said = lines({**document, "notes": [*document["notes"], taken]})
    assert [line for line in said if line.startswith("note")] == [f"note  {taken}"]
    assert not [line for line in lines(document) if line.startswith("note")]


def test_answers_that_began_at_another_step_than_the_likelihoods_say_so(
    documents: dict[str, dict[str, Any]],
) -> None:
    """The reference stands at step 0, where it wrote no answers: they begin with the first checkpoint, step 10."""
    answers = {
        "what": "answers that the checker accepts", "split": "outputs", "kind": "correct", "from_step": 10,
        "to_step": 20, "from": 0.5, "to": 0.25, "delta": -0.25, "interval": None, "level": 0.95, "direction": "unclear",
    }  # fmt: skip
    document = {**documents["example"], "from_step": "ref", "evidence": [answers]}
    assert [x.split() for x in lines(document) if x.startswith("answers")] == [
        ["answers", "right,", "since", "10", "0.500", "0.250", "-0.250"]
    ]
    same = {**document, "evidence": [{**answers, "from_step": 0}]}
    assert any(x.startswith("answers right  ") for x in lines(same))


def test_a_harmful_run_says_so_with_its_scores_and_what_to_try(documents: dict[str, dict[str, Any]]) -> None:
    said = "\n".join(lines(documents["example"]))
    assert "The loss fell while the chosen answers became less likely. It is harm.\n" in said
    assert "execution_accuracy (held_out)   0.713   0.600  -0.113  95 %: -0.187 to -0.040" in said
    assert 'loss_type=["sigmoid", "sft"]' in said and "beta=0.2 in TRL" in said
    assert "DVG025" not in said  # a score that fell stands in the table
    assert '"SELECT miles FROM flight…"' in said and "55fd82dfb03b23c7" not in said


def test_what_cannot_be_told_is_not_called_sure(documents: dict[str, dict[str, Any]]) -> None:
    said = " ".join(lines(documents["trl_displaced"]))
    assert "Likelihoods alone do not say whether that is harm" in said and "confidence" not in said


TEXT = "One thing (with 3 numbers, say) is so: it fell from 2 to 1; both sides did, in 77 % of the pairs (DVG001)"


@pytest.mark.parametrize(
    ("width", "said"),
    [
        (120, TEXT),
        (100, "One thing is so: it fell from 2 to 1; both sides did, in 77 % of the pairs (DVG001)"),
        (70, "One thing is so: it fell from 2 to 1; both sides did (DVG001)"),
        (56, "One thing is so: it fell from 2 to 1 (DVG001)"),
        (26, "One thing (with 3 n…"),
    ],
)
def test_asides_go_first_then_clauses_then_words(width: int, said: str) -> None:
    """The label takes 6 cells; the code in brackets stays as long as a clause fits beside it."""
    assert _fits(_Item("why", TEXT), width, 1) == said


def test_no_clause_is_cut_inside_a_list_or_a_quotation() -> None:
    text = 'Add a term: loss_type=["sigmoid", "sft"], loss_weights=[1.0, 1.0] in TRL'
    assert _fits(_Item("do", text), 60, 1) == 'Add a term: loss_type=["sigmoid", "sft"]'
    assert _fits(_Item("do", text), 30, 1) == "Add a term: loss_type=[…"


@given(st.text(min_size=1, max_size=200), st.integers(20, 100), st.integers(1, 4))
def test_a_shortened_text_fits(text: str, width: int, n: int) -> None:
    from dpo_diag.styled import wrap

    assert len(wrap(_fits(_Item("why", text), width, n), width - 6)) <= n


def test_a_table_too_wide_loses_the_intervals_before_the_numbers() -> None:
    rows = [("a name of more than thirty letters", "0.713", "0.600", "-0.113", "95 %: -0.187 to -0.040")]
    assert (
        _table(rows, 100, str)[1] == "a name of more than thirty letters   0.713  0.600  -0.113  95 %: -0.187 to -0.040"
    )
    assert _table(rows, 60, str)[1] == "a name of more than thirty letters   0.713  0.600  -0.113"
    assert _table([], 60, str) == []


@pytest.mark.parametrize(
    ("few", "rise", "said"),
    [
        ({"pairs": 3, "of": 40, "share": 0.5}, 0.2, ["3 of 40 carry 50 % of chosen's rise; first a"]),
        ({"pairs": 3, "of": 40, "share": 0.5}, 0.001, ["chosen log-prob of a: -2 nats"]),
        ({"pairs": 3, "of": 4, "share": 0.5}, 0.2, ["chosen log-prob of a: -2 nats"]),
        (None, 0.2, ["a lost most: -2 nats"]),
    ],
)
def test_shares_are_of_a_rise_that_there_is(few: dict[str, Any] | None, rise: float, said: list[str]) -> None:
    """Of four pairs, or where rises and falls cancel, a share says nothing; the first pair need not have lost most."""
    document = {
        "pairs": [{"pair_id": "a", "chosen_delta_logp": -2.0}], "concentration": few,
        "perplexity": {"chosen": {"ppl_seq_mean": {"dlog": rise}}},
        "thresholds": {"least_for_interval": 10, "verdict.least_dlog": 0.01},
    }  # fmt: skip
    assert _pairs(document) == said


def test_the_pairs_own_betas_are_named_where_they_moved_a_tenth_of_the_loss() -> None:
    """0.02 of a fall of 0.1; 0.001 is told nowhere, and the sides are; what a schedule moved is told in any case."""
    loss = {"delta": -0.1, "chosen_part": 0.02, "rejected_part": -0.14, "coefficient_part": 0.02, "coefficients": {}}
    own = "The pairs' own betas moved the loss by +0.0200, the answers by -0.120"
    assert _through_which_side({"loss": loss}) == own
    little = loss | {"coefficient_part": 0.001, "rejected_part": -0.121}
    assert _through_which_side({"loss": little}).startswith("Rejected alone lowered the loss")
    moved = little | {"coefficients": {"beta": [0.1, 0.2]}}
    assert _through_which_side({"loss": moved}).startswith("The schedule's coefficients moved the loss by +0.00100")
