"""`dpo-diag play RUN --steps 0,20,40`: type a prompt, see several checkpoints' answers side by side."""

from __future__ import annotations

import argparse

from dpo_diag.errors import DiagError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="a run folder with checkpoints/")
    parser.add_argument("--steps", metavar="A,B,...", help="which checkpoints, e.g. 0,20,40 or ref,40; the first is "
                        "what the others are compared with (default: up to four, first to last)")  # fmt: skip
    parser.add_argument("--also", metavar="NAME=PATH", action="append", default=[], help="another model (repeatable)")
    parser.add_argument("--max-new-tokens", type=int, default=128, metavar="N", help="tokens per answer (default 128)")
    parser.add_argument("--memory", type=float, metavar="GB", help="for weights (default: half of what is free)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N, mps (default auto)")
    parser.add_argument("--dtype", default="auto", help="auto, float32, bfloat16, float16 (default auto)")
    parser.add_argument("--plain", action="store_true", help="never use the tokenizer's chat template")
    parser.add_argument("--port", type=int, default=0, help="of the local page (default: any free one)")
    parser.add_argument("--no-browser", action="store_true", help="print the address, open nothing")


def run(args: argparse.Namespace) -> int:
    from dpo_diag.records import load_run
    from dpo_diag.serving.gradio_page import require_gradio

    opened = load_run(args.run)
    require_gradio("dpo-diag play")
    if args.memory is not None and not args.memory > 0:
        raise DiagError("no memory to load a model into", where="--memory", got=args.memory, usage=True)
    if args.max_new_tokens < 1:
        raise DiagError("no tokens to write", where="--max-new-tokens", got=args.max_new_tokens, usage=True)
    from dpo_diag.inference.play import Models, Playground, choose, default_budget, label, run_checkpoints

    for entry in args.also:
        if not entry.partition("=")[2]:
            raise DiagError("a model needs a name", where="--also", got=entry, expected="NAME=PATH", usage=True)
    known = run_checkpoints(opened, args.also)
    found = choose(known, args.steps)
    named = {entry.partition("=")[0] for entry in args.also}
    found += [c for c in known if c not in found and c.model in named]
    budget = default_budget() if args.memory is None else int(args.memory * 10**9)
    models = Models(budget, device=args.device, dtype=args.dtype)
    from transformers.utils import logging

    from dpo_diag.commands.play_page import play_app
    from dpo_diag.serving.loopback import serve

    logging.disable_progress_bar()
    app = play_app(Playground(found, models, max_new_tokens=args.max_new_tokens, chat=not args.plain), opened)
    print(f"{', '.join(label(c) for c in found)}; at most {budget / 10**9:.3g} GB of weights at a time")
    serve(
        app,
        port=args.port,
        browser=not args.no_browser,
        say=lambda url: print(f"open {url}\nCtrl-C ends it", flush=True),
    )
    models.close()
    return 0
