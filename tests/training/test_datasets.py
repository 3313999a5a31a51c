"""Where pairs come from: what TRL's own trainer accepts, with the ids and splits that the records need."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict
from transformers import PreTrainedTokenizerFast
from trl import DPOTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference

from dpo_diag import load_run
from dpo_diag.data.tokens import with_ids
from dpo_diag.records import make_pair_id
from dpo_diag.training import DiagDPOTrainer
from dpo_diag.training.pair_ids import KEY, add_pair_ids, ids_from_tokens, pack_id, unpack_id

from .plain import assert_rows, score_pairs
from .tiny import arguments, copies, make_model, make_pairs, make_tokenizer

TEMPLATE = (
    "{% for m in messages %}{{ '<' + m['role'] + '>' + m['content'] + '<eos>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)


def identity(example: dict[str, Any]) -> str:
    return make_pair_id(example["prompt"], example["chosen"], example["rejected"])


def trained(tmp_path: Path, tokenizer: Any, train: Any, evals: Any = None, *, data_collator: Any = None,
            recorder: bool = True, **options: Any) -> DiagDPOTrainer:  # fmt: skip
    known = {"max_steps": 1} | ({"eval_strategy": "steps", "eval_steps": 1} if evals is not None else {}) | options
    trainer = DiagDPOTrainer(
        model=make_model(1), ref_model=make_model(2), args=arguments(tmp_path / "out", **known), train_dataset=train,
        eval_dataset=evals, processing_class=tokenizer, data_collator=data_collator,
        recorder=tmp_path / "run" if recorder else None,
    )  # fmt: skip
    trainer.train()
    return trainer


def test_packed_ids_round_trip() -> None:
    for pair_id in ("0000000000000001", "7fffffffffffffff", "8000000000000000", "ffffffffffffffff"):
        assert unpack_id(pack_id(pair_id)) == pair_id
        assert -(2**63) <= pack_id(pair_id) < 2**63


def as_messages(row: dict[str, str]) -> dict[str, Any]:
    return {
        "prompt": [{"role": "user", "content": row["prompt"]}],
        "chosen": [{"role": "assistant", "content": row["chosen"]}],
        "rejected": [{"role": "assistant", "content": row["rejected"]}],
    }


def implicit(row: dict[str, Any]) -> dict[str, Any]:
    return {"chosen": row["prompt"] + row["chosen"], "rejected": row["prompt"] + row["rejected"]}


@pytest.mark.parametrize("kind", ["text", "messages", "implicit text", "implicit messages"])
def test_every_format_has_the_id_of_its_content(tmp_path: Path, kind: str) -> None:
    """An implicit prompt gives the id of the same pair with an explicit one: rows join across formats."""
    tokenizer = make_tokenizer()
    tokenizer.chat_template = TEMPLATE
    rows: list[dict[str, Any]] = make_pairs(6)
    if "messages" in kind:
        rows = [as_messages(r) for r in rows]
    ids = {identity(r) for r in rows}
    data = Dataset.from_list([implicit(r) for r in rows] if "implicit" in kind else rows)
    trained(tmp_path, tokenizer, data, data)
    run = load_run(tmp_path / "run")
    texts = run.texts[run.texts["split"] == "eval"]
    assert len(texts) == len(set(run.pairs["pair_id"])) == 6
    if kind == "implicit text":
        # where the responses share their first characters TRL takes those into the prompt
        assert len(ids & set(texts["pair_id"])) >= 3
    else:
        assert set(texts["pair_id"]) == ids
        assert set(texts["chosen"]) == {r["chosen"] if kind == "text" else r["chosen"][0]["content"] for r in rows}


def test_an_id_that_the_data_brings_is_kept(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    rows = [r | {"pair_id": f"{i:016x}"} for i, r in enumerate(make_pairs(4), start=10)]
    foreign = [r | {"pair_id": f"row {i}"} for i, r in enumerate(make_pairs(4, seed=2))]
    trained(
        tmp_path, tokenizer, Dataset.from_list(rows), {"a": Dataset.from_list(rows), "b": Dataset.from_list(foreign)}
    )
    run = load_run(tmp_path / "run")
    ids = run.pairs.groupby("split")["pair_id"].agg(set)
    assert ids["eval_a"] == {r["pair_id"] for r in rows}
    assert ids["eval_b"] == {identity(r) for r in foreign}  # "row 3" identifies nothing beyond this data set


def test_an_id_that_stands_for_several_pairs_is_not_kept(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    """Five rows under one id: the first keeps it, the others have the hash of their content, no sum is lost, and the
    run and the console say so. A repeated row is no other pair."""
    given = "00000000000000aa"
    rows = [r | {"pair_id": given} for r in make_pairs(5, seed=1)]
    trained(tmp_path, tokenizer, Dataset.from_list(rows), Dataset.from_list([*rows, rows[0]]))
    run = load_run(tmp_path / "run")
    ids = [given, *(identity(r) for r in rows[1:])]
    for split in ("train", "eval"):
        assert run.info.splits[split].n_same_id == 5 and run.info.splits[split].told_apart_by == "content"
    at_0 = run.pairs[(run.pairs["split"] == "eval") & (run.pairs["step"] == 0)].set_index(["pair_id", "side"])
    expected = score_pairs(make_model(1), tokenizer, rows)
    assert set(at_0.index.get_level_values(0)) == set(ids)
    for pair_id, r in zip(ids, rows, strict=True):
        assert at_0.loc[(pair_id, "rejected"), "sum_logp"] == pytest.approx(
            expected[identity(r), "rejected"]["sum_logp"], abs=1e-4
        )
    assert run.info.splits["eval"].n_duplicates == 1
    assert "eval dataset: 5 pairs have 1 id (00000000000000aa)" in caplog.text
    assert [row["pair_id"] for row in with_ids(rows)] == ids  # what dpo-score makes of the same rows
    stream = add_pair_ids(Dataset.from_list(rows).to_iterable_dataset())
    assert {unpack_id(row[KEY][0]) for row in stream} == {identity(r) for r in rows}


def test_several_evaluation_sets_share_a_step(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    sets = {"near": make_pairs(5, seed=1), "far": make_pairs(3, seed=2)}
    trainer = trained(
        tmp_path, tokenizer, Dataset.from_list(make_pairs(6)),
        DatasetDict({k: Dataset.from_list(v) for k, v in sets.items()}),
    )  # fmt: skip
    run = load_run(tmp_path / "run")
    start, reference = make_model(1), make_model(2)
    for name, rows in sets.items():
        frame = run.pairs[(run.pairs["split"] == f"eval_{name}") & (run.pairs["step"] == 0)]
        assert_rows(frame, score_pairs(start, tokenizer, rows), ("sum_logp",))
        assert_rows(frame, score_pairs(reference, tokenizer, rows), ("sum_logp",), prefix="ref_")
        logged = [r for r in trainer.state.log_history if f"eval_{name}_loss" in r]
        assert [r["step"] for r in logged] == [0, 1]
        history = run.history[(run.history["split"] == f"eval_{name}") & (run.history["step"] == 1)].set_index("name")
        assert history.loc["ce/chosen", "value"] == logged[1][f"eval_{name}_ce/chosen"]
        assert history.loc["rewards/margins", "value"] == logged[1]["eval_rewards/margins"]
        assert history.loc["loss", "value"] == logged[1][f"eval_{name}_loss"]
        assert history.loc["loss", "weight"] == len(rows)
    assert run.info.splits["eval_far"].n_pairs == 3


def test_streams(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    def stream(rows: list[dict[str, str]]) -> IterableDataset:
        return Dataset.from_list(rows).to_iterable_dataset()

    rows = make_pairs(5, seed=1)
    trained(tmp_path, tokenizer, stream(make_pairs(6)), IterableDatasetDict({"held": stream(rows)}))
    run = load_run(tmp_path / "run")
    frame = run.pairs[(run.pairs["split"] == "eval_held") & (run.pairs["step"] == 0)]
    assert_rows(frame, score_pairs(make_model(1), tokenizer, rows), ("sum_logp", "n_truncated"))
    texts = run.texts[run.texts["split"] == "eval_held"].set_index("pair_id")
    for row in rows:  # a stream cannot be asked again: these are decoded from the tokens
        assert texts.loc[identity(row), "chosen"] == row["chosen"]
        assert texts.loc[identity(row), "prompt"] == row["prompt"]


def test_a_custom_collator_sees_what_it_always_saw(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    seen: list[set[str]] = []
    inner = DataCollatorForPreference(pad_token_id=0)

    def collate(examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        seen.extend(set(e) for e in examples)
        return inner(examples)

    rows = make_pairs(5, seed=1)
    trainer = trained(
        tmp_path, tokenizer, Dataset.from_list(make_pairs(6)), Dataset.from_list(rows), data_collator=collate
    )
    assert trainer.data_collator is collate
    assert all(s == {"prompt_ids", "chosen_ids", "rejected_ids"} for s in seen)
    run = load_run(tmp_path / "run")
    assert set(run.pairs.loc[run.pairs["split"] == "eval", "pair_id"]) == {identity(r) for r in rows}


def test_a_collator_that_rearranges_is_noticed(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """It pads nothing away but sorts the batch by length: ids by position would be another pair's. Full lengths do not
    fit, so ids fall back to the hash of the tokens that the model saw."""
    inner = DataCollatorForPreference(pad_token_id=0)

    def collate(examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        return inner(sorted(examples, key=lambda e: -len(e["chosen_ids"])))

    rows = [
        {"prompt": "1 cat:", "chosen": " red", "rejected": " dog dog"},
        {"prompt": "2 cat:", "chosen": " red blue green red", "rejected": " dog dog"},
    ]
    trained(
        tmp_path, tokenizer, Dataset.from_list(make_pairs(6)), Dataset.from_list(rows), data_collator=collate,
        per_device_eval_batch_size=2,
    )  # fmt: skip
    run = load_run(tmp_path / "run")
    frame = run.pairs[(run.pairs["split"] == "eval") & (run.pairs["step"] == 0)]
    expected = score_pairs(make_model(1), tokenizer, rows)
    assert sorted(frame["sum_logp"]) == pytest.approx(sorted(v["sum_logp"] for v in expected.values()), abs=1e-4)
    assert not set(frame["pair_id"]) & {identity(r) for r in rows}
    assert frame["n_truncated"].isna().all()


def test_a_batch_without_ids_gets_them_from_its_tokens(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    class Plain(DiagDPOTrainer):
        def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
            data = self.eval_dataset.select_columns(["prompt_ids", "chosen_ids", "rejected_ids"])
            return torch.utils.data.DataLoader(data, batch_size=2, collate_fn=self.data_collator)

    rows = make_pairs(4, seed=1)
    trainer = Plain(
        model=make_model(1), ref_model=make_model(2), processing_class=tokenizer, recorder=tmp_path / "run",
        args=arguments(tmp_path / "out"), train_dataset=Dataset.from_list(make_pairs(6)),
        eval_dataset=Dataset.from_list(rows),
    )  # fmt: skip
    trainer.evaluate()
    run = load_run(tmp_path / "run")
    data = trainer.eval_dataset
    ids = {make_pair_id(e["prompt_ids"], e["chosen_ids"], e["rejected_ids"]) for e in data}
    assert set(run.pairs["pair_id"]) == ids
    batch = DataCollatorForPreference(pad_token_id=0)([data[i] for i in range(4)])
    arrays = (batch[k].numpy() for k in ("input_ids", "attention_mask", "completion_mask"))
    assert set(ids_from_tokens(*arrays)) == ids


def test_columns_that_are_not_removed(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    trainer = trained(
        tmp_path, tokenizer, Dataset.from_list(make_pairs(6)), Dataset.from_list(make_pairs(3)),
        remove_unused_columns=False, precompute_ref_log_probs=True,
    )  # fmt: skip
    assert KEY in trainer.train_dataset.column_names
    assert len(load_run(tmp_path / "run").pairs) > 0


def test_compute_metrics_still_gets_its_logits(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    shapes = []

    def compute(prediction: Any) -> dict[str, float]:
        shapes.append(prediction.predictions.shape)
        return {"mine": 0.5}

    rows = make_pairs(3, seed=1)
    trainer = DiagDPOTrainer(
        model=make_model(1), ref_model=make_model(2), processing_class=tokenizer, args=arguments(tmp_path),
        train_dataset=Dataset.from_list(make_pairs(6)), eval_dataset=Dataset.from_list(rows), compute_metrics=compute,
    )  # fmt: skip
    with pytest.warns(FutureWarning, match="return_outputs"):
        values = trainer.evaluate()
    assert values["eval_mine"] == 0.5
    assert shapes[0][-1] == 300
    expected = score_pairs(make_model(1), tokenizer, rows)
    ce = [-v["sum_logp"] / v["n_tokens"] for (_, side), v in expected.items() if side == "chosen"]
    assert values["eval_ce/chosen"] == pytest.approx(sum(ce) / 3, rel=1e-5)


@pytest.mark.slow
def test_a_foreign_set_never_shares_a_split(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    own, other = make_pairs(4, seed=1), make_pairs(3, seed=5)
    trainer = trained(tmp_path, tokenizer, Dataset.from_list(make_pairs(6)), Dataset.from_list(own))
    values = trainer.evaluate(Dataset.from_list(other))
    again = trainer.evaluate(Dataset.from_list(other))
    named = trainer.evaluate({"more": Dataset.from_list(make_pairs(2, seed=8))})
    assert values["eval_ce/chosen"] == again["eval_ce/chosen"]
    assert "eval_more_ce/chosen" in named
    trainer.evaluate(trainer.eval_dataset)
    trainer.monitor.flush()
    run = load_run(tmp_path / "run")
    ids = run.pairs.groupby("split")["pair_id"].agg(set)
    assert ids["eval"] == {identity(r) for r in own}
    foreign = [s for s in ids.index if s.startswith("eval_") and s != "eval_more"]
    assert len(foreign) == 1
    assert run.pairs["ref_sum_logp"].notna().all()  # evaluated twice at one step: the file is replaced, whole
    assert run.tokens["ref_logp"].notna().all()
    assert ids[foreign[0]] == {identity(r) for r in other}
    assert set(run.history.loc[run.history["split"] == foreign[0], "name"]) >= {"ce/chosen", "loss"}


def test_identical_pairs_count_in_the_metrics_and_are_recorded_once(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    rows = make_pairs(3, seed=1)
    trainer = trained(tmp_path, tokenizer, Dataset.from_list(make_pairs(6)), Dataset.from_list([*rows, rows[0]]))
    run = load_run(tmp_path / "run")
    assert run.info.splits["eval"].n_duplicates == 1
    assert len(run.read("pairs", splits=["eval"], roles=["policy"], steps=[0])) == 6
    logged = next(r for r in trainer.state.log_history if "eval_loss" in r)
    expected = score_pairs(make_model(1), tokenizer, rows)
    ce = [-expected[identity(r), "chosen"]["sum_logp"] / expected[identity(r), "chosen"]["n_tokens"]
          for r in [*rows, rows[0]]]  # fmt: skip
    assert logged["eval_ce/chosen"] == pytest.approx(sum(ce) / 4, rel=1e-5)


def test_the_cap_on_tokens_takes_the_same_pairs_every_time(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    rows = make_pairs(9, seed=1)
    trainer = DiagDPOTrainer(
        model=make_model(1), ref_model=make_model(2), processing_class=tokenizer, recorder=tmp_path / "run",
        args=arguments(tmp_path / "out", max_steps=1, eval_strategy="steps", eval_steps=1, eval_accumulation_steps=1),
        train_dataset=Dataset.from_list(make_pairs(6)), eval_dataset=Dataset.from_list(rows), record_tokens=3,
    )  # fmt: skip
    trainer.train()
    tokens = load_run(tmp_path / "run").tokens
    smallest = sorted(identity(r) for r in rows)[:3]
    for step in (0, 1):
        assert sorted(tokens.loc[tokens["step"] == step, "pair_id"].unique()) == smallest


def test_without_a_recorder_nothing_is_written(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    data = Dataset.from_list(make_pairs(6))
    trainer = trained(tmp_path, tokenizer, data, data, recorder=False)
    assert [r["step"] for r in trainer.state.log_history if "eval_loss" in r] == [1]  # no evaluation is added
    assert not (tmp_path / "run").exists()
    assert trainer.state.log_history[0]["loss_residual"] < 1e-5


def test_errors_are_trls_own(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """What TRL refuses it still refuses in its own words."""
    data = Dataset.from_list(make_pairs(3))
    for bad, error in (({"train_dataset": None}, ValueError), ({"train_dataset": DatasetDict({"a": data})}, TypeError)):
        messages = []
        for cls in (DPOTrainer, DiagDPOTrainer):
            with pytest.raises(error) as caught:
                cls(model=make_model(1), ref_model=make_model(2), args=arguments(tmp_path), processing_class=tokenizer,
                    **bad)  # fmt: skip
            messages.append(str(caught.value))
        assert messages[0] == messages[1]


def test_policy_weights_are_not_touched_by_evaluating(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    model = make_model(1)
    before = copies(model)
    trainer = DiagDPOTrainer(
        model=model, ref_model=make_model(2), args=arguments(tmp_path), processing_class=tokenizer,
        train_dataset=Dataset.from_list(make_pairs(6)), eval_dataset=Dataset.from_list(make_pairs(3)),
        extra_metrics=("top5",),
    )  # fmt: skip
    trainer.evaluate()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before.parameters(), strict=True))
    assert not model._forward_hooks
    assert not trainer.ref_model._forward_hooks
