"""Rows of tokens in which a prompt stands once and the responses that continue it stand side by side behind it.

    prompt A | chosen | rejected | prompt B | chosen | rejected | ...

Positions restart for each further response at its prompt's end, so that a model whose attention keeps the responses
apart (`packed.attention`) sees each as if it stood alone behind its prompt. Nothing is padded. Responses whose prompts
are not the same tokens share nothing and are segments of their own.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
ROW_TOKENS = 2048
"""Tokens in a row, where nobody says otherwise."""


@dataclass(frozen=True)
class Span:
    """Tokens to score, and what comes before them; without that the first token is not predicted by anything."""

    prompt: Sequence[int]
    response: Sequence[int]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.response)

    @property
    def n_scored(self) -> int:
        """Tokens of the response that something predicts."""
        return len(self.response) if self.prompt else max(0, len(self.response) - 1)


@dataclass(frozen=True)
class Segment:
    """One prompt in a row and the responses behind it: the place of its first token, and lengths in tokens."""

    start: int
    prompt: int
    responses: tuple[int, ...]

    def __len__(self) -> int:
        return self.prompt + sum(self.responses)


@dataclass(frozen=True)
class Row:
    """One row, for a forward of one sequence.

    Attributes:
        ids, positions: token ids and position ids, (tokens,).
        segments: what the attention needs to know.
        spans: which of the spans given stand here, in the order of `read`.
        n_scored: scored tokens of each of them.
        read: places in the row whose output predicts a scored token, span after span, (scored,).
        targets: those tokens, (scored,).
    """

    ids: IntArray
    positions: IntArray
    segments: tuple[Segment, ...]
    spans: tuple[int, ...]
    n_scored: IntArray
    read: IntArray
    targets: IntArray


def pack(spans: Sequence[Span], max_tokens: int) -> list[Row]:
    """Spans in rows of at most `max_tokens` tokens, longest segments first, then filled up with short ones.

    Spans with the same prompt share it, wherever they stand among `spans`: chosen and rejected, and the pairs of one
    prompt. A segment that is longer than a row gets a row of its own; it never holds more than two spans then. Spans
    of which nothing is scored are in no row. The same spans give the same rows every time.
    """
    segments = deque(sorted(shared_prompts(spans, max_tokens), key=lambda s: (-_tokens(spans, s), s)))
    rows = []
    while segments:
        own = [segments.popleft()]
        room = max_tokens - _tokens(spans, own[0])
        for take, end in ((segments.popleft, 0), (segments.pop, -1)):
            while segments and (n := _tokens(spans, segments[end])) <= room:
                own.append(take())
                room -= n
        rows.append(row_of(spans, own))
    return rows


def row_of(spans: Sequence[Span], segments: Sequence[Sequence[int]]) -> Row:
    """The row of given segments: of each the numbers of its spans, which have one prompt."""
    pieces: list[Sequence[int]] = []
    first_position: list[int] = []
    before: list[int] = []  # of each span, the place of what predicts its first token
    laid, responses, start = [], [], 0
    for members in segments:
        prompt = spans[members[0]].prompt
        own = tuple(len(spans[i].response) for i in members)
        laid.append(Segment(start, len(prompt), own))
        pieces += [prompt, *(spans[i].response for i in members)]
        first_position += [0, *[len(prompt)] * len(own)]
        before += [start + len(prompt) - 1] * len(own)
        responses += np.cumsum([start + len(prompt), *own])[:-1].tolist()
        start += len(laid[-1])
    order = tuple(i for members in segments for i in members)
    lengths = np.array([len(piece) for piece in pieces], dtype=np.int64)
    ids = np.concatenate([np.asarray(piece, dtype=np.int64) for piece in pieces])
    # Each token is read from the place before it, a response's first one from its prompt's last.
    n_tokens = np.array([len(spans[i].response) for i in order], dtype=np.int64)
    at = _ranges(np.array(responses, dtype=np.int64), n_tokens)
    read = at - 1
    firsts = (np.cumsum(n_tokens) - n_tokens)[n_tokens > 0]
    read[firsts] = np.array(before, dtype=np.int64)[n_tokens > 0]
    predicted = np.ones(len(at), dtype=bool)
    predicted[firsts] = [len(spans[i].prompt) > 0 for i in order if len(spans[i].response)]
    return Row(
        ids=ids,
        positions=_ranges(np.array(first_position, dtype=np.int64), lengths),
        segments=tuple(laid),
        spans=order,
        n_scored=np.array([spans[i].n_scored for i in order], dtype=np.int64),
        read=read[predicted],
        targets=ids[at[predicted]],
    )


def shared_prompts(spans: Sequence[Span], max_tokens: int) -> list[list[int]]:
    """Numbers of the spans of each segment: those of one prompt, as many as fit into a row; [] for nothing."""
    groups: dict[tuple[int, ...], list[list[int]]] = {}
    for i, span in enumerate(spans):
        if not span.n_scored:
            continue
        of_prompt = groups.setdefault(tuple(span.prompt), [[]])
        # Two always go together: a prompt that is computed twice costs more than a long row.
        if len(of_prompt[-1]) > 1 and _tokens(spans, of_prompt[-1]) + len(span.response) > max_tokens:
            of_prompt.append([])
        of_prompt[-1].append(i)
    return [segment for of_prompt in groups.values() for segment in of_prompt]


def _tokens(spans: Sequence[Span], segment: Sequence[int]) -> int:
    return len(spans[segment[0]].prompt) + sum(len(spans[i].response) for i in segment)


def _ranges(first: IntArray, lengths: IntArray) -> IntArray:
    """first[0], first[0] + 1, ... (lengths[0] numbers), then the same for the next ones."""
    ends = np.cumsum(lengths)
    places: IntArray = np.arange(lengths.sum()) + np.repeat(first - (ends - lengths), lengths)
    return places
