"""What tokenising cuts and drops, counted by hand on a tokenizer with one token per byte."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpo_diag.data.pairs import collect, read_pairs, to_dataset
from dpo_diag.data.token_report import MOVED, Look, measure_tokens, measure_until
from dpo_diag.data.tokens import REFUSED
from dpo_diag.data.trained_tokens import CUT, CUT_EQUAL, PROMPT_FILLS
from dpo_diag.errors import DiagError
from tests.data.conftest import byte_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def _rows(*triples: tuple[Any, Any, Any]) -> list[dict[str, Any]]:
    raw = [{"prompt": p, "chosen": c, "rejected": r} for p, c, r in triples]
    return collect(enumerate(raw, 1), {}).rows


def _counts(table: Any, *columns: str) -> list[list[Any]]:
    return [list(values) for values in table[list(columns)].to_numpy().tolist()]


def test_text_is_cut_from_the_end(tokenizer: PreTrainedTokenizerFast) -> None:
    """max_length 8. `pppp` + `éx<end>`: 4 + 4 = 8 fits; `zzzzz<end>` is 6, so 2 are cut and 4 bytes are left.

    `pppppppp` is 8 tokens: it fills max_length. `ppppp` + `abcX` / `abcY`: the cut leaves `abc` on both sides.
    """
    rows = _rows(("pppp", "éx", "zzzzz"), ("pppppppp", "a", "b"), ("ppppp", "abcX", "abcY"), ("p", "a", "b"))
    report = measure_tokens(rows, tokenizer, 8)
    columns = ("outcome", "prompt_tokens", "chosen_tokens", "rejected_tokens", "chosen_cut", "rejected_cut")
    assert _counts(report.table, *columns) == [
        ["truncated", 4, 4, 6, 0, 2],
        ["dropped", 8, 2, 2, 2, 2],
        ["truncated", 5, 5, 5, 2, 2],
        ["whole", 1, 2, 2, 0, 0],
    ]
    assert _counts(report.table, "chosen_bytes", "rejected_bytes") == [[3, 4], [0, 0], [3, 3], [1, 1]]
    assert [(i.row, i.why, i.dropped) for i in report.issues.itertuples()] == [
        (1, CUT, False), (2, PROMPT_FILLS, True), (3, CUT_EQUAL, False),
    ]  # fmt: skip
    assert report.issues["detail"][0] == "chosen 0 of 4 tokens, rejected 2 of 6 tokens"
    assert [row["prompt"] for row in report.kept(rows)] == ["pppp", "ppppp", "p"]
    assert (report.n_dropped, report.n_truncated, report.affected_share) == (1, 2, 0.75)
    summary = report.summary()
    assert summary["response_tokens"] == 4 + 6 + 2 + 2 + 5 + 5 + 2 + 2
    assert summary["response_tokens_cut"] == 2 + 4 + 4
    assert summary["quartiles"]["prompt"] == [1.0, 3.25, 4.5, 5.75, 8.0]


def test_keep_end_cuts_the_prompt_first_and_drops_nothing(tokenizer: PreTrainedTokenizerFast) -> None:
    """max_length 4: `pppp` + `a<end>` loses 2 of the prompt; `abcdef<end>` loses 3 of its own, the whole prompt too."""
    report = measure_tokens(_rows(("pppp", "a", "abcdef")), tokenizer, 4, "keep_end")
    columns = ("outcome", "prompt_cut", "chosen_cut", "rejected_cut", "rejected_bytes")
    assert _counts(report.table, *columns) == [["truncated", 4, 0, 3, 3]]
    with pytest.raises(DiagError, match="unknown truncation mode"):
        measure_tokens([], tokenizer, 4, "middle")


def test_no_limit_and_an_end_token_that_is_already_there(tokenizer: PreTrainedTokenizerFast) -> None:
    report = measure_tokens(_rows(("p", "a<|end|>", "bb")), tokenizer, None)
    assert _counts(report.table, "outcome", "chosen_tokens", "rejected_tokens") == [["whole", 2, 3]]


def test_messages_go_through_the_chat_template(tokenizer: PreTrainedTokenizerFast) -> None:
    """<|user|>hi<|end|><|assistant|> is 1 + 2 + 1 + 1 = 5 tokens; `ok<|end|>` is 3, its two letters are bytes."""
    rows = _rows(([{"role": "user", "content": "hi"}], "ok", "no!"))
    report = measure_tokens(rows, tokenizer, 64)
    assert _counts(report.table, "prompt_tokens", "chosen_tokens", "rejected_tokens", "chosen_bytes") == [[5, 3, 4, 2]]
    plain = byte_tokenizer()
    with pytest.raises(DiagError, match="no chat template"):
        measure_tokens(rows, plain)


def test_a_template_that_refuses_a_row_drops_it(tokenizer: PreTrainedTokenizerFast) -> None:
    picky = byte_tokenizer()
    picky.chat_template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turns') }}{% endif %}"
        "{% for m in messages %}{{ m['content'] }}<|end|>{% endfor %}"
    )
    user = {"role": "user", "content": "u"}
    rows = _rows(([{"role": "system", "content": "s"}, user], "a", "b"), ([user], "a", "b"))
    report = measure_tokens(rows, picky, 64)
    assert report.table["outcome"].tolist() == ["dropped", "whole"]
    assert report.issues["why"].tolist() == [REFUSED] and "no system turns" in report.issues["detail"][0]
    assert report.kept(rows) == rows[1:]


def test_tokens_that_merge_across_the_boundary_are_listed() -> None:
    """A vocabulary with the merge `x y`: prompt `ax` alone is [a, x], with `y` it is [a, xy]: x leaves the prompt."""
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE(vocab={"a": 0, "x": 1, "y": 2, "xy": 3, "z": 4}, merges=[("x", "y")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.add_special_tokens([AddedToken("<|end|>", special=True, normalized=False)])
    merging = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>")
    report = measure_tokens(_rows(("ax", "y", "z"), ("aa", "y", "z")), merging, 64)
    assert _counts(report.table, "prompt_tokens", "prompt_lost", "chosen_tokens", "rejected_tokens") == [
        [1, 1, 2, 3], [2, 0, 2, 2],
    ]  # fmt: skip
    assert report.issues["why"].tolist() == [MOVED] and "merge with the response" in report.notes[0]


def test_too_much_truncation_stops_and_names_a_length_that_would_do(tokenizer: PreTrainedTokenizerFast) -> None:
    """Whole lengths 3, 5, 7, 9, end token included: max_length 4 affects 3 of 4; to affect half at most, 5 will do."""
    rows = _rows(*(("p", "a" * n, "b" * n) for n in (1, 3, 5, 7)))
    report = measure_tokens(rows, tokenizer, 4)
    assert report.affected_share == 0.75 and report.require(0.75) is report
    with pytest.raises(DiagError, match=r"3 truncated and 0 dropped of 4.*max_length=5 would do") as caught:
        report.require(0.5)
    assert "\n" not in str(caught.value)
    assert measure_tokens(rows, tokenizer, 5).require(0.5).affected_share == 0.5
    with pytest.raises(DiagError, match="no pair is left"):
        measure_tokens(rows, tokenizer, 1).require(1.0)


def test_of_a_supervised_training_they_are_rows_with_an_answer(tokenizer: PreTrainedTokenizerFast) -> None:
    rows = _rows(*(("p", "a" * n, "b" * n) for n in (1, 3, 5, 7)))
    _, report = measure_until(rows, 4, tokenizer, 4, look=Look(tokenizer, sides=("chosen",)))
    with pytest.raises(DiagError, match=r"drops too many rows; .* at most 0\.5 of the rows"):
        report.require(0.5)
    assert report.issues["detail"].tolist()[0].startswith("answer ")
    with pytest.raises(DiagError, match="drops too many pairs"):
        measure_tokens(rows, tokenizer, 4).require(0.5)


def test_dropped_rows_are_replaced_while_there_are_others(tokenizer: PreTrainedTokenizerFast) -> None:
    """30 rows, every third with a prompt that fills: 20 can be kept."""
    rows = _rows(*(("p" * (20 if i % 3 == 0 else 2) + str(i), "a", "b") for i in range(30)))
    kept, report = measure_until(rows, 12, tokenizer, 16)
    assert len(kept) == 12 and all(len(row["prompt"]) < 16 for row in kept)
    assert [row["row"] for row in kept] == sorted(row["row"] for row in kept)
    assert len(report.table) == 12 + report.n_dropped
    assert len(measure_until(rows, 25, tokenizer, 16)[0]) == 20
    assert len(measure_until(rows, None, tokenizer, 16)[0]) == 20
    smaller = {row["pair_id"] for row in measure_until(rows, 5, tokenizer, 16)[0]}
    assert smaller <= {row["pair_id"] for row in kept}


@settings(deadline=None, max_examples=40)
@given(
    triples=st.lists(st.tuples(*[st.text("abé ", min_size=1, max_size=9)] * 3), min_size=1, max_size=4),
    max_length=st.integers(2, 24),
    mode=st.sampled_from(["keep_start", "keep_end"]),
)
def test_tokens_are_conserved(tokenizer: PreTrainedTokenizerFast, triples: Any, max_length: int, mode: str) -> None:
    """What is left of each side has max_length tokens at most; cut + left = all; no cut means all the bytes."""
    rows = _rows(*triples)
    table = measure_tokens(rows, tokenizer, max_length, mode).table
    for row, line in zip(rows, table.itertuples(), strict=True):
        for side in ("chosen", "rejected"):
            tokens, cut = getattr(line, f"{side}_tokens"), getattr(line, f"{side}_cut")
            assert tokens == len(row[side].encode()) + 1
            assert 0 <= cut <= tokens
            prompt = line.prompt_tokens if mode == "keep_start" else 0
            assert tokens - cut == min(tokens, max(max_length - prompt, 0))
            if cut == 0:
                assert getattr(line, f"{side}_bytes") == row[f"{side}_bytes"]


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["keep_start", "keep_end"])
def test_the_counts_are_trl_s_own(
    tokenizer: PreTrainedTokenizerFast, tiny_model: Path, tmp_path: Path, mode: str, shared_data: Path
) -> None:
    """TRL 1.16 prepares and collates 40 real conversations: the same pairs survive, with the same response tokens."""
    import warnings

    from transformers import AutoModelForCausalLM
    from trl import DPOConfig, DPOTrainer

    pairs = read_pairs(shared_data / "llamafactory_dpo_en_demo.json", limit=40)
    report = measure_tokens(pairs.rows, tokenizer, 1500, mode)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        args = DPOConfig(
            str(tmp_path), max_length=1500, truncation_mode=mode, report_to=[], use_cpu=True, bf16=False,
            gradient_checkpointing=False, per_device_train_batch_size=1,
        )  # fmt: skip
        model, reference = (AutoModelForCausalLM.from_pretrained(tiny_model) for _ in range(2))
        trainer = DPOTrainer(
            model, reference, args=args, train_dataset=to_dataset(pairs.rows), processing_class=tokenizer
        )
    expected = {}
    for example in trainer.train_dataset:
        batch = trainer.data_collator([example])
        expected[example["pair_id"]] = batch["completion_mask"].sum(1).tolist()
    kept = report.table[report.table["outcome"] != "dropped"]
    ours = {
        line.pair_id: [line.chosen_tokens - line.chosen_cut, line.rejected_tokens - line.rejected_cut]
        for line in kept.itertuples()
    }
    assert ours == expected
    assert (report.n_dropped > 0) == (mode == "keep_start")
