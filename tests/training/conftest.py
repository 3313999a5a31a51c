"""Fixtures of the training tests."""

from __future__ import annotations

import pytest
from datasets import Dataset
from transformers import PreTrainedTokenizerFast

from .tiny import make_pairs, make_tokenizer

# transformers 5.23 warns about its own old names, which TRL 1.16 and its configuration still use.
NOISE = "ignore:.*(gradient|activation)_checkpointing.*:FutureWarning"


def pytest_itemcollected(item: pytest.Item) -> None:
    item.add_marker(pytest.mark.filterwarnings(NOISE))


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer()


@pytest.fixture
def pairs() -> Dataset:
    return Dataset.from_list(make_pairs(11))


@pytest.fixture
def held_out() -> Dataset:
    return Dataset.from_list(make_pairs(10, seed=1))
