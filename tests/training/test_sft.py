"""DiagSFTTrainer: response and prompt apart, exact, bit-identical to stock, and a wrong mask shows."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer

from dpo_diag import load_run
from dpo_diag.training import DiagSFTTrainer, shared_proof
from dpo_diag.training.sft_adapter import row_ids

from .plain import score
from .tiny import make_model, make_pairs, make_tokenizer, theirs

TEMPLATE = (
    "{% for m in messages %}{{ '<' + m['role'] + '>' + m['content'] + '<eos>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)
ROWS = [{"prompt": r["prompt"], "completion": r["chosen"]} for r in make_pairs(7)]
CHATS = [
    {"messages": [
        {"role": "user", "content": f"{i} cat"}, {"role": "assistant", "content": " red" * (1 + i % 3)},
        {"role": "user", "content": "dog?"}, {"role": "assistant", "content": " two blue"},
    ]}
    for i in range(5)
]  # fmt: skip


def arguments(folder: Any, **options: Any) -> SFTConfig:
    known: dict[str, Any] = {
        "output_dir": str(folder), "use_cpu": True, "bf16": False, "gradient_checkpointing": False, "report_to": [],
        "logging_steps": 1, "save_strategy": "no", "eval_strategy": "steps", "eval_steps": 2, "disable_tqdm": True,
        "learning_rate": 1e-2, "per_device_train_batch_size": 3, "per_device_eval_batch_size": 3, "max_steps": 2,
        "seed": 3, "dataloader_pin_memory": False,
    }  # fmt: skip
    return SFTConfig(**(known | options))


def run_sft(folder: Path, tokenizer: Any, rows: list[dict[str, Any]], cls: Any = DiagSFTTrainer, model: Any = None,
            options: Any = None, **extra: Any) -> Any:  # fmt: skip
    trainer = cls(
        model=model or make_model(1, attention_dropout=0.2), args=arguments(folder / "out", **(options or {})),
        train_dataset=Dataset.from_list(rows), eval_dataset=Dataset.from_list(rows), processing_class=tokenizer,
        **extra,
    )  # fmt: skip
    trainer.train()
    return trainer


def parts(tokenizer: Any, row: dict[str, str]) -> tuple[list[int], list[int]]:
    """Token ids of prompt + completion + end, and 1 where the completion is."""
    prompt = tokenizer(row["prompt"])["input_ids"]
    ids = tokenizer(row["prompt"] + row["completion"] + tokenizer.eos_token)["input_ids"]
    return ids, [0] * len(prompt) + [1] * (len(ids) - len(prompt))


def expected_of(model: Any, tokenizer: Any, rows: list[tuple[list[int], list[int]]], max_length: int = 10**6) -> Any:
    """Metrics of response and prompt from the plain loop."""
    metrics = {}
    for name, keep in (("response", 1), ("prompt", 0)):
        values = [score(model.eval(), ids[:max_length], [int(m == keep) for m in mask][:max_length])
                  for ids, mask in rows]  # fmt: skip
        values = [v for v in values if v["n_tokens"]]
        s, n = (np.array([v[k] for v in values]) for k in ("sum_logp", "n_tokens"))
        metrics |= {
            f"ce/{name}": (-s / n).mean(),
            f"ppl_token/{name}": math.exp(-s.sum() / n.sum()),
            f"ppl_seq_mean/{name}": np.exp(-s / n).mean(),
            f"ppl_seq_geomean/{name}": math.exp((-s / n).mean()),
            f"top1/{name}": sum(v["top1"] * v["n_tokens"] for v in values) / n.sum(),
            f"entropy/{name}": sum(v["entropy_sum"] for v in values) / n.sum(),
        }
    return metrics


def first_evaluation(trainer: Any) -> dict[str, float]:
    return next(r for r in trainer.state.log_history if "eval_loss" in r)


def test_both_parts_are_exact_and_nothing_of_trls_changes(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    ours = run_sft(tmp_path, tokenizer, ROWS, recorder=tmp_path / "run",
                   options={"gradient_accumulation_steps": 2, "pad_to_multiple_of": 16})  # fmt: skip
    stock = run_sft(tmp_path, tokenizer, ROWS, SFTTrainer,
                    options={"gradient_accumulation_steps": 2, "pad_to_multiple_of": 16})  # fmt: skip
    pick = ("loss", "eval_loss", "grad_norm", "entropy", "eval_entropy", "mean_token_accuracy",
            "eval_mean_token_accuracy", "num_tokens")  # fmt: skip
    stock_rows, our_rows = stock.state.log_history, [r for r in ours.state.log_history if r["step"] > 0]
    for own, mine in zip(stock_rows, our_rows, strict=True):
        for name in [k for k in pick if k in own]:
            assert own[name] == pytest.approx(theirs(mine, name), rel=2e-5, abs=2e-5), name
    assert all(torch.equal(a, b) for a, b in zip(stock.model.parameters(), ours.model.parameters(), strict=True))
    start = first_evaluation(ours)
    assert start["step"] == 0
    expected = expected_of(make_model(1), tokenizer, [parts(tokenizer, r) for r in ROWS])
    for name, value in expected.items():
        assert start[f"eval_{name}"] == pytest.approx(value, rel=1e-5, abs=1e-6), name
    assert start["eval_loss_on_prompt"] == 0.0
    assert start["eval_loss_exact"] == pytest.approx(math.log(expected["ppl_token/response"]), rel=1e-6)
    assert all(v < 1e-5 for r in ours.state.log_history for k, v in r.items() if k.endswith("loss_residual"))
    run = load_run(tmp_path / "run")
    assert run.info.loss is None
    assert run.info.loss_reason == "SFT: a negative log-likelihood, no preference loss"
    assert set(run.history["split"]) == {"train", "eval"}
    assert not run.has("pairs")
    weights = run.history[run.history["step"] == 0].set_index("name")["weight"]
    tokens = sum(sum(mask) for _, mask in (parts(tokenizer, r) for r in ROWS))
    assert weights["ppl_token/response"] == weights["loss"] == tokens


def test_an_example_has_one_id_whatever_it_is_padded_to() -> None:
    """The same three tokens alone, and in a batch padded on either side to five."""
    alone = {"input_ids": torch.tensor([[7, 8, 9]]), "attention_mask": torch.tensor([[1, 1, 1]])}
    right = {"input_ids": torch.tensor([[7, 8, 9, 0, 0], [5, 6, 7, 8, 9]]),
             "attention_mask": torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])}  # fmt: skip
    left = {"input_ids": torch.tensor([[0, 0, 7, 8, 9]]), "attention_mask": torch.tensor([[0, 0, 1, 1, 1]])}
    assert row_ids(alone) == row_ids(left) == row_ids(right)[:1]
    assert row_ids(right)[0] != row_ids(right)[1]


def test_training_on_the_prompt_shows(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """The same data with the loss on everything: response and prompt are what they were, and the share is named."""
    options = {"completion_only_loss": False, "max_steps": 1, "eval_steps": 1}
    trainer = run_sft(tmp_path, tokenizer, ROWS, options=options)
    start = first_evaluation(trainer) | {}
    rows = [parts(tokenizer, r) for r in ROWS]
    in_prompt = sum(len(mask) - sum(mask) - 1 for _, mask in rows)  # the first token has no score
    in_all = sum(len(mask) - 1 for _, mask in rows)
    evaluated = [r for r in trainer.state.log_history if "eval_loss" in r]
    assert evaluated[0]["eval_loss_on_prompt"] == pytest.approx(in_prompt / in_all)
    assert start["eval_ce/prompt"] > 0


def test_cut_sequences(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """max_length 8: masks are cut as the tokens are; rows whose prompt fills it are dropped by TRL."""
    options = {"max_length": 8, "completion_only_loss": False, "max_steps": 1}
    trainer = DiagSFTTrainer(
        model=make_model(1), args=arguments(tmp_path, **options), processing_class=tokenizer,
        train_dataset=Dataset.from_list(ROWS), eval_dataset=Dataset.from_list(ROWS),
    )  # fmt: skip
    values = trainer.evaluate()
    for name, value in expected_of(make_model(1), tokenizer, [parts(tokenizer, r) for r in ROWS], 8).items():
        assert values[f"eval_{name}"] == pytest.approx(value, rel=1e-5, abs=1e-6), name


def chat_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def test_a_conversation_is_split_by_its_turns(tmp_path: Path) -> None:
    """TRL trains on every turn of `messages` unless told otherwise: the user's share of the loss is said."""
    tokenizer = chat_tokenizer()
    trainer = DiagSFTTrainer(
        model=make_model(1), args=arguments(tmp_path), processing_class=tokenizer,
        train_dataset=Dataset.from_list(CHATS), eval_dataset=Dataset.from_list(CHATS),
    )  # fmt: skip
    values = trainer.evaluate()
    rows, outside, scored = [], 0, 0
    for chat in CHATS:
        ids: list[int] = []
        mask: list[int] = []
        for m in chat["messages"]:
            head = tokenizer(f"<{m['role']}>", add_special_tokens=False)["input_ids"]
            body = tokenizer(m["content"] + "<eos>", add_special_tokens=False)["input_ids"]
            ids += head + body
            mask += [0] * len(head) + [int(m["role"] == "assistant")] * len(body)
        assert ids == tokenizer(tokenizer.apply_chat_template(chat["messages"], tokenize=False))["input_ids"]
        rows.append((ids, mask))
        outside += mask[1:].count(0)
        scored += len(mask) - 1
    for name, value in expected_of(make_model(1), tokenizer, rows).items():
        assert values[f"eval_{name}"] == pytest.approx(value, rel=1e-5, abs=1e-6), name
    assert values["eval_loss_on_prompt"] == pytest.approx(outside / scored)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.label_smoothing_factor. is deprecated:FutureWarning")
@pytest.mark.parametrize(
    ("rows", "options"),
    [
        ([{"text": r["prompt"] + r["completion"]} for r in ROWS], {}),
        (ROWS, {"packing": True, "max_length": 16, "packing_strategy": "wrapped"}),
        (ROWS, {"loss_type": "dft"}),
        (ROWS, {"label_smoothing_factor": 0.1}),
        (ROWS, {"assistant_only_loss": False, "remove_unused_columns": False}),
    ],
    ids=["text", "packed", "dft", "label smoothing", "all columns"],
)
def test_other_kinds_train_as_stock(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, rows: list[dict[str, Any]], options: dict[str, Any]
) -> None:
    values = [run_sft(tmp_path / c.__name__, tokenizer, rows, c, options=options) for c in (SFTTrainer, DiagSFTTrainer)]
    stock, ours = (t.state.log_history for t in values)
    for own, mine in zip(stock, ours, strict=True):
        for name in [k for k in ("loss", "eval_loss") if k in own]:
            assert own[name] == pytest.approx(theirs(mine, name), rel=2e-5, abs=2e-5), name
    assert all(torch.equal(*p) for p in zip(*(t.model.parameters() for t in values), strict=True))
    last = [r for r in values[1].state.log_history if "eval_loss" in r][-1]
    assert last["eval_ppl_token/response"] > 1
    assert "eval_loss_residual" not in last or last["eval_loss_residual"] < 1e-5
    if "loss_type" in options:  # another loss: the NLL stands beside it
        assert last["eval_nll_loss"] == pytest.approx(math.log(last["eval_ppl_token/response"]), rel=1e-6)
        assert last["eval_loss"] < 0.9 * last["eval_nll_loss"]


@pytest.mark.slow
def test_lora_and_streams(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    lora = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    trainer = DiagSFTTrainer(
        model=make_model(1), args=arguments(tmp_path), processing_class=tokenizer, peft_config=lora,
        train_dataset=Dataset.from_list(ROWS).to_iterable_dataset(), eval_dataset=Dataset.from_list(ROWS),
    )  # fmt: skip
    trainer.train()
    logged = next(r for r in trainer.state.log_history if "loss" in r)
    expected = expected_of(make_model(1), tokenizer, [parts(tokenizer, r) for r in ROWS[:3]])
    assert logged["ce/prompt"] == pytest.approx(expected["ce/prompt"], rel=1e-5)
    assert logged["ce/response"] == pytest.approx(expected["ce/response"], rel=1e-5)


def test_prompt_metrics_can_be_left_out(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    trainer = DiagSFTTrainer(
        model=make_model(1), args=arguments(tmp_path), processing_class=tokenizer, prompt_metrics=False,
        train_dataset=Dataset.from_list(ROWS), eval_dataset=Dataset.from_list(ROWS),
    )  # fmt: skip
    values = trainer.evaluate()
    assert not any("/prompt" in k for k in values)
    expected = expected_of(make_model(1), tokenizer, [parts(tokenizer, r) for r in ROWS])
    assert values["eval_ce/response"] == pytest.approx(expected["ce/response"], rel=1e-5)


@pytest.mark.parametrize("tiled", [True, False])
def test_responses_are_recorded_token_by_token(tmp_path: Path, tokenizer: PreTrainedTokenizerFast, tiled: bool) -> None:
    """The response's tokens alone, of the three rows with the smallest ids: their log-probs and first choices are those
    of the plain loop."""
    trainer = DiagSFTTrainer(
        model=make_model(1), args=arguments(tmp_path), processing_class=tokenizer, recorder=tmp_path / "run",
        train_dataset=Dataset.from_list(ROWS), eval_dataset=Dataset.from_list(ROWS), record_tokens=3,
        extra_metrics=("greedy_logp", "top5"), tiled_head=tiled,
    )  # fmt: skip
    values = trainer.evaluate()
    assert 0 <= values["eval_top5/response"] <= 1 and values["eval_greedy_logp/response"] < 0
    tokens = load_run(tmp_path / "run").tokens
    assert tokens["pair_id"].nunique() == 3 and set(tokens["side"]) == {"response"}
    ids = {hashlib.sha256(np.array(ids).tobytes()).hexdigest()[:16]: (ids, mask)
           for ids, mask in (parts(tokenizer, row) for row in ROWS)}  # fmt: skip
    assert sorted(ids)[:3] == sorted(set(tokens["pair_id"]))
    for pair_id, rows in tokens.groupby("pair_id", observed=True):
        ids_of, mask = ids[str(pair_id)]
        plain = score(make_model(1), ids_of, mask)
        assert len(rows) == plain["n_tokens"]
        assert rows["logp"].sum() == pytest.approx(plain["sum_logp"], rel=1e-5)
        assert rows["is_top1"].mean() == pytest.approx(plain["top1"])
        assert rows["entropy"].sum() == pytest.approx(plain["entropy_sum"], rel=1e-5)
        assert (rows["greedy_logp"] >= rows["logp"] - 1e-6).all()
        assert rows["token_id"].tolist() == [i for i, m in zip(ids_of, mask, strict=True) if m]


@pytest.mark.parametrize("prompt_metrics", [True, False])
def test_the_head_in_tiles(tmp_path: Path, tokenizer: PreTrainedTokenizerFast, prompt_metrics: bool) -> None:
    """The same loss, gradient norm and metrics of both parts but for rounding, dropout's draws included; proved on the
    first batch and written down."""
    usual, tiled = (
        run_sft(
            tmp_path / str(way),
            tokenizer,
            ROWS,
            recorder=tmp_path / str(way) / "run",
            tiled_head=way,
            prompt_metrics=prompt_metrics,
            options={"gradient_accumulation_steps": 2},
        )
        for way in (False, True)
    )
    assert len(usual.state.log_history) == len(tiled.state.log_history) > 3
    for a, b in zip(usual.state.log_history, tiled.state.log_history, strict=True):
        for name, value in a.items():
            if not any(part in name for part in ("runtime", "per_second", "residual", "trl/")):
                assert b[name] == pytest.approx(value, rel=2e-5, abs=2e-5), name
        assert ("eval_ce/prompt" in b) == (prompt_metrics and "eval_loss" in b)
    for p, q in zip(usual.model.parameters(), tiled.model.parameters(), strict=True):
        assert torch.allclose(p, q, atol=1e-5)
    found = load_run(tmp_path / "True" / "run").info.training.shared_prefix
    assert found is not None
    assert found.way == "head"
    assert found.max_loss_diff is not None and found.max_loss_diff <= 1e-6
    assert found.max_grad_diff is not None and found.max_grad_diff <= 1e-5
    assert load_run(tmp_path / "False" / "run").info.training.shared_prefix is None


def test_a_head_that_is_wrong_is_not_used(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No difference is small enough: bit for bit the run without it."""
    monkeypatch.setattr(shared_proof, "GRADIENT_TOLERANCE", -1.0)
    usual, tried = (run_sft(tmp_path / str(way), tokenizer, ROWS, tiled_head=way) for way in (False, True))
    assert all(torch.equal(a, b) for a, b in zip(usual.model.parameters(), tried.model.parameters(), strict=True))
