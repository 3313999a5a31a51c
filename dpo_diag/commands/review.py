"""`dpo-diag review RUN`: read two checkpoints' answers side by side, blind, and judge them; `--results` counts."""

from __future__ import annotations

import getpass
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from dpo_diag.command_lines import say_next
from dpo_diag.errors import DiagError
from dpo_diag.next_steps import after_results, after_review
from dpo_diag.records import Run, load_run
from dpo_diag.text import terminal_width, to_json

if TYPE_CHECKING:
    from dpo_diag.review.items import Item


def review(
    run: Path,
    /,
    *,
    a: str | None = None,
    b: str | None = None,
    all_: Annotated[bool, Parameter(name="--all")] = False,
    n: int = 20,
    sample: int | None = None,
    same: bool = False,
    seed: int = 0,
    reviewer: str | None = None,
    behaviours: Path | None = None,
    port: int = 0,
    no_browser: bool = False,
    results: bool = False,
    json: bool = False,
    judge_url: str | None = None,
    judge_model: str | None = None,
) -> int:
    """Read two checkpoints' answers side by side, blind, and judge them.

    Args:
        run: a run folder with answers (outputs/).
        a: one side, a step or a model, e.g. 0 or ref (default: sft, ref or first step).
        b: the other side (default: the last step).
        all_: compare all checkpoints with each other, for the ranking.
        n: answers to judge.
        sample: which sample of each prompt (default: the lowest).
        same: also show prompts whose two answers are equal.
        seed: of the choice of prompts and sides.
        reviewer: who judges (default: your login name).
        behaviours: a file of behaviours to mark, one a line; kept with the run.
        port: of the local page (default: any free one).
        no_browser: print the address, open nothing.
        results: print what the judgements say, and end.
        json: with --results: one JSON document.
        judge_url: ask a model instead of a person: an OpenAI-compatible endpoint, e.g. http://127.0.0.1:8000/v1.
        judge_model: the model to ask; its key: env DPO_DIAG_JUDGE_API_KEY.
    """
    opened = load_run(run)
    if json and not results:
        raise DiagError("--json goes with --results", usage=True)
    if results:
        return _results(opened, json)
    if all_ and (a or b):
        raise DiagError("--all compares every checkpoint", got="--a or --b too", hint="leave one out", usage=True)
    from dpo_diag.review.behaviours import load_behaviours
    from dpo_diag.review.items import choose_items

    items = choose_items(opened, a=a, b=b, every=all_, n=n, sample=sample, same=same,
                         seed=seed)  # fmt: skip
    if judge_url:
        return _judge(opened, items, judge_url, judge_model)
    from dpo_diag.review.judgements import check_reviewer, file_of, sitting
    from dpo_diag.review.page import review_app
    from dpo_diag.review.session import Session
    from dpo_diag.serving.gradio_page import require_gradio
    from dpo_diag.serving.loopback import serve

    require_gradio("dpo-diag review")
    reviewer = check_reviewer(reviewer or _login())
    with sitting(opened.path, reviewer):
        session = Session(opened, items, reviewer, load_behaviours(opened.path, behaviours), seed)
        state = session.state()
        print(f"{state['total']} items for {reviewer}, {state['done']} judged already; saved in {file_of(opened.path, reviewer)}")  # fmt: skip # noqa: E501
        if len(items) < n:
            print(f"only {len(items)} answers differ")
        app = review_app(session)
        serve(
            app,
            port=port,
            browser=not no_browser,
            say=lambda url: print(f"open {url}\nCtrl-C ends it; nothing is lost", flush=True),
        )
    state = session.state()
    print(f"\n{state['done']} of {state['total']} judged")
    say_next(after_review(run))
    return 0


def _login() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):
        return "reviewer"


def _judge(opened: Run, items: list[Item], url: str, model: str | None) -> int:
    from dpo_diag.review.judge import Endpoint, judge_items
    from dpo_diag.review.judgements import sitting

    if not model:
        raise DiagError("--judge-url needs --judge-model", usage=True)
    endpoint = Endpoint.from_env(url, model)
    with sitting(opened.path, endpoint.reviewer):
        done = judge_items(opened, items, endpoint, say=lambda line: print(line, file=sys.stderr))
    print(f"{done} of {len(items)} items judged by {endpoint.reviewer}")
    return _results(opened, False)


def _results(opened: Run, as_json: bool) -> int:
    from dpo_diag.review.printed import lines
    from dpo_diag.review.results import results

    document = results(opened)
    if as_json:
        print(to_json({**document, "next": after_results(opened.path)}))
    else:
        print("\n".join(lines(document, terminal_width(unknown=80))))
        say_next(after_results(opened.path))
    return 0
