"""`dpo-diag play RUN --steps 0,20,40`: type a prompt, see several checkpoints' answers side by side."""

from __future__ import annotations

import sys
from pathlib import Path
from threading import Thread

from dpo_diag.command_lines import say_next
from dpo_diag.errors import DiagError
from dpo_diag.next_steps import after_play


def play(
    run: Path,
    /,
    *,
    steps: str | None = None,
    also: list[str] | None = None,
    max_new_tokens: int = 128,
    memory: float | None = None,
    device: str = "auto",
    dtype: str = "auto",
    plain: bool = False,
    port: int = 0,
    no_browser: bool = False,
) -> int:
    """Type a prompt, see several checkpoints' answers side by side.

    Args:
        run: a run folder with checkpoints/.
        steps: which checkpoints, e.g. 0,20,40 or ref,40; the first is what the others are compared with (default: up to
            four, first to last).
        also: another model, NAME=PATH; may be repeated.
        max_new_tokens: tokens per answer.
        memory: GB for weights (default: half of what is free).
        device: auto, cpu, cuda, cuda:N, mps.
        dtype: auto, float32, bfloat16, float16.
        plain: never use the tokenizer's chat template.
        port: of the local page (default: any free one).
        no_browser: print the address, open nothing.
    """
    also = also or []
    from dpo_diag.records import load_run
    from dpo_diag.serving.gradio_page import require_gradio

    opened = load_run(run)
    require_gradio("dpo-diag play")
    if memory is not None and not memory > 0:
        raise DiagError("no memory to load a model into", where="--memory", got=memory, usage=True)
    if max_new_tokens < 1:
        raise DiagError("no tokens to write", where="--max-new-tokens", got=max_new_tokens, usage=True)
    from dpo_diag.models.run_checkpoints import checkpoints_of, choose, start_not_here

    for entry in also:
        if not entry.partition("=")[2]:
            raise DiagError("a model needs a name", where="--also", got=entry, expected="NAME=PATH", usage=True)
    known = checkpoints_of(opened, also)
    chosen = choose(known, steps)
    named = {entry.partition("=")[0] for entry in also}
    chosen += [c for c in known if c not in chosen and c.model in named]
    print("loading torch and gradio ...", file=sys.stderr, flush=True)
    from dpo_diag.inference.play import Playground
    from dpo_diag.models.cache import ModelCache, default_budget

    budget = default_budget() if memory is None else int(memory * 10**9)
    models = ModelCache(budget, device=device, dtype=dtype)
    from transformers.utils import logging

    from dpo_diag.commands.play_page import play_app
    from dpo_diag.serving.loopback import serve

    logging.disable_progress_bar()
    playground = Playground(chosen, models, max_new_tokens=max_new_tokens, chat=not plain)
    app = play_app(playground, opened)
    if steps is None and (note := start_not_here(opened, chosen)):
        print(f"note: {note}")
    print(f"{', '.join(c.label for c in chosen)}; at most {budget / 10**9:.3g} GB of weights at a time")
    Thread(target=playground.load_ahead, daemon=True).start()
    serve(
        app,
        port=port,
        browser=not no_browser,
        say=lambda url: print(f"open {url}\nCtrl-C ends it", flush=True),
    )
    playground.close()
    say_next(after_play(opened))
    return 0
