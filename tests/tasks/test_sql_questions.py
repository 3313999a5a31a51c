"""The generator: literal output, disjoint sets, every clause, gold queries that run and return something."""

import dataclasses
import hashlib
import json
import os
import string
import subprocess
import sys
from collections import Counter

import pytest

from dpo_diag.errors import DiagError
from dpo_diag.tasks.sql.execute import is_correct, run_query
from dpo_diag.tasks.sql.queries import INTENTS
from dpo_diag.tasks.sql.questions import SETS, clause_tags, generate_questions, pool_of

DIGESTS = {
    "sft": "868d7882383ce75c",
    "pairs": "a5960a1fbe021530",
    "held_out": "2fb037e5a1ebeabc",
    "paraphrased": "c81204faac3ca9fb",
}


def _intent(question):
    return question.template.partition("/")[0]


def _digest(set_name):
    rows = [dataclasses.asdict(q) for q in generate_questions(set_name, 200, seed=3, unique=set_name != "sft")]
    return hashlib.sha256(json.dumps(rows, separators=(",", ":")).encode()).hexdigest()[:16]


@pytest.fixture(scope="module")
def drawn():
    sizes = {"sft": 7040, "pairs": 2000, "held_out": 600, "paraphrased": 600}
    return {name: generate_questions(name, n, unique=name != "sft") for name, n in sizes.items()}


@pytest.mark.parametrize("set_name", SETS)
def test_questions_are_these_on_every_machine(set_name):
    assert _digest(set_name) == DIGESTS[set_name]


def test_hash_randomisation_changes_nothing():
    code = (
        "import dataclasses, hashlib, json; from dpo_diag.tasks.sql.questions import generate_questions as g\n"
        "rows = [dataclasses.asdict(q) for q in g('pairs', 200, seed=3)]\n"
        "print(hashlib.sha256(json.dumps(rows, separators=(',', ':')).encode()).hexdigest()[:16])"
    )
    for seed in ("1", "2"):
        env = {**os.environ, "PYTHONHASHSEED": seed}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
        assert done.stdout.strip() == DIGESTS["pairs"]


def test_first_question_literally():
    first = generate_questions("held_out", 1, seed=3)[0]
    assert dataclasses.asdict(first) == {
        "id": "held_out-1a1c021511d8",
        "db": "orchard",
        "prompt": "orchard | Show the name of farms with area below 120. |",
        "gold": "SELECT name FROM farm WHERE acres < 120",
        "template": "where/0",
        "tags": ("held_out", "select", "where"),
    }


def test_more_questions_extend_fewer():
    assert generate_questions("pairs", 300)[:100] == generate_questions("pairs", 100)


def test_sets_share_no_question_whatever_the_seeds(drawn):
    prompts = {name: {q.prompt for q in questions} for name, questions in drawn.items()}
    for seed in (1, 2):
        for name in SETS:
            prompts[name] |= {q.prompt for q in generate_questions(name, 500, seed=seed, unique=name != "sft")}
    names = list(SETS)
    for i, one in enumerate(names):
        for other in names[i + 1 :]:
            assert not prompts[one] & prompts[other], (one, other)
    assert all(pool_of(q.prompt) == name for name in ("sft", "pairs", "held_out") for q in drawn[name])


def test_unique_sets_repeat_nothing(drawn):
    for name in ("pairs", "held_out", "paraphrased"):
        assert len({q.prompt for q in drawn[name]}) == len(drawn[name]) == len({q.id for q in drawn[name]})


def test_paraphrases_have_templates_of_their_own(drawn):
    for intent in INTENTS.values():
        assert not set(intent.training) & set(intent.paraphrased)
    assert all("/p" in q.template for q in drawn["paraphrased"])
    assert not any("/p" in q.template for name in ("sft", "pairs", "held_out") for q in drawn[name])


def test_every_template_names_the_same_slots_as_its_intent():
    """A paraphrase that leaves out a slot could not be answered."""

    def slots(template):
        fields = {name for _, name, _, _ in string.Formatter().parse(template) if name}
        return fields - {"t", "s", "p", "ap"}

    for name, intent in INTENTS.items():
        assert len({frozenset(slots(t)) for t in intent.training + intent.paraphrased}) == 1, name


@pytest.mark.parametrize("set_name", ["pairs", "held_out", "paraphrased"])
def test_every_intent_database_and_clause_occurs(drawn, set_name):
    questions = drawn[set_name]
    assert {_intent(q) for q in questions} == set(INTENTS)
    assert len({q.db for q in questions}) == 6
    tags = Counter(tag for q in questions for tag in q.tags)
    wanted = ["select", "where", "and", "or", "group_by", "having", "order_by", "limit", "join", "distinct"]
    assert all(tags[tag] >= 5 for tag in [*wanted, "aggregate", "at_least"]), tags
    assert tags["select"] == tags[set_name] == len(questions)


def test_training_shares_follow_the_weights(drawn):
    """Among 7040 draws the rejection by pool leaves each intent's share within two points of its weight."""
    counts, total = Counter(_intent(q) for q in drawn["sft"]), sum(i.weight for i in INTENTS.values())
    for name, intent in INTENTS.items():
        assert abs(counts[name] / 7040 - intent.weight / total) < 0.02, name


def test_gold_runs_returns_something_and_equals_itself(drawn):
    for q in (q for questions in drawn.values() for q in questions[:600]):
        result = run_query(q.db, q.gold)
        assert result.ok, (q.gold, result.message)
        assert any(cell is not None for row in result.rows for cell in row), q.gold
        assert is_correct(q.db, q.gold, q.gold)


def test_at_least_is_not_more_than(drawn):
    """Every threshold is a value that occurs, so a `>` for `>=` shows in nearly every unaggregated result."""
    plain = [q for q in drawn["pairs"] if _intent(q) == "where" and ">=" in q.gold]
    assert len(plain) >= 30
    wrong = [q for q in plain if not is_correct(q.db, q.gold.replace(">=", ">"), q.gold)]
    assert wrong == plain


def test_clause_tags_by_hand():
    sql = "SELECT DISTINCT a FROM t JOIN p ON t.p_id = p.id WHERE x >= 1 AND y < 2 ORDER BY z LIMIT 3"
    assert clause_tags(sql) == ("select", "where", "and", "order_by", "limit", "join", "distinct", "at_least")
    assert clause_tags("SELECT k, COUNT(*) FROM t GROUP BY k HAVING COUNT(*) > 1") == (
        "select", "group_by", "having", "aggregate",
    )  # fmt: skip
    assert clause_tags("SELECT order_no FROM orders") == ("select",)


def test_bad_requests_are_one_line():
    with pytest.raises(DiagError, match="unknown question set; got test; expected sft"):
        generate_questions("test", 1)
    with pytest.raises(DiagError, match="must not be negative"):
        generate_questions("sft", -1)
    assert generate_questions("sft", 0) == []
