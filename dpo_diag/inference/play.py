"""One prompt, several checkpoints: their answers, and how likely each token is under them and under the first.

Models are loaded when they are asked, and the one that was asked least recently goes when memory runs out.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dpo_diag.errors import DiagError
from dpo_diag.inference.generation import encode_prompt, generate
from dpo_diag.inference.prompts import Prompt
from dpo_diag.models.checkpoints import POLICY, REFERENCE, Checkpoint, Loader, adapter_base, find_checkpoints
from dpo_diag.models.decoding import Decoding
from dpo_diag.models.logps import Span, score_tokens
from dpo_diag.records import Run

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ALTERNATIVES = 3
KEPT_ANSWERS = 200


def label(checkpoint: Checkpoint) -> str:
    """`step 40`, or the name of another model."""
    return f"step {checkpoint.step}" if checkpoint.model == POLICY else checkpoint.model


def run_checkpoints(run: Run, also: Sequence[str] = ()) -> list[Checkpoint]:
    """What of a run can be asked: the reference (which is the policy at step 0, unless another stands there), the
    saved checkpoints by step, and NAME=PATH entries.

    Raises:
        DiagError: nothing.
    """
    folder = run.path / "checkpoints"
    found = find_checkpoints([folder / "*"]) if _has_models(folder) else []
    named = find_checkpoints(also) if also else []
    if not any(c.model == REFERENCE for c in named):
        reference = _reference(run, found)
        if reference is not None:
            named.insert(0, Checkpoint(reference, REFERENCE, 0))
    places = {(c.model, c.step): c for c in [*named, *found]}
    if not places:
        raise DiagError(
            "no model to ask", where=run.path, got="no checkpoints/ and no reference on this machine",
            hint="name models, e.g. --also mine=PATH",
        )  # fmt: skip
    return sorted(places.values(), key=lambda c: (c.model == POLICY, c.model != REFERENCE, c.step, c.model))


def _has_models(folder: Path) -> bool:
    names = ("config.json", "adapter_config.json")
    return any((child / name).is_file() for child in folder.glob("*") for name in names)


def _reference(run: Run, found: Sequence[Checkpoint]) -> str | None:
    """Folder of the model before training: what run.json names, if it is on this machine, or the adapters' base."""
    known = run.meta.get("reference")
    names = [known.get("name")] if isinstance(known, dict) else []
    names += [adapter_base(c) for c in found if c.is_adapter][:1]
    for name in names:
        if isinstance(name, str) and name:
            # Relative names were written from where the training was started.
            for place in (Path(name), *(parent / name for parent in run.path.resolve().parents)):
                if (place / "config.json").is_file():
                    return str(place)
    return None


def choose(found: Sequence[Checkpoint], steps: str | None, limit: int = 4) -> list[Checkpoint]:
    """The checkpoints that a user names (`0,20,ref`), in that order; None for the first, the last and some between.

    Step 0 is the reference where no checkpoint of step 0 was saved.

    Raises:
        DiagError: one that is not there, or twice.
    """
    if steps is None:
        if len(found) <= limit:
            return list(found)
        return [found[i] for i in sorted({round(x) for x in np.linspace(0, len(found) - 1, limit)})]
    chosen: list[Checkpoint] = []
    for name in [part.strip() for part in steps.split(",") if part.strip()]:
        match = [c for c in found if name == c.model or (c.model == POLICY and name == str(c.step))]
        if not match and name == "0":
            match = [c for c in found if c.model == REFERENCE]
        if not match or match[-1] in chosen:
            known = ", ".join(str(c.step) if c.model == POLICY else c.model for c in found)
            raise DiagError(
                "named twice" if match else "no such checkpoint on this machine", where="--steps", got=name,
                expected=f"some of {known}", hint=None if match else "or name its folder: --also NAME=PATH", usage=True,
            )  # fmt: skip
        chosen.append(match[-1])
    if not chosen:
        raise DiagError("no steps", where="--steps", got=repr(steps), expected="e.g. 0,20,40", usage=True)
    return chosen


def default_budget() -> int:
    """Half of the memory that is free now, in bytes; 4 GB where the system does not say."""
    try:
        return int(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2)
    except (ValueError, OSError, AttributeError):
        return 4 * 10**9


@dataclass
class _Held:
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    stack: ExitStack
    size: int


class Models:
    """Checkpoints, loaded when asked, within `budget` bytes of weights; the least recently asked goes first.

    Adapters of one base share it: the base stays, one adapter is on it at a time. A model that is larger than the
    budget by itself is still loaded, alone.
    """

    def __init__(self, budget: int, **loader: Any) -> None:
        self.budget, self._settings = budget, loader
        self._held: OrderedDict[Checkpoint, _Held] = OrderedDict()
        self._bases: dict[str, Loader] = {}
        self.loads = 0

    @property
    def loaded(self) -> list[Checkpoint]:
        """Least recently asked first."""
        return list(self._held)

    @property
    def size(self) -> int:
        """Bytes of weights held."""
        return sum(held.size for held in self._held.values())

    def open(self, checkpoint: Checkpoint) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """(model, tokenizer), valid until the next call."""
        held = self._held.get(checkpoint)
        if held is None:
            base = adapter_base(checkpoint) if checkpoint.is_adapter else None
            for other in [c for c in self._held if base and c.is_adapter and adapter_base(c) == base]:
                self._drop(other, keep_base=True)
            expected = self._expected(checkpoint)
            while self._held and self.size + expected > self.budget:
                self._drop(next(iter(self._held)))
            loader = self._bases.setdefault(base, Loader(**self._settings)) if base else Loader(**self._settings)
            stack = ExitStack()
            model, tokenizer = stack.enter_context(loader.open(checkpoint))
            self.loads += 1
            size = sum(p.numel() * p.element_size() for p in model.parameters())
            held = self._held[checkpoint] = _Held(model, tokenizer, stack, size)
            while len(self._held) > 1 and self.size > self.budget:
                self._drop(next(iter(self._held)))
        self._held.move_to_end(checkpoint)
        return held.model, held.tokenizer

    def _expected(self, checkpoint: Checkpoint) -> int:
        """Bytes that its weights will take: like its neighbours of the same run, else its files in float32."""
        if self._held:
            return max(held.size for held in self._held.values())
        folder = Path(checkpoint.path)
        return 2 * sum(p.stat().st_size for p in folder.glob("*.safetensors")) if folder.is_dir() else 0

    def _drop(self, checkpoint: Checkpoint, keep_base: bool = False) -> None:
        held = self._held.pop(checkpoint)
        held.stack.close()
        if checkpoint.is_adapter and not keep_base:
            self._bases.pop(adapter_base(checkpoint), None)

    def close(self) -> None:
        """Drop all."""
        while self._held:
            self._drop(next(iter(self._held)))


@dataclass
class Token:
    """A piece of an answer: one token, or the several that make up one character.

    Attributes:
        text: what it adds to the answer; "" with `end` for the end token.
        logp: nats, under the model that wrote the answer.
        n_tokens: how many.
        others: (text, log-prob) of the likeliest first choices there, the chosen one included.
        base_logp: nats, the same tokens under the first checkpoint; None until known.
    """

    text: str
    logp: float
    n_tokens: int = 1
    others: list[tuple[str, float]] = field(default_factory=list)
    base_logp: float | None = None
    end: bool = False


@dataclass
class Answer:
    """What a checkpoint wrote."""

    checkpoint: Checkpoint
    text: str
    prompt_ids: list[int]
    token_ids: list[int]
    finish_reason: str
    tokens: list[Token]

    @property
    def sum_logp(self) -> float:
        return sum(t.logp for t in self.tokens)

    @property
    def base_sum_logp(self) -> float | None:
        known = [t.base_logp for t in self.tokens if t.base_logp is not None]
        return sum(known) if len(known) == len(self.tokens) else None


class Playground:
    """Asks checkpoints; the first one is what the others are compared with. Safe to call from several threads.

    Args:
        checkpoints: at least one, the first being the base of comparison.
        models: where they are loaded.
        max_new_tokens: of an answer; answers are greedy.
        chat: put a prompt through the chat template, where the tokenizer has one.
    """

    def __init__(
        self, checkpoints: Sequence[Checkpoint], models: Models, *, max_new_tokens: int = 128, chat: bool = True
    ) -> None:
        self.checkpoints, self.models, self.chat = list(checkpoints), models, chat
        self.decoding = Decoding(max_new_tokens=max_new_tokens)
        self._answers: OrderedDict[tuple[Checkpoint, str, bool], Answer] = OrderedDict()
        self._lock = threading.Lock()

    def answer(self, checkpoint: Checkpoint, prompt: str, raw: bool = False) -> Answer:
        """The checkpoint's greedy answer with its own token log-probs.

        Args:
            raw: the prompt is as the model sees it: no chat template.

        Raises:
            DiagError: an empty prompt, one that does not fit the model, a model that cannot be loaded.
        """
        with self._lock:
            return self._answer(checkpoint, prompt, raw)

    def _answer(self, checkpoint: Checkpoint, prompt: str, raw: bool) -> Answer:
        if not prompt.strip():
            raise DiagError("the prompt is empty", hint="type a question")
        key = (checkpoint, prompt, raw)
        if key not in self._answers:
            with _told(checkpoint):
                model, tokenizer = self.models.open(checkpoint)
                chat = self.chat and not raw and bool(getattr(tokenizer, "chat_template", None))
                messages = ({"role": "user", "content": prompt},) if chat else None
                asked = Prompt(id="play", prompt=None if chat else prompt, messages=messages)
                (row,) = generate(model, tokenizer, [asked], self.decoding, step=0, progress=False).to_dict("records")
                ids = list(row["token_ids"])
                prompt_ids = encode_prompt(tokenizer, asked)[0]
                (own,) = score_tokens(model, [Span(prompt_ids, ids)], n_likeliest=ALTERNATIVES)
                tokens = pieces(tokenizer, ids, own.logp, own.likeliest, row["finish_reason"] == "stop")
            self._answers[key] = Answer(
                checkpoint, str(row["text"]), prompt_ids, ids, str(row["finish_reason"]), tokens
            )
            while len(self._answers) > KEPT_ANSWERS:
                self._answers.popitem(last=False)
        self._answers.move_to_end(key)
        return self._answers[key]

    def compare(self, prompt: str, raw: bool = False) -> list[Answer]:
        """Every checkpoint's answer, its tokens' log-probs under the first checkpoint filled in.

        Answers come first, then the first checkpoint scores them all, so that a small budget loads each model once or
        twice. Where the first checkpoint has another vocabulary, `base_logp` stays None.
        """
        with self._lock:
            found = [self._answer(c, prompt, raw) for c in self.checkpoints]
            base = self.checkpoints[0]
            missing = [a for a in found[1:] if a.base_sum_logp is None]
            with _told(base):
                model, tokenizer = self.models.open(base) if missing else (None, None)
            for answer in missing:
                if model is None or not _same_tokens(tokenizer, answer):
                    continue
                (own,) = score_tokens(model, [Span(answer.prompt_ids, answer.token_ids)])
                at = 0
                for token in answer.tokens:
                    token.base_logp = float(own.logp[at : at + token.n_tokens].sum())
                    at += token.n_tokens
            for token in found[0].tokens:
                token.base_logp = token.logp
            return found


@contextmanager
def _told(checkpoint: Checkpoint) -> Iterator[None]:
    """Errors of loading and running a model (a damaged file, too little memory) as one line that names it."""
    try:
        yield
    except DiagError:
        raise
    except Exception as error:  # whatever a library raises about a file, the page must go on
        raise DiagError("the model could not answer", where=f"{label(checkpoint)} ({checkpoint.path})",
                        got=f"{type(error).__name__}: {str(error)[:300]}") from error  # fmt: skip


def _same_tokens(tokenizer: Any, answer: Answer) -> bool:
    """Whether the tokenizer reads these ids as the text that they were written as."""
    ids = [*answer.token_ids]
    if not ids or max([*ids, *answer.prompt_ids]) >= len(tokenizer):
        return False
    text = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return bool(text.encode("utf-8", "replace").decode("utf-8") == answer.text)


def pieces(
    tokenizer: Any, ids: Sequence[int], logp: np.ndarray, likeliest: Sequence[list[tuple[int, float]]], stopped: bool
) -> list[Token]:
    """The tokens as pieces of text; tokens that make up one character together are one piece, its log-probs summed."""

    def decode(some: Sequence[int]) -> str:
        text = str(tokenizer.decode(list(some), skip_special_tokens=False, clean_up_tokenization_spaces=False))
        return text.encode("utf-8", "replace").decode("utf-8")

    found: list[Token] = []
    shown, start = "", 0
    last = len(ids) - 1
    for i, token_id in enumerate(ids):
        end = stopped and i == last
        text = decode(ids[: i + 1])
        # An unfinished character decodes to U+FFFD; wait for its other bytes.
        if text.endswith("\ufffd") and i < last and not end and len(decode(ids[: i + 2])) <= len(text):
            continue
        others = [(decode([j]), p) for j, p in likeliest[i]]
        piece = decode([token_id]) if end else text[len(shown) :]
        found.append(Token(piece, float(logp[start : i + 1].sum()), i + 1 - start, others, end=end))
        shown, start = text, i + 1
    return found
