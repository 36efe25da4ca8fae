"""A candidate set for each utterance, all utterances of a tile in one matrix product.

One product for each utterance leaves most of the GPU idle, and costs the host three launches an utterance.
"""

from __future__ import annotations

import itertools

import torch

from nemo_sampled_rnnt.loss.candidates import ALIGNMENT
from nemo_sampled_rnnt.loss.cuda.places import RowSums
from nemo_sampled_rnnt.loss.own_rows import OwnRows
from nemo_sampled_rnnt.loss.problem import Problem
from nemo_sampled_rnnt.loss.tiles import Tile, Visit


def grouped_products(like: torch.Tensor, width: int) -> bool:
    """torch has a grouped product for this dtype, width and GPU."""
    return (
        like.is_cuda
        and like.dtype == torch.bfloat16
        and width % ALIGNMENT == 0
        and hasattr(torch, "_grouped_mm")
        and torch.cuda.get_device_capability(like.device)[0] == 9
    )


class GroupedRows(OwnRows):
    """:class:`OwnRows` by grouped products.

    The weight gradients of an utterance leave a product in bfloat16, and are summed over utterances and tiles in
    float32, in their order. No algorithm is chosen for them, so sizes need not recur.
    """

    more_rows = False

    def __init__(self, weight, bias, problem: Problem, dtype: torch.dtype, needs, spare: int):
        super().__init__(weight, bias, problem, dtype, needs, spare)
        self._row_sums = None
        if self._sums.tensors:
            (self._total,) = self._sums.tensors
            self._row_sums = RowSums(problem.candidates, self._place, self._total)

    def prepare(self, visits: list[Visit]) -> None:
        tiles = [tile for visit in visits for tile in visit]
        ends = [segment.cells.stop for tile in tiles for segment in tile.segments]
        # From pageable memory: the driver takes a copy at once, and nobody waits for the GPU.
        ends = torch.tensor(ends, dtype=torch.int32).to(self._ids.device, non_blocking=True)
        cuts = [0, *itertools.accumulate(len(tile.segments) for tile in tiles)]
        self._ends = {tile.first_cell: ends[a:b] for tile, (a, b) in zip(tiles, itertools.pairwise(cuts), strict=True)}

    def logits(self, tile: Tile, hidden: torch.Tensor, out) -> torch.Tensor:
        return torch._grouped_mm(hidden, self._rows_of(tile).transpose(1, 2), self._ends[tile.first_cell])

    def hidden_gradient(self, tile: Tile, logits_gradient: torch.Tensor, out) -> torch.Tensor:
        return torch._grouped_mm(logits_gradient, self._rows_of(tile), self._ends[tile.first_cell])

    def accumulate(self, tile: Tile, hidden_and_one: torch.Tensor, logits_gradient: torch.Tensor) -> None:
        if self._row_sums is not None:
            right = hidden_and_one[:, -self._total.shape[1] :]
            product = torch._grouped_mm(logits_gradient.T, right, self._ends[tile.first_cell])
            self._row_sums.add(product, tile.first_utterance, tile.last_utterance)
