"""In which sets a candidate is, and so where the gradients of its row are summed: by the tables that the survey left.

A sort of all candidates says the same, in twenty-five launches.
"""

from __future__ import annotations

from functools import cache

import torch
from numba import cuda, float32, int32, int64

from nemo_sampled_rnnt.gpu.launch import SIMULATED, BoundKernel, device
from nemo_sampled_rnnt.gpu.octets import OCTET, octets
from nemo_sampled_rnnt.loss.candidates import Candidates
from nemo_sampled_rnnt.loss.cuda.survey import FREE, find

PLACING_THREADS = 4 if SIMULATED else 128
THREADS = 4 if SIMULATED else 96


@device
def column_of(row, group, keys, ranks, capacity, vocabulary):
    """Where a row of the weight stands in a set, blank and TDT's durations first; -1: it is no candidate there."""
    if row >= vocabulary:
        return row - vocabulary
    slot = find(keys, group * capacity, capacity, row)
    return int64(-1) if keys[slot] == FREE else int64(ranks[slot])


def places(candidates: Candidates) -> tuple[torch.Tensor, torch.Tensor]:
    """A place for each distinct candidate of a batch: where it stands first.

    Args:
        candidates: of all utterances, G > 1 sets of S candidates; with tables.

    Returns:
        (G, S) int64, the place of each; of padding that of blank. (G S,) int64, the row of the weight whose place it
        is; -1: nobody's.
    """
    ids, lookup = candidates.ids, candidates.lookup
    groups, columns = ids.shape
    place, row_ids = torch.empty(2, groups * columns, dtype=torch.int64, device=ids.device).unbind()
    kernel = BoundKernel(
        places_kernel,
        [ids, candidates.count, lookup.keys, lookup.ranks, place, row_ids],
        0,
        (groups * columns, columns, ids.stride(0), lookup.capacity, lookup.vocabulary),
    )
    kernel((-(-groups * columns // PLACING_THREADS), 1, 1), PLACING_THREADS)
    return place.view(groups, columns), row_ids


@cuda.jit
def places_kernel(
    ids, count, keys, ranks, place, row_ids, slots, columns, pitch, capacity, vocabulary,
):  # fmt: skip
    """Thread: a candidate of a set."""
    n = int64(cuda.blockIdx.x) * cuda.blockDim.x + cuda.threadIdx.x
    if n >= slots:
        return
    own, k = n // columns, n % columns
    if k >= count[own]:
        place[n], row_ids[n] = int64(0), int64(-1)
        return
    row = ids[own * pitch + k]
    group = int64(0)
    column = column_of(row, group, keys, ranks, capacity, vocabulary)
    while column < 0:
        group += 1
        column = column_of(row, group, keys, ranks, capacity, vocabulary)
    place[n] = group * columns + column
    row_ids[n] = row if group == own else int64(-1)


class RowSums:
    """Adds the gradients of the rows of some sets to the sums of all.

    Args:
        candidates: as in :func:`places`.
        place: (G, S) int64, the row of ``total`` for each candidate.
        total: (rows, stride) float32, whole octets.
    """

    def __init__(self, candidates: Candidates, place, total: torch.Tensor):
        ids, lookup = candidates.ids, candidates.lookup
        self._columns = ids.shape[1]
        product = total.new_empty(0, dtype=torch.bfloat16)
        self._add = BoundKernel(
            add_rows(),
            [total, product, ids, candidates.count, place.contiguous(), lookup.keys, lookup.ranks],
            2,
            (self._columns, ids.stride(0), total.shape[1], lookup.capacity, lookup.vocabulary),
        )

    def add(self, product: torch.Tensor, first: int, last: int) -> None:
        """Of the sets first..last-1, in their order: product (last - first, S, stride) bfloat16."""
        self._add.rebind(1, product)
        self._add(((last - first) * self._columns, 1, 1), THREADS, first, last)


@cache
def add_rows():
    """The kernel, compiled at its first launch."""
    load_product = octets("bfloat16").load8
    load_total, store_total = octets("float32").load8, octets("float32").store8

    @cuda.jit
    def add_rows_kernel(
        total, product, ids, count, place, keys, ranks,
        first, last, columns, pitch, stride, capacity, vocabulary,
    ):  # fmt: skip
        """Block: a candidate of a set; where an earlier set has it too, that one's block adds them all, in the order of
        the sets. Thread: a set to look in, then octets."""
        found = cuda.shared.array(THREADS, int32)
        own, k = first + cuda.blockIdx.x // columns, int64(cuda.blockIdx.x % columns)
        if k >= count[own]:
            return
        thread, row = int64(cuda.threadIdx.x), ids[own * pitch + k]
        to = place[own * columns + k]
        values = cuda.local.array(OCTET, float32)
        terms = cuda.local.array(OCTET, float32)
        for begin in range(first, last, THREADS):
            group = begin + thread
            column = int64(-1)
            if group < last:
                column = column_of(row, group, keys, ranks, capacity, vocabulary)
            cuda.syncthreads()
            found[thread] = column
            cuda.syncthreads()
            here = min(int64(THREADS), last - begin)
            for other in range(min(here, own - begin)):
                if found[other] >= 0:
                    return
            for octet in range(thread, stride // OCTET, THREADS):
                at = int64(OCTET * octet)
                load_total(total, to * stride + at, values, 0)
                for other in range(here):
                    if found[other] >= 0:
                        term = (begin - first + other) * columns + found[other]
                        load_product(product, term * stride + at, terms, 0)
                        for i in range(OCTET):
                            values[i] += terms[i]
                store_total(total, to * stride + at, values, 0)

    return add_rows_kernel
