"""Answers of several checkpoints with token log-probs, lazily loaded models, the names a user may give."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from dpo_diag.commands.diag import main
from dpo_diag.commands.play_page import Calls
from dpo_diag.errors import DiagError
from dpo_diag.inference.play import Playground, pieces
from dpo_diag.models.cache import ModelCache
from dpo_diag.models.checkpoints import Checkpoint, Loader
from dpo_diag.models.decoding import Written
from dpo_diag.models.logps import score_tokens
from dpo_diag.models.packed.rows import Span
from dpo_diag.models.run_checkpoints import checkpoints_of, choose, start_not_here
from dpo_diag.models.token_scores import TokenScores
from dpo_diag.records import load_run
from dpo_diag.records.writer import annotate
from tests.inference.conftest import make_model, make_tokenizer

CPU = {"device": "cpu", "dtype": "float32"}
LARGE = 10**12


def playground(run: Path, budget: int = LARGE, new: int = 12) -> Playground:
    return Playground(checkpoints_of(load_run(run)), ModelCache(budget, **CPU), max_new_tokens=new)


def test_checkpoints_of_a_run_and_their_names(played_run: Path) -> None:
    found = checkpoints_of(load_run(played_run))
    assert [c.label for c in found] == ["ref", "step 10", "step 20"]
    assert choose(found, None) == found
    assert [c.label for c in choose(found, "20, ref")] == ["step 20", "ref"]
    # Step 0 was not saved: the reference is where the policy started.
    assert [c.label for c in choose(found, "0,10")] == ["ref", "step 10"]
    also = checkpoints_of(load_run(played_run), [f"mine={played_run.parent / 'base'}"])
    assert [c.label for c in also] == ["ref", "mine", "step 10", "step 20"]
    many = [Checkpoint(str(i), "policy", i) for i in range(10)]
    assert [c.step for c in choose(many, None)] == [0, 3, 6, 9]


def test_the_start_is_found_where_the_run_says_that_it_lay(played_run: Path, tmp_path: Path) -> None:
    """Under a name that is no folder, with the folder beside it; and told where that folder is gone."""
    run = Path(shutil.copytree(played_run, tmp_path / "out" / "run"))
    shutil.copytree(played_run.parent / "base", tmp_path / "cache" / "start")
    annotate(run, reference={"kind": "frozen copy", "name": "tiny (SFT)", "folder": "cache/start"})
    found = checkpoints_of(load_run(run))
    assert [c.label for c in found] == ["ref", "step 10", "step 20"]
    assert found[0].path == str(tmp_path / "cache" / "start")
    assert start_not_here(load_run(run), found) == ""
    shutil.rmtree(tmp_path / "cache")
    left = checkpoints_of(load_run(run))
    assert [c.label for c in left] == ["step 10", "step 20"]
    assert "(cache/start); --also ref=PATH names it" in start_not_here(load_run(run), left)


def test_what_fits_is_loaded_before_anything_is_asked(played_run: Path) -> None:
    """All of three with room for all; of room for one the first, and nothing once the page was closed."""
    ground = playground(played_run)
    ground.load_ahead()
    assert ground.models.loaded == ground.checkpoints and ground.loading is None
    size = ground.models.size // 3
    ground.close()
    assert ground.models.loaded == []
    ground.load_ahead()
    assert ground.models.loaded == []
    small = playground(played_run, budget=size)
    small.load_ahead()
    assert small.models.loaded == small.checkpoints[:1]
    assert Calls(small, load_run(played_run)).loaded({})["loading"] is None


@pytest.mark.parametrize(
    ("steps", "words"),
    [("30", "expected some of ref, 10, 20"), ("10,10", "named twice"), (",", "no steps"), ("x", "no such checkpoint")],
)
def test_names_that_do_not_fit_are_told(played_run: Path, steps: str, words: str) -> None:
    with pytest.raises(DiagError, match=words):
        choose(checkpoints_of(load_run(played_run)), steps)


def test_log_probs_are_those_of_a_plain_forward(played_run: Path) -> None:
    ground = playground(played_run)
    answers = ground.compare("hello")
    models = [make_model(seed=s) for s in (0, 10, 20)]
    for answer, own in zip(answers, models, strict=True):
        assert 0 < len(answer.written.token_ids) <= 12
        for model, total in ((own, answer.sum_logp), (models[0], answer.base_sum_logp)):
            ids = torch.tensor([[*answer.prompt_ids, *answer.written.token_ids]])
            with torch.no_grad():
                logp = torch.log_softmax(model(ids).logits[0].double(), -1)
            first = len(answer.prompt_ids)
            plain = sum(float(logp[first - 1 + i, t]) for i, t in enumerate(answer.written.token_ids))
            assert total == pytest.approx(plain, abs=1e-4)
        # Greedy: the model's own first choice at every place is what it wrote.
        assert [t.others[0][1] for t in answer.tokens if t.n_tokens == 1] == pytest.approx(
            [t.logp for t in answer.tokens if t.n_tokens == 1], abs=1e-5
        )
    assert [a.text for a in answers] == [playground(played_run).answer(c, "hello").text for c in ground.checkpoints]


def scores(logp: np.ndarray, ids: list[int]) -> TokenScores:
    """Each token its own likeliest choice, at -0.5."""
    return TokenScores(logp, logp, logp, np.zeros(len(logp), np.int64), [[(i, -0.5)] for i in ids])


def test_pieces_join_to_the_text_and_keep_characters_whole() -> None:
    """é is two bytes, 好 three: with one token a byte these are one piece each, their log-probs summed."""
    tokenizer = make_tokenizer()
    ids = [*tokenizer("aé好b", add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    logp = -np.arange(1.0, len(ids) + 1)
    found = pieces(tokenizer, Written(ids, stopped=True), scores(logp, ids))
    assert [(t.text, t.n_tokens, t.logp) for t in found] == [
        ("a", 1, -1), ("é", 2, -5), ("好", 3, -15), ("b", 1, -7), ("<eos>", 1, -8)
    ]  # fmt: skip
    assert found[-1].end
    broken = pieces(tokenizer, Written(ids[:2]), scores(logp[:2], ids[:2]))
    assert "".join(t.text for t in broken) == "a\ufffd"
    assert sum(t.logp for t in broken) == -3
    assert pieces(tokenizer, Written([]), scores(np.empty(0), [])) == []


def test_models_are_loaded_when_asked_and_the_least_recent_goes(played_run: Path) -> None:
    ref, ten, twenty = checkpoints_of(load_run(played_run))
    size = sum(p.numel() * 4 for p in make_model().parameters())
    models = ModelCache(2 * size + 100, **CPU)
    assert (models.loaded, models.size) == ([], 0)
    for checkpoint in (ref, ten, ref, twenty):
        models.open(checkpoint)
    assert models.loaded == [ref, twenty]
    assert (models.loads, models.size) == (3, 2 * size)
    models.close()
    assert models.size == 0


@pytest.mark.slow
def test_a_budget_below_one_model_still_answers(played_run: Path) -> None:
    ground = playground(played_run, budget=1)
    small = [(a.text, a.base_sum_logp) for a in ground.compare("hello")]
    large = [(a.text, a.base_sum_logp) for a in playground(played_run).compare("hello")]
    assert [x[0] for x in small] == [x[0] for x in large]
    assert [x[1] for x in small] == pytest.approx([x[1] for x in large])
    assert len(ground.models.loaded) == 1
    # Three to answer, the first again to compare; a second question of the same costs nothing.
    assert ground.models.loads == 4
    ground.compare("hello")
    assert ground.models.loads == 4


@pytest.mark.slow
def test_adapters_share_their_base_and_are_not_mixed_up(played_run: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    base = played_run.parent / "base"
    for step in (1, 2):
        torch.manual_seed(step)
        model = make_model(seed=0)
        model.name_or_path = str(base)
        adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
        adapted.peft_config["default"].base_model_name_or_path = str(base)
        adapted.save_pretrained(tmp_path / f"checkpoint-{step}")
    checkpoints = [Checkpoint(str(tmp_path / f"checkpoint-{s}"), "policy", s) for s in (1, 2)]
    ground = Playground([Checkpoint(str(base), "ref", 0), *checkpoints], ModelCache(LARGE, **CPU), max_new_tokens=6)
    answers = [ground.compare("hello"), playground_of(ground).compare("hello")]
    for checkpoint, answer in zip(checkpoints, answers[0][1:], strict=True):
        with Loader(**CPU).open(checkpoint) as (model, _):
            (alone,) = score_tokens(model, [Span(answer.prompt_ids, answer.written.token_ids)])
        assert answer.sum_logp == pytest.approx(float(alone.logp.sum()), abs=1e-4)
    assert [a.sum_logp for a in answers[0]] == pytest.approx([a.sum_logp for a in answers[1]], abs=1e-5)
    assert answers[0][1].sum_logp != pytest.approx(answers[0][2].sum_logp, abs=1e-4)


def playground_of(other: Playground) -> Playground:
    """The same checkpoints asked the other way round, then compared in the same order."""
    fresh = Playground(other.checkpoints, ModelCache(LARGE, **CPU), max_new_tokens=6)
    for checkpoint in reversed(other.checkpoints):
        fresh.answer(checkpoint, "hello")
    return fresh


def test_another_vocabulary_is_not_compared(played_run: Path, tmp_path: Path) -> None:
    make_model(seed=5, vocab_size=200).save_pretrained(tmp_path / "small")
    small = make_tokenizer(chat=False)
    small.save_pretrained(tmp_path / "small")
    shifted = make_model(seed=6)
    shifted.save_pretrained(tmp_path / "shifted")
    document = json.loads((tmp_path / "small" / "tokenizer.json").read_text())
    vocabulary = document["model"]["vocab"]
    document["model"]["vocab"] = {t: (i + 1) % 256 + 2 if i >= 2 else i for t, i in vocabulary.items()}
    shutil.copytree(tmp_path / "small", tmp_path / "other", ignore=shutil.ignore_patterns("*.safetensors", "config*"))
    for name in ("config.json", "generation_config.json", "model.safetensors"):
        shutil.copy(tmp_path / "shifted" / name, tmp_path / "other" / name)
    (tmp_path / "other" / "tokenizer.json").write_text(json.dumps(document))
    base = Checkpoint(str(played_run.parent / "base"), "ref", 0)
    other = Checkpoint(str(tmp_path / "other"), "other", 0)
    answers = Playground([base, other], ModelCache(LARGE, **CPU), max_new_tokens=8).compare("hello")
    assert answers[1].base_sum_logp is None
    assert answers[0].base_sum_logp == answers[0].sum_logp


def test_a_damaged_checkpoint_and_bad_prompts_are_one_line(played_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(played_run, run)
    shutil.copytree(played_run.parent / "base", tmp_path / "base")
    weights = run / "checkpoints" / "checkpoint-20" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    calls = Calls(playground(run), load_run(run))
    broken = calls.ask({"index": 2, "prompt": "hello"})["error"]
    assert "\n" not in broken and "checkpoint-20" in broken
    assert "answer" in calls.ask({"index": 1, "prompt": "hello \ud800"})
    assert "empty" in calls.ask({"index": 0, "prompt": "  "})["error"]
    assert "do not fit the model" in calls.ask({"index": 0, "prompt": "x" * 500})["error"]
    assert "too long" in calls.compare({"prompt": "x" * 60_000})["error"]
    for index in (None, 9, -1, "0"):
        assert "no such checkpoint" in calls.ask({"index": index, "prompt": "hello"})["error"]


def test_a_diverged_model_gives_null_not_nan(played_run: Path, tmp_path: Path) -> None:
    model = make_model()
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    model.save_pretrained(tmp_path / "checkpoint-1")
    make_tokenizer(chat=False).save_pretrained(tmp_path / "checkpoint-1")
    ground = Playground(
        [Checkpoint(str(tmp_path / "checkpoint-1"), "policy", 1)], ModelCache(LARGE, **CPU), max_new_tokens=3
    )
    found = Calls(ground, load_run(played_run)).compare({"prompt": "hello"})
    assert found["answers"][0]["sum_logp"] is None
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [(["--steps", "7"], 2, "no such checkpoint"), (["--also", "x"], 2, "needs a name"),
     (["--memory", "0"], 2, "no memory"), (["--max-new-tokens", "0"], 2, "no tokens")],
)  # fmt: skip
def test_mistakes_of_the_command_are_one_line(
    played_run: Path, arguments: list[str], status: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["play", str(played_run), *arguments]) == status
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


def test_a_run_without_models_says_what_to_do(tmp_path: Path) -> None:
    from dpo_diag.records import RunWriter

    RunWriter(tmp_path / "bare", kind="imported").finish()
    with pytest.raises(DiagError, match=r"no model to ask.*--also mine=PATH"):
        checkpoints_of(load_run(tmp_path / "bare"))
