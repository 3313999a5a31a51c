"""A model on loan: whatever is run with it leaves no trace in a training that goes on around it.

Random states, train and eval modes, gradients, the tokenizer's padding, cache and checkpointing switches are as before
on leaving, so that losses are bit for bit the same with and without an evaluation or generation in between.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

_TOKENIZER_SETTINGS = ("padding_side", "truncation_side", "pad_token")


@contextmanager
def untouched_random_state() -> Iterator[None]:
    """Put Python's, numpy's and torch's random states (all accelerators) back on leaving."""
    python, numpy_state, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else None
    mps = torch.mps.get_rng_state() if torch.backends.mps.is_available() else None
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy_state)  # noqa: NPY002
        torch.set_rng_state(cpu)
        if gpus is not None:
            torch.cuda.set_rng_state_all(gpus)
        if mps is not None:
            torch.mps.set_rng_state(mps)


@contextmanager
def borrowed(model: torch.nn.Module, tokenizer: Any = None) -> Iterator[None]:
    """The model in evaluation mode without gradients, the tokenizer to use at will; both as before on leaving."""
    modes = {module: module.training for module in model.modules()}
    kept = {name: getattr(tokenizer, name) for name in _TOKENIZER_SETTINGS if hasattr(tokenizer, name)}
    configs: list[Any] = [getattr(model, "config", None), getattr(model, "generation_config", None)]
    cache = [(c, c.use_cache) for c in configs if hasattr(c, "use_cache")]
    checkpointing: list[Any] = [m for m in model.modules() if getattr(m, "gradient_checkpointing", False)]
    for module in checkpointing:
        module.gradient_checkpointing = False  # with it the cache is off, and every new token costs the whole text
    model.eval()
    try:
        # Not inference_mode: a buffer that a forward refreshes (dynamic RoPE) would become an inference tensor, and
        # the next training step would refuse it.
        with untouched_random_state(), torch.no_grad():
            yield
    finally:
        # Module by module: they may have been in different modes (a frozen layer in eval mode).
        for module, training in modes.items():
            module.training = training
        for module in checkpointing:
            module.gradient_checkpointing = True
        for config, value in cache:
            config.use_cache = value
        for name, value in kept.items():
            setattr(tokenizer, name, value)
