"""The page of `dpo-diag play`: answers of several checkpoints side by side, tokens marked by how they changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dpo_diag.errors import DiagError
from dpo_diag.inference.play import Answer, Playground, Token
from dpo_diag.models.checkpoints import REFERENCE, Checkpoint
from dpo_diag.records import Run
from dpo_diag.serving.gradio_page import Function, gradio_app
from dpo_diag.serving.loopback import App
from dpo_diag.text import plain, visible

STATIC = Path(__file__).parent / "static"
MAX_PROMPT = 50_000
EXAMPLES = 30
STARTS = ("frozen copy", "adapter switched off")
"""Kinds of reference that are the policy before training."""


def examples(run: Run) -> list[str]:
    """Prompts that the run asked, as its models saw them; [] where it holds none."""
    if not run.has("outputs"):
        return []
    prompts = run.read("outputs", ["prompt"])["prompt"].dropna().unique()
    step = max(1, len(prompts) // EXAMPLES)
    return [str(p) for p in prompts[::step][:EXAMPLES] if len(p) <= MAX_PROMPT]


def _is(checkpoint: Checkpoint, run: Run) -> str:
    """What a checkpoint is, where its name does not say so."""
    is_start = checkpoint.model == REFERENCE and run.info.reference.kind in STARTS
    return "before training" if is_start else ""


def _token(token: Token) -> dict[str, Any]:
    return {
        "text": visible(token.text),
        "logp": token.logp,
        "base": token.base_logp,
        "n": token.n_tokens,
        "end": token.end,
        "others": [{"text": visible(text), "logp": logp} for text, logp in token.others],
    }


def answer_dict(answer: Answer) -> dict[str, Any]:
    """An answer as the page gets it; its text is set as text there."""
    shown = {
        "name": visible(answer.checkpoint.label),
        "finish_reason": answer.written.finish_reason,
        "n_tokens": len(answer.written.token_ids),
        "sum_logp": answer.sum_logp,
        "base_sum_logp": answer.base_sum_logp,
        "tokens": [_token(token) for token in answer.tokens],
    }
    return dict(plain(shown))  # a diverged model gives NaN


class Calls:
    """What the page's script may call. Every answer is a JSON object, an error too: {"error": one line}."""

    def __init__(self, playground: Playground, run: Run) -> None:
        self.playground, self.run = playground, run
        self._examples = examples(run)

    def start(self, _: dict[str, Any]) -> dict[str, Any]:
        """The checkpoints' names, the example prompts, the limits."""
        return {
            "run": visible(self.run.name),
            "names": [visible(c.label) for c in self.playground.checkpoints],
            "is": [_is(c, self.run) for c in self.playground.checkpoints],
            "examples": self._examples,
            "max_new_tokens": self.playground.decoding.max_new_tokens,
            **self._memory(),
        }

    def _memory(self) -> dict[str, Any]:
        models, loading = self.playground.models, self.playground.loading
        return {
            "memory": {
                "loaded": [visible(c.label) for c in models.loaded],
                "bytes": models.size,
                "budget": models.budget,
            },
            "loading": visible(loading.label) if loading is not None else None,
        }

    def loaded(self, _: dict[str, Any]) -> dict[str, Any]:
        """What is in memory, and what is being loaded."""
        return self._memory()

    def ask(self, call: dict[str, Any]) -> dict[str, Any]:
        """One checkpoint's answer: {"index", "prompt", "raw"} -> the answer."""
        try:
            index = call.get("index")
            if not isinstance(index, int) or not 0 <= index < len(self.playground.checkpoints):
                raise DiagError("no such checkpoint", got=index)
            answer = self.playground.answer(self.playground.checkpoints[index], _prompt(call), bool(call.get("raw")))
            return {"answer": answer_dict(answer), **self._memory()}
        except DiagError as error:
            return {"error": visible(str(error))}

    def compare(self, call: dict[str, Any]) -> dict[str, Any]:
        """All answers, with their tokens' log-probs under the first checkpoint."""
        try:
            answers = self.playground.compare(_prompt(call), bool(call.get("raw")))
            return {"answers": [answer_dict(a) for a in answers], **self._memory()}
        except DiagError as error:
            return {"error": visible(str(error))}


def _prompt(call: dict[str, Any]) -> str:
    text = str(call.get("prompt") or "")
    if len(text) > MAX_PROMPT:
        raise DiagError("the prompt is too long", got=f"{len(text)} characters", expected=f"at most {MAX_PROMPT}")
    # A lone surrogate, which JSON can carry, is no text that a tokenizer takes.
    return text.encode("utf-8", "replace").decode("utf-8")


def play_app(playground: Playground, run: Run) -> App:
    """The page as an ASGI application, still without its guard (`dpo_diag.serving.loopback.serve` adds it)."""
    calls = Calls(playground, run)
    functions: list[Function] = [calls.start, calls.loaded, calls.ask, calls.compare]
    return gradio_app("dpo-diag play", STATIC, "play", functions, "dpo-diag play")
