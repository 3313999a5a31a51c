"""The tokenizer of a model: loading, its pad token, its chat template, a fingerprint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpo_diag.documents import parse_json
from dpo_diag.errors import DiagError
from dpo_diag.models.hub import loading
from dpo_diag.records.pair_id import content_hash

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PAD_CANDIDATES = ("<pad>", "<|pad|>", "[PAD]", "<|finetune_right_pad_id|>", "<|PAD_TOKEN|>", "<|endoftext|>", "<unk>")
"""Tokens that may pad where a tokenizer names none, in order: real pad tokens first, then tokens that texts lack."""


def load_tokenizer(
    name: str,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    chat_template: str | None = None,
    n_embeddings: int | None = None,
) -> tuple[PreTrainedTokenizerBase, list[str]]:
    """A tokenizer with a pad token, and notes on what was decided for it.

    Args:
        name: hub id or local folder.
        chat_template: a Jinja file, or the template itself, in place of the tokenizer's own.
        n_embeddings: rows of the model's embedding, where known: an id beyond them is an error here, not a crash later.

    Raises:
        DiagError: no such tokenizer, no end token, more tokens than embeddings.
    """
    from transformers import AutoTokenizer

    with loading(name, "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=trust_remote_code)
    if chat_template is not None:
        tokenizer.chat_template = _read_template(chat_template)
    return tokenizer, prepare_tokenizer(tokenizer, n_embeddings)


def prepare_tokenizer(tokenizer: PreTrainedTokenizerBase, n_embeddings: int | None = None) -> list[str]:
    """Give the tokenizer a pad token if it has none; the vocabulary never grows. Returns notes.

    A token that is already in the vocabulary and never in a text is taken first (`PAD_CANDIDATES`), else the end token.
    The latter is harmless where masks decide what counts (TRL does so); what looks for pads by their id then also
    finds the end of the text, and so never trains on it.
    """
    if tokenizer.eos_token_id is None:
        raise DiagError(
            "the tokenizer has no end token, so no response would ever end",
            where=tokenizer.name_or_path or type(tokenizer).__name__,
            hint="set eos_token in its tokenizer_config.json",
        )
    if n_embeddings is not None and (largest := _largest_id(tokenizer)) >= n_embeddings:
        raise DiagError(
            "the tokenizer has ids that the model has no embedding for",
            where=tokenizer.name_or_path,
            got=f"id {largest}",
            expected=f"ids below {n_embeddings}",
            hint="use the model's own tokenizer (model.tokenizer=null)",
        )
    if tokenizer.pad_token_id is not None:
        return []
    vocabulary = tokenizer.get_vocab()
    special = set(tokenizer.all_special_tokens) | set(tokenizer.get_added_vocab())
    for candidate in PAD_CANDIDATES:
        if candidate in special and candidate in vocabulary and vocabulary[candidate] != tokenizer.eos_token_id:
            tokenizer.pad_token = candidate
            return [f"no pad token: {candidate} (id {tokenizer.pad_token_id}), already in the vocabulary, pads"]
    tokenizer.pad_token = tokenizer.eos_token
    return [
        f"no pad token: the end token {tokenizer.eos_token} (id {tokenizer.eos_token_id}) pads; "
        "masks, not ids, tell padding from ends"
    ]


def _largest_id(tokenizer: PreTrainedTokenizerBase) -> int:
    return max(tokenizer.get_vocab().values(), default=-1)


def _read_template(value: str) -> str:
    if "{" in value or "\n" in value:
        return value
    path = Path(value).expanduser()
    if not path.is_file():
        raise DiagError("no such chat template", where="model.chat_template", got=value, expected="a Jinja file")
    return path.read_text(encoding="utf-8")


def require_chat_template(tokenizer: PreTrainedTokenizerBase, kind: str) -> list[str]:
    """Check that messages can be rendered; `kind` is a PairSet's. Returns notes.

    Raises:
        DiagError: the data are messages and the tokenizer has no chat template.
    """
    template = getattr(tokenizer, "chat_template", None)
    if kind == "messages" and not template:
        raise DiagError(
            "the data are chat messages and the tokenizer has no chat template",
            where=tokenizer.name_or_path or type(tokenizer).__name__,
            hint="set model.chat_template=FILE.jinja, take an instruction-tuned model, or give the data as text "
            "(data.chat=false makes questions plain text)",
        )
    if kind == "text" and template:
        return ["the data are plain text: prompts go to the model without its chat template (data.chat=true: with it)"]
    return []


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 over the tokenizer's rules, vocabulary, special tokens and chat template (not its name or pad side)."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        state = parse_json(backend.to_str())
        state["truncation"] = state["padding"] = None  # set by the last call, not part of what it is
        rules: Any = state
    else:
        rules = [type(tokenizer).__name__, sorted(tokenizer.get_vocab().items())]
    document = {
        "rules": rules,
        "special": {k: str(v) for k, v in sorted(tokenizer.special_tokens_map.items()) if k != "pad_token"},
        "chat_template": getattr(tokenizer, "chat_template", None),
    }
    return content_hash(document, digits=None)


def describe_tokenizer(tokenizer: PreTrainedTokenizerBase, name: str | None = None) -> dict[str, Any]:
    """For run.json's `tokenizer`."""
    return {
        "name": name or str(tokenizer.name_or_path),
        "vocab_size": len(tokenizer),
        "pad_token": tokenizer.pad_token,
        "eos_token": tokenizer.eos_token,
        "eos_token_id": tokenizer.eos_token_id,
        "chat_template": bool(getattr(tokenizer, "chat_template", None)),
        "fingerprint": tokenizer_fingerprint(tokenizer),
    }
