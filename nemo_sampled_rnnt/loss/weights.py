"""The rows of the output layer that are in the softmax: their products, and the sums of their gradients."""

from __future__ import annotations

import torch

from nemo_sampled_rnnt.loss.problem import Problem, accumulation_dtype
from nemo_sampled_rnnt.loss.tiles import Tile

HAS_OUT_DTYPE = "dtype" in torch.ops.aten.mm.overloads()


class WeightRows:
    """Rows of weight and bias of each candidate set, in the compute dtype.

    Attributes:
        columns: S, columns of a logits tile (the largest set).
        offsets: (G, S) float, c_k - log q_k, what is added to the product before the log-sum-exp. Scores of blank
            and labels need no more, since q = 1 there.
        gradient: (rows, H) sum of the weight gradients, float32 or float64. One row for each row of the weight, or
            with sampling one for each distinct candidate if those are fewer.
    """

    def __init__(self, weight, bias, problem: Problem, dtype: torch.dtype, needs):
        self.problem, self.needs = problem, needs
        self.total_rows = len(weight)
        accumulate = accumulation_dtype(dtype)
        ids, log_q = problem.candidates.ids, problem.candidates.log_q
        self.columns = self.total_rows if ids is None else ids.shape[1]
        if ids is None:
            self._shared = weight.to(dtype)
            self.offsets = bias.to(accumulate)[None]
        else:
            self.offsets = bias.to(accumulate)[ids]
            if log_q is not None:
                self.offsets -= log_q
            self._shared = None if problem.per_utterance else weight[ids[0]].to(dtype)
        self._weight, self._dtype = weight, dtype
        self._place = self._row_ids = None
        rows = self.total_rows
        if problem.per_utterance:
            rows = self._number_distinct_rows()
        elif ids is not None:
            rows, self._row_ids = self.columns, ids[0]
        self.gradient = weight.new_zeros(rows, weight.shape[1], dtype=accumulate) if needs.weight else None
        self.bias_gradient = weight.new_zeros(rows, dtype=accumulate) if needs.bias else None

    def _number_distinct_rows(self) -> int:
        """Where the rows of each utterance's set are summed, and how many such places there are."""
        ids = self.problem.candidates.ids
        if ids.numel() >= self.total_rows:
            self._place = ids
            return self.total_rows
        keys, order = ids.flatten().sort()
        rank = torch.cat([keys.new_zeros(1), (keys[1:] != keys[:-1]).long().cumsum(0)])
        self._place = torch.empty_like(rank).scatter_(0, order, rank).view_as(ids)
        # Spare places keep id 0 and a gradient of 0, which adds nothing to that row.
        self._row_ids = torch.zeros_like(keys).scatter_(0, rank, keys)
        return ids.numel()

    def _of(self, utterance: int) -> torch.Tensor:
        """(S_b, H) rows of this utterance's own set."""
        ids = self.problem.candidates.ids[utterance, : self.problem.count(utterance)]
        return self._weight[ids].to(self._dtype)

    def _parts(self, tile: Tile):
        """(utterance, slice of the tile's cells, candidates) of each utterance with a set of its own."""
        first = 0
        for segment in tile.segments:
            last = first + segment.frames * self.problem.lattice.width(segment.utterance)
            yield segment.utterance, slice(first, last), self.problem.count(segment.utterance)
            first = last

    def logits(self, tile: Tile, hidden: torch.Tensor, out: torch.Tensor) -> None:
        """out[:, k] = w_k . hidden for the candidates of each cell (without the offsets)."""
        if self._shared is not None:
            torch.mm(hidden, self._shared.T, out=out)
            return
        for utterance, part, count in self._parts(tile):
            torch.mm(hidden[part], self._of(utterance).T, out=out[part, :count])

    def hidden_gradient(self, tile: Tile, logits_gradient: torch.Tensor, out: torch.Tensor) -> None:
        """out = logits_gradient x weight."""
        if self._shared is not None:
            torch.mm(logits_gradient, self._shared, out=out)
            return
        for utterance, part, count in self._parts(tile):
            torch.mm(logits_gradient[part, :count], self._of(utterance), out=out[part])

    def accumulate(self, tile: Tile, hidden: torch.Tensor, logits_gradient: torch.Tensor) -> None:
        """Add this tile's weight and bias gradients."""
        if self._shared is not None:
            if self.needs.weight:
                add_product(self.gradient, logits_gradient, hidden)
            if self.needs.bias:
                self.bias_gradient += sum_rows(logits_gradient, self.bias_gradient.dtype)
            return
        for utterance, part, count in self._parts(tile):
            # Ids within a set are distinct: index_add_ meets no row twice and is deterministic.
            place, gradient = self._place[utterance, :count], logits_gradient[part, :count]
            if self.needs.weight:
                product = self.gradient.new_zeros(count, hidden.shape[1])
                self.gradient.index_add_(0, place, add_product(product, gradient, hidden[part]))
            if self.needs.bias:
                self.bias_gradient.index_add_(0, place, sum_rows(gradient, self.bias_gradient.dtype))

    def release(self) -> RowGradients:
        return RowGradients(self.gradient, self.bias_gradient, self._row_ids, self.total_rows)


class RowGradients:
    """Gradients of some rows of weight and bias, waiting for the factor that comes back from outside."""

    def __init__(self, weight, bias, row_ids, total_rows: int):
        self.weight, self.bias, self.row_ids, self.total_rows = weight, bias, row_ids, total_rows

    def gradients(self, factor: torch.Tensor, weight_dtype, bias_dtype, keep: bool):
        """Gradients of the whole weight and bias, times ``factor``."""
        return self._whole(self.weight, factor, weight_dtype, keep), self._whole(self.bias, factor, bias_dtype, keep)

    def _whole(self, gradient, factor, dtype, keep: bool):
        if gradient is None:
            return None
        gradient = (gradient * factor if keep else gradient.mul_(factor)).to(dtype)
        if self.row_ids is None:
            return gradient
        whole = gradient.new_zeros(self.total_rows, *gradient.shape[1:])
        return whole.index_add_(0, self.row_ids, gradient)


def add_product(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """total += left' right, for left (n, S) and right (n, H), summed in the dtype of ``total``.

    A product rounded to half precision would add its error with every tile, and in float16 overflow. Blocks keep
    what is wider small: 4,096 rows of H = 640 in float32 are 10 MB.
    """
    if left.dtype == total.dtype:
        return total.addmm_(left.T, right)
    if left.is_cuda and HAS_OUT_DTYPE:
        for first in range(0, left.shape[1], 4096):
            block = slice(first, first + 4096)
            total[block] += torch.mm(left[:, block].T, right, out_dtype=total.dtype)
        return total
    cells = max(64, 2**21 // (left.shape[1] + right.shape[1]))
    for first in range(0, len(left), cells):
        block = slice(first, first + cells)
        total.addmm_(left[block].T.to(total.dtype), right[block].to(total.dtype))
    return total


def sum_rows(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """(S,) column sums of (n, S) in ``dtype``. On CUDA a product: torch.sum was seen to take 4 n S bytes."""
    if not x.is_cuda or (x.dtype != dtype and not HAS_OUT_DTYPE):
        return x.sum(dim=0, dtype=dtype)
    if x.dtype == dtype:
        return torch.mv(x.T, x.new_ones(len(x)))
    return torch.mm(x.new_ones(1, len(x)), x, out_dtype=dtype)[0]
