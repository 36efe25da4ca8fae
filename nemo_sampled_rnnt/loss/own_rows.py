"""The rows of the output layer when each utterance has a candidate set of its own."""

from __future__ import annotations

from functools import cached_property

import torch

from nemo_sampled_rnnt.loss.candidates import ALIGNMENT, recurring
from nemo_sampled_rnnt.loss.problem import Problem
from nemo_sampled_rnnt.loss.row_gradients import ProductSums, RowGradients
from nemo_sampled_rnnt.loss.shared_rows import candidate_offsets
from nemo_sampled_rnnt.loss.tiles import Segment, Tile, Visit


def set_bytes(columns: int, width: int, itemsize: int) -> int:
    """Of the rows of an utterance's set, and of their gradients."""
    return 2 * columns * (width + ALIGNMENT) * itemsize


class OwnRows:
    """Members as those of :class:`SharedRows`.

    The gradients of all sets are summed in one row for each row of the weight, or for each distinct candidate if those
    are fewer.
    """

    more_rows = True

    def __init__(self, weight, bias, problem: Problem, dtype: torch.dtype, needs, spare: int):
        self._weight, self._dtype, self._total_rows = weight, dtype, len(weight)
        self._ids, self.offsets = problem.candidates.ids, candidate_offsets(bias, problem, dtype)
        self.columns = self.stride = self._ids.shape[1]
        self._place, self._row_ids, rows = self._ids, None, len(weight)
        if self._ids.numel() < len(weight):
            self._place_distinct_rows(problem)
            rows = self._ids.numel()
        self._needs, self._recur = needs, problem.table is not None
        self._sums = self._sums_of(rows).zeroed()
        self.utterance_bytes = set_bytes(self.columns, weight.shape[1], dtype.itemsize)
        self._gathered: tuple[Tile | None, torch.Tensor | None] = (None, None)

    def _sums_of(self, rows: int) -> ProductSums:
        like = self._weight.new_empty(0, dtype=self._dtype)
        return ProductSums(rows, self._weight.shape[1], like, self._needs.weight, self._needs.bias)

    @cached_property
    def _product(self) -> ProductSums:
        """Of one utterance and tile."""
        return self._sums_of(self.columns)

    def prepare(self, visits: list[Visit]) -> None:
        """Nothing to do before the first tile."""

    def _place_distinct_rows(self, problem: Problem) -> None:
        """Where the rows of each utterance's set are summed, without room for rows that are in none."""
        if problem.candidates.lookup is not None:
            from nemo_sampled_rnnt.loss.cuda.places import places

            self._place, self._row_ids = places(problem.candidates)
            return
        keys, order = self._ids.flatten().sort()
        rank = torch.cat([keys.new_zeros(1), (keys[1:] != keys[:-1]).long().cumsum(0)])
        self._place = torch.empty_like(rank).scatter_(0, order, rank).view_as(self._ids)
        self._row_ids = torch.full_like(keys, -1).scatter_(0, rank, keys)

    def _rows_of(self, tile: Tile) -> torch.Tensor:
        """(G, S, H) rows of the sets of a tile's utterances."""
        if self._gathered[0] is not tile:
            self._gathered = (None, None)  # the old rows go before the new ones come
            rows = self._weight[self._ids[tile.first_utterance : tile.last_utterance]].to(self._dtype)
            self._gathered = (tile, rows)
        return self._gathered[1]

    def _with_more(self, segment: Segment, tile: Tile) -> slice:
        """Its cells, and some behind that make a recurring size. What a product writes there, the next one replaces."""
        first, after = segment.cells.start, segment.cells.stop
        return slice(first, min(first + recurring(after - first), tile.rows)) if self._recur else segment.cells

    def logits(self, tile: Tile, hidden: torch.Tensor, out) -> torch.Tensor:
        logits = out()
        for segment, rows in zip(tile.segments, self._rows_of(tile), strict=True):
            cells = self._with_more(segment, tile)
            torch.mm(hidden[cells], rows.T, out=logits[cells])
        return logits

    def hidden_gradient(self, tile: Tile, logits_gradient: torch.Tensor, out) -> torch.Tensor:
        gradient = out()
        for segment, rows in zip(tile.segments, self._rows_of(tile), strict=True):
            cells = self._with_more(segment, tile)
            torch.mm(logits_gradient[cells], rows, out=gradient[cells, : rows.shape[1]])
        return gradient

    def accumulate(self, tile: Tile, hidden_and_one: torch.Tensor, logits_gradient: torch.Tensor) -> None:
        for segment in tile.segments:  # these products sum over cells, and may take no others
            self._product.set(logits_gradient[segment.cells], hidden_and_one[segment.cells])
            for total, product in zip(self._sums.tensors, self._product.tensors, strict=True):
                # Ids within a set are distinct but for the padding, which adds zeros: index_add_ is deterministic.
                total.index_add_(0, self._place[segment.utterance], product)

    def release(self) -> RowGradients:
        return RowGradients(self._sums, self._sums.rows, self._row_ids, self._total_rows)
