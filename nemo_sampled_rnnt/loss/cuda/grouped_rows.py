"""A candidate set for each utterance, all utterances of a tile in one matrix product.

One product for each utterance leaves most of the GPU idle, and costs the host three launches an utterance.
"""

from __future__ import annotations

import itertools
from functools import cache

import torch
from numba import cuda, float32, int64

from nemo_sampled_rnnt.gpu.launch import SIMULATED, BoundKernel
from nemo_sampled_rnnt.gpu.octets import OCTET, octets
from nemo_sampled_rnnt.loss.candidates import ALIGNMENT
from nemo_sampled_rnnt.loss.own_rows import OwnRows
from nemo_sampled_rnnt.loss.tiles import Tile, Visit

THREADS = 4 if SIMULATED else 96


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
    float32, in an order that a sort fixes once for the batch.
    """

    def prepare(self, visits: list[Visit]) -> None:
        tiles = [tile for visit in visits for tile in visit]
        ends = [segment.cells.stop for tile in tiles for segment in tile.segments]
        # From pageable memory: the driver takes a copy at once, and nobody waits for the GPU.
        ends = torch.tensor(ends, dtype=torch.int32).to(self._ids.device, non_blocking=True)
        cuts = [0, *itertools.accumulate(len(tile.segments) for tile in tiles)]
        self._ends = {tile.first_cell: ends[a:b] for tile, (a, b) in zip(tiles, itertools.pairwise(cuts), strict=True)}
        if not self._sums.tensors:
            return
        (self._total,) = self._sums.tensors
        visit_of = [number for number, visit in enumerate(visits) for _ in range(visit[0].utterances)]
        visit_of = torch.tensor(visit_of).to(self._ids.device, non_blocking=True)
        # Within a visit equal places come together, padding last; the sort is stable, so utterances keep their order.
        keys = self._place + (len(self._total) + 1) * visit_of[:, None]
        padding = self.offsets.isneginf() & (self._ids == self._ids[:, :1])  # repeats blank, as durations do not
        keys = torch.where(padding, (len(self._total) + 1) * (visit_of[:, None] + 1) - 1, keys)
        self._keys, self._order = keys.flatten().sort(stable=True)

    def logits(self, tile: Tile, hidden: torch.Tensor, out) -> torch.Tensor:
        return torch._grouped_mm(hidden, self._rows_of(tile).transpose(1, 2), self._ends[tile.first_cell])

    def hidden_gradient(self, tile: Tile, logits_gradient: torch.Tensor, out) -> torch.Tensor:
        return torch._grouped_mm(logits_gradient, self._rows_of(tile), self._ends[tile.first_cell])

    def accumulate(self, tile: Tile, hidden_and_one: torch.Tensor, logits_gradient: torch.Tensor) -> None:
        if not self._sums.tensors:
            return
        right = hidden_and_one[:, -self._total.shape[1] :]
        product = torch._grouped_mm(logits_gradient.T, right, self._ends[tile.first_cell])
        first, last = tile.first_utterance * self.columns, tile.last_utterance * self.columns
        add = BoundKernel(
            add_rows(), [self._total, product, self._keys, self._order], 0, (first, last, *self._total.shape)
        )
        add((last - first, 1, 1), THREADS)


@cache
def add_rows():
    """The kernel that adds the rows of a product where their keys say, compiled at its first launch."""
    load_product = octets("bfloat16").load8
    load_total, store_total = octets("float32").load8, octets("float32").store8

    @cuda.jit
    def add_rows_kernel(total, product, keys, order, first, last, rows, stride):
        """Block: a sorted position; the first of equal keys adds them all, one of padding none. Thread: octets.

        total (rows, stride) float32, product (last - first, stride) bfloat16.
        """
        position = first + cuda.blockIdx.x
        key = keys[position]
        if position > first and keys[position - 1] == key:
            return
        row = key % (rows + 1)
        if row == rows:
            return
        values = cuda.local.array(OCTET, float32)
        terms = cuda.local.array(OCTET, float32)
        for octet in range(cuda.threadIdx.x, stride // OCTET, cuda.blockDim.x):
            begin = int64(OCTET * octet)
            load_total(total, row * stride + begin, values, 0)
            other = position
            while other < last and keys[other] == key:
                load_product(product, (order[other] - first) * stride + begin, terms, 0)
                for i in range(OCTET):
                    values[i] += terms[i]
                other += 1
            store_total(total, row * stride + begin, values, 0)

    return add_rows_kernel
