"""`dpo-diag longppl MODEL FILE`: perplexity over the tokens that a long context makes likely (arXiv 2410.23771)."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from dpo_diag.errors import DiagError
from dpo_diag.thresholds import load_thresholds, parse_threshold


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a model folder or hub id, an adapter folder, or smollm2")
    parser.add_argument("file", metavar="FILE", help="a UTF-8 text, longer than --truncation tokens")
    parser.add_argument("thresholds", nargs="*", metavar="NAME=VALUE", help="key_tokens.gain=2 and key_tokens.floor=-2")
    parser.add_argument("--truncation", type=int, default=4096, help="tokens of the short context (4096)")
    parser.add_argument("--window", type=int, default=1024, help="tokens by which it slides (1024)")
    parser.add_argument("--max-tokens", type=int, metavar="N", help="take the text's first N tokens")
    parser.add_argument("--evaluator", metavar="MODEL", help="another model of this tokenizer chooses the key tokens")
    parser.add_argument("--batch-size", type=int, default=1, help="short contexts in one forward (1)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps (auto)")
    parser.add_argument("--out", type=Path, metavar="CSV", help="also write every token with both log-probs")
    parser.add_argument("--top", type=int, default=10, metavar="N", help="key tokens to print, largest gain first (10)")
    parser.add_argument("--json", action="store_true", help="one JSON document on standard output")


def run(args: argparse.Namespace) -> int:
    from dpo_diag.diagnosis.strict_json import plain
    from dpo_diag.diagnosis.tables import table
    from dpo_diag.diagnosis.wording import escape_text

    overrides = dict(parse_threshold(t) for t in args.thresholds)
    if other := sorted(name for name in overrides if not name.startswith("key_tokens.")):
        expected = "key_tokens.gain or key_tokens.floor"
        raise DiagError("not a threshold of LongPPL", got=", ".join(other), expected=expected, usage=True)
    values = load_thresholds(overrides)
    document = plain(measure(args, values["key_tokens.gain"], values["key_tokens.floor"]))
    if args.json:
        print(json.dumps(document, allow_nan=False, ensure_ascii=False))
        return 0
    short, whole = _number(document["ppl_short"]), _number(document["ppl_long"])
    print(
        f"LongPPL {_number(document['longppl'])} over {document['n_key']} key tokens, perplexity "
        f"{_number(document['ppl'])} over all {document['n_tokens']}\n"
        f"{document['n_compared']} tokens stand after the first {args.truncation}: perplexity {whole} with the whole "
        f"context, {short} with the short one (window {args.window})"
    )
    if document["n_windows"] == 1:
        print("the first short context holds the whole text, so no token can be key: lower --truncation or --window")
    shown = sorted(document["key_tokens"], key=lambda k: k["short"] - k["long"])[: args.top]
    if shown:
        rows = [[f'"{escape_text(k["text"])}"', k["position"], k["long"], k["short"]] for k in shown]
        print("\n" + table(["key token", "position", "log p long", "log p short"], rows))
    return 0


def _number(value: float | None) -> str:
    return "not defined" if value is None else f"{value:.4g}"


def measure(args: argparse.Namespace, gain: float, floor: float) -> dict[str, Any]:
    """Run the model (and the evaluator), combine: the command's JSON document."""
    import numpy as np
    import pandas as pd

    from dpo_diag.diagnosis.decompose.prompt_dependence import key_tokens, longppl

    text = _text(Path(args.file))
    ids, words, own = _two_log_probs(args.model, text, args)
    judge = own
    if args.evaluator is not None:
        other, _, judge = _two_log_probs(args.evaluator, text, args)
        if other != ids:
            raise DiagError("the evaluator has another tokenizer", where=args.evaluator, got=f"{len(other)} tokens",
                            expected=f"the same {len(ids)} tokens as {args.model}")  # fmt: skip
    found = longppl(own.long, own.short, evaluator_long=judge.long, evaluator_short=judge.short, gain=gain, floor=floor)
    keys = key_tokens(judge.long, judge.short, gain, floor)
    compared = np.arange(len(ids)) >= args.truncation
    rest = longppl(own.long[compared], own.short[compared]).ppl
    frame = pd.DataFrame({"position": np.arange(len(ids)), "token_id": ids, "text": words, "long": own.long,
                          "short": own.short, "key": keys})  # fmt: skip
    if args.out is not None:
        try:
            frame.to_csv(args.out, index=False)
        except OSError as error:
            raise DiagError("cannot be written", where=args.out, got=error.strerror) from error
    return {
        "model": args.model, "file": args.file, "evaluator": args.evaluator, "truncation": args.truncation,
        "window": args.window, "gain": gain, "floor": floor, **found._asdict(), "n_compared": int(compared.sum()),
        "n_windows": own.n_windows, "ppl_long": rest,
        "ppl_short": longppl(own.short[compared], own.short[compared]).ppl,
        "key_tokens": frame.loc[keys, ["position", "token_id", "text", "long", "short"]].to_dict("records"),
    }  # fmt: skip


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise DiagError("the text cannot be read", where=path, got=error.strerror) from error
    except UnicodeDecodeError as error:
        raise DiagError("the text is not UTF-8", where=path, got=f"byte {error.start}") from error


def _two_log_probs(name: str, text: str, args: argparse.Namespace) -> tuple[list[int], list[str], Any]:
    """(token ids, their texts, LongShort) of the text under a model."""
    from dpo_diag.inference.longppl import long_and_short
    from dpo_diag.models.checkpoints import Checkpoint, Loader
    from dpo_diag.models.smollm2 import smollm2_folder

    path = str(smollm2_folder()) if name == "smollm2" else name
    with Loader(device=args.device).open(Checkpoint(path)) as (model, tokenizer):
        # One text on purpose longer than what the tokenizer thinks a model takes: the model's own limit is checked.
        ids = [int(t) for t in tokenizer(text, truncation=False, verbose=False)["input_ids"]][: args.max_tokens]
        found = long_and_short(
            model, ids, truncation=args.truncation, window=args.window, batch_size=args.batch_size
        )  # fmt: skip
        return ids, [str(tokenizer.decode([t])) for t in ids], found
