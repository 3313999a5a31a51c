"""What passes through TRL's fused LM head (1.16) and is not returned: read while a tile of logits exists."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import trl.kernels.chunked_logprob as kernel


def head_scores_every_position(device: torch.device) -> bool:
    """Whether the fused head projects masked positions anyway (no Triton on this device)."""
    return not kernel._use_triton(device)


class HeadProbe:
    """Reads, inside the fused LM head, what TRL does not return: top-5 hits and the greedy token's log-prob.

    The head projects the vocabulary in tiles and folds each into running statistics. While `listening`, the fold is
    wrapped: the greedy log-prob is -log(sum of exp(z - max z)), which the fold has at the end anyway; a top-5 hit
    needs the tile once more (one gather, one comparison with a sum; where the vocabulary spans several tiles of
    32,768, a top-k per tile instead), and is taken for the policy alone.

    Price, measured by benchmarks/step.py on one CPU thread: a step of a 0.5M-parameter model (vocabulary
    768, 79 ms) takes 1 % more with greedy_logp and 2 % more with top5; of one forward through TRL's head (8 pairs, 40
    positions) greedy_logp takes 0.2 ms, lost in the noise with 49,152 tokens, and top5 6 % (0.55 of 8.7 ms) with 768
    and 4 to 6 % (about 25 of 547 ms) with 49,152. Not measured on a GPU.
    """

    def __init__(self, top5: bool, greedy: bool) -> None:
        self.top5, self.greedy = top5, greedy
        self.of_policy = True
        """Whether the coming forward is the policy's: top-5 hits are taken from that alone."""
        self._chunks: list[dict[str, Any]] = []
        self._rows: torch.Tensor | None = None
        self._offset = 0
        self._vocabulary = 0
        self.listens = False

    @property
    def wants(self) -> tuple[str, ...]:
        """What the coming forward is asked for, by the names of `models.tiled_head`."""
        return ("greedy_logp",) * self.greedy + ("is_top5",) * (self.top5 and self.of_policy)

    def add(self, greedy_logp: torch.Tensor | None, is_top5: torch.Tensor | None, n: int) -> None:
        """What a head gave that has it all: `wants` of `n` positions."""
        self._chunks.append({"greedy_logp": greedy_logp, "hit": is_top5, "n": n, "rows": None})

    @contextmanager
    def listening(self, vocabulary: int) -> Iterator[None]:
        """Wrap both folds (torch and Triton); undone on leaving, whatever happens inside."""
        self._vocabulary = vocabulary
        tile, triton_kernel = kernel._forward_tile, kernel._forward_kernel

        def fold(*args: Any, **options: Any) -> None:
            tile(*args, **options)
            self._on_tile(*args)

        class Launcher:
            def __getitem__(_, grid: Any) -> Callable[..., None]:
                launch = triton_kernel[grid]

                def launched(*args: Any, **options: Any) -> None:
                    launch(*args, **options)
                    self._on_tile(*args)

                return launched

        kernel._forward_tile, kernel._forward_kernel = fold, Launcher()
        self.listens = True
        try:
            yield
        finally:
            self.listens = False
            kernel._forward_tile, kernel._forward_kernel = tile, triton_kernel

    def expect(self, labels: torch.Tensor | None) -> None:
        """Labels of the coming forward, (batch, length): where the head scores every position (no Triton), only those
        with a label are read. None where the head's rows are not the labels' (virtual tokens)."""
        self._rows = None if labels is None else (labels[:, 1:] != -100).reshape(-1)

    def _on_tile(self, *args: Any) -> None:
        # Positional arguments of both folds: logits tile, its stride, targets, running max, sum of exponentials, the
        # running x·exp, squares, z sum, max before target, target logit, first column, number of columns.
        tile, targets, sum_exp, start, columns = args[0], args[2], args[4], int(args[10]), int(args[11])
        if start == 0:
            self._chunks.append({"sum_exp": sum_exp, "n": len(targets)})
        if not (self.top5 and self.of_policy):
            return
        chunk = self._chunks[-1]
        done = sum(c["n"] for c in self._chunks[:-1])
        with torch.no_grad():
            rows = None
            if self._rows is not None and not kernel._use_triton(tile.device):
                rows = self._rows[done : done + len(targets)].to(tile.device)
            z = tile[:, :columns] if rows is None else tile[:, :columns][rows]
            local = (targets if rows is None else targets[rows]) - start
            inside = (local >= 0) & (local < columns)
            z_target = z.gather(-1, local.clamp(0, columns - 1).unsqueeze(-1))
            if start == 0:
                chunk["rows"] = rows
            if start == 0 and columns == self._vocabulary:
                chunk["hit"] = (z > z_target).sum(-1) < 5
                return
            top = z.topk(min(5, columns), dim=-1).values
            if start == 0:
                chunk["top"], chunk["target"] = top, z_target.squeeze(-1).clone()
            else:
                chunk["top"] = torch.cat([chunk["top"], top], dim=-1).topk(5, dim=-1).values
                chunk["target"] = torch.where(inside, z_target.squeeze(-1), chunk["target"])

    def take(self, mask: torch.Tensor) -> dict[str, torch.Tensor]:
        """What the forward just done gave, each (batch, length - 1), zero where `mask` is; forgets it."""
        chunks, self._chunks = self._chunks, []
        values: dict[str, torch.Tensor] = {}
        if not chunks:
            return values
        seen = sum(c["n"] for c in chunks)
        where = mask if seen == int(mask.sum()) else torch.ones_like(mask)
        if seen != int(where.sum()):
            return values  # a head that was not TRL's: nothing rather than something wrong
        if self.greedy:
            flat = torch.cat([c["greedy_logp"] if "greedy_logp" in c else -torch.log(c["sum_exp"]) for c in chunks])
            values["greedy_logp"] = flat.new_zeros(mask.shape).masked_scatter(where, flat).masked_fill(~mask, 0)
        if self.top5 and self.of_policy:
            hits = []
            for c in chunks:
                hit = c["hit"] if "hit" in c else c["target"] >= c["top"][:, -1]
                if c["rows"] is not None:
                    hit = torch.zeros(c["n"], dtype=torch.bool, device=hit.device).masked_scatter(c["rows"], hit)
                hits.append(hit)
            flat_hits = torch.cat(hits)
            values["top5"] = torch.zeros_like(mask).masked_scatter(where, flat_hits).masked_fill(~mask, False)
        return values
