"""A file's form is known by its columns: what becomes the prompt, what is chosen, or why there is no pair."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dpo_diag.errors import DiagError
from dpo_diag.records.row_files import BadRow
from dpo_diag.rows.columns import wanted
from dpo_diag.rows.form import FORMS, How, recognise
from dpo_diag.rows.pair import Pair


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def said(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


Q, A, B = "Where is Rome?", "In Italy.", "In Chile."
SYSTEM = {"role": "system", "content": "Be brief."}
ROME = [user(Q)]


def read(row: dict[str, Any], **columns: Any) -> Pair:
    """A row of a file that holds it alone, with the user's words on its columns."""
    return recognise([row], How(wanted=wanted(columns))).pair(row)


@pytest.mark.parametrize("name", sorted(FORMS))
def test_every_form_recognises_its_own_example(name: str) -> None:
    """And gives the same pair in all forms that hold one; the others say that they hold none."""
    form = FORMS[name]
    reading = recognise([form.example])
    assert reading.form == name
    if form.pair.startswith("refused"):
        with pytest.raises(BadRow) as caught:
            reading.pair(form.example)
        assert caught.value.hint
        return
    pair = reading.pair(form.example)
    assert pair.chosen != pair.rejected and reading.not_read == ()
    texts = [side if isinstance(side, str) else side[-1]["content"] for side in (pair.chosen, pair.rejected)]
    assert [text.strip() for text in texts] in ([A, B], ["Hello", "Ciao"])


ANSWERS = {"chosen": A, "rejected": B}
CHAT = {"prompt": ROME, "chosen": said(A), "rejected": said(B)}


@pytest.mark.parametrize(
    "row",
    [
        {"question": Q, **ANSWERS},
        {"query": Q, "response": A, "rejected_response": B},
        {"Question": Q, "Chosen": A, "Rejected": B},
        {"instruction": Q, "input": "", **ANSWERS},
        {"instruction": Q, "input": None, "chosen_response": A, "rejected_response": B},
        {"input": Q, **ANSWERS},
        {"problem": Q, "preferred_answer": A, "dispreferred_answer": B},
        {"question": {"full_text": Q}, "response_j": A, "response_k": B},
        {"instruction": Q, "output": [A, B]},
        {"instruction": Q, "output": "['In Italy.' 'In Chile.']"},
        {"instruction": Q, "generations": ["No.", A, B], "ratings": [3, 5.0, 1]},
        {"instruction": Q, "generations": ["a", A, B], "rating": [None, 5.0, 1]},
        {"instruction": Q, "completions": [{"response": B, "overall_score": 2.0},
                                                          {"response": A, "overall_score": 9.5}]},
        {"prompt": Q, "answers": [{"answer": B, "rank": 7.0}, {"answer": "No.", "rank": 2.0},
                                                 {"answer": A, "rank": 1.0}]},
        {"prompt": Q, "response_1": A, "response_2": B, "preference_strength": -2},
        {"context": ROME, "response1": B, "response2": A, "overall_preference": 3},
        {"prompt": Q, "response_0": A, "response_1": B, "safer_response_id": 0},
        {"prompt": Q, "response_a": B, "response_b": A, "winner": "B"},
        {"question": Q, "answer_0": B, "answer_1": A, "score_0": "-0.5", "score_1": "0.5"},
        {"conversation_a": [*ROME, *said(A)], "conversation_b": [*ROME, *said(B)], "winner": "model_a"},
        {"history": "x", "post": Q, "human_ref_A": A, "human_ref_B": B, "labels": 1},
        {"messages": [*ROME, *said(A)], "rejected_response": B},
        {"messages": [*ROME, *said(A)], "rejected_messages": [*ROME, *said(B)]},
        {"messages": ROME, "chosen": said(A)[0], "rejected": said(B)[0]},
        {"chosen": {"messages": [*ROME, *said(A)]}, "rejected": {"messages": [*ROME, *said(B)]}},
        {"chosen": [{"from": "human", "value": Q}, {"from": "gpt", "value": A}],
         "rejected": [{"from": "human", "value": Q}, {"from": "gpt", "value": B}]},
        {"chosen": [{"speaker": "human", "text": Q}, {"speaker": "assistant", "text": A}],
         "rejected": [{"author": "user", "content": Q}, {"author": "assistant", "content": B}]},
        {"prompt": ROME, "chosen": {"text": A}, "rejected": {"text": B}},
        {"prompt": Q, "chosen": str(CHAT["chosen"]), "rejected": str(CHAT["rejected"])},
        {"prompt": Q, **{side: str(np.array([*ROME, *CHAT[side]], dtype=object)) for side in ANSWERS}},
        {"chosen": "<|im_start|>user\nWhere is Rome?<|im_end|>\n<|im_start|>assistant\nIn Italy.<|im_end|>\n",
         "rejected": "<|im_start|>user\nWhere is Rome?<|im_end|>\n<|im_start|>assistant\nIn Chile.<|im_end|>\n"},
        {"prompt": "<|im_start|>user\nWhere is Rome?<|im_end|>\n<|im_start|>assistant\n",
         "chosen": "In Italy.<|im_end|>\n", "rejected": "In Chile.<|im_end|>"},
        {"input": {"messages": ROME}, "preferred_output": said(A), "non_preferred_output": said(B)},
    ],
)  # fmt: skip
def test_one_question_in_every_form_is_one_pair(row: dict[str, Any]) -> None:
    pair = read(row)
    assert (pair.prompt, pair.chosen, pair.rejected) == (ROME, CHAT["chosen"], CHAT["rejected"])


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"instruction": "Sum up.", "input": "A text.", **ANSWERS}, [user("Sum up.\nA text.")]),
        ({"question": "How many?", "context": "CREATE TABLE t (a int)", **ANSWERS},
         [user("How many?\nCREATE TABLE t (a int)")]),
        ({"system": "Be brief.", "prompt": "Hi", **ANSWERS}, [SYSTEM, user("Hi")]),
        ({"system": "Be brief.", **CHAT}, [SYSTEM, *ROME]),
        ({"system": "Be brief.", **CHAT, "prompt": [SYSTEM, *ROME]}, [SYSTEM, *ROME]),
        ({"system_prompt": "Be brief.", "question": "Hi", **ANSWERS}, [SYSTEM, user("Hi")]),
        ({"instruction": "And you?", "history": [["Hi", "Hello"]], **ANSWERS},
         [user("Hi"), *said("Hello"), user("And you?")]),
        ({"prompt": "\n\nHuman: Hi\n\nAssistant: ", "generations": ["a", "b"], "ranks": [2, 1]},
         "\n\nHuman: Hi\n\nAssistant: "),
        ({"prompt": "Hi", **ANSWERS}, "Hi"),
    ],
)  # fmt: skip
def test_what_the_prompt_is_made_of(row: dict[str, Any], prompt: Any) -> None:
    assert read(row).prompt == prompt


@pytest.mark.parametrize(
    ("row", "why", "hint"),
    [
        ({"prompt": "p", "completion": "c", "label": True}, "unpaired answers", "KTOTrainer"),
        ({"instruction": "p", "output": "c", "kto_tag": False}, "unpaired answers", "KTOTrainer"),
        ({"messages": [*ROME, *said("a")], "label": True}, "unpaired answers", "KTOTrainer"),
        ({"prompt": "p", "completions": ["a", "b"], "labels": [True, False]}, "judged steps", "PRMTrainer"),
        ({"instruction": "p", "input": "", "output": "c"}, "one answer a row", "data.columns.chosen="),
        ({"messages": [*ROME, *said("a")]}, "one answer a row", "data.columns.chosen="),
        ({"text": "a b c"}, "one answer a row", "data.columns.chosen="),
        ({"step": 1, "loss": 0.7, "rewards/chosen": 0.1}, "a training log", "dpo-diag explain"),
        ({"step": 1, "pair_id": "a", "chosen_sum_logp": -1, "rejected_sum_logp": -2}, "log-probs", "dpo-diag import"),
        ({"headline": "a b c", "body": "d e f"}, "no known form", "data.columns.prompt=NAME"),
        ({"question": "a", "query": "b", **ANSWERS},
         "several columns could be the prompt", "data.columns.prompt=question"),
        ({"prompt": "p", "response_0": "a", "response_1": "b"}, "no word on which is better", "data.columns.better="),
        ({"prompt": "p", "response_0": "a", "response_1": "b", "better_response_id": 0, "safer_response_id": 0},
         "several columns could say which", "data.columns.better=better_response_id"),
        ({"prompt": "p", "response_a": "a", "response_b": "b", "label": 1},
         "names neither answer", "data.columns.chosen="),
        ({"prompt": "p", "response_0": "a", "response_1": "b", "label": 1},
         "names neither answer", "data.columns.chosen="),
        ({"prompt": "p", "response_1": "a", "response_2": "b", "preference": -1},
         "names neither", "data.columns.chosen="),
        ({"prompt": "p", "response_1": "a", "response_2": "b", "preference_strength": 0}, "a tie", ""),
        ({"prompt": "p", "answers": [{"answer": "a", "rank": 1}, {"answer": "b", "rank": 1}]},
         "no answer is better", ""),
        ({"prompt": "p", "chosen_response": "a", "rejected_response": "b", "chosen_text": "c", "rejected_text": "d"},
         "several columns could be chosen", "data.columns.chosen="),
        ({"system": "S", **CHAT, "prompt": [SYSTEM, *ROME]}, "two system texts", "data.columns.system=false"),
        ({"system": "S", "chosen": "Why? A.", "rejected": "Why? B."},
         "a system text beside whole texts", "data.columns.system=false"),
        ({**CHAT, "images": ["a.png"]}, "a row with images", "DiagDPOTrainer"),
        ({"chosen": [SYSTEM, user("a"), *said("b")], "rejected": [SYSTEM, user("c"), *said("d")]},
         "not the assistant's", ""),
    ],
)  # fmt: skip
def test_what_is_no_pair_is_refused_with_what_to_do(row: dict[str, Any], why: str, hint: str) -> None:
    with pytest.raises(BadRow) as caught:
        read(row)
    assert why in caught.value.why and hint in caught.value.hint


@pytest.mark.parametrize(
    "text",
    [
        "[{'role': 'user', 'content': 'cut off in the mid",
        '{"messages": [{"role": "user"',
        "<|im_start|>user\nHi<|im_start|>assistant\nHo<|im_end|>",
        "<s>[INST] Hi [/INST] Ho",
        "<|user|>\nHi</s>\n<|assistant|>\nHo</s>",
        "  [ { \"from\" : \"human\", ",
    ],
)  # fmt: skip
def test_markup_that_cannot_be_read_is_never_an_answer(text: str) -> None:
    with pytest.raises(BadRow) as caught:
        read({"prompt": "p", "chosen": text, "rejected": "Ho"})
    assert caught.value.why == "markup where text belongs" and caught.value.hint


@pytest.mark.parametrize(
    "text", ['{"name": "Rome"}', "[1, 2]", "[link](a)", "<b>x</b>", "[INS", '["a", "b"]', "{'a': 1}"]
)
def test_answers_that_only_look_like_markup_stay_text(text: str) -> None:
    pair = read({"prompt": "p", "chosen": text, "rejected": "r"})
    assert (pair.prompt, pair.chosen, pair.rejected) == ("p", text, "r")


def test_the_user_s_word_on_columns_wins() -> None:
    """A prompt of another name is a question; a list is joined; false leaves a column out."""
    row = {"prompt": "p", "headline": Q, "good": A, "bad": B, "system": "S"}
    pair = read(row, prompt="headline", chosen="good", rejected="bad", system=False)
    assert (pair.prompt, pair.chosen, pair.rejected) == (ROME, CHAT["chosen"], CHAT["rejected"])
    two = read(row, prompt=["prompt", "headline"], chosen="good", rejected="bad", system=False)
    assert two.prompt == [user("p\nWhere is Rome?")]
    row = {"prompt": "p", "response_0": "a", "response_1": "b", "better_response_id": 0, "safer_response_id": 1}
    assert read(row, better="safer_response_id").chosen == said("b")
    assert read(row, chosen="response_0", rejected="response_1").chosen == "a"
    with pytest.raises(DiagError, match=r"no such column; in data\.columns\.prompt; got promt.*did you mean prompt"):
        read(row, prompt="promt")


def test_a_question_as_plain_text_and_a_prompt_as_a_turn() -> None:
    """For a model without chat template the system's text stands above the question, the answer on its own line."""
    row = {"system": "Be brief.", "question": "Hi", **ANSWERS}
    pair = recognise([row], How(chat=False)).pair(row)
    assert (pair.prompt, pair.chosen) == ("Be brief.\nHi\n", A)
    plain = {"prompt": "Hi", **ANSWERS}
    assert recognise([plain], How(chat=True)).pair(plain).prompt == [user("Hi")]


def test_columns_of_text_that_nothing_reads_are_named() -> None:
    row = {"prompt": "p", **ANSWERS, "context": "x", "review": "a long remark", "source": "web", "n": 3, "score": "0.5"}
    assert recognise([row]).not_read == ("context", "review")
    assert recognise([{"question": "p", "input": "", **ANSWERS}]).not_read == ()
    assert recognise([{"prompt": "p", "history": [["Hi", "Hello"]], **ANSWERS}]).not_read == ("history",)
    assert recognise([{"prompt": "p", "history": [], **ANSWERS}]).not_read == ()


@pytest.mark.parametrize("name", ["system_prompt", "systemMessage", "sys_msg", "System_Instruction"])
def test_a_system_column_is_read_whatever_its_name(name: str) -> None:
    row = {name: "Be terse.", "prompt": "Hi", **ANSWERS}
    assert recognise([row]).pair(row).prompt[0] == {"role": "system", "content": "Be terse."}


IMPLICIT = {"chosen": "Why? A.", "rejected": "Why? B."}


def test_a_refused_beginning_names_the_column_that_may_be_the_prompt() -> None:
    row = {"headline": "On the sea and on Rome", "chosen": "The sea is wide.", "rejected": "The sky is high."}
    with pytest.raises(BadRow) as caught:
        read(row)
    assert "data.columns.prompt=headline" in caught.value.hint
    assert read(row, prompt="headline").prompt == [user("On the sea and on Rome")]


def test_the_sample_decides_and_a_row_of_another_form_is_refused() -> None:
    """A column that the first rows leave empty or lack is not left out in silence when a row fills it."""
    for first in (IMPLICIT, {"prompt": "", **IMPLICIT}, {"system": None, **IMPLICIT}):
        reading = recognise([first])
        assert reading.pair(first).prompt == "Why?"
        for more in ({"prompt": "p"}, {"system": "Be brief."}):
            with pytest.raises(BadRow, match="the file's first rows have none"):
                reading.pair({**IMPLICIT, **more})
    reading = recognise([{"instruction": "Sum up.", "input": "", **ANSWERS}])
    assert reading.pair({"instruction": "Sum up.", "input": "A text.", **ANSWERS}).prompt == [user("Sum up.\nA text.")]
    with pytest.raises(BadRow, match="the row has"):
        recognise([{"question": "q", **ANSWERS}]).pair({"prompt": "q", **ANSWERS})


def test_tools_inside_the_answers_are_the_row_s_tools() -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    row = {side: {"messages": [*ROME, *said(text)], "tools": tools} for side, text in ANSWERS.items()}
    assert read(row).extra == {"tools": '[{"type": "function", "function": {"name": "f"}}]'}
    row["rejected"]["tools"] = []
    assert read(row).extra["tools"]
    row["rejected"]["tools"] = [{"type": "function", "function": {"name": "g"}}]
    with pytest.raises(BadRow, match="one prompt has one list of tools"):
        read(row)


def test_a_column_that_repeats_what_is_read_is_not_named() -> None:
    """UltraFeedback's binarised set holds the chosen conversation once more as messages."""
    row = {**CHAT, "messages": CHAT["chosen"], "response": "In Italy."}
    assert recognise([row]).not_read == ()
    assert recognise([{"text_prompt": "Where is it?", **ANSWERS}]).pair({"text_prompt": "Hi", **ANSWERS}).prompt == "Hi"
