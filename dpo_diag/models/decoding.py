"""The one way in which answers are written: greedy, and seeded samples beside it.

The loop is our own, and short, for three reasons: `generate` follows each model's generation_config, so that two
checkpoints of different origin would be decoded differently; its sampling draws from the global random state, so that
an answer would depend on its batch and a training run on having been looked at; and the log-prob and entropy of each
new token are needed anyway. One prefill per prompt serves the greedy answer and all samples.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from dpo_diag.errors import DiagError
from dpo_diag.models.batches import by_length, device_of, empty_cache, forward_parameters, padded, padding_id
from dpo_diag.models.borrowed import borrowed
from dpo_diag.models.logps import free_memory, to_stderr
from dpo_diag.records.pair_id import content_hash
from dpo_diag.shortages import out_of_memory

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

    def is_sampled(self, sample: int) -> bool:
        """Whether the answer of this number (0 first) is drawn rather than greedy."""
        return not (self.greedy and sample == 0)

    @property
    def hash(self) -> str:
        """12 hex digits over all that decides any of the answers."""
        return content_hash(asdict(self), 12)

    def row_hash(self, sampled: bool) -> str:
        """12 hex digits over what decides a greedy answer, or a sampled one: what outputs/ holds as decoding_hash.

        Greedy answers of two runs stay comparable though only one of the runs sampled too.
        """
        settings: dict[str, Any] = {"max_new_tokens": self.max_new_tokens, "stop_token_ids": self.stop_token_ids}
        if sampled:
            settings |= {k: getattr(self, k) for k in ("greedy", "temperature", "top_p", "top_k", "seed")}
        return content_hash(settings, 12)

    def to_dict(self) -> dict[str, Any]:
        """For run.json."""
        return asdict(self) | {"hash": self.hash}


@dataclass
class Written:
    """One answer as token ids.

    Attributes:
        token_ids: what the model wrote, the end token included.
        sum_logp, entropy_sum: nats, under the model's own distribution, whatever temperature and top_p were.
        stopped: it ended by itself, its last token is an end token.
    """

    token_ids: list[int]
    sum_logp: float = 0.0
    entropy_sum: float = 0.0
    stopped: bool = False

    @property
    def finish_reason(self) -> str:
        """ "stop", or "length" where max_new_tokens cut it."""
        return "stop" if self.stopped else "length"

    def text(self, tokenizer: PreTrainedTokenizerBase) -> str:
        """The answer without its end token and other special tokens, exactly as its tokens spell it."""
        ids = self.token_ids[:-1] if self.stopped else self.token_ids
        return clean_text(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def clean_text(text: Any) -> str:
    """Text that any file can hold: a byte-level tokenizer cut inside a character may give lone surrogates."""
    return str(text).encode("utf-8", "replace").decode("utf-8")


def stop_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, decoding: Decoding) -> tuple[int, ...]:
    """The tokens that end an answer: decoding's own, or the end tokens of model and tokenizer; sorted."""
    if decoding.stop_token_ids is not None:
        return decoding.stop_token_ids
    ends: set[int] = set()
    sources = (getattr(model, "generation_config", None), model.config, tokenizer)
    for value in (getattr(source, "eos_token_id", None) for source in sources):
        ends |= set(value) if isinstance(value, (list, tuple)) else set() if value is None else {value}
    return tuple(sorted(int(i) for i in ends))


def write_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    decoding: Decoding | None = None,
    *,
    prompt_ids: Sequence[str] | None = None,
    batch_size: int = 32,
    title: str = "answering",
    progress: bool = True,
) -> list[list[Written]]:
    """A model's answers to prompts of token ids: one list per prompt, in order, the greedy one before the samples.

    The model's modules keep their modes, no random state is drawn from, tokenizer and configs are not changed: a
    training run with and without it is the same to the last bit. What an answer is does not depend on its batch
    beyond floating-point rounding (a tie in bfloat16 can fall differently). Where memory runs out the prompts that are
    left go through in batches of half the size, once.

    Args:
        model: a causal LM (or a PEFT model around one), unwrapped (no DDP), on its device.
        tokenizer: its tokenizer: end and pad tokens.
        prompts: token ids, at least one each; [] gives [].
        decoding: None for greedy answers of up to 256 tokens.
        prompt_ids: names of the prompts, for errors and as what seeds their samples; their places if not given.
        batch_size: answers written at once.
        title, progress: of the bar.

    Raises:
        DiagError: an encoder-decoder model, a prompt that does not fit the model's positions.
    """
    from tqdm.auto import tqdm

    decoding = decoding or Decoding()
    if model.config.is_encoder_decoder:
        raise DiagError("fixed prompts need a decoder-only model", got=type(model).__name__)
    names = [str(i) for i in range(len(prompts))] if prompt_ids is None else prompt_ids
    _check_lengths(model, prompts, names, decoding.max_new_tokens)
    decoder = _Decoder(model, tokenizer, decoding)
    each = decoding.answers_per_prompt
    answers: dict[int, list[Written]] = {}
    left, size, is_half = list(range(len(prompts))), max(1, batch_size // each), False
    with borrowed(model), tqdm(total=len(prompts) * each, desc=title, unit="answer", disable=not progress) as bar:

        def write() -> None:
            for chunk in by_length([len(prompts[i]) for i in left], size, equal_only=not decoder.cached):
                own = [left[j] for j in chunk]
                rows = decoder.decode([prompts[i] for i in own], [names[i] for i in own])
                answers.update((i, rows[j * each : (j + 1) * each]) for j, i in enumerate(own))
                bar.update(len(rows))

        try:
            write()
        except Exception as error:
            is_half = out_of_memory(error) and size > 1
            if not is_half:
                raise
        if is_half:  # behind the except block, whose error holds the tensors
            free_memory()
            left, size = [i for i in left if i not in answers], size // 2
            to_stderr(
                f"out of memory: {len(left)} of {len(prompts)} prompts are answered in half batches, {size} at once"
            )
            write()
    return [answers[i] for i in range(len(prompts))]


def _check_lengths(model: PreTrainedModel, prompts: Sequence[Sequence[int]], names: Sequence[str], new: int) -> None:
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if not isinstance(limit, int) or limit <= 0:
        return
    too_long = [name for name, tokens in zip(names, prompts, strict=True) if len(tokens) + new > limit]
    if too_long:
        raise DiagError(
            f"{len(too_long)} prompts and their answers do not fit the model",
            where=f"prompts {', '.join(too_long[:5])}",
            got=f"{max(map(len, prompts))} prompt tokens + max_new_tokens {new}", expected=f"at most {limit}",
            hint="shorten these prompts or lower max_new_tokens",
        )  # fmt: skip


def _uniforms(decoding: Decoding, prompt_id: str, sample: int) -> npt.NDArray[np.float64]:
    """One uniform number per position, from (seed, prompt id, sample) alone: float64, (max_new_tokens,)."""
    key = hashlib.sha256(f"{decoding.seed}\0{prompt_id}\0{sample}".encode()).digest()
    return np.random.Generator(np.random.Philox(int.from_bytes(key[:16]))).random(decoding.max_new_tokens)


def draw(logits: torch.Tensor, uniform: torch.Tensor, decoding: Decoding) -> torch.Tensor:
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


class _Decoder:
    """A model and settings; decodes one batch of token-id prompts at a time."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, decoding: Decoding) -> None:
        self.model, self.pad_id, self.decoding = model, padding_id(tokenizer), decoding
        self.device = device_of(model)
        self.stops = torch.tensor(stop_ids(model, tokenizer, decoding), dtype=torch.long, device=self.device)
        self.names = forward_parameters(model)
        # Prompt-learning adapters put virtual tokens before the cache, and recurrent models keep their own state: both
        # read the whole sequence anew for each token, in batches of one length, since they cannot be left-padded.
        peft = getattr(model, "active_peft_config", None)
        self.cached = "past_key_values" in self.names and not getattr(peft, "is_prompt_learning", False)

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

    def decode(self, prompts: Sequence[Sequence[int]], prompt_ids: Sequence[str]) -> list[Written]:
        """Answers of all prompts, `answers_per_prompt` rows for each, in order."""
        each, limit = self.decoding.answers_per_prompt, self.decoding.max_new_tokens
        ids, mask = padded(prompts, self.pad_id, self.device, left=True)
        cache = empty_cache(self.model.config.get_text_config()) if self.cached else None
        logits, cache = self._step(ids, mask, (mask.cumsum(-1) - 1).clamp(min=0), cache)
        sampled = [self.decoding.is_sampled(s) for _ in prompts for s in range(each)]
        uniforms = torch.from_numpy(
            np.stack([_uniforms(self.decoding, name, s) for name in prompt_ids for s in range(each)])
        ).to(self.device, torch.float32 if self.device.type == "mps" else torch.float64)
        if each > 1:
            if cache is not None:
                cache.batch_repeat_interleave(each)
            logits, mask, ids = (t.repeat_interleave(each, 0) for t in (logits, mask, ids))
        rows = torch.arange(len(sampled), device=self.device)
        is_sampled = torch.tensor(sampled, device=self.device)
        answers = [Written([]) for _ in sampled]
        running = torch.ones(len(sampled), dtype=torch.bool, device=self.device)
        for position in range(limit):
            chosen = logits.argmax(-1)
            if bool(is_sampled[rows].any()):
                drawn = draw(logits, uniforms[rows, position], self.decoding)
                chosen = torch.where(is_sampled[rows], drawn, chosen)
            logp = torch.log_softmax(logits, dim=-1)
            token_logp = logp.gather(1, chosen.unsqueeze(1)).squeeze(1)
            # 0 * -inf is 0 here, as in the limit: a token without probability adds no entropy.
            entropy = torch.special.entr(logp.exp()).sum(-1)
            ended = torch.isin(chosen, self.stops)
            step = (running, rows, chosen, token_logp, entropy, ended)
            for runs, row, token, lp, h, end in zip(*(t.tolist() for t in step), strict=True):
                if runs:
                    answer = answers[row]
                    answer.token_ids.append(token)
                    answer.sum_logp += lp
                    answer.entropy_sum += h
                    answer.stopped = end
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
