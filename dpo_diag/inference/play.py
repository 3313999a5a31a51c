"""One prompt, several checkpoints: their answers, and how likely each token is under them and under the first.

Models are loaded when they are asked, and the one that was asked least recently goes when memory runs out.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from dpo_diag.errors import DiagError
from dpo_diag.inference.generation import encode_prompt
from dpo_diag.inference.prompts import Prompt
from dpo_diag.models.cache import ModelCache
from dpo_diag.models.checkpoints import Checkpoint
from dpo_diag.models.decoding import Decoding, Written, clean_text, write_answers
from dpo_diag.models.logps import score_tokens
from dpo_diag.models.packed.rows import Span
from dpo_diag.models.token_scores import TokenScores

ALTERNATIVES = 3
KEPT_ANSWERS = 200


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
    written: Written
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
        self, checkpoints: Sequence[Checkpoint], models: ModelCache, *, max_new_tokens: int = 128, chat: bool = True
    ) -> None:
        self.checkpoints, self.models, self.chat = list(checkpoints), models, chat
        self.decoding = Decoding(max_new_tokens=max_new_tokens)
        self._answers: OrderedDict[tuple[Checkpoint, str, bool], Answer] = OrderedDict()
        self._lock = threading.Lock()
        self.loading: Checkpoint | None = None
        self._ended = threading.Event()

    def load_ahead(self) -> None:
        """Load the checkpoints in their order, as many as memory takes, so that the first question waits for none;
        `loading` is the one at hand. What cannot be loaded says so when it is asked."""
        try:
            for checkpoint in self.checkpoints:
                self.loading = checkpoint
                with self._lock, suppress(DiagError), _in_one_line(checkpoint):
                    if self._ended.is_set() or not self.models.fits(checkpoint):
                        return
                    self.models.open(checkpoint)
        finally:
            self.loading = None

    def close(self) -> None:
        """Load no more, and drop what is loaded."""
        self._ended.set()
        with self._lock:
            self.models.close()

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
            with _in_one_line(checkpoint):
                model, tokenizer = self.models.open(checkpoint)
                chat = self.chat and not raw and bool(getattr(tokenizer, "chat_template", None))
                messages = ({"role": "user", "content": prompt},) if chat else None
                asked = Prompt(id="play", prompt=None if chat else prompt, messages=messages)
                ids, _ = encode_prompt(tokenizer, asked)
                [[written]] = write_answers(
                    model, tokenizer, [ids], self.decoding, prompt_ids=[asked.id], progress=False
                )
                (own,) = score_tokens(model, [Span(ids, written.token_ids)], n_likeliest=ALTERNATIVES)
                tokens = pieces(tokenizer, written, own)
            self._answers[key] = Answer(checkpoint, written.text(tokenizer), ids, written, tokens)
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
            answers = [self._answer(c, prompt, raw) for c in self.checkpoints]
            base = self.checkpoints[0]
            missing = [a for a in answers[1:] if a.base_sum_logp is None]
            with _in_one_line(base):
                model, tokenizer = self.models.open(base) if missing else (None, None)
            for answer in missing:
                if model is None or not _same_tokens(tokenizer, answer):
                    continue
                (own,) = score_tokens(model, [Span(answer.prompt_ids, answer.written.token_ids)])
                at = 0
                for token in answer.tokens:
                    token.base_logp = float(own.logp[at : at + token.n_tokens].sum())
                    at += token.n_tokens
            for token in answers[0].tokens:
                token.base_logp = token.logp
            return answers


@contextmanager
def _in_one_line(checkpoint: Checkpoint) -> Iterator[None]:
    """Errors of loading and running a model (a damaged file, too little memory) as one line that names it."""
    try:
        yield
    except DiagError:
        raise
    except Exception as error:  # whatever a library raises about a file, the page must go on
        raise DiagError("the model could not answer", where=f"{checkpoint.label} ({checkpoint.path})",
                        got=f"{type(error).__name__}: {str(error)[:300]}") from error  # fmt: skip


def _same_tokens(tokenizer: Any, answer: Answer) -> bool:
    """Whether the tokenizer reads these ids as the text that they were written as."""
    ids = answer.written.token_ids
    if not ids or max([*ids, *answer.prompt_ids]) >= len(tokenizer):
        return False
    text = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return clean_text(text) == answer.text


def pieces(tokenizer: Any, written: Written, scores: TokenScores) -> list[Token]:
    """The tokens as pieces of text; tokens that make up one character together are one piece, its log-probs summed."""

    def decode(some: Sequence[int]) -> str:
        return clean_text(tokenizer.decode(list(some), skip_special_tokens=False, clean_up_tokenization_spaces=False))

    ids = written.token_ids
    tokens: list[Token] = []
    shown, start = "", 0
    last = len(ids) - 1
    for i, token_id in enumerate(ids):
        end = written.stopped and i == last
        text = decode(ids[: i + 1])
        # An unfinished character decodes to U+FFFD; wait for its other bytes.
        if text.endswith("\ufffd") and i < last and not end and len(decode(ids[: i + 2])) <= len(text):
            continue
        others = [(decode([j]), p) for j, p in scores.likeliest[i]]
        piece = decode([token_id]) if end else text[len(shown) :]
        tokens.append(Token(piece, float(scores.logp[start : i + 1].sum()), i + 1 - start, others, end=end))
        shown, start = text, i + 1
    return tokens
