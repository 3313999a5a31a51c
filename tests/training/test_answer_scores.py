"""What answers to fixed prompts are worth: shares of correct ones, and their KL from the reference."""

from __future__ import annotations

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from dpo_diag.training.answer_scores import kl_by_tag, score_by_tag

from .tiny import make_model


def test_scores_are_shares_by_first_tag_with_their_n() -> None:
    """Two of three held out are right; the paraphrased one is wrong; samples and unchecked do not count."""
    rows = [
        {"sample": 0, "correct": c, "tags": tags}
        for c, tags in ((1.0, ["held_out", "join"]), (1.0, ["held_out"]), (0.0, ["held_out"]), (0.0, ["paraphrased"]))
    ]
    rows += [{"sample": 1, "correct": 1.0, "tags": ["paraphrased"]}, {"sample": 0, "correct": None, "tags": []}]
    assert score_by_tag(rows, "execution_accuracy") == {
        ("held_out", "execution_accuracy"): (2 / 3, 3.0),
        ("paraphrased", "execution_accuracy"): (0.0, 1.0),
    }
    assert score_by_tag([]) == {}


def test_kl_is_a_mean_over_the_answers_tokens(tokenizer: PreTrainedTokenizerFast) -> None:
    """Of a greedy answer of two tokens and one of three under one tag: the sum over the five positions that predict
    them, by whole softmaxes, over 5. The sample stands apart; an answer without tokens adds nothing, and a tag that has
    no other none."""
    policy, reference = make_model(1), make_model(2)
    prompts = [
        {"id": "a", "prompt": "1 cat:", "tags": ["held_out", "x"]}, {"id": "b", "prompt": "2 dog dog:"},
        {"id": "c", "prompt": "3 bird"},
    ]  # fmt: skip
    answers = [
        ("a", 0, ["held_out", "x"], [5, 6]),
        ("b", 0, ["held_out"], [7, 8, 9]),
        ("b", 1, [], [9, 9]),
        ("c", 0, [], []),
    ]
    rows = [dict(zip(("prompt_id", "sample", "tags", "token_ids"), answer, strict=True)) for answer in answers]

    def total(prompt: str, tokens: list[int]) -> float:
        ids = torch.tensor([tokenizer(prompt)["input_ids"] + tokens])
        with torch.no_grad():
            p, q = (
                model(input_ids=ids).logits[0, -len(tokens) - 1 : -1].double().softmax(-1)
                for model in (policy, reference)
            )
        return float((p * (p / q).log()).sum())

    greedy = total("1 cat:", [5, 6]) + total("2 dog dog:", [7, 8, 9])
    found = kl_by_tag(policy, reference, tokenizer, prompts, rows)
    assert found == {
        ("held_out", "answers"): (pytest.approx(greedy / 5, rel=1e-4), 5),
        ("prompts", "samples"): (pytest.approx(total("2 dog dog:", [9, 9]) / 2, rel=1e-4), 2),
    }
