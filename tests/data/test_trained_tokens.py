"""What is wrong with trained tokens: each thing is found where it is, and only there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from dpo_diag.config import DataConfig
from dpo_diag.data.length_cap import capped, stops_midway
from dpo_diag.data.source import load_data
from dpo_diag.data.token_report import Look, measure_tokens
from dpo_diag.data.trained_tokens import (
    BOS_INSIDE,
    CAP,
    CUT,
    CUT_EQUAL,
    DOUBLE_BOS,
    DOUBLE_END,
    EMPTY_THINK,
    END_OUTSIDE,
    EQUAL,
    HINTS,
    NO_END,
    NOTHING,
    PROMPT_FILLS,
    UNSEEN,
    TokenRules,
    TrainedIds,
    has_empty_think,
)
from dpo_diag.inference.generation import begin_note
from dpo_diag.inference.prompts import to_prompts
from dpo_diag.thresholds import defaults, load_thresholds

from .conftest import byte_tokenizer

USER, OTHER = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "no"}
THINKS = (
    "{% for m in messages %}<|{{ m['role'] }}|>{% if m['role'] == 'assistant' and loop.last %}<think>\n"
    "{{ m.reasoning_content or '' }}\n</think>\n{% endif %}{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def bos_tokenizer() -> PreTrainedTokenizerFast:
    """One that puts <s> in front, as Llama's do."""
    fast = byte_tokenizer(pad="<pad>", extra=("<s>",))
    fast.bos_token = "<s>"
    begin = fast.convert_tokens_to_ids("<s>")
    fast.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", begin)]
    )
    return fast


def found(
    tokenizer: Any, *rows: tuple[Any, Any, Any], look: Look | None = None, **options: Any
) -> dict[str, list[int]]:
    """reason -> rows (from 1), of those that have a hint."""
    table = [{"row": i, "prompt": p, "chosen": c, "rejected": r} for i, (p, c, r) in enumerate(rows, 1)]
    issues = measure_tokens(table, tokenizer, options.pop("max_length", None), look=look, **options).issues
    return {why: part["row"].tolist() for why, part in issues.groupby("why") if why in HINTS}


def test_two_begin_tokens() -> None:
    """The text of the second has one and the tokenizer adds another."""
    assert found(bos_tokenizer(), ("a", "b", "c"), ("<s>a", "b", "c")) == {DOUBLE_BOS: [2]}
    assert found(bos_tokenizer(), ("a", "<s>b", "c")) == {BOS_INSIDE: [1]}
    assert found(byte_tokenizer(), ("<s>a", "b", "c")) == {}  # no begin token: three letters
    chat = bos_tokenizer()
    chat.chat_template = "{{ bos_token }}{% for m in messages %}{{ m['content'] }}<|end|>{% endfor %}"
    assert found(chat, ([USER], [OTHER], [OTHER | {"content": "yes"}])) == {}  # no special tokens are added to a chat


def test_fixed_prompts_with_two_begin_tokens() -> None:
    """Plain text alone: messages get their begin token from the template."""
    prompts = to_prompts([{"id": "a", "prompt": "<s>x"}, {"id": "b", "prompt": "x"},
                          {"id": "c", "messages": [{"role": "user", "content": "<s>x"}]}])  # fmt: skip
    note = begin_note(bos_tokenizer(), prompts)
    assert note is not None and note.startswith("fixed prompts: the prompt begins with two begin tokens in 1 of 2; ")
    assert begin_note(bos_tokenizer(), prompts[1:]) is None
    assert begin_note(byte_tokenizer(), prompts) is None


def test_two_end_tokens(tokenizer: PreTrainedTokenizerFast) -> None:
    """TRL adds one where the text does not end with it: white space behind it is enough for a second."""
    assert found(tokenizer, ("a", "b<|end|>", "c"), ("a", "b", "c<|end|>\n")) == {DOUBLE_END: [2]}
    said = measure_tokens([{"prompt": "a", "chosen": "b", "rejected": "c<|end|> "}], tokenizer, None).issues
    assert said["detail"].tolist() == ["rejected: '<|end|> <|end|>'"]


@pytest.mark.parametrize(("end", "why"), [("<|end|>", None), ("<|end|>\n", None), ("<|tool|>", NO_END), ("", NO_END)])
def test_an_answer_ends_with_an_end_token(end: str, why: str | None) -> None:
    chat = byte_tokenizer()
    chat.chat_template = "{% for m in messages %}{{ m['content'] }}" + end.replace("\n", "{{ '\\n' }}") + "{% endfor %}"
    row = ([USER], [OTHER], [OTHER | {"content": "yes"}])
    assert found(chat, row) == ({} if why is None else {why: [1]})
    if end == "<|tool|>":  # the model's generation config may end answers with another token than the tokenizer's
        look = Look(chat, end_ids=[chat.convert_tokens_to_ids("<|tool|>")])
        assert found(chat, row, look=look) == {}


def test_what_max_length_cuts_is_said_to_be_cut_and_no_more(tokenizer: PreTrainedTokenizerFast) -> None:
    """5 tokens: the first answer loses its end, the second pair loses both, the third its difference, the last none."""
    rows = [("a", "bbbbbb", "c"), ("aaaaa", "b", "c"), ("a", "bbbbx", "bbbby"), ("a", "b", "c")]
    assert found(tokenizer, *rows, max_length=5) == {CUT: [1], PROMPT_FILLS: [2], CUT_EQUAL: [3]}
    report = measure_tokens([dict(zip(("prompt", "chosen", "rejected"), r, strict=True)) for r in rows], tokenizer, 5)
    assert report.findings[0].line("pairs").startswith("1 of 4 pairs (25 %): a response is cut, first in row 0: ")


def test_spans_of_several_turns() -> None:
    """Token ids by hand: 1 ends, 2 is white space, 7 and above are words; the second turn's end token is masked."""

    class Words:
        bos_token_id, eos_token_id, eos_token = None, 1, "<e>"

        def decode(self, ids: list[int], **_: Any) -> str:
            return "".join({1: "<e>", 2: " "}.get(i, f"w{i}") for i in ids)

    rules = TokenRules(Words())  # type: ignore[arg-type]
    ids = [7, 8, 1, 2, 9, 10, 1, 11]
    whys = {
        "both": [False, True, True, True, False, True, True, False],
        "outside": [False, True, True, False, False, True, False, False],
        "nothing": [False] * 8,
    }
    assert [rules.issues(TrainedIds(ids, mask)) for mask in whys.values()] == [
        [], [(END_OUTSIDE, "'<e>' follows 'w10'")], [(NOTHING, "8 tokens, none in the loss")],
    ]  # fmt: skip
    assert rules.issues(TrainedIds([7, 8, 9], [False, True, True])) == [(NO_END, "it ends with 'w8w9', not with '<e>'")]
    assert rules.issues(TrainedIds([7, 8, 9], [False, True, True], is_cut=True)) == []
    assert list(TrainedIds(ids, whys["both"]).spans()) == [(1, 4), (5, 7)]


def test_empty_think_blocks() -> None:
    """The template's own: found; the data's own, and one with thoughts: not."""
    chat = byte_tokenizer()
    chat.chat_template = THINKS
    thought, own = OTHER | {"reasoning_content": "Hm."}, OTHER | {"content": "<think>\n\n</think>\nno"}
    assert found(chat, ([USER], [thought], [thought | {"content": "yes"}])) == {}
    assert found(chat, ([USER], [thought], [OTHER])) == {EMPTY_THINK: [1]}
    plain = byte_tokenizer()
    plain.chat_template = THINKS.replace("<think>\n{{ m.reasoning_content or '' }}\n</think>\n", "")
    assert found(plain, ([USER], [own], [OTHER])) == {}
    blocks = ["<think></think>", "<think>\n\n</think>\n\nyes", "[THINK][/THINK]x", "<|think|> <|/think|>"]
    assert all(map(has_empty_think, blocks))
    assert not any(map(has_empty_think, ["yes <think></think>", "<think>a</think>", "<think>", "think", ""]))


def test_what_a_template_leaves_out() -> None:
    """Reasoning, a called function and tools that the data have and the text has not; answers that are equal then."""
    chat = byte_tokenizer()
    chat.chat_template = "{% for m in messages %}{{ m['content'] }}<|end|>{% endfor %}"
    thoughts = [OTHER | {"reasoning_content": text} for text in ("Hm.", "Well.")]
    assert found(chat, ([USER], [thoughts[0]], [thoughts[1]])) == {EQUAL: [1], UNSEEN: [1]}
    call = OTHER | {"tool_calls": [{"function": {"name": "weather", "arguments": {}}}]}
    row = {"prompt": [USER], "chosen": [call], "rejected": [OTHER | {"content": "yes"}],
           "tools": json.dumps([{"type": "function", "function": {"name": "search"}}])}  # fmt: skip
    issues = measure_tokens([row], chat, None).issues
    assert issues[["why", "detail"]].to_numpy().tolist() == [[UNSEEN, "tool_calls, tools"]]
    shows = byte_tokenizer()
    shows.chat_template = (
        "{% if tools %}{{ tools | tojson }}{% endif %}"
        "{% for m in messages %}{{ m['content'] }}{{ m.tool_calls | tojson if m.tool_calls }}<|end|>{% endfor %}"
    )
    assert measure_tokens([row], shows, None).issues.empty


SENTENCES = ["It is so." + " Very so." * (i % 9) for i in range(60)]


def test_a_cap_on_tokens(tokenizer: PreTrainedTokenizerFast) -> None:
    """Of 66 chosen answers six have 100 bytes and stop in a word; the longest other is 9 + 8 * 9 = 81 bytes."""
    rows = [(f"p{i}", text, "No.") for i, text in enumerate(SENTENCES)]
    cut = [("word " * 25)[:98] + f"{i:02d}" for i in range(6)]
    rows += [(f"q{i}", text, "No.") for i, text in enumerate(cut)]
    assert found(tokenizer, *rows) == {CAP: [61, 62, 63, 64, 65, 66]}
    look = Look(tokenizer, thresholds=load_thresholds({"length_cap": {"least_answers": 100}}))
    assert found(tokenizer, *rows, look=look) == {}
    whole = [(f"q{i}", text[:-1] + ".", "No.") for i, text in enumerate(cut)]
    assert found(tokenizer, *rows[:60], *whole) == {}


def test_a_cap_shows_where_long_answers_alone_stop_midway() -> None:
    """100 answers of 1 to 100 words: 9 of the longest ten stop midway (90 %), none of the shorter half."""
    lengths, t = list(range(1, 101)), defaults()
    at, why = capped(lengths, [n > 91 for n in lengths], "tokens", t)
    assert at.nonzero()[0].tolist() == list(range(91, 100))
    assert why == "90 % of the longest tenth stop in mid-sentence, 0 % of the shorter half"
    assert not capped(lengths, [True] * 100, "tokens", t)[0].any()  # data without full stops
    assert not capped(lengths, [False] * 100, "tokens", t)[0].any()
    assert not capped([12] * 40, [True] * 40, "tokens", t)[0].any()  # labels and commands of one length
    assert not capped([5, 100, 100], [True] * 3, "tokens", t)[0].any()  # too few


def test_where_a_text_stops() -> None:
    assert all(map(stops_midway, ["and then", "one,", "x = 1 +", "的", "a\n"]))
    assert not any(map(stops_midway, ["Yes.", "Why?", '"Yes"', "(a)", "```", "", "end;" + "}"]))


def test_findings_come_before_training_with_count_and_share(tmp_path: Path) -> None:
    rows = [{"prompt": "<s>" * (i < 3) + f"p{i}", "chosen": "yes", "rejected": "no"} for i in range(12)]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    data = load_data(DataConfig(kind="jsonl", path=str(path), eval_share=0))
    notes = data.tokenise(bos_tokenizer(), 64)
    assert notes == [
        "train: 3 of 12 pairs (25 %): the prompt begins with two begin tokens, first in row 1: '<s><s>p'; "
        "the text has one and the tokenizer adds one: leave it out of the text"
    ]
    assert data.notes() == []
    report = json.loads(data.write_report(tmp_path / "run").read_text())
    assert report["tokens"]["train"]["findings"] == [
        {"why": DOUBLE_BOS, "rows": 3, "share": 0.25, "row": 1, "hint": HINTS[DOUBLE_BOS]}
    ]
    listed = pd.read_csv(tmp_path / "run" / "data_issues.csv")
    assert listed.loc[listed["why"] == DOUBLE_BOS, "row"].tolist() == [1, 2, 3]
