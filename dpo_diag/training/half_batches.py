"""An evaluation that runs out of memory is done again in batches of half the size, once in a training, and says so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from accelerate.logging import get_logger

from dpo_diag.models.logps import free_memory
from dpo_diag.shortages import out_of_memory

logger = get_logger(__name__)


def evaluated(trainer: Any, evaluate: Callable[[], Any], *, several: bool) -> Any:
    """What `evaluate` returns, which evaluates one set; records and metrics are those of full batches but for rounding.

    Args:
        several: it evaluates several sets, each of which has come through here by itself.
    """
    metrics = trainer._metrics["eval"]  # TRL's own, which the batches before the one that failed have filled
    before = {name: list(values) for name, values in metrics.items()}
    try:
        return evaluate()
    except Exception as error:
        if several or not out_of_memory(error) or not _halved(trainer):
            raise
    # Behind the except block: its error holds the tensors.
    free_memory()
    metrics.clear()
    metrics.update(before)
    return evaluate()


def _halved(trainer: Any) -> bool:
    """Halve the batches of all evaluations; not twice, and not where other processes are in the midst of theirs."""
    size = trainer.args.per_device_eval_batch_size
    if trainer.has_half_batches or size < 2 or trainer.accelerator.num_processes > 1:
        return False
    trainer.has_half_batches, trainer.args.per_device_eval_batch_size = True, size // 2
    logger.warning(f"out of memory in an evaluation: its batches are halved, from {size} to {size // 2}")
    for callback in trainer.callback_handler.callbacks:
        if (bar := getattr(callback, "prediction_bar", None)) is not None:
            bar.close()
            callback.prediction_bar = None
    return True
