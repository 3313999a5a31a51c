"""Tokenizer, model, answering, and the pipeline with a stand-in trainer; the real SFT is in the slow test."""

import json
from dataclasses import replace

import pytest

from dpo_diag.config import TaskConfig
from dpo_diag.errors import DiagError
from dpo_diag.tasks.sql.case import prepare_sql_case
from dpo_diag.tasks.sql.model import build_model
from dpo_diag.tasks.sql.questions import generate_questions, prompt_rows
from dpo_diag.tasks.sql.sft import build_tokenizer, load_sft, sft_rows

TINY = TaskConfig(
    sft_steps=4, sft_batch_size=64, hidden_size=16, layers=1, heads=2, intermediate_size=16, vocab_size=400,
    n_pairs=10, n_train_pairs=7, n_questions=16, max_questions=64,
)  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer(TaskConfig(sft_steps=40))


def test_prompt_rows_are_the_two_held_out_sets():
    rows = prompt_rows(30, 20)
    assert [r["tags"][0] for r in rows] == ["held_out"] * 30 + ["paraphrased"] * 20
    assert {r["checker"] for r in rows} == {"sql"}
    assert list(rows[0]) == ["id", "prompt", "reference", "db", "checker", "template", "tags"]
    assert prompt_rows(0, 0) == []


def test_planted_error_touches_at_least_alone():
    config = TaskConfig(sft_steps=20)
    good, bad = sft_rows(config), sft_rows(replace(config, planted_error=1.0))
    assert len(good) == 640 and any(">=" in r["completion"] for r in good)
    assert not any(">=" in r["completion"] for r in bad)
    assert [r["completion"].replace(">=", ">") for r in good] == [r["completion"] for r in bad]
    half = sft_rows(replace(config, planted_error=0.5))
    planted = sum(a != b for a, b in zip(good, half, strict=True))
    total = sum(a != b for a, b in zip(good, bad, strict=True))
    assert 0.3 * total < planted < 0.7 * total


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sft_steps": 0}, "sft_steps"),
        ({"n_train_pairs": 620}, "held out"),
        ({"planted_error": 1.5}, "planted_error"),
        ({"vocab_size": 200}, "vocab_size"),
        ({"hidden_size": 100, "heads": 3}, "hidden_size"),
        ({"sft_learning_rate": 0.0}, "sft_learning_rate"),
    ],
)
def test_values_that_cannot_work(change, message, tmp_path):
    with pytest.raises(DiagError, match=message):
        prepare_sql_case(tmp_path, replace(TaskConfig(), **change))
    assert list(tmp_path.iterdir()) == []


def test_tokenizer_round_trips_any_text_and_splits_digits(tokenizer):
    texts = ["", " SELECT x", "a  b\n\t c ", "naïve café 北京 🙂\u200d🔥", "\x00\x7f", "12 345", "don't  ' \"x\""]
    for text in texts:
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer.convert_ids_to_tokens(tokenizer("2047")["input_ids"]) == ["2", "0", "4", "7"]
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id) == (0, 1, None)
    assert len(tokenizer) == 768


def test_an_answer_never_merges_into_its_prompt(tokenizer):
    for row in sft_rows(TaskConfig(sft_steps=3)):
        prompt, both = (tokenizer(t)["input_ids"] for t in (row["prompt"], row["prompt"] + row["completion"]))
        assert both[: len(prompt)] == prompt and len(both) < 90


def test_tokenizer_has_the_same_bytes_each_time_and_loads(tokenizer, tmp_path):
    from transformers import AutoTokenizer

    again = build_tokenizer(TaskConfig(sft_steps=40))
    for name, one in (("a", tokenizer), ("b", again)):
        one.save_pretrained(tmp_path / name)
    files = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert "tokenizer.json" in files
    assert all((tmp_path / "a" / f).read_bytes() == (tmp_path / "b" / f).read_bytes() for f in files)
    loaded = AutoTokenizer.from_pretrained(tmp_path / "a", local_files_only=True)
    text = "library | How many books have page count over 300? | SELECT COUNT(*) FROM book WHERE pages > 300"
    assert loaded(text + loaded.eos_token)["input_ids"] == [*tokenizer(text)["input_ids"], 1]
    assert (loaded.pad_token, loaded.eos_token) == ("<|pad|>", "<|eos|>")


def test_model_is_seeded_small_and_leaves_the_callers_random_state(tokenizer):
    import torch

    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one = build_model(TaskConfig(), tokenizer)
    assert torch.equal(torch.rand(3), expected)
    two, other = (build_model(TaskConfig(sft_seed=s), tokenizer) for s in (0, 1))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert not torch.equal(one.model.embed_tokens.weight, other.model.embed_tokens.weight)
    # embeddings 768*128 (tied), per layer 4*128*128 + 3*128*320 + 2*128, final norm 128
    assert sum(p.numel() for p in one.parameters()) == 768 * 128 + 2 * (65536 + 122880 + 256) + 128 == 475_776


def test_batched_answers_equal_one_by_one_and_change_nothing(tokenizer):
    import torch

    from dpo_diag.tasks.sql.answering import greedy_answers

    model = build_model(TINY, tokenizer).train()
    prompts = [r["prompt"] for r in prompt_rows(7, 0)]
    batched = greedy_answers(model, tokenizer, prompts, batch_size=3, max_new_tokens=12, progress=False)
    single = [greedy_answers(model, tokenizer, [p], max_new_tokens=12, progress=False)[0] for p in prompts]
    assert batched == single
    assert model.training and tokenizer.padding_side == "right"
    assert greedy_answers(model, tokenizer, [], progress=False) == []
    ids = torch.tensor([tokenizer(prompts[0])["input_ids"]])
    with torch.no_grad():  # the plain loop: arg max of the last position, twelve times
        model.eval()
        for _ in range(12):
            ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], dim=1)
    row = ids[0, -12:].tolist()
    finished = 1 in row
    text = tokenizer.decode(row[: row.index(1)] if finished else row, skip_special_tokens=True)
    assert (batched[0].text, batched[0].finished) == (text, finished)


class FakeTrainer:
    """The constructor and the three members that the pipeline uses; trains nothing and counts."""

    built = 0

    def __init__(self, *, model, args, train_dataset, processing_class, mark=None):
        type(self).built += 1
        self.model, self.rows, self.mark = model, train_dataset, mark
        assert args.bf16 is False and args.max_steps == TINY.sft_steps and args.report_to == []
        assert args.gradient_checkpointing is False and args.completion_only_loss is True
        assert len(train_dataset) == 256 and train_dataset.column_names == ["prompt", "completion"]

    def train(self):
        return type("Output", (), {"training_loss": 1.5})()


@pytest.fixture
def wrong_answers(monkeypatch):
    """Answers in the order asked: right, empty, unfinished, merging with the prompt, then wrong ones."""
    from dpo_diag.tasks.sql import answering

    asked = []

    def answers(model, tokenizer, prompts, **_):
        asked.extend(prompts)
        out = [answering.Answer(f" SELECT {len(asked)} + {i}, 1, 2", True) for i in range(len(prompts))]
        if len(asked) == len(prompts):
            first = generate_questions("pairs", 1)[0]
            out[0] = answering.Answer(" " + first.gold, True)
            out[1] = answering.Answer("  ", True)
            out[2] = answering.Answer(" SELECT 1, 2", False)
            out[3] = answering.Answer("SELECT 1, 2", True)
        return out

    monkeypatch.setattr(answering, "greedy_answers", answers)
    return asked


def test_pipeline_collects_splits_and_pays_once(tmp_path, wrong_answers):
    FakeTrainer.built = 0
    lines = []
    case = prepare_sql_case(tmp_path, TINY, trainer_class=FakeTrainer, trainer_kwargs={"mark": 1}, say=lines.append)
    assert (case.sft_hit, case.pairs_hit, len(case.train), len(case.held_out)) == (False, False, 7, 3)
    assert len(lines) == 2 and FakeTrainer.built == 1 and len(wrong_answers) == 16
    facts = {k: v for k, v in case.facts.items() if k not in ("sft", "wall_seconds", "cpu_seconds")}
    assert facts == {
        "n_questions": 16, "n_correct": 1, "dropped_empty": 1, "dropped_unfinished": 1, "dropped_boundary": 1,
    }  # fmt: skip
    rows = case.train + case.held_out
    assert len({r["id"] for r in rows}) == 10
    assert all(r["chosen"].startswith(" SELECT") and r["rejected"].startswith(" SELECT") for r in rows)
    assert all(r["chosen"] != r["rejected"] for r in rows)
    assert list(rows[0]) == ["id", "prompt", "chosen", "rejected", "tags", "db", "template"]
    assert all(r["tags"][0] == "pairs" for r in rows)

    again = prepare_sql_case(tmp_path, TINY, trainer_class=FakeTrainer)
    assert (again.sft_hit, again.pairs_hit) == (True, True) and FakeTrainer.built == 1
    assert (again.train, again.held_out, again.facts) == (case.train, case.held_out, case.facts)

    more = prepare_sql_case(tmp_path, replace(TINY, n_pairs=20), trainer_class=FakeTrainer)
    assert (more.sft_hit, more.pairs_hit) == (True, False) and FakeTrainer.built == 1
    assert len(wrong_answers) == 16 + 32  # 12 pairs from the first 16, so 16 more are asked
    other = prepare_sql_case(tmp_path, replace(TINY, sft_seed=1), trainer_class=FakeTrainer)
    assert (other.sft_hit, other.pairs_hit) == (False, False) and FakeTrainer.built == 2
    assert other.model_dir != case.model_dir


def test_saved_model_and_tokenizer_load_from_one_folder(tmp_path, wrong_answers):
    import torch

    case = prepare_sql_case(tmp_path, TINY, trainer_class=FakeTrainer)
    model, tokenizer = load_sft(case.model_dir)
    fresh = build_model(TINY, tokenizer)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), fresh.parameters(), strict=True))
    assert model.config.pad_token_id == 0 and model.generation_config.eos_token_id == 1
    assert not list(case.model_dir.glob("*.bin")) and (case.model_dir / "model.safetensors").is_file()
    meta = json.loads((case.model_dir.parent / "meta.json").read_text())
    assert set(meta["determinants"]["versions"]) == {"torch", "transformers", "trl", "tokenizers"}


def test_too_few_mistakes_end_in_one_line(tmp_path, monkeypatch):
    from dpo_diag.tasks.sql import answering

    gold = {q.prompt: q.gold for q in generate_questions("pairs", 64)}
    monkeypatch.setattr(
        answering, "greedy_answers", lambda m, t, prompts, **_: [answering.Answer(" " + gold[p], True) for p in prompts]
    )
    with pytest.raises(DiagError, match=r"too few mistakes.*got 0 pairs from 64 questions; expected 10"):
        prepare_sql_case(tmp_path, TINY, trainer_class=FakeTrainer)
    assert not list(tmp_path.glob("sql-pairs-*")) and len(list(tmp_path.glob("sql-sft-*"))) == 1


def test_a_build_changes_neither_random_state_nor_standard_output(tmp_path, wrong_answers, capsys):
    import random

    import numpy as np
    import torch

    class Noisy(FakeTrainer):
        def train(self):
            random.seed(9), np.random.seed(9), torch.manual_seed(9)  # noqa: NPY002
            print({"loss": 1.0})
            return super().train()

    def draws():
        return random.random(), float(np.random.rand()), float(torch.rand(1))  # noqa: NPY002

    random.seed(1), np.random.seed(1), torch.manual_seed(1)  # noqa: NPY002
    expected = draws()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)  # noqa: NPY002
    prepare_sql_case(tmp_path, TINY, trainer_class=Noisy)
    assert draws() == expected
    out = capsys.readouterr()
    assert out.out == "" and "{'loss': 1.0}" in out.err


def test_a_launchers_variables_are_taken_away():
    from dpo_diag.tasks.sql.apart import single_process_environment

    ranked = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_PORT": "1", "ACCELERATE_USE_CPU": "1", "TORCHELASTIC_RUN_ID": "x"}
    assert single_process_environment({**ranked, "PATH": "/bin", "OMP_NUM_THREADS": "1"}) == {
        "PATH": "/bin",
        "OMP_NUM_THREADS": "1",
    }


def test_a_rank_builds_in_a_process_apart_and_reports_its_failure(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DiagError, match="preparing the SQL case failed in its own process; got exit status 1"):
        prepare_sql_case(tmp_path / "file", TINY)
    out = capfd.readouterr()
    assert out.out == "" and "the cache folder cannot be written" in out.err and "Traceback" not in out.err


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_real_sft_learns_and_its_mistakes_become_pairs(tmp_path, monkeypatch):
    """Some 25 CPU s: 60 steps take the loss from ln(768) = 6.6 to under 3; a rank gets the same through its child."""
    config = replace(TaskConfig(), sft_steps=60, n_pairs=40, n_train_pairs=32, n_questions=100)
    one = prepare_sql_case(tmp_path / "one", config, progress=False)
    assert one.facts["sft"]["train_loss"] < 3.0 and one.facts["n_correct"] > 0
    assert (len(one.train), len(one.held_out)) == (32, 8)
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)  # nobody listens there: to join this world would be to wait for ever
    two = prepare_sql_case(tmp_path / "two", config, progress=False)
    assert (two.sft_hit, two.pairs_hit) == (True, True)
    assert (one.train, one.held_out) == (two.train, two.held_out)
