"""A step that went wrong, computed again: its loss, each row's log-probs, and what is not finite first.

`dpo-train replay=RUN/alerts/step-N` builds the run's trainer anew and calls `replay`; so may a script whose trainer is
of the same model and data. Nothing is trained and no record is written.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from dpo_diag.errors import DiagError
from dpo_diag.text import number, plural, table
from dpo_diag.training.batch_dump import read_dump, read_weights
from dpo_diag.training.checkpoint_folders import choose_checkpoint


@dataclass
class Replay:
    """What a replay found.

    Attributes:
        weights: which weights it used, in words.
        loss: mean over the micro-batches; recorded: that of the training.
        rows: (pair id, log-prob sum of each side), in the order of the batches.
        sides: what the sides are: chosen and rejected, or response and prompt.
        parameters: (name, values that are not finite, values) of those that hold any, before the step.
        modules: names of those whose output is not finite, in the order of the forward pass.
        gradients: names of the parameters whose gradient is not finite, in the order of the backward pass.
    """

    step: int
    codes: list[str]
    weights: str
    exact: bool
    recorded: float
    loss: float = math.nan
    rows: list[tuple[str, float, float]] = field(default_factory=list)
    sides: tuple[str, str] = ("chosen", "rejected")
    parameters: list[tuple[str, int, int]] = field(default_factory=list)
    modules: list[str] = field(default_factory=list)
    gradients: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """The replay in words."""
        rows = [[pair_id, number(a), number(b)] for pair_id, a, b in self.rows]
        bad = [f"{name} ({n} of {of})" for name, n, of in self.parameters]
        return [
            f"step {self.step} ({', '.join(self.codes)}), {plural(len(self.rows), 'row')}",
            f"weights: {self.weights}",
            f"loss {number(self.loss, 6)}, recorded {number(self.recorded, 6)}",
            table(["row", *(f"sum_logp/{side}" for side in self.sides)], rows),
            f"parameters that are not finite: {_first(bad)}",
            f"modules whose output is not finite, first to last: {_first(self.modules)}",
            f"gradients that are not finite, in the order of the backward pass: {_first(self.gradients)}",
        ]


def _first(names: list[str], shown: int = 3) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return f"{', '.join(names[:shown])}{more}" if names else "none"


def replay(trainer: Any, dump: Path) -> Replay:
    """Compute a dumped step again on a trainer of the same configuration, whose weights are those of the start.

    Raises:
        DiagError: the folder holds no batch, or weights of another model.
    """
    facts, samples = read_dump(dump)
    step, model = int(facts["step"]), trainer.accelerator.unwrap_model(trainer.model)
    recorded = float(facts["loss"])
    found = Replay(step, [*facts["codes"]], *_load(trainer, model, dump, facts), recorded)
    trainer.state.global_step, trainer._proven = step - 1, True
    for name, value in (facts.get("coefficients") or {}).items():
        trainer.set_coefficient(name, float(value))
    trainer.monitor.window.beta_factor = float(facts.get("beta_factor", 1.0))
    found.parameters = [
        (name, int((~p.isfinite()).sum()), p.numel()) for name, p in model.named_parameters() if not p.isfinite().all()
    ]
    prepared = trainer.accelerator.prepare_model(trainer.model)
    prepared.train()
    prepared.zero_grad()
    losses, trainer.is_in_train = [], True
    with _listening(model, found):
        for sample in samples:
            inputs = trainer._prepare_inputs(dict(sample))
            items = facts.get("num_items")
            with trainer.compute_loss_context_manager():
                loss = trainer.compute_loss(
                    prepared, inputs, num_items_in_batch=None if items is None else torch.tensor(items)
                )
            losses.append(float(loss.detach()))
            (loss / len(samples)).backward()
    trainer.is_in_train = False
    batches = trainer.monitor.window.open.batches
    losses = [batch.loss for batch in batches] or losses  # what was trained on may hold more than what is recorded
    if batches and batches[0].is_share:  # of all tokens of the step, or of those of its process
        found.loss = sum(losses) / (1 if trainer.args.average_tokens_across_devices else int(facts["processes"]))
    else:
        found.loss = sum(losses) / len(losses)
    for batch in batches:
        found.sides = batch.sides
        sums = batch.policy["sum_logp"]
        found.rows += [(p, float(sums[0, i]), float(sums[1, i])) for i, p in enumerate(batch.pair_ids)]
    return found


def _load(trainer: Any, model: torch.nn.Module, dump: Path, facts: dict[str, Any]) -> tuple[str, bool]:
    """Put the weights nearest to the step's into the model; which they are, and whether they are the step's own."""
    step = int(facts["step"])
    if facts.get("has_weights"):
        own = dict(model.named_parameters())
        for name, values in read_weights(dump).items():
            if name not in own or own[name].shape != values.shape:
                raise DiagError("weights of another model", where=dump, got=f"{name} {tuple(values.shape)}")
            own[name].data.copy_(values)
        return "those of the step, kept beside the batch", True
    near = _load_nearest(trainer, step)
    if near is None:
        if step == 1:
            return "those before training, which are the step's own", True
        return f"those before training, {plural(step - 1, 'update')} before the batch: the numbers are others", False
    if (gap := step - 1 - near) == 0:
        return f"those of checkpoint-{near}, which are the step's own", True
    return f"those of checkpoint-{near}, {plural(gap, 'update')} before the batch: the numbers are others", False


def _load_nearest(trainer: Any, step: int) -> int | None:
    """Load the last whole checkpoint of before a step; its step, None where there is none. The training may be running,
    and remove one while it is read: then the next one is taken."""
    while True:
        try:
            near = choose_checkpoint(trainer.args.output_dir, before=step, only_look=True)
        except DiagError:
            return None
        try:
            trainer._load_from_checkpoint(near.folder)
        except (OSError, ValueError, RuntimeError):
            if Path(near.folder).is_dir():
                raise
            continue
        return near.step


@contextmanager
def _listening(model: torch.nn.Module, found: Replay) -> Iterator[None]:
    """Inside, what is not finite is noted in the order in which it is computed."""
    handles = []

    def forward(name: str) -> Any:
        def hook(module: torch.nn.Module, inputs: Any, output: Any) -> None:
            if name not in found.modules and any(not t.isfinite().all() for t in _tensors(output)):
                found.modules.append(name)

        return hook

    def backward(name: str) -> Any:
        def hook(parameter: torch.Tensor) -> None:
            if name not in found.gradients and parameter.grad is not None and not parameter.grad.isfinite().all():
                found.gradients.append(name)

        return hook

    for name, module in model.named_modules():
        handles.append(module.register_forward_hook(forward(name or "the model")))
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            handles.append(parameter.register_post_accumulate_grad_hook(backward(name)))  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _tensors(output: Any) -> list[torch.Tensor]:
    values = output.values() if isinstance(output, dict) else output if isinstance(output, (tuple, list)) else [output]
    return [v for v in values if torch.is_tensor(v) and v.is_floating_point()]
