"""`dpo-diag longppl MODEL FILE`: perplexity over the tokens that a long context makes likely (arXiv 2410.23771)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpo_diag.command_lines import say_next
from dpo_diag.errors import DiagError
from dpo_diag.next_steps import after_longppl
from dpo_diag.records.files import write_csv
from dpo_diag.text import number, plain, safe, table, terminal_width, to_json
from dpo_diag.thresholds import load_thresholds, parse_threshold


@dataclass(frozen=True)
class Request:
    """One measurement: the text, the models, how long and how short the contexts are."""

    model: str
    file: Path
    truncation: int
    window: int
    max_tokens: int | None
    evaluator: str | None
    batch_size: int
    device: str
    out: Path | None


def longppl(
    model: str,
    file: Path,
    /,
    *thresholds: str,
    truncation: int = 4096,
    window: int = 1024,
    max_tokens: int | None = None,
    evaluator: str | None = None,
    batch_size: int = 1,
    device: str = "auto",
    out: Path | None = None,
    top: int = 10,
    json: bool = False,
) -> int:
    """Perplexity over the tokens that a long context makes likely.

    Args:
        model: a model folder or hub id, an adapter folder, or smollm2.
        file: a UTF-8 text, longer than --truncation tokens.
        thresholds: key_tokens.gain=2 and key_tokens.floor=-2.
        truncation: tokens of the short context.
        window: tokens by which it slides.
        max_tokens: take the text's first N tokens.
        evaluator: another model of this tokenizer chooses the key tokens.
        batch_size: short contexts in one forward.
        device: auto, cpu, cuda, mps.
        out: also write every token with both log-probs, as CSV.
        top: key tokens to print, largest gain first.
        json: one JSON document on standard output.
    """
    overrides = dict(parse_threshold(t) for t in thresholds)
    if other := sorted(name for name in overrides if not name.startswith("key_tokens.")):
        expected = "key_tokens.gain or key_tokens.floor"
        raise DiagError("not a threshold of LongPPL", got=", ".join(other), expected=expected, usage=True)
    values = load_thresholds(overrides)
    request = Request(model, file, truncation, window, max_tokens, evaluator, batch_size, device, out)
    document = plain(measure(request, values["key_tokens.gain"], values["key_tokens.floor"]))
    if json:
        print(to_json({**document, "next": after_longppl(model, file)}))
        return 0
    names = ("longppl", "ppl", "ppl_long", "ppl_short")
    of_key, of_all, whole, short = ("not defined" if document[n] is None else number(document[n]) for n in names)
    print(
        f"LongPPL {of_key} over {document['n_key']} key tokens, perplexity {of_all} over all {document['n_tokens']}\n"
        f"{document['n_compared']} tokens come after the first {truncation}: perplexity {whole} with the whole "
        f"context, {short} with the short one (window {window})"
    )
    if document["n_windows"] == 1:
        print("the first short context holds the whole text, so no token can be key: lower --truncation or --window")
    shown = sorted(document["key_tokens"], key=lambda k: k["short"] - k["long"])[:top]
    if shown:
        rows = [[f'"{safe(k["text"], one_line=True)}"', k["position"], k["long"], k["short"]] for k in shown]
        print("\n" + table(["key token", "position", "log p long", "log p short"], rows, terminal_width(unknown=80)))
    say_next(after_longppl(model, file))
    return 0


def measure(request: Request, gain: float, floor: float) -> dict[str, Any]:
    """Run the model (and the evaluator), combine: the command's JSON document."""
    import numpy as np
    import pandas as pd

    from dpo_diag.diagnosis.decompose.prompt_dependence import key_tokens
    from dpo_diag.diagnosis.decompose.prompt_dependence import longppl as key_token_perplexity

    text = _text(request.file)
    ids, words, own = _two_log_probs(request.model, text, request)
    judge = own
    if request.evaluator is not None:
        other, _, judge = _two_log_probs(request.evaluator, text, request)
        if other != ids:
            raise DiagError("the evaluator has another tokenizer", where=request.evaluator, got=f"{len(other)} tokens",
                            expected=f"the same {len(ids)} tokens as {request.model}")  # fmt: skip
    result = key_token_perplexity(
        own.long, own.short, evaluator_long=judge.long, evaluator_short=judge.short, gain=gain, floor=floor
    )
    keys = key_tokens(judge.long, judge.short, gain, floor)
    compared = np.arange(len(ids)) >= request.truncation
    rest = key_token_perplexity(own.long[compared], own.short[compared]).ppl
    frame = pd.DataFrame({"position": np.arange(len(ids)), "token_id": ids, "text": words, "long": own.long,
                          "short": own.short, "key": keys})  # fmt: skip
    if request.out is not None:
        write_csv(request.out, frame)
    return {
        "model": request.model, "file": str(request.file), "evaluator": request.evaluator,
        "truncation": request.truncation, "window": request.window, "gain": gain, "floor": floor, **result._asdict(),
        "n_compared": int(compared.sum()),
        "n_windows": own.n_windows, "ppl_long": rest,
        "ppl_short": key_token_perplexity(own.short[compared], own.short[compared]).ppl,
        "key_tokens": frame.loc[keys, ["position", "token_id", "text", "long", "short"]].to_dict("records"),
    }  # fmt: skip


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise DiagError("the text cannot be read", where=path, got=error.strerror) from error
    except UnicodeDecodeError as error:
        raise DiagError("the text is not UTF-8", where=path, got=f"byte {error.start}") from error


def _two_log_probs(name: str, text: str, request: Request) -> tuple[list[int], list[str], Any]:
    """(token ids, their texts, LongShort) of the text under a model."""
    from dpo_diag.inference.longppl import long_and_short
    from dpo_diag.models.checkpoints import Checkpoint, Loader

    with Loader(device=request.device).open(Checkpoint(name)) as (model, tokenizer):
        # One text on purpose longer than what the tokenizer thinks a model takes: the model's own limit is checked.
        ids = [int(t) for t in tokenizer(text, truncation=False, verbose=False)["input_ids"]][: request.max_tokens]
        scores = long_and_short(
            model, ids, truncation=request.truncation, window=request.window, batch_size=request.batch_size
        )
        return ids, [str(tokenizer.decode([t])) for t in ids], scores
