"""The layout of packed rows, by hand and as properties."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dpo_diag.models.packed.rows import Segment, Span, pack, row_of

PAIR = [Span([1, 2, 3], [10, 11]), Span([1, 2, 3], [20, 21, 22])]


def test_a_pair_by_hand() -> None:
    """Places 0 1 2 | 3 4 | 5 6 7; the rejected answer's positions go on from the prompt's end. Both first tokens are
    read from place 2, the prompt's last."""
    (row,) = pack(PAIR, 64)
    assert row.segments == (Segment(0, 3, (2, 3)),)
    assert row.spans == (0, 1) and row.n_scored.tolist() == [2, 3]
    assert row.ids.tolist() == [1, 2, 3, 10, 11, 20, 21, 22]
    assert row.positions.tolist() == [0, 1, 2, 3, 4, 3, 4, 5]
    assert row.read.tolist() == [2, 3, 2, 5, 6]
    assert row.targets.tolist() == [10, 11, 20, 21, 22]


def test_other_prompts_stand_alone_and_nothing_before_a_first_token_leaves_it_out() -> None:
    """(1, 2) and (1, 9) share nothing. Without a prompt the first token is not predicted: 3 tokens, 2 scored."""
    spans = [Span([1, 2], [5]), Span([1, 9], [6]), Span([], [7, 8, 9]), Span([], [7]), Span([1], [])]
    row = row_of(spans, [[0], [1], [2]])
    assert row.segments == (Segment(0, 2, (1,)), Segment(3, 2, (1,)), Segment(6, 0, (3,)))
    assert row.positions.tolist() == [0, 1, 2, 0, 1, 2, 0, 1, 2]
    assert row.read.tolist() == [1, 4, 6, 7] and row.targets.tolist() == [5, 6, 8, 9]
    assert row.n_scored.tolist() == [1, 1, 2]
    # The last two have nothing to score, and are in no row.
    assert sorted(i for row in pack(spans, 64) for i in row.spans) == [0, 1, 2]
    assert pack([], 64) == []


def test_pairs_of_one_prompt_share_it_as_far_as_a_row_reaches() -> None:
    """A prompt of 4 and four answers of 3: 4 + 2 * 3 fit into 10 tokens, so it is computed twice, not four times."""
    spans = [Span([1, 2, 3, 4], [i, i, i]) for i in range(10, 14)]
    rows = pack(spans, 10)
    assert [row.segments for row in rows] == [(Segment(0, 4, (3, 3)),)] * 2
    # Chosen and rejected stay together even where they are longer than a row; a third one does not join them.
    assert [len(row.ids) for row in pack(spans, 5)] == [10, 10]


spans_drawn = st.lists(
    st.builds(
        Span,
        st.lists(st.integers(0, 2), max_size=3),
        st.lists(st.integers(3, 9), max_size=6),
    ),
    max_size=12,
)


@given(spans_drawn, st.integers(1, 30))
def test_every_scored_token_is_read_once_from_the_place_before_it(spans: list[Span], max_tokens: int) -> None:
    rows = pack(spans, max_tokens)
    seen = [i for row in rows for i in row.spans]
    assert sorted(seen) == [i for i, span in enumerate(spans) if span.n_scored]
    for row in rows:
        assert len(row.ids) == len(row.positions) == sum(map(len, row.segments))
        assert len(row.ids) <= max_tokens or (len(row.segments) == 1 and len(row.segments[0].responses) <= 2)
        at = 0
        for i, n in zip(row.spans, row.n_scored, strict=True):
            span = spans[i]
            whole = [*span.prompt, *span.response]
            places, at = row.read[at : at + n], at + int(n)
            # What the place holds, and where it believes to be, is what stands before the token in its own sequence.
            assert row.targets[at - n : at].tolist() == whole[len(whole) - n :]
            assert row.ids[places].tolist() == whole[len(whole) - n - 1 : -1]
            assert row.positions[places].tolist() == list(range(len(whole) - n - 1, len(whole) - 1))
        assert at == len(row.read) == len(row.targets)


@given(spans_drawn, st.integers(1, 30))
def test_a_prompt_is_never_before_another_prompts_answer(spans: list[Span], max_tokens: int) -> None:
    """The tokens behind each segment's start are its prompt, then its spans' responses, in the order of the row."""
    for row in pack(spans, max_tokens):
        order = iter(row.spans)
        for segment in row.segments:
            members = [spans[next(order)] for _ in segment.responses]
            expected = [*members[0].prompt, *(t for span in members for t in span.response)]
            assert row.ids[segment.start : segment.start + len(segment)].tolist() == expected
            assert all(tuple(span.prompt) == tuple(members[0].prompt) for span in members)
