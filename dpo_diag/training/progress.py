"""What a training prints: the bar with its time left, and one short line per evaluation instead of forty metrics."""

from __future__ import annotations

from typing import Any

from transformers import PrinterCallback, ProgressCallback

LINE = (
    ("loss", "loss"),
    ("ppl_token/chosen", "chosen ppl_token"),
    ("ppl_token/rejected", "rejected ppl_token"),
    ("rewards/accuracies", "reward acc."),
    ("pairs/both_fell", "both fell"),
    ("ppl_token/response", "response ppl"),
    ("ppl_token/prompt", "prompt ppl"),
    ("mean_token_accuracy", "token acc."),
)
"""metric behind `eval_` or `eval_NAME_` -> what the line calls it."""


def evaluation_prefix(logs: dict[str, Any]) -> str | None:
    """`eval_` or `eval_NAME_`: what stands before every metric of one evaluation's log call; None for other calls."""
    key = next((k for k in logs if k.startswith("eval_") and k.endswith("_loss") and "/" not in k), None)
    return None if key is None else key.removesuffix("loss")


def evaluation_line(logs: dict[str, Any], step: int) -> str | None:
    """The short line for an evaluation's logs, `step 10  eval  loss 0.682  chosen ppl_token 1.437`; None for others."""
    prefix = evaluation_prefix(logs)
    if prefix is None:
        scores = [
            f"{k.removeprefix('eval_').replace('_score/', ' ')} {v:.3f}" for k, v in logs.items() if "score/" in k
        ]
        return f"step {step:<5} {'  '.join(scores)}" if scores else None
    parts = [f"{name} {float(logs[prefix + metric]):.3f}" for metric, name in LINE if prefix + metric in logs]
    return f"step {step:<5} {prefix.rstrip('_'):<6} {'  '.join(parts)}"


class ShortProgress(ProgressCallback):
    """transformers' progress bars; every metric is in the records and on the tracker, here only a line to watch."""

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Training steps show their loss in the bar; an evaluation gets a line."""
        bar: Any = self.training_bar
        if not state.is_world_process_zero or bar is None or not logs:
            return
        line = evaluation_line(logs, state.global_step)
        if line is not None:
            bar.write(line)
        elif "loss" in logs:
            bar.set_postfix_str(f"loss {float(logs['loss']):.3f}", refresh=False)


def end_progress(trainer: Any) -> None:
    """Close the bars of a training that did not come to its end: they would write behind what is said last."""
    for callback in trainer.callback_handler.callbacks:
        for name in ("prediction_bar", "training_bar") if isinstance(callback, ProgressCallback) else ():
            bar: Any = getattr(callback, name, None)
            if bar is not None:
                bar.close()


def shorten_progress(trainer: Any) -> None:
    """Put `ShortProgress` in the place of what the trainer would print; without bars nothing is printed at all."""
    had_bar = any(isinstance(c, ProgressCallback) for c in trainer.callback_handler.callbacks)
    for known in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(known)
    if had_bar:
        trainer.add_callback(ShortProgress)
