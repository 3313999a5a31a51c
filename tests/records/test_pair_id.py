"""`pair_id` joins the same pair wherever it comes from."""

from __future__ import annotations

import pytest

from dpo_diag.records import make_pair_id


def test_the_identity_is_fixed() -> None:
    """printf '["p", "c", "r"]' | sha256sum: ["p", "c", "r"], first 16 hex digits: other machines must find the same."""
    assert make_pair_id("p", "c", "r") == "e627a5b65f0c2071"


def test_every_part_counts_and_sides_are_not_interchangeable() -> None:
    ids = {
        make_pair_id(*t) for t in (("p", "c", "r"), ("p", "r", "c"), ("pc", "", "r"), ("", "pc", "r"), ("p", "c", "r "))
    }
    assert len(ids) == 5


def test_messages_ignore_keys_beyond_role_and_content() -> None:
    plain = [{"role": "user", "content": "hi"}]
    extra = [{"role": "user", "content": "hi", "name": "x"}]
    assert make_pair_id(plain, "c", "r") == make_pair_id(extra, "c", "r") != make_pair_id("hi", "c", "r")


def test_token_ids_are_an_identity_too() -> None:
    assert make_pair_id([1, 2], [3], [4]) != make_pair_id([1], [2, 3], [4])


def test_anything_else_is_refused() -> None:
    with pytest.raises(TypeError, match="got float"):
        make_pair_id(1.5, "c", "r")
