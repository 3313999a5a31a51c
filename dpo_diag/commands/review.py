"""`dpo-diag review RUN`: read two checkpoints' answers side by side, blind, and judge them; `--results` counts."""

from __future__ import annotations

import argparse
import getpass
import json
import sys
from typing import Any

from dpo_diag.errors import DiagError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="a run folder with answers (outputs/)")
    parser.add_argument("--a", metavar="STEP|MODEL", help="one side, e.g. 0 or ref (default: sft, ref or first step)")
    parser.add_argument("--b", metavar="STEP|MODEL", help="the other side (default: the last step)")
    parser.add_argument("--all", action="store_true", help="compare all checkpoints with each other, for the ranking")
    parser.add_argument("--n", type=int, default=20, metavar="N", help="answers to judge (default 20)")
    parser.add_argument("--sample", type=int, metavar="N", help="which sample of each prompt (default: the lowest)")
    parser.add_argument("--same", action="store_true", help="also show prompts whose two answers are equal")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of prompts and sides (default 0)")
    parser.add_argument("--reviewer", metavar="NAME", help="who judges (default: your login name)")
    parser.add_argument("--behaviours", metavar="FILE", help="behaviours to mark, one a line; kept with the run")
    parser.add_argument("--port", type=int, default=0, help="of the local page (default: any free one)")
    parser.add_argument("--no-browser", action="store_true", help="print the address, open nothing")
    parser.add_argument("--results", action="store_true", help="print what the judgements say, and end")
    parser.add_argument("--json", action="store_true", help="with --results: one JSON document")
    judge = parser.add_argument_group("a judge model instead of a person (off by default)")
    judge.add_argument(
        "--judge-url", metavar="URL", help="an OpenAI-compatible endpoint, e.g. http://127.0.0.1:8000/v1"
    )
    judge.add_argument("--judge-model", metavar="NAME", help="the model to ask; its key: env DPO_DIAG_JUDGE_API_KEY")


def run(args: argparse.Namespace) -> int:
    from dpo_diag.records import load_run
    from dpo_diag.review.behaviours import load_behaviours
    from dpo_diag.review.items import choose_items

    opened = load_run(args.run)
    if args.json and not args.results:
        raise DiagError("--json goes with --results", usage=True)
    if args.results:
        return _results(opened, args.json)
    if args.all and (args.a or args.b):
        raise DiagError("--all compares every checkpoint", got="--a or --b too", hint="leave one out", usage=True)
    items = choose_items(opened, a=args.a, b=args.b, every=args.all, n=args.n, sample=args.sample, same=args.same,
                         seed=args.seed)  # fmt: skip
    if args.judge_url:
        return _judge(opened, items, args)
    from dpo_diag.review.page import review_app
    from dpo_diag.review.session import Session
    from dpo_diag.review.table import check_reviewer, file_of
    from dpo_diag.serving.gradio_page import require_gradio
    from dpo_diag.serving.loopback import serve

    require_gradio("dpo-diag review")
    reviewer = check_reviewer(args.reviewer or _login())
    session = Session(opened, items, reviewer, load_behaviours(opened.path, args.behaviours), args.seed)
    state = session.state()
    print(f"{state['total']} items for {reviewer}, {state['done']} judged already; saved in {file_of(opened.path, reviewer)}")  # fmt: skip # noqa: E501
    if len(items) < args.n:
        print(f"only {len(items)} answers differ")
    app = review_app(session)
    serve(
        app,
        port=args.port,
        browser=not args.no_browser,
        say=lambda url: print(f"open {url}\nCtrl-C ends it; nothing is lost", flush=True),
    )
    state = session.state()
    print(f"\n{state['done']} of {state['total']} judged; results: dpo-diag review {args.run} --results")
    return 0


def _login() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):
        return "reviewer"


def _judge(opened: Any, items: Any, args: argparse.Namespace) -> int:
    from dpo_diag.review.judge import Endpoint, judge_items

    if not args.judge_model:
        raise DiagError("--judge-url needs --judge-model", usage=True)
    endpoint = Endpoint.from_env(args.judge_url, args.judge_model)
    done = judge_items(opened, items, endpoint, say=lambda line: print(line, file=sys.stderr))
    print(f"{done} of {len(items)} items judged by {endpoint.reviewer}")
    return _results(opened, False)


def _results(opened: Any, as_json: bool) -> int:
    from dpo_diag.review.results import results
    from dpo_diag.review.table_text import lines

    document = results(opened)
    if as_json:
        print(json.dumps(document, ensure_ascii=False, allow_nan=False))
    else:
        print("\n".join(lines(document)))
    return 0
