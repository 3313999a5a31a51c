"""Answers of one model to fixed prompts, as rows of outputs/.

The decoding loop is our own, and short, for three reasons: `generate` follows each model's generation_config, so that
two checkpoints of different origin would be decoded differently; its sampling draws from the global random state, so
that an answer would depend on its batch and a training run on having been looked at; and the log-prob and entropy of
each new token are needed anyway. One prefill per prompt serves the greedy answer and all samples.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from dpo_diag.config import PromptsConfig
from dpo_diag.errors import DiagError
from dpo_diag.inference.checkers import check, require_known
from dpo_diag.inference.prompts import Prompt, to_prompts
from dpo_diag.records.schemas import TABLES

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Decoding:
    """How answers are written. Nothing else decides it: a model's own generation_config is not read.

    Args:
        max_new_tokens: new tokens at most, the end token included.
        greedy: write the greedy answer, as sample 0.
        n_samples: seeded samples, numbered after the greedy one.
        temperature: of the samples; > 0.
        top_p: nucleus of the samples, (0, 1].
        top_k: samples choose among so many tokens; 0 for all.
        seed: of the samples. Each draw is a function of (seed, prompt id, sample number, position) alone.
        stop_token_ids: tokens that end an answer; None for the model's and the tokenizer's end tokens.
    """

    max_new_tokens: int = 256
    greedy: bool = True
    n_samples: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    stop_token_ids: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        for name, bad, wanted in (
            ("max_new_tokens", self.max_new_tokens < 1, "at least 1"),
            ("n_samples", self.n_samples < 0, "at least 0"),
            ("temperature", self.temperature <= 0, "above 0 (greedy=true for the most likely answer)"),
            ("top_p", not 0 < self.top_p <= 1, "in (0, 1]"),
            ("top_k", self.top_k < 0, "at least 0"),
        ):
            if bad:
                raise DiagError(f"decoding.{name} is out of range", got=getattr(self, name), expected=wanted)
        if not self.greedy and self.n_samples == 0:
            raise DiagError("nothing to write", where="decoding", got="greedy=false and n_samples=0")
        if self.stop_token_ids is not None:
            object.__setattr__(self, "stop_token_ids", tuple(sorted({int(i) for i in self.stop_token_ids})))

    @property
    def answers_per_prompt(self) -> int:
        return int(self.greedy) + self.n_samples

    @property
    def hash(self) -> str:
        """12 hex digits over all that decides any of the answers."""
        return _digest(asdict(self))

    def row_hash(self, sampled: bool) -> str:
        """12 hex digits over what decides a greedy answer, or a sampled one: what outputs/ holds as decoding_hash.

        Greedy answers of two runs stay comparable though only one of the runs sampled too.
        """
        settings: dict[str, Any] = {"max_new_tokens": self.max_new_tokens, "stop_token_ids": self.stop_token_ids}
        if sampled:
            settings |= {k: getattr(self, k) for k in ("greedy", "temperature", "top_p", "top_k", "seed")}
        return _digest(settings)

    def to_dict(self) -> dict[str, Any]:
        """For run.json."""
        return asdict(self) | {"hash": self.hash}


def _digest(settings: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


def decoding_from(config: PromptsConfig) -> Decoding:
    """The decoding that a configuration's `prompts` names: the greedy answer, and its samples."""
    return Decoding(
        max_new_tokens=config.max_new_tokens,
        n_samples=config.n_samples,
        temperature=config.temperature,
        top_p=config.top_p,
        seed=config.seed,
    )


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> tuple[list[int], str]:
    """(token ids, text as the model sees it) of a prompt, tokenised as TRL tokenises a training prompt.

    Plain text gets the tokenizer's special tokens, messages go through its chat template with a generation prompt.
    """
    if prompt.messages is not None:
        if not getattr(tokenizer, "chat_template", None):
            raise DiagError(
                "the tokenizer has no chat template",
                where=f"prompt {prompt.id}",
                got="messages",
                hint="give the prompt as text, or set tokenizer.chat_template",
            )
        messages = [dict(m) for m in prompt.messages]
        text = str(tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    else:
        text = str(prompt.prompt)
        ids = tokenizer(text)["input_ids"]
    if not ids:
        raise DiagError("the prompt has no tokens", where=f"prompt {prompt.id}", got=repr(text))
    return list(ids), text


def stop_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, decoding: Decoding) -> tuple[int, ...]:
    """The tokens that end an answer: decoding's own, or the end tokens of model and tokenizer; sorted."""
    if decoding.stop_token_ids is not None:
        return decoding.stop_token_ids
    found: set[int] = set()
    config = getattr(model, "generation_config", None)
    for value in (getattr(config, "eos_token_id", None), getattr(model.config, "eos_token_id", None)):
        found |= set(value) if isinstance(value, (list, tuple)) else set() if value is None else {value}
    if tokenizer.eos_token_id is not None:
        found.add(tokenizer.eos_token_id)
    return tuple(sorted(int(i) for i in found))


@contextmanager
def _as_it_was(model: PreTrainedModel) -> Iterator[None]:
    """Evaluation mode, without gradients; afterwards every module is in the mode it was in (they may differ)."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        # Not inference_mode: a buffer that a forward refreshes (dynamic RoPE) would become an inference tensor, and
        # the next training step would refuse it.
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


def _forward_names(model: torch.nn.Module) -> set[str]:
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return set(inspect.signature(type(base).forward).parameters)


def _uniforms(decoding: Decoding, prompt_id: str, sample: int) -> np.ndarray:
    """One uniform number per position, from (seed, prompt id, sample) alone: float64, (max_new_tokens,)."""
    key = hashlib.sha256(f"{decoding.seed}\0{prompt_id}\0{sample}".encode()).digest()
    return np.random.Generator(np.random.Philox(int.from_bytes(key[:16]))).random(decoding.max_new_tokens)


def _draw(logits: torch.Tensor, uniform: torch.Tensor, decoding: Decoding) -> torch.Tensor:
    """Sampled token ids (rows,) by inverting the cumulative distribution at `uniform` (rows,)."""
    probs = torch.softmax(logits.to(uniform.dtype) / decoding.temperature, dim=-1)
    order = None
    if decoding.top_p < 1 or decoding.top_k:
        probs, order = probs.sort(dim=-1, descending=True, stable=True)
        if decoding.top_k:
            probs[:, decoding.top_k :] = 0
            probs = probs / probs.sum(-1, keepdim=True)
        if decoding.top_p < 1:
            # The smallest set whose mass reaches top_p: keep a token while the mass before it is below top_p.
            probs = probs.masked_fill(probs.cumsum(-1) - probs >= decoding.top_p, 0)
    mass = probs.cumsum(-1)
    index = torch.searchsorted(mass, (uniform * mass[:, -1]).unsqueeze(1), right=True)
    # The last token with any mass: rounding (or NaN logits of a diverged model) must not point beyond it.
    last = (probs > 0).sum(-1, keepdim=True).sub(1).clamp(min=0) if order is not None else probs.shape[-1] - 1
    index = torch.minimum(index, torch.as_tensor(last, device=index.device))
    return (index if order is None else order.gather(1, index)).squeeze(1)


@dataclass
class _Answers:
    """What a batch wrote: per row its new tokens, log-prob and entropy sums, and whether it ended by itself."""

    tokens: list[list[int]]
    sum_logp: np.ndarray
    entropy_sum: np.ndarray
    stopped: list[bool]


class _Decoder:
    """A model and settings; decodes one batch of token-id prompts at a time."""

    def __init__(self, model: PreTrainedModel, pad_id: int, stops: tuple[int, ...], decoding: Decoding) -> None:
        self.model, self.pad_id, self.decoding = model, pad_id, decoding
        self.device = next(model.parameters()).device
        self.stops = torch.tensor(stops, dtype=torch.long, device=self.device)
        self.names = _forward_names(model)
        # Prompt-learning adapters put virtual tokens before the cache, and recurrent models keep their own state: both
        # read the whole sequence anew for each token, in batches of one length, since they cannot be left-padded.
        peft = getattr(model, "active_peft_config", None)
        self.cached = "past_key_values" in self.names and not getattr(peft, "is_prompt_learning", False)

    def batches(self, lengths: Sequence[int], per_batch: int) -> Iterator[list[int]]:
        """Indices of prompts that are decoded together: longest first, by position among equals."""
        chunk: list[int] = []
        for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
            full = len(chunk) == per_batch or (chunk and not self.cached and lengths[i] != lengths[chunk[0]])
            if full:
                yield chunk
                chunk = []
            chunk.append(i)
        yield chunk

    def _step(self, ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, cache: Any) -> tuple[Any, Any]:
        """(logits of the last position, cache); without a cache `ids` is the whole sequence, never padded."""
        kwargs: dict[str, Any] = {"attention_mask": mask}
        if self.cached:
            kwargs |= {"past_key_values": cache, "use_cache": True}
            if "position_ids" in self.names:
                kwargs["position_ids"] = positions
        elif "use_cache" in self.names:
            kwargs["use_cache"] = False
        if "logits_to_keep" in self.names:
            kwargs["logits_to_keep"] = 1
        out = self.model(input_ids=ids, **kwargs)
        return out.logits[:, -1].float(), out.past_key_values if self.cached else None

    def decode(self, prompts: Sequence[Sequence[int]], prompt_ids: Sequence[str]) -> _Answers:
        """Answers of all prompts, `answers_per_prompt` rows for each, in order."""
        from transformers import DynamicCache

        each, limit = self.decoding.answers_per_prompt, self.decoding.max_new_tokens
        width = max(len(p) for p in prompts)
        ids = torch.tensor([[self.pad_id] * (width - len(p)) + list(p) for p in prompts], device=self.device)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=self.device)
        cache = DynamicCache(config=self.model.config.get_text_config()) if self.cached else None
        logits, cache = self._step(ids, mask, (mask.cumsum(-1) - 1).clamp(min=0), cache)
        sampled = [not (self.decoding.greedy and s == 0) for _ in prompts for s in range(each)]
        uniforms = torch.from_numpy(
            np.stack([_uniforms(self.decoding, name, s) for name in prompt_ids for s in range(each)])
        ).to(self.device, torch.float32 if self.device.type == "mps" else torch.float64)
        if each > 1:
            if cache is not None:
                cache.batch_repeat_interleave(each)
            logits, mask, ids = (t.repeat_interleave(each, 0) for t in (logits, mask, ids))
        rows = torch.arange(len(sampled), device=self.device)
        is_sampled = torch.tensor(sampled, device=self.device)
        answers = _Answers(
            [[] for _ in sampled], np.zeros(len(sampled)), np.zeros(len(sampled)), [False] * len(sampled)
        )
        running = torch.ones(len(sampled), dtype=torch.bool, device=self.device)
        for position in range(limit):
            chosen = logits.argmax(-1)
            if bool(is_sampled[rows].any()):
                drawn = _draw(logits, uniforms[rows, position], self.decoding)
                chosen = torch.where(is_sampled[rows], drawn, chosen)
            logp = torch.log_softmax(logits, dim=-1)
            token_logp = logp.gather(1, chosen.unsqueeze(1)).squeeze(1).tolist()
            # 0 * -inf is 0 here, as in the limit: a token without probability adds no entropy.
            entropy = torch.special.entr(logp.exp()).sum(-1).tolist()
            ended = torch.isin(chosen, self.stops)
            for i, row, token, end in zip(
                range(len(rows)), rows.tolist(), chosen.tolist(), ended.tolist(), strict=True
            ):
                if running[i]:
                    answers.tokens[row].append(token)
                    answers.sum_logp[row] += token_logp[i]
                    answers.entropy_sum[row] += entropy[i]
                    answers.stopped[row] = end
            running = running & ~ended
            left = int(running.sum())
            if left == 0 or position == limit - 1:
                break
            if left <= len(rows) // 2:
                # Rows that ended are dropped once they are half: copying the cache costs more than carrying a few.
                kept = running.nonzero().squeeze(1)
                if cache is not None:
                    cache.batch_select_indices(kept)
                rows, mask, ids, chosen, running = rows[kept], mask[kept], ids[kept], chosen[kept], running[kept]
            mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
            ids = chosen.unsqueeze(1) if self.cached else torch.cat([ids, chosen.unsqueeze(1)], dim=1)
            logits, cache = self._step(ids, mask, mask.sum(-1, keepdim=True) - 1, cache)
        return answers


def _check_lengths(model: PreTrainedModel, encoded: Sequence[Sequence[int]], ids: Sequence[str], new: int) -> None:
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if not isinstance(limit, int) or limit <= 0:
        return
    too_long = [name for name, tokens in zip(ids, encoded, strict=True) if len(tokens) + new > limit]
    if too_long:
        longest = max(len(tokens) for tokens in encoded)
        raise DiagError(
            f"{len(too_long)} prompts and their answers do not fit the model",
            where=f"prompts {', '.join(too_long[:5])}",
            got=f"{longest} prompt tokens + max_new_tokens {new}",
            expected=f"at most {limit}",
            hint="shorten these prompts or lower max_new_tokens",
        )


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Iterable[Prompt | Mapping[str, Any]],
    decoding: Decoding | None = None,
    *,
    step: int,
    model_name: str = "policy",
    batch_size: int = 32,
    progress: bool = True,
) -> pd.DataFrame:
    """Rows of outputs/ : the answers of a model to prompts, in the order of the prompts, samples together.

    The model's modules keep their modes, no random state is drawn from, tokenizer and configs are not changed: a
    training run with and without it is the same to the last bit. What an answer is does not depend on its batch
    beyond floating-point rounding (a tie in bfloat16 can fall differently); prompts are batched by length, longest
    first, the same way every time.

    Args:
        model: a causal LM (or a PEFT model around one), unwrapped (no DDP), on its device.
        tokenizer: its tokenizer.
        prompts: Prompts or their rows.
        decoding: None for greedy answers of up to 256 tokens.
        step: optimizer steps done.
        model_name: the `model` column: policy, ref, sft, ...
        batch_size: answers written at once.
        progress: show a bar.

    Returns:
        The columns of `records.schemas.OUTPUTS`; no rows for no prompts. `sum_logp` and `entropy_sum` are those of the
        model's own distribution, whatever temperature and top_p were.

    Raises:
        DiagError: a prompt that does not fit the model, has no tokens, or names an unknown checker.
    """
    from tqdm.auto import tqdm

    decoding = decoding or Decoding()
    rows = to_prompts(prompts)
    require_known(rows)
    columns = TABLES["outputs"].names
    if not rows:
        return pd.DataFrame(columns=columns)
    if model.config.is_encoder_decoder:
        raise DiagError("fixed prompts need a decoder-only model", got=type(model).__name__)
    encoded = [encode_prompt(tokenizer, row) for row in rows]
    _check_lengths(model, [ids for ids, _ in encoded], [row.id for row in rows], decoding.max_new_tokens)
    stops = stop_ids(model, tokenizer, decoding)
    pad = next((i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None), 0)
    decoder = _Decoder(model, pad, stops, decoding)
    each = decoding.answers_per_prompt
    per_batch = max(1, batch_size // each)
    found: dict[int, list[dict[str, Any]]] = {}
    title = f"answers, step {step}, {model_name}"
    with _as_it_was(model), tqdm(total=len(rows) * each, desc=title, unit="answer", disable=not progress) as bar:
        for chunk in decoder.batches([len(ids) for ids, _ in encoded], per_batch):
            answers = decoder.decode([encoded[i][0] for i in chunk], [rows[i].id for i in chunk])
            for j, i in enumerate(chunk):
                found[i] = [
                    _row(tokenizer, rows[i], encoded[i][1], decoding, answers, j * each + s, s) for s in range(each)
                ]
            bar.update(len(chunk) * each)
    frame = pd.DataFrame([row for i in range(len(rows)) for row in found[i]])
    frame["step"], frame["model"] = step, model_name
    frame["seed"] = frame["seed"].astype("Int64")
    return frame[columns]


def _row(
    tokenizer: PreTrainedTokenizerBase,
    prompt: Prompt,
    prompt_text: str,
    decoding: Decoding,
    answers: _Answers,
    index: int,
    sample: int,
) -> dict[str, Any]:
    tokens, stopped = answers.tokens[index], answers.stopped[index]
    sampled = not (decoding.greedy and sample == 0)
    text = str(
        tokenizer.decode(
            tokens[:-1] if stopped else tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
    )
    # A byte-level tokenizer cut mid-character, or a hostile one, may give lone surrogates, which no Parquet can hold.
    text = text.encode("utf-8", "replace").decode("utf-8")
    return {
        "prompt_id": prompt.id,
        "sample": sample,
        "prompt": prompt_text,
        "tags": list(prompt.tags),
        "reference": prompt.reference,
        "text": text,
        "token_ids": tokens,
        "finish_reason": "stop" if stopped else "length",
        "n_tokens": len(tokens),
        "sum_logp": answers.sum_logp[index],
        "entropy_sum": answers.entropy_sum[index],
        "correct": check(prompt, text),
        "decoding_hash": decoding.row_hash(sampled),
        "seed": decoding.seed if sampled else None,
    }
