"""One raw row to a pair: every format's meaning, every bad row's reason."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpo_diag.records.conversation import response_text
from dpo_diag.records.row_files import BadRow
from dpo_diag.rows.form import How, recognise
from dpo_diag.rows.implicit import Rules
from dpo_diag.rows.pair import Pair

EXPLICIT = {"prompt": "p", "chosen": "c", "rejected": "r"}
IMPLICIT = {"chosen": "p: c", "rejected": "p: r"}


def read(row: dict[str, Any], form: str = "auto", **options: Any) -> Pair:
    """A row of a file that holds it alone."""
    return recognise([row], How(form, **options)).pair(row)


def from_trl(row: dict[str, Any]) -> Pair:
    """A row of a file in TRL's format, with a prompt column if the row has one."""
    return recognise([EXPLICIT if "prompt" in row else IMPLICIT]).pair(row)


def from_sharegpt(row: dict[str, Any]) -> Pair:
    """A row of a file in ShareGPT's format, which has a system column if the row has one."""
    first = row if "messages" in row else SHAREGPT | {k: "s" for k in row if k == "system"}
    return recognise([first], How("sharegpt")).pair(row)


U = {"role": "user", "content": "Why?"}
A1 = {"role": "assistant", "content": "Because."}
A2 = {"role": "assistant", "content": "No idea."}


def test_explicit_text_stays_as_it_is() -> None:
    pair = from_trl({"prompt": "p ", "chosen": " c", "rejected": "r", "other": 1})
    assert (pair.prompt, pair.chosen, pair.rejected, pair.kind, pair.notes) == ("p ", " c", "r", "text", [])


def test_hh_rlhf_text_is_cut_after_the_last_shared_assistant_mark() -> None:
    """Both answers begin with ` I`: a common prefix alone would take it into the prompt."""
    shared = "\n\nHuman: a?\n\nAssistant: b\n\nHuman: c?\n\nAssistant:"
    pair = from_trl({"chosen": shared + " I do.", "rejected": shared + " I do not."})
    assert (pair.prompt, pair.chosen, pair.rejected) == (shared, " I do.", " I do not.")


def test_hh_rlhf_dialogues_that_part_earlier_are_cut_where_they_part_and_noted() -> None:
    shared = "\n\nHuman: a?\n\nAssistant:"
    pair = from_trl({"chosen": shared + " b\n\nHuman: c?\n\nAssistant: d", "rejected": shared + " e"})
    assert (pair.prompt, pair.rejected) == (shared, " e")
    assert pair.notes == [("a response holds the user's turns", "chosen: the loss would train on them")]


ANY = Rules(any=True)


def test_any_shared_beginning_is_cut_at_a_word_and_keeps_the_space_in_the_response() -> None:
    """`blu` is common to blue and blurry, yet no prompt: the cut goes back to the word, the space to the response."""
    pair = read({"chosen": "The sky is blue.", "rejected": "The sky is blurry."}, rules=ANY)
    assert (pair.prompt, pair.chosen, pair.rejected) == ("The sky is", " blue.", " blurry.")


@pytest.mark.parametrize(
    ("shared", "chosen", "rejected"),
    [
        ("What is 2 + 2?", " It is 4.", " Five."),
        ("Translate to French:\n", "bonjour", "salut"),
        ("Question: why?\nAnswer:", " The sea.", " The sun."),
        ("### Instruction:\nSum up.\n\n### Response:\n", "Short.", "It is long."),
        ("<|user|>\nHi</s>\n<|assistant|>\n", "Hello.", "Hi."),
        ("[INST] Hi [/INST]", " I am well.", " I do not know."),
        ("A text.\nIts title", " is Rome", " may be Oslo"),
    ],
)
def test_a_shared_beginning_that_is_whole_is_the_prompt(shared: str, chosen: str, rejected: str) -> None:
    """It ends as a sentence, with a turn's mark (also where both answers go on alike), or is cut back to its lines."""
    pair = from_trl({"chosen": shared + chosen, "rejected": shared + rejected})
    assert pair.prompt == ("A text.\n" if shared.startswith("A text") else shared)
    assert pair.prompt + pair.chosen == shared + chosen  # type: ignore[operator]


@pytest.mark.parametrize(
    ("row", "why"),
    [
        (
            {"chosen": "SELECT name FROM t WHERE a = 1", "rejected": "SELECT name FROM t WHERE b = 2"},
            "middle of a sentence",
        ),
        ({"chosen": "The sky is blue.", "rejected": "The sky is green."}, "middle of a sentence"),
        ({"chosen": "Sure! Here is a poem about the sea.", "rejected": "Sure! No poem comes to my mind."}, "is short"),
    ],
)
def test_answers_that_only_begin_alike_share_no_prompt(row: dict[str, str], why: str) -> None:
    """Sure! is 5 characters; the responses have 30 and 26 beside it, and a fifth of their mean of 28 is 5.6."""
    with pytest.raises(BadRow) as caught:
        from_trl(row)
    assert why in caught.value.why and "data.implicit_prompt=any" in caught.value.hint
    assert read(row, rules=ANY).prompt


def test_implicit_messages_share_their_first_turns() -> None:
    pair = from_trl({"chosen": [U, A1], "rejected": [U, A2]})
    assert (pair.prompt, pair.chosen, pair.rejected, pair.kind) == ([U], [A1], [A2], "messages")


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": [U], "chosen": [A1], "rejected": [A2]},
        {"prompt": [U], "chosen": [U, A1], "rejected": [U, A2]},
        {"prompt": "Why?", "chosen": [U, A1], "rejected": [U, A2]},
        {"prompt": "Why?", "chosen": [A1], "rejected": [A2]},
        {"prompt": [U], "chosen": "Because.", "rejected": "No idea."},
        {"prompt": json.dumps([U]), "chosen": json.dumps([A1]), "rejected": json.dumps([A2])},
        {
            "prompt": [{"role": "Human", "content": [{"type": "text", "text": "Why?"}]}],
            "chosen": [A1],
            "rejected": [A2],
        },
    ],
)
def test_all_ways_to_write_one_conversation_give_the_same_pair(row: dict[str, Any]) -> None:
    pair = from_trl(row)
    assert (pair.prompt, pair.chosen, pair.rejected) == ([U], [A1], [A2])


def test_a_prompt_column_beside_another_conversation_is_noted() -> None:
    pair = from_trl({"prompt": "Else?", "chosen": [U, A1], "rejected": [U, A2]})
    assert pair.prompt == [U]
    assert pair.notes == [("the prompt column is not in the conversation", "Else?")]


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"prompt": "p", "chosen": "c"}, "missing field rejected"),
        ({"prompt": "p", "chosen": None, "rejected": "r"}, "missing field chosen"),
        ({"prompt": "p", "chosen": " \n", "rejected": "r"}, "empty response: chosen"),
        ({"prompt": "p", "chosen": "c", "rejected": ""}, "empty response: rejected"),
        ({"chosen": "c c", "rejected": ""}, "empty response: rejected"),
        ({"prompt": " ", "chosen": "c", "rejected": "r"}, "empty prompt"),
        ({"prompt": [], "chosen": [A1], "rejected": [A2]}, "empty prompt"),
        ({"prompt": "p", "chosen": "c", "rejected": "c"}, "chosen equals rejected"),
        ({"chosen": "p c", "rejected": "p c"}, "chosen equals rejected"),
        ({"chosen": [U, A1], "rejected": [U, A1]}, "chosen equals rejected"),
        ({"chosen": "a b", "rejected": "c d"}, "no shared prompt"),
        ({"chosen": [A1], "rejected": [A2]}, "no shared prompt"),
        ({"prompt": 3, "chosen": "c", "rejected": "r"}, "wrong type"),
        ({"prompt": "p", "chosen": 1.5, "rejected": "r"}, "wrong type"),
        ({"prompt": "p", "chosen": "c", "rejected": [A1]}, "wrong type"),
        ({"prompt": "p", "chosen": ["c", "d"], "rejected": ["r", "s"]}, "wrong type"),
        ({"prompt": [{"role": "alien", "content": "x"}], "chosen": [A1], "rejected": [A2]}, "unknown role"),
        ({"prompt": [{"role": "user"}], "chosen": [A1], "rejected": [A2]}, "missing field content"),
        ({"prompt": [{"role": "user", "content": [{"type": "image"}]}], "chosen": [A1], "rejected": [A2]},
         "a message is not text"),
        ({"chosen": [U, {"role": "assistant", "content": ""}], "rejected": [U, A2]}, "empty response: chosen"),
        ({"prompt": "p\ud800", "chosen": "c", "rejected": "r"}, "undecodable text"),
        ({"prompt": "p", "chosen": "c", "rejected": "r", "tools": "{"}, "tools is not JSON"),
    ],
)  # fmt: skip
def test_bad_trl_rows_say_why(row: dict[str, Any], why: str) -> None:
    with pytest.raises(BadRow) as caught:
        from_trl(row)
    assert caught.value.why == why


def test_one_response_that_is_the_other_s_beginning() -> None:
    """The cut goes back to the last word, so neither is empty."""
    pair = read({"chosen": "The sky is", "rejected": "The sky is blue"}, rules=ANY)
    assert (pair.prompt, pair.chosen, pair.rejected) == ("The sky", " is", " is blue")


def test_white_space_differences_and_repeated_prompts_are_noted_not_dropped() -> None:
    assert from_trl({"prompt": "p", "chosen": "a b", "rejected": "a  b "}).notes[0][0] == (
        "responses differ in white space only"
    )
    prompt = "A prompt of twenty and more characters."
    pair = from_trl({"prompt": prompt, "chosen": prompt + " c", "rejected": prompt + " r"})
    assert [why for why, _ in pair.notes] == ["both responses repeat the prompt"]


SHAREGPT = {
    "conversations": [{"from": "human", "value": "Why?"}],
    "chosen": {"from": "gpt", "value": "Because."},
    "rejected": {"from": "gpt", "value": "No idea."},
}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"conversations": [{"from": "user", "value": "Why?"}], "chosen": {"from": "assistant", "value": "Because."}},
        {"conversations": None, "messages": [U], "chosen": A1, "rejected": [A2]},
        {"chosen": "Because.", "rejected": "No idea."},
        {"system": "", "tools": ""},
    ],
)
def test_sharegpt_rows_become_messages(changes: dict[str, Any]) -> None:
    pair = from_sharegpt(SHAREGPT | changes)
    assert (pair.prompt, pair.chosen, pair.rejected) == ([U], [A1], [A2])


def test_sharegpt_system_and_tools() -> None:
    pair = read(SHAREGPT | {"system": "Be kind.", "tools": '[{"name": "f"}]'})
    assert pair.prompt == [{"role": "system", "content": "Be kind."}, U]
    assert pair.extra == {"tools": '[{"name": "f"}]'}
    turn = from_sharegpt(
        SHAREGPT | {"conversations": [{"from": "system", "value": "S"}, {"from": "human", "value": "Why?"}]}
    )
    assert turn.prompt == [{"role": "system", "content": "S"}, U]
    assert from_sharegpt(SHAREGPT | {"tools": [{"name": "f"}]}).extra == {"tools": '[{"name": "f"}]'}


def _turns(*roles: str) -> dict[str, Any]:
    return SHAREGPT | {"conversations": [{"from": role, "value": "x"} for role in roles]}


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({k: v for k, v in SHAREGPT.items() if k != "conversations"}, "missing field conversations"),
        ({k: v for k, v in SHAREGPT.items() if k != "chosen"}, "missing field chosen"),
        (SHAREGPT | {"conversations": "x"}, "wrong type"),
        (SHAREGPT | {"chosen": 1}, "wrong type"),
        (SHAREGPT | {"system": 1}, "wrong type"),
        (SHAREGPT | {"conversations": []}, "empty prompt"),
        (_turns("system"), "empty prompt"),
        (_turns("human", "gpt"), "the prompt does not end with the user's turn"),
        (_turns("gpt"), "turns do not alternate"),
        (_turns("human", "human", "gpt"), "turns do not alternate"),
        (_turns("martian"), "unknown role"),
        (SHAREGPT | {"chosen": {"from": "human", "value": "x"}}, "the response is not the assistant's"),
        (SHAREGPT | {"rejected": {"from": "gpt", "value": ""}}, "empty response: rejected"),
        (SHAREGPT | {"rejected": {"from": "gpt"}}, "missing field value"),
        (SHAREGPT | {"rejected": {"from": "gpt", "value": "Because."}}, "chosen equals rejected"),
    ],
)
def test_bad_sharegpt_rows_say_why(row: dict[str, Any], why: str) -> None:
    with pytest.raises(BadRow) as caught:
        from_sharegpt(row)
    assert caught.value.why == why


def test_tool_calls_are_content() -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": "1"}}]}
    pair = from_trl({"prompt": [U], "chosen": [call], "rejected": [A2]})
    assert pair.chosen[0]["content"] == ""  # type: ignore[index]
    assert response_text(pair.chosen) == '[{"function": {"arguments": "1", "name": "f"}}]'


def test_messages_keep_what_a_template_may_read() -> None:
    """Reasoning, ids of tool calls and one family's own keys; not what the data set only says about a message."""
    told = {"role": "tool", "content": "sun", "tool_call_id": "c1", "timestamp": 3, "name": None}
    thought = A1 | {"reasoning_content": "Hm.", "weight": 0.5, "prefix": True}
    pair = from_trl({"prompt": [U, told], "chosen": [thought], "rejected": [A1]})
    assert pair.prompt[1] == {"role": "tool", "content": "sun", "tool_call_id": "c1"}
    assert pair.chosen == [A1 | {"reasoning_content": "Hm.", "prefix": True}]


def test_answers_that_differ_in_reasoning_alone_differ() -> None:
    thoughts = [A1 | {"thinking": text} for text in ("Hm.", "Well.")]
    pair = from_trl({"prompt": [U], "chosen": thoughts[:1], "rejected": thoughts[1:]})
    assert pair.notes == []
    only = [{"role": "assistant", "content": None, "reasoning": text} for text in ("Hm.", "Well.")]
    assert from_trl({"prompt": [U], "chosen": only[:1], "rejected": only[1:]}).chosen[0]["content"] == ""  # type: ignore[index]
    with pytest.raises(BadRow) as caught:
        from_trl({"prompt": [U], "chosen": thoughts[:1], "rejected": [thoughts[0] | {"weight": 1}]})
    assert caught.value.why == "chosen equals rejected"


WORDS = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=12).filter(lambda s: s.strip())


@given(prompt=WORDS, chosen=WORDS, rejected=WORDS)
def test_the_same_pair_in_every_format(prompt: str, chosen: str, rejected: str) -> None:
    """Round trip: messages, implicit messages and ShareGPT give the same; hh-rlhf text gives the texts back exactly."""
    if chosen == rejected:
        return
    p, c, r = ([{"role": role, "content": text}] for role, text in
               (("user", prompt), ("assistant", chosen), ("assistant", rejected)))  # fmt: skip
    explicit = from_trl({"prompt": p, "chosen": c, "rejected": r})
    implicit = from_trl({"chosen": p + c, "rejected": p + r})
    share = from_sharegpt(
        {
            "conversations": [{"from": "human", "value": prompt}],
            "chosen": {"from": "gpt", "value": chosen},
            "rejected": {"from": "gpt", "value": rejected},
        }
    )
    for pair in (explicit, implicit, share):
        assert (pair.prompt, pair.chosen, pair.rejected) == (p, c, r)
    head = f"\n\nHuman: {prompt}\n\nAssistant:"
    text = from_trl({"chosen": head + chosen, "rejected": head + rejected})
    assert (text.prompt, text.chosen, text.rejected) == (head, chosen, rejected)


@given(chosen=WORDS, rejected=WORDS, shared=WORDS)
def test_an_implicit_prompt_loses_no_character(chosen: str, rejected: str, shared: str) -> None:
    """prompt + response is what was given, or the row says why not."""
    row = {"chosen": shared + " " + chosen, "rejected": shared + " " + rejected}
    try:
        pair = read(row, rules=ANY)
    except BadRow as bad:
        assert bad.why in {"chosen equals rejected", "no shared prompt", "empty prompt", "empty response: chosen",
                           "empty response: rejected"}  # fmt: skip
        return
    assert pair.prompt + pair.chosen == row["chosen"]  # type: ignore[operator]
    assert pair.prompt + pair.rejected == row["rejected"]  # type: ignore[operator]
