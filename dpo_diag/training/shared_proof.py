"""Whether a quicker way gives a trainer's own loss and gradient: computed both ways on its first batch.

In float32, whatever the training runs in, because bfloat16's rounding is as large as the error of a wrong packing; and
without a trace: gradients, random states, metrics, token counts, modes and weights are bit for bit as before.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, Literal

import numpy as np
import torch
from accelerate.utils import DistributedType, is_peft_model

from dpo_diag.errors import DiagError
from dpo_diag.models.borrowed import untouched_random_state
from dpo_diag.models.float32 import in_float32
from dpo_diag.records.run_info import SharedPrefixInfo
from dpo_diag.text import number
from dpo_diag.training.packed_batch import KNOWN, PackedBatch, packed_batch

Draws = Literal["refuse", "leave out", "same"]
Sums = tuple[torch.Tensor, ...]
Loss = Callable[[Any, Mapping[str, Any]], tuple[torch.Tensor, Sums]]
"""From a model and a batch: what is trained on, and the log-prob sums of its responses under policy and reference."""
PAIRS = 4
"""Pairs that are compared: the longest of the batch, and its first ones."""
SUM_TOLERANCE = (1e-3, 1e-5)
"""Of a response's log-prob sum: nats, and the share of it. Right ways differ by 6e-5 or less, wrong ones by 5e-2."""
LOSS_TOLERANCE = 1e-4
"""Of the loss, or of its share where it is larger than 1."""
GRADIENT_TOLERANCE = 1e-3
"""Of a gradient's element, as a share of the largest element of all. Right ways differ by 1e-5, wrong ones by 0.07."""
_SINGLE = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)


def obstacle(trainer: Any) -> str | None:
    """Why a trainer's batches cannot be packed, as far as its settings say; None: nothing is in the way."""
    args, config = trainer.args, getattr(trainer.model, "active_peft_config", None)
    if trainer._is_vision_dataset:
        return "images are in the data"
    if getattr(config, "is_prompt_learning", False):
        return "the adapter adds virtual tokens to each sequence"
    if trainer.accelerator.distributed_type not in _SINGLE or trainer.accelerator.parallelism_config is not None:
        return "the model or its sequences are sharded"
    if args.use_liger_kernel:
        return "Liger's kernels replace the model's layers"
    if args.activation_offloading:
        return "activations are offloaded, in the order of one forward and one backward"
    if args.torch_compile:
        return "the model is compiled"
    models = [m for m in (trainer.model, trainer.ref_model) if m is not None]
    if any(getattr(m, "is_quantized", False) for m in models):
        return "the weights are quantised, so that nothing can be proved in float32"
    return None


def prove(
    trainer: Any, models: Sequence[Any], inputs: Mapping[str, Any], loss_of: Loss,
    applied: Callable[[PackedBatch], AbstractContextManager[None]], accept_draws: bool, gradient: bool = True,
) -> SharedPrefixInfo | None:  # fmt: skip
    """Loss and gradient of a few pairs, padded and packed.

    Args:
        models: those whose forwards are packed; the first is the policy.
        applied: in which models compute the packed batch.
        gradient: False for a reference alone, of which the sums are compared, in the mode that it is in.
        accept_draws: a forward may draw random numbers (dropout); the comparison is then made without.

    Returns:
        None where these pairs are no packed batch.
    """
    pairs = _some_pairs(inputs)
    batch = packed_batch(pairs)
    if isinstance(batch, str):
        return None
    draws: Draws = "leave out" if accept_draws else "refuse"
    return compare(trainer, models, lambda m: loss_of(m, pairs), lambda: applied(batch), "packed", draws, gradient)


def compare(
    trainer: Any, models: Sequence[Any], loss_of: Callable[[Any], tuple[torch.Tensor, Sums]],
    otherwise: Callable[[], AbstractContextManager[None]], way: Literal["packed", "head"], draws: Draws,
    gradient: bool = True,
) -> SharedPrefixInfo:  # fmt: skip
    """Loss and gradient the usual way and `otherwise`, without a trace: `way` where they agree, else plain.

    Args:
        models: the first is the policy.
        draws: what if a forward draws random numbers: "refuse" to go the other way, "leave out" the drawing, or let
            both ways draw the "same", because the other one draws in the same places.
    """
    policy = models[0]
    try:
        with _apart(trainer, models), _float32(trainer.accelerator, models):
            parameters = [p for p in policy.parameters() if p.requires_grad] if gradient else []
            policy.train(gradient or policy.training)
            with untouched_random_state():
                before = _random_states()
                usual, own = _loss_and_gradient(policy, loss_of, parameters)
                drawn = any(not torch.equal(a, b) for a, b in zip(before, _random_states(), strict=True))
            if drawn and draws == "refuse":
                return _plain("the forward draws random numbers (dropout), which packed rows would draw otherwise")
            if drawn and draws == "leave out":
                policy.eval()
                usual, own = _loss_and_gradient(policy, loss_of, parameters)
            with otherwise():
                other, theirs = _loss_and_gradient(policy, loss_of, parameters)
    except torch.OutOfMemoryError:
        return _plain("the memory does not hold a comparison in float32")
    except (DiagError, RuntimeError, ValueError, TypeError, AttributeError, KeyError, IndexError) as error:
        why = next(iter(str(error).splitlines()), type(error).__name__)
        return _plain(f"{_name(policy)} cannot be asked in this way: {why[:200]}")
    reason = "with dropout: compared without" if drawn and draws == "leave out" else None
    return _judged(usual, other, own, theirs, way, reason)


def _judged(
    usual: tuple[float, Sums], other: tuple[float, Sums], own: Sequence[torch.Tensor], theirs: Sequence[torch.Tensor],
    way: Literal["packed", "head"], reason: str | None,
) -> SharedPrefixInfo:  # fmt: skip
    loss = abs(other[0] - usual[0])
    if not all(bool(torch.isfinite(t).all()) for t in (torch.tensor(usual[0]), *usual[1], *own)):
        return _plain("loss or gradient is not finite the usual way: there is nothing to compare with")
    largest = max((float(g.abs().max()) for g in own if g.numel()), default=0.0)
    gaps = [float((a - b).abs().max()) for a, b in zip(own, theirs, strict=True) if a.numel()]
    gradient = max(gaps, default=0.0)
    gradient = gradient / largest if largest > 0 else gradient
    nats, share = SUM_TOLERANCE
    right = all(bool(((a - b).abs() <= nats + share * a.abs()).all()) for a, b in zip(usual[1], other[1], strict=True))
    right &= (
        loss <= LOSS_TOLERANCE * max(1.0, abs(usual[0])) and gradient <= GRADIENT_TOLERANCE
    )  # false where it is NaN
    gap = max(float((a - b).abs().max()) for a, b in zip(usual[1], other[1], strict=True))
    found = {"max_loss_diff": loss, "max_grad_diff": gradient} if own else {"max_loss_diff": gap}
    if right:
        return SharedPrefixInfo(way=way, reason=reason, **found)
    return _plain(
        f"the quicker way is not right here: the loss differs by {number(loss)}, a response's log-prob by "
        f"{number(gap)}, the gradient by {number(gradient)} of its largest element", **found,
    )  # fmt: skip


def _name(model: Any) -> str:
    return type(model.get_base_model() if is_peft_model(model) else model).__name__


def _plain(reason: str, **found: float) -> SharedPrefixInfo:
    return SharedPrefixInfo(way="plain", reason=reason, **found)


def _some_pairs(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """At most `PAIRS` pairs of a batch, the longest among them, without columns that are padding alone."""
    n = len(inputs["input_ids"]) // 2
    lengths = inputs["attention_mask"].sum(1).cpu().numpy().reshape(2, n).max(axis=0)
    chosen = np.unique([int(lengths.argmax()), *range(min(n, PAIRS - 1))])
    width = int(lengths[chosen].max())
    both = torch.from_numpy(np.concatenate([chosen, chosen + n])).to(inputs["input_ids"].device)
    return {k: v[both][:, :width] if v.dim() == 2 else v[both[: len(chosen)]] for k, v in inputs.items() if k in KNOWN}


def _loss_and_gradient(
    model: Any, loss_of: Callable[[Any], tuple[torch.Tensor, Sums]], parameters: Sequence[torch.nn.Parameter]
) -> tuple[tuple[float, Sums], list[torch.Tensor]]:
    """((loss, sums), gradient of each parameter that has one)."""
    with torch.enable_grad():
        loss, sums = loss_of(model)
        if not parameters:
            gradients: list[torch.Tensor | None] = []
        elif _reentrant(model):
            gradients = _by_backward(loss, parameters)
        else:
            # Not backward(): hooks on accumulated gradients (DDP's reducer, optimisers inside it) must not see this.
            gradients = list(torch.autograd.grad(loss, parameters, allow_unused=True))
    return (float(loss.detach()), sums), [torch.zeros(0) if g is None else g for g in gradients]


def _reentrant(model: Any) -> bool:
    """Whether activations are checkpointed in the old way, which only backward() can pass."""
    for module in model.modules():
        if getattr(module, "gradient_checkpointing", False):
            keywords = getattr(getattr(module, "_gradient_checkpointing_func", None), "keywords", {})
            return bool(keywords.get("use_reentrant", True))
    return False


def _by_backward(loss: torch.Tensor, parameters: Sequence[torch.nn.Parameter]) -> list[torch.Tensor | None]:
    before = [p.grad for p in parameters]
    for p in parameters:
        p.grad = None
    try:
        loss.backward()  # type: ignore[no-untyped-call]
        return [p.grad for p in parameters]
    finally:
        for p, gradient in zip(parameters, before, strict=True):
            p.grad = gradient


def _random_states() -> list[torch.Tensor]:
    gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    mps = [torch.mps.get_rng_state()] if torch.backends.mps.is_available() else []
    return [torch.get_rng_state(), *gpus, *mps]


@contextmanager
def _apart(trainer: Any, models: Sequence[Any]) -> Iterator[None]:
    """What a loss computation leaves behind goes with it, and no rank waits for another one's: a later proof is made by
    the rank whose batch asks for it."""
    accelerator = trainer.accelerator
    metrics, tokens = trainer._metrics, trainer._total_train_tokens
    modes = {module: module.training for model in models for module in model.modules()}
    trainer._metrics = {mode: defaultdict(list) for mode in metrics}
    accelerator.gather = accelerator.gather_for_metrics = lambda values, *_, **__: values
    try:
        with untouched_random_state():
            yield
    finally:
        del accelerator.gather, accelerator.gather_for_metrics
        trainer._metrics, trainer._total_train_tokens = metrics, tokens
        for module, training in modes.items():
            module.training = training


@contextmanager
def _float32(accelerator: Any, models: Sequence[Any]) -> Iterator[None]:
    """Weights, products and autocast of the models in float32: copies of the weights, which do not know of this."""
    # accelerate wraps a model's forward in autocast.
    wrapped = [(m, m.forward) for m in models if "_original_forward" in vars(m)]
    with ExitStack() as stack:
        stack.callback(torch.clear_autocast_cache)
        for model in models:
            stack.enter_context(in_float32(model, backward=True))
        accelerator.autocast = lambda *_, **__: nullcontext()
        stack.callback(delattr, accelerator, "autocast")
        torch.clear_autocast_cache()  # weights that it holds as bfloat16 belong to another graph
        for model, forward in wrapped:
            stack.callback(setattr, model, "forward", forward)
            model.forward = model._original_forward
        yield
