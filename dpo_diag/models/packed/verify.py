"""Which way a model's spans may go: the quickest one that gives what the plain way gives, proved on the model itself.

Architectures differ in what they hand on to their attention, and some have layers that see a whole row. So nothing is
believed: before the first batch the longest prompt with its responses (only it reaches beyond a sliding window or the
trained context) and the shortest one go both ways, in float32. Ways that are right differ by some 1e-5 nats then, and
wrong ones by some tenths; in bfloat16 rounding alone makes as much.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt
import torch

from dpo_diag.errors import DiagError
from dpo_diag.models.float32 import in_float32
from dpo_diag.models.head import Head
from dpo_diag.models.packed.rows import Span, shared_prompts
from dpo_diag.models.packed.ways import Name, Way
from dpo_diag.models.token_scores import token_scores
from dpo_diag.records.pair_id import content_hash

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SharedPrefix = Literal["auto", "on", "off"]
TOLERANCE, RELATIVE = 1e-3, 1e-5
"""Sums may differ by TOLERANCE + RELATIVE * |sum| nats."""


@dataclass(frozen=True)
class Proved:
    """A way, and what was found of the quicker ones before it.

    Attributes:
        way: to go.
        difference: from the plain way, largest of a sum of log-probs, nats; None for the plain way itself.
        refused: way -> why it is not gone.
    """

    way: Way
    difference: float | None = None
    refused: tuple[tuple[str, str], ...] = ()

    def note(self) -> str | None:
        """A line for the user where a quicker way was refused; None else."""
        if not self.refused:
            return None
        why = "; ".join(f"{name}: {reason}" for name, reason in self.refused)
        return f"shared prompts are not packed but {_WORDS[self.way.name]} ({why})"


@dataclass
class Proofs:
    """What was proved in this process: it hangs on the architecture and on how long the spans are (a window shows only
    beyond its length), not on the weights."""

    _of: dict[tuple[str, int], tuple[Proved, int]] = field(default_factory=dict)

    def known(self, model: PreTrainedModel, pad_id: int, spans: Sequence[Span]) -> Proved | None:
        """What was found on spans as long as these; None where that is still to be proved."""
        proved, longest = self._of.get((architecture(model), pad_id), (None, 0))
        covers = proved is not None and (proved.way.name == "plain" or max(map(len, spans), default=0) <= longest)
        return proved if covers else None

    def add(self, model: PreTrainedModel, pad_id: int, spans: Sequence[Span], proved: Proved) -> None:
        """What `prove` found on these spans."""
        self._of[architecture(model), pad_id] = proved, max(map(len, spans), default=0)


def architecture(model: PreTrainedModel) -> str:
    """All that decides how a model computes, but for its weights."""
    modules = [f"{name} {type(module).__name__}" for name, module in model.named_modules()]
    config = {key: str(value) for key, value in model.config.to_dict().items() if key != "_name_or_path"}
    return content_hash([modules, config, model.config._attn_implementation, str(model.dtype), str(model.device)])


_WORDS = {"cached": "kept in the model's cache", "plain": "computed with every response"}
_QUICKER: tuple[Name, ...] = ("packed", "cached")
_ONE_ROW = 2**62


def prove(head: Head, spans: Sequence[Span], way: Way, shared_prefix: SharedPrefix = "auto") -> Proved:
    """The quickest way whose sums are the plain way's; use it inside `borrowed(model)`.

    Args:
        way: sizes of batches and rows.
        shared_prefix: auto tries packed, then cached, then goes plain; on refuses to go plain; off tries nothing.

    Raises:
        DiagError: `on`, and no quicker way is right.
    """
    plain = replace(way, name="plain")
    sample = _sample(spans, head.vocabulary)
    if shared_prefix == "off" or not sample:
        return Proved(plain)
    refused: list[tuple[str, str]] = []
    with in_float32(head.model):
        try:
            # One sequence at a time: how a model takes padding is another question.
            expected = _sums(head, sample.spans, replace(plain, batch_size=1))
        except torch.OutOfMemoryError:
            return _plain(plain, shared_prefix, [(name, "no memory to prove it in float32") for name in _QUICKER])
        for name in _QUICKER:
            try:
                found = _sums(head, [*sample.spans, *sample.changed], replace(way, name=name, row_tokens=_ONE_ROW))
            # Whatever an architecture answers to what it does not know: it is not for this way.
            except Exception as error:
                refused.append((name, _in_short(error)))
                continue
            differences = np.abs(found[: len(expected)] - expected)
            moved = abs(found[-1] - found[len(expected) - 1])
            if not (differences <= TOLERANCE + RELATIVE * np.abs(expected)).all():
                refused.append((name, f"sums of log-probs differ by {differences.max():.2g} nats"))
            elif not moved <= TOLERANCE + RELATIVE * abs(found[-1]):
                refused.append((name, f"other tokens in one response move the next one by {moved:.2g} nats"))
            else:
                return Proved(replace(way, name=name), float(differences.max()), tuple(refused))
    return _plain(plain, shared_prefix, refused)


def _plain(way: Way, shared_prefix: SharedPrefix, refused: Sequence[tuple[str, str]]) -> Proved:
    if shared_prefix == "on":
        raise DiagError(
            "this model cannot compute a shared prompt once", where="shared_prefix=on",
            got="; ".join(f"{name}: {why}" for name, why in refused), hint="shared_prefix=auto goes the plain way then",
        )  # fmt: skip
    return Proved(way, None, tuple(refused))


@dataclass(frozen=True)
class _Sample:
    """Spans to compare, and the leak test behind them: another response to the last one's prompt, then the last one
    again, whose sum must be what it was."""

    spans: list[Span]
    changed: list[Span]


def _sample(spans: Sequence[Span], vocabulary: int) -> _Sample | None:
    """The longest and the shortest prompt of two responses each; None if nothing is scored."""
    groups = [[spans[i] for i in group] for group in shared_prompts(spans, 0)]
    if not groups:
        return None
    groups.sort(key=lambda group: max(map(len, group)))
    chosen = []
    for group in (groups[-1], groups[0])[: min(2, len(groups))]:
        pair = sorted(group, key=len)[-2:]
        # A prompt with one response gets a second one, so that sharing is tried whatever the spans are.
        chosen += pair if len(pair) == 2 else [pair[0], _other(pair[0], vocabulary)]
    return _Sample(chosen, [_other(chosen[-2], vocabulary), chosen[-1]])


def _other(span: Span, vocabulary: int) -> Span:
    """The same prompt with another response of the same length."""
    return Span(span.prompt, [(token + 1) % vocabulary for token in span.response])


def _sums(head: Head, spans: Sequence[Span], way: Way) -> npt.NDArray[np.float64]:
    """Sum of log-probs of each span, nats."""
    sums = np.full(len(spans), np.nan)
    for read in way.read(head, spans):
        for i, own in zip(read.spans, token_scores(head, read.seen, read.targets, read.n_scored), strict=True):
            sums[i] = own.logp.sum()
    return sums


def _in_short(error: Exception) -> str:
    text = str(error).split("\n")[0]
    return f"{type(error).__name__}: {text[:120]}" if not isinstance(error, DiagError) else text
