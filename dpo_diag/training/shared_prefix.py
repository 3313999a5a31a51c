"""Prompts once: under TRL's own `_compute_loss` (1.16) a padded batch becomes one packed row, and comes back as it was.

TRL calls policy and reference with (2 x pairs, length) tokens, each prompt twice and padding between, and its fused
head projects every position of them where there is no Triton. While `applied`, a hook in front of each model hands it
one row in which a prompt stands once (`models.packed`); a hook behind the backbone keeps the hidden states that predict
a response's token, so that the head sees those alone; a hook behind the model lays the head's outputs where TRL and
`trl_adapter` look for them. On a CPU the head works in tiles (`own_head`). Nothing of TRL's loss is computed anew.

Whether loss and gradient are those of the padded batch is proved before the first use (`shared_proof`), and again when
a batch is the first that reaches beyond a window of the model. Where it is not, batches go their usual way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from accelerate.logging import get_logger
from accelerate.utils import gather_object, is_peft_model
from trl.trainer.utils import FusedCausalLMOutput

from dpo_diag.config import CHOICES
from dpo_diag.errors import DiagError, did_you_mean
from dpo_diag.models.packed.attention import packed_attention
from dpo_diag.records.run_info import SharedPrefixInfo
from dpo_diag.training.head_probe import HeadProbe
from dpo_diag.training.own_head import tiled
from dpo_diag.training.packed_batch import PackedBatch, packed_batch
from dpo_diag.training.shared_proof import Loss, obstacle, prove

logger = get_logger(__name__)
MODES = CHOICES["trainer.shared_prefix"]
_WINDOWS = ("sliding_window", "attention_chunk_size", "local_attention", "original_max_position_embeddings")
"""Settings of a model beyond which a longer sequence is computed in another way."""


class SharedPrefix:
    """Whether and how a trainer's batches are packed.

    Args:
        told: called with `info` when it changes.
        reference: of the reference's sums alone, without a gradient, as they are computed before a training.

    Attributes:
        info: what was decided, for run.json; None until the first batch was seen.
    """

    def __init__(
        self, trainer: Any, mode: str, told: Callable[[SharedPrefixInfo], None], *, reference: bool = False
    ) -> None:
        if mode not in MODES:
            hint = did_you_mean(mode, MODES)
            raise DiagError("unknown shared_prefix", got=mode, expected=f"one of {', '.join(MODES)}", hint=hint)
        self._trainer, self.mode, self._told, self._reference = trainer, mode, told, reference
        self.info = SharedPrefixInfo(way="plain", reason="off") if mode == "off" else None
        self._proved = 0  # tokens of the longest sequence that was compared
        self._until_backward: ExitStack | None = None

    @property
    def _models(self) -> list[Any]:
        """Policy and, where it is a model of its own, reference, without what distribution wraps around them."""
        trainer = self._trainer
        if self._reference:
            models = [trainer.ref_model or trainer.model]
        else:
            models = [trainer.model, None if trainer.precompute_ref_logps else trainer.ref_model]
        return [trainer.accelerator.unwrap_model(m) for m in models if m is not None]

    @property
    def _configs(self) -> list[Any]:
        return [model.config.get_text_config() for model in self._models]

    # ---- deciding ----

    def decide(self, inputs: Mapping[str, Any], loss_of: Loss) -> None:
        """Before a loss is computed: prove what is not proved yet. Every rank must call it at each of its batches.

        Args:
            inputs: the batch as TRL has it.
            loss_of: what is trained on, from a model and a batch.

        Raises:
            DiagError: the mode is "on", and it cannot be or is not right; then on every rank.
        """
        first = self.info is None
        mine = first or self._reaches_further(inputs)
        if not first and not self._anyone(mine):
            return
        found: SharedPrefixInfo | None = None
        longest, reason = 0, obstacle(self._trainer) if first else None
        if reason is not None:
            found = SharedPrefixInfo(way="plain", reason=reason)
        elif mine:
            found, longest = self._try(inputs, loss_of)
        if self._several:
            answers = gather_object([(found, longest)])
            found, longest = _worst([f for f, _ in answers if f is not None]), max(n for _, n in answers)
        if found is None:
            return  # nothing in this batch to prove it on
        self._proved = max(self._proved, longest)
        if self.mode == "on" and found.way == "plain":
            raise DiagError(
                "shared_prefix=on is not possible", got=found.reason, hint="shared_prefix=auto goes the usual way then"
            )
        if first or found.way == "plain":
            self.info = found
            self._told(found)
            if found.way == "plain":
                what = "the reference's shared prefix" if self._reference else "shared prefix"
                logger.warning(f"{what}: off, the usual way is taken: {found.reason}")

    @property
    def _several(self) -> bool:
        return bool(self._trainer.accelerator.num_processes > 1)

    def _anyone(self, mine: bool) -> bool:
        """Whether a rank's batch asks for another proof. Ranks ask each other while there is a window to go beyond."""
        if not self._several or not self._open_windows:
            return mine
        accelerator = self._trainer.accelerator
        return bool(accelerator.reduce(torch.tensor(float(mine), device=accelerator.device), "sum") > 0)

    def _packed(self, inputs: Mapping[str, Any]) -> PackedBatch | None:
        batch = packed_batch(inputs)
        if isinstance(batch, str):
            return None
        # A router's loss counts every token, those of responses that are not scored too.
        routed = batch.places is None and any(hasattr(c, "output_router_logits") for c in self._configs)
        return None if routed else batch

    def _try(self, inputs: Mapping[str, Any], loss_of: Loss) -> tuple[SharedPrefixInfo | None, int]:
        """(what was found, tokens of the longest sequence that it was found on)."""
        batch = self._packed(inputs)
        if batch is None:
            return None, 0
        found = prove(
            self._trainer, self._models, inputs, loss_of, self.applied, accept_draws=self.mode == "on",
            gradient=not self._reference,
        )  # fmt: skip
        return found, 0 if found is None else batch.longest

    @property
    def _open_windows(self) -> list[int]:
        """Windows of the models that no sequence which was compared reached beyond; the same on every rank."""
        if self.info is None or self.info.way == "plain":
            return []
        windows = [w for c in self._configs for name in _WINDOWS if isinstance(w := getattr(c, name, None), int)]
        return [w for w in windows if w >= self._proved]

    def _reaches_further(self, inputs: Mapping[str, Any]) -> bool:
        """Whether this batch is the first with a sequence beyond a window of a model."""
        windows = self._open_windows
        return bool(windows) and int(inputs["attention_mask"].sum(1).max()) > min(windows)

    # ---- doing ----

    @contextmanager
    def step(self) -> Iterator[None]:
        """Around a forward and its backward: a recomputation under checkpointing finds the attention of its forward."""
        try:
            with ExitStack() as self._until_backward:
                yield
        finally:
            self._until_backward = None

    @contextmanager
    def loss(self, inputs: Mapping[str, Any], probe: HeadProbe | None) -> Iterator[None]:
        """Around one `_compute_loss`: packed where that was proved and this batch can be."""
        batch = self._packed(inputs) if self.info is not None and self.info.way == "packed" else None
        if batch is None:
            yield
            return
        with ExitStack() as own:
            until = own if self._until_backward is None else self._until_backward
            own.enter_context(self.applied(batch, probe, until))
            yield

    @contextmanager
    def applied(
        self, batch: PackedBatch, probe: HeadProbe | None = None, until: ExitStack | None = None
    ) -> Iterator[None]:
        """Models in here are called with TRL's padded batch and compute the packed one.

        Args:
            until: keeps the attention of packed rows beyond this context, as long as itself is open.
        """
        trainer = self._trainer
        with ExitStack() as stack:
            for model in self._models:
                (until or stack).enter_context(packed_attention(model))
                for handle in _hooks(model, batch, probe):
                    stack.callback(handle.remove)
            stack.enter_context(tiled(trainer.accelerator.device, probe))
            yield


def _hooks(model: Any, batch: PackedBatch, probe: HeadProbe | None) -> list[Any]:
    """The three hooks of one model."""
    base = model.get_base_model() if is_peft_model(model) else model
    mask: list[torch.Tensor] = []  # of the forward that is under way

    def before(module: torch.nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        labels = kwargs.get("labels")
        if not kwargs.get("fused_lm_head") or labels is None or tuple(labels.shape) != batch.shape:
            raise DiagError("the model was not called with the batch and TRL's fused head", got=sorted(kwargs))
        mask[:] = [labels[:, 1:] != -100]
        if probe is not None:
            probe.expect(None)  # all that the head sees is a response's
        left = {k: v for k, v in kwargs.items() if k not in ("input_ids", "attention_mask", "labels")}
        return args, {**left, **batch.inputs, "shift_labels": batch.targets[None]}

    def behind_backbone(module: torch.nn.Module, args: Any, output: Any) -> Any:
        output.last_hidden_state = output.last_hidden_state[:, batch.read]
        if getattr(output, "router_logits", None) is not None:
            # The load-balancing loss counts every token of the padded batch, a prompt's twice.
            output.router_logits = tuple(r[batch.places] for r in output.router_logits)
        return output

    def behind(module: torch.nn.Module, args: Any, output: Any) -> Any:
        if not isinstance(output, FusedCausalLMOutput):
            return output
        where = mask.pop()

        def laid(values: torch.Tensor | None) -> torch.Tensor | None:
            return None if values is None else values.new_zeros(where.shape).masked_scatter(where, values)

        names = ("log_probs", "entropy", "log_sum_sq_probs", "mean_logits", "is_top1")
        tensors = {name: laid(getattr(output, name)) for name in names}
        return FusedCausalLMOutput(loss=output.loss, label_mask=where, aux_loss=output.aux_loss, **tensors)

    return [
        model.register_forward_pre_hook(before, with_kwargs=True),
        base.base_model.register_forward_hook(behind_backbone),
        model.register_forward_hook(behind),
    ]


def _worst(found: list[SharedPrefixInfo]) -> SharedPrefixInfo | None:
    """One answer for all ranks: plain where one rank says so, else the largest differences."""
    plain = [f for f in found if f.way == "plain"]
    if plain or not found:
        return plain[0] if plain else None
    return SharedPrefixInfo(
        way="packed", reason=found[0].reason,
        max_loss_diff=max(f.max_loss_diff or 0.0 for f in found),
        max_grad_diff=max(f.max_grad_diff or 0.0 for f in found),
    )  # fmt: skip
