"""DiagSFTTrainer: TRL's SFTTrainer that shows response and prompt apart."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from trl import SFTTrainer

from dpo_diag.data.trained_tokens import NOTHING
from dpo_diag.records.splits import Role
from dpo_diag.training.carrying import taken_out
from dpo_diag.training.head_probe import head_scores_every_position
from dpo_diag.training.monitor import Monitor
from dpo_diag.training.run import Recorded, Recording, say_left_out
from dpo_diag.training.sequences import RESPONSE, ROW, MarkResponse, add_rows, attach_marks, has_prompt
from dpo_diag.training.sft_adapter import PromptTap, read_sequences


class DiagSFTTrainer(Recording, SFTTrainer):  # type: ignore[misc]
    """`trl.SFTTrainer` with the cross-entropy of the response and of the prompt measured apart.

    Positional and keyword arguments are SFTTrainer's own. Additional, all by keyword:

    Args:
        recorder: as DiagDPOTrainer's. history/ and alerts/ are written; SFT has no pairs, so pairs/, tokens/ and
            texts/ stay empty.
        prompt_metrics: score the prompt's tokens too. None: where it is free, that is without Triton (see
            `sft_adapter.PromptTap` for the price with it).
        evaluate_at_start, stop_on, thresholds, facts: as DiagDPOTrainer's.
        eval_roles: as DiagDPOTrainer's; without it the set's name decides.

    Logged live beside TRL's metrics: see `measure.batch_metrics`. `loss_on_prompt` is 0 with the right mask; above 0
    the loss trains on what the user wrote.
    """

    carried = (ROW, RESPONSE)
    attach = staticmethod(attach_marks)

    def __init__(
        self,
        *args: Any,
        recorder: Recorded = None,
        prompt_metrics: bool | None = None,
        evaluate_at_start: bool | None = None,
        stop_on: Iterable[str] = (),
        thresholds: Mapping[str, Any] | None = None,
        facts: Mapping[str, Any] | None = None,
        eval_roles: Mapping[str, Role] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        free = head_scores_every_position(self.accelerator.device)
        self._whole = free if prompt_metrics is None else prompt_metrics
        config = getattr(self.model, "active_peft_config", None)
        if getattr(config, "is_prompt_learning", False) or self.accelerator.parallelism_config is not None:
            self._whole = False  # the head's rows are not the batch's tokens
        self.monitor = Monitor(
            world_size=self.accelerator.num_processes,
            rank=self.accelerator.process_index,
            guards=self.make_guards(stop_on, thresholds),
        )
        self.start_recording(recorder, evaluate_at_start, facts, eval_roles)

    def _prepare_dataset(
        self, dataset: Any, processing_class: Any, args: Any, packing: bool, formatting_func: Any, dataset_name: str
    ) -> Any:
        numbered = add_rows(dataset, args.dataset_num_proc)
        dataset = super()._prepare_dataset(numbered, processing_class, args, packing, formatting_func, dataset_name)
        if not packing:
            say_left_out(numbered, dataset, dataset_name, NOTHING)
        first = next(iter(dataset), None)
        if first is None or RESPONSE in first or "labels" not in first or not has_prompt(first):
            return dataset
        mark = MarkResponse(
            tokenizer=self._tokenizer,
            chat_template=self.chat_template,
            max_length=args.max_length,
            keep_end=args.truncation_mode == "keep_end",
            by_labels=bool(args.assistant_only_loss or ("prompt" in first and self.completion_only_loss)),
        )
        return dataset.map(mark)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """TRL's loss, unchanged; measured where a training or evaluation loop runs."""
        inputs, (rows, response) = taken_out(inputs, self.carried)
        if not self.measures:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        tap = PromptTap(model, self._whole)
        result = super().compute_loss(tap, inputs, return_outputs, num_items_in_batch)
        loss = result[0] if return_outputs else result
        self.observe(read_sequences(self, tap, inputs, rows, response, loss, num_items_in_batch))
        return result

    def describe(self) -> dict[str, Any]:
        """Fields of run.json that this trainer knows."""
        reason = "SFT: a negative log-likelihood, no preference loss"
        return {**super().describe(), "loss_reason": reason, "method": "sft"}
