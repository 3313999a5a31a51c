"""One batch of TRL's DPO trainer, read: what the forwards that a `Tap` kept say of each pair, and which it is."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from dpo_diag.losses import LossSpec
from dpo_diag.records.schemas import SIDES
from dpo_diag.training.batch import Batch, FloatArray, TokenRows, to_host
from dpo_diag.training.pair_ids import decode_ids, ids_from_tokens
from dpo_diag.training.trl_adapter import REF_SUMS, Tap, ld_factors, log_weights


def rearranged(full: npt.NDArray[np.int64], seen: FloatArray) -> bool:
    """Whether a collator gave its batch another order than its examples had, as far as lengths can tell.

    Args:
        full: (2, pairs) response tokens of the examples, -1 where they are not known.
        seen: (2, pairs) response tokens of the batch's rows.
    """
    if (full < 0).any():
        return False
    if (seen > full).any():
        return True  # more than there were
    return bool((seen != full).any()) and sorted(map(tuple, seen.T.tolist())) == sorted(map(tuple, full.T.tolist()))


@torch.no_grad()
def read_pairs(
    trainer: Any, tap: Tap, inputs: dict[str, Any], ids: torch.Tensor | None, loss: torch.Tensor,
    byte_table: torch.Tensor | None, spec: LossSpec, with_tokens: bool,
) -> Batch | None:  # fmt: skip
    """What one `_compute_loss` did, per pair; None if it did not run TRL's fused forward.

    Sums are float64 sums of TRL's float32 token log-probs, so that recorded tokens add up to them exactly.

    Args:
        inputs: the batch as TRL had it, without the ids.
        ids: int64 (pairs, 2 or 4) of `pair_ids.KEY`, or None.
        loss: what is trained on, the MoE auxiliary loss included.
        byte_table: UTF-8 bytes of each token id, or None.
        with_tokens: keep the per-token values too.
    """
    policy = tap.policy
    if policy is None:
        return None
    completion, targets = inputs["completion_mask"], inputs["input_ids"][:, 1:]
    mask = completion[:, 1:].bool()
    length, n_pairs = mask.shape[1], len(targets) // 2

    def tail(values: torch.Tensor | None) -> torch.Tensor | None:
        # Virtual tokens of prompt tuning come first.
        return None if values is None else values.detach()[:, -length:]

    per_token: dict[str, torch.Tensor | None] = {"policy.n_tokens": mask}
    columns: dict[str, torch.Tensor | None] = {}
    for role, output, extra in (("policy", policy, tap.policy_extra), ("ref", tap.reference, tap.reference_extra)):
        if output is None:
            continue
        logp = tail(output.log_probs)
        per_token[f"{role}.sum_logp"] = logp
        per_token[f"{role}.top1_hits"] = tail(output.is_top1)
        per_token[f"{role}.entropy_sum"] = tail(output.entropy)
        per_token[f"{role}.top5_hits"] = tail(extra.get("top5"))
        per_token[f"{role}.greedy_logp_sum"] = tail(extra.get("greedy_logp"))
        if spec.ld_alpha is not None and logp is not None:
            columns[f"{role}.loss_logp"] = (logp.double() * ld_factors(mask, spec.ld_alpha)).sum(1)
    kl = {name: tail(values) for name, values in tap.kl.items()}
    per_token |= {f"policy.{name}_sum": values for name, values in kl.items()}
    per_token["policy.logit_sum"] = tail(policy.mean_logits)
    columns["policy.n_seen"] = completion.sum(1)
    if byte_table is not None:
        table = byte_table if byte_table.device == targets.device else byte_table.to(targets.device)
        per_token["policy.n_bytes"] = table[targets.clamp(max=len(table) - 1)]
    if spec.use_weighting and policy.log_sum_sq_probs is not None:
        columns["log_weight"] = log_weights(policy, mask)
    if trainer.precompute_ref_logps and spec.needs_reference:
        given = torch.cat([inputs[name] for name in REF_SUMS])
        columns["ref.loss_logp" if spec.ld_alpha is not None else "ref.sum_logp"] = given
    if trainer.aux_loss_enabled and policy.aux_loss is not None:
        columns["aux_loss"] = policy.aux_loss
    columns["pair_beta"] = tap.pair_beta
    summed = {name: of for name, of in per_token.items() if of is not None}
    values = to_host(columns | {"loss": loss, "sums": _masked_sums([*summed.values()], mask)})
    values |= dict(zip(summed, values.pop("sums"), strict=True))

    aux = float(values.pop("aux_loss", np.zeros(1)).item())
    added = float(trainer.router_aux_loss_coef) * aux
    number = float(values.pop("loss").item()) - added
    log_weight, beta = values.pop("log_weight", None), values.pop("pair_beta", None)
    of_row = {} if beta is None else {"beta": beta}
    if log_weight is not None:
        of_row["weight"] = np.exp(log_weight.reshape(2, n_pairs)).prod(axis=0)
    roles: dict[str, dict[str, FloatArray]] = {"policy": {}, "ref": {}}
    for name, value in values.items():
        role, column = name.split(".", 1)
        roles[role][column] = value.reshape(2, n_pairs)
    if roles["ref"]:
        roles["ref"]["n_tokens"] = roles["policy"]["n_tokens"]
    seen = roles["policy"]["n_seen"]
    pair_ids, rows, full = _identify(inputs, ids, seen)
    roles["policy"]["n_truncated"] = np.where(full >= 0, full - seen, np.nan)
    batch = Batch(
        pair_ids, rows, SIDES, roles["policy"], roles["ref"],
        of_row, loss=number, added=added,
    )  # fmt: skip
    losses = batch.pair_losses(spec)
    if losses is not None:
        batch.expected = float(losses.mean())
    if with_tokens:
        prompt = (inputs["attention_mask"].bool() & ~completion.bool())[:n_pairs].cpu()
        reference = tap.reference
        batch.tokens = TokenRows.of(
            mask=mask,
            token_id=targets,
            logp=tail(policy.log_probs),
            entropy=tail(policy.entropy),
            is_top1=tail(policy.is_top1),
            greedy_logp=tail(tap.policy_extra.get("greedy_logp")),
            ref_greedy_logp=tail(tap.reference_extra.get("greedy_logp")),
            ref_logp=None if reference is None else tail(reference.log_probs),
            ref_entropy=None if reference is None else tail(reference.entropy),
            ref_is_top1=None if reference is None else tail(reference.is_top1),
            **kl,
            prompt_ids=[row[p].tolist() for row, p in zip(inputs["input_ids"][:n_pairs].cpu(), prompt, strict=True)],
        )
    return batch


def _masked_sums(per_token: list[torch.Tensor], mask: torch.Tensor) -> torch.Tensor:
    """(columns, rows) sums of (rows, tokens) columns where `mask`, float64 (float32 on MPS, which has none): together,
    since for a small batch each operation costs more than its numbers."""
    kind = torch.float32 if mask.device.type == "mps" else torch.float64
    block = torch.empty((len(per_token), *mask.shape), dtype=kind, device=mask.device)
    for own, values in zip(block, per_token, strict=True):
        own.copy_(values)
    return block.masked_fill_(~mask, 0).sum(2)


def _identify(
    inputs: dict[str, Any], ids: torch.Tensor | None, seen: FloatArray
) -> tuple[list[str], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """(pair ids, rows in the data set, full response lengths (2, pairs)); -1 where not known."""
    if ids is not None and len(ids) == seen.shape[1]:
        pair_ids, rows, full = decode_ids(ids.cpu().numpy())
        if not rearranged(full, seen):
            return _token_ids(inputs) if pair_ids is None else pair_ids, rows, full
    return _token_ids(inputs), np.full(seen.shape[1], -1, dtype=np.int64), np.full(seen.shape, -1, dtype=np.int64)


_TOKENS = ("input_ids", "attention_mask", "completion_mask")
_NOT_SEEN = (*_TOKENS, "token_type_ids", "mm_token_type_ids", "position_ids", *REF_SUMS)


def _token_ids(inputs: dict[str, Any]) -> list[str]:
    beside = {k: v.float().cpu().numpy() for k, v in inputs.items() if k not in _NOT_SEEN and torch.is_tensor(v)}
    tokens, attention, completion = (inputs[k].cpu().numpy() for k in _TOKENS)
    return ids_from_tokens(tokens, attention, completion, beside)
