"""The rows of the output layer that are in the softmax: their products, and the sums of their gradients."""

from __future__ import annotations

import torch

from nemo_sampled_rnnt.loss.problem import Problem, accumulation_dtype
from nemo_sampled_rnnt.loss.tiles import Tile

ALIGNMENT = 8  # elements; 16 bytes in half precision
HAS_OUT_DTYPE = "dtype" in torch.ops.aten.mm.overloads()


class WeightRows:
    """Rows of weight and bias of each candidate set, in the compute dtype.

    Attributes:
        columns: S, columns of a logits tile: rows of the weight, or the largest set rounded up to ALIGNMENT with
            blanks that have no part in the softmax.
        stride: S rounded up to ALIGNMENT.
        offsets: (G, stride) float, c_k - log q_k, what is added to the product before the log-sum-exp; -inf in the
            padding. Scores of blank and labels need no more, since q = 1 there.
        gradient: (rows, H) sum of the weight gradients, float32 or float64. One row for each row of the weight, or
            with sampling one for each distinct candidate if those are fewer.
    """

    def __init__(self, weight, bias, problem: Problem, dtype: torch.dtype, needs):
        self.problem, self.needs = problem, needs
        self.total_rows = len(weight)
        accumulate = accumulation_dtype(dtype)
        candidates = problem.candidates
        bias = bias.to(accumulate)
        if candidates.ids is None:
            self.columns, self.stride = self.total_rows, aligned(self.total_rows)
            self._ids, self._shared = None, weight.to(dtype)
            offsets = bias[None]
        else:
            self.columns = self.stride = aligned(candidates.ids.shape[1])
            padding = (0, self.columns - candidates.ids.shape[1])
            self._ids = torch.nn.functional.pad(candidates.ids, padding, value=self.total_rows - 1)
            self._shared = None if problem.per_utterance else weight[self._ids[0]].to(dtype)
            offsets = bias[self._ids]
            if candidates.log_q is not None:
                offsets = offsets - torch.nn.functional.pad(candidates.log_q, padding)
            beyond = torch.arange(self.columns, device=bias.device) >= candidates.count[:, None]
            offsets = offsets.masked_fill(beyond, -torch.inf)
        self.offsets = torch.nn.functional.pad(offsets, (0, self.stride - offsets.shape[1]), value=-torch.inf)
        self._weight, self._dtype = weight, dtype
        self._place = self._row_ids = None
        rows = self.total_rows
        if problem.per_utterance:
            rows = self._number_distinct_rows()
        elif self._ids is not None:
            rows, self._row_ids = self.columns, self._ids[0]
        self.gradient = weight.new_zeros(rows, weight.shape[1], dtype=accumulate) if needs.weight else None
        self.bias_gradient = weight.new_zeros(rows, dtype=accumulate) if needs.bias else None

    @property
    def _stretches(self) -> list[slice]:
        """Columns in one product: V + 1 is odd as a rule, and tensor cores want multiples of ALIGNMENT."""
        body = self.columns // ALIGNMENT * ALIGNMENT
        return [part for part in (slice(0, body), slice(body, self.columns)) if part.stop > part.start]

    def _number_distinct_rows(self) -> int:
        """Where the rows of each utterance's set are summed, and how many such places there are."""
        ids = self._ids
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
        """(S, H) rows of this utterance's own set."""
        return self._weight[self._ids[utterance]].to(self._dtype)

    def _parts(self, tile: Tile):
        """(utterance, slice of the tile's cells) of each utterance with a set of its own."""
        first = 0
        for segment in tile.segments:
            last = first + segment.frames * self.problem.lattice.width(segment.utterance)
            yield segment.utterance, slice(first, last)
            first = last

    def logits(self, tile: Tile, hidden: torch.Tensor, out: torch.Tensor) -> None:
        """out[:, k] = w_k . hidden for the candidates of each cell (without the offsets)."""
        if self._shared is not None:
            for part in self._stretches:
                torch.mm(hidden, self._shared[part].T, out=out[:, part])
            return
        for utterance, part in self._parts(tile):
            torch.mm(hidden[part], self._of(utterance).T, out=out[part])

    def hidden_gradient(self, tile: Tile, logits_gradient: torch.Tensor, out: torch.Tensor) -> None:
        """out = logits_gradient x weight."""
        if self._shared is not None:
            *rest, last = reversed(self._stretches)  # the small product first: the large one adds to it unrounded
            for part in rest:
                torch.mm(logits_gradient[:, part], self._shared[part], out=out)
            torch.addmm(out, logits_gradient[:, last], self._shared[last], beta=len(rest), out=out)
            return
        for utterance, part in self._parts(tile):
            torch.mm(logits_gradient[part], self._of(utterance), out=out[part])

    def accumulate(self, tile: Tile, hidden_and_one: torch.Tensor, logits_gradient: torch.Tensor) -> None:
        """Add this tile's weight and bias gradients.

        Args:
            hidden_and_one: (cells, more than H), behind the hidden a column of ones (see :class:`Workspace`).
            logits_gradient: (cells, S).
        """
        if self._shared is not None:
            add_products(self.gradient, self.bias_gradient, logits_gradient, hidden_and_one)
            return
        width = self._weight.shape[1]
        for utterance, part in self._parts(tile):
            weight = None if self.gradient is None else self.gradient.new_zeros(self.columns, width)
            bias = None if self.bias_gradient is None else self.bias_gradient.new_zeros(self.columns)
            add_products(weight, bias, logits_gradient[part], hidden_and_one[part])
            # Ids within a set are distinct but for the padding, which adds zeros: index_add_ is deterministic.
            if weight is not None:
                self.gradient.index_add_(0, self._place[utterance], weight)
            if bias is not None:
                self.bias_gradient.index_add_(0, self._place[utterance], bias)

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
        gradient = scaled(gradient, factor, dtype, keep)
        if gradient is None or self.row_ids is None:
            return gradient
        whole = gradient.new_zeros(self.total_rows, *gradient.shape[1:])
        return whole.index_add_(0, self.row_ids, gradient)


def scaled(gradient: torch.Tensor | None, factor: torch.Tensor, dtype: torch.dtype, keep: bool):
    """gradient x factor in ``dtype``, in place unless it must be kept; None stays None."""
    if gradient is None:
        return None
    product = gradient * factor if keep else gradient.mul_(factor)
    return product.to(dtype)


def aligned(size: int) -> int:
    """``size`` rounded up to ALIGNMENT."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def add_products(weight_total, bias_total, gradient: torch.Tensor, hidden_and_one: torch.Tensor) -> None:
    """weight_total += gradient' hidden and bias_total += gradient' 1, in the dtype of the totals; None is skipped.

    A product rounded to half precision would add its error with every tile, and in float16 overflow. Blocks keep
    what is wider small: 4,096 rows of H = 640 in float32 are 10 MB.
    """
    total = bias_total if weight_total is None else weight_total
    if total is None:
        return
    width = 0 if weight_total is None else weight_total.shape[1]
    if gradient.is_cuda and gradient.dtype != total.dtype and HAS_OUT_DTYPE:
        one = hidden_and_one.shape[1] - ALIGNMENT  # the bias gradient comes with the product, without a pass of its own
        right = hidden_and_one if width else hidden_and_one[:, one:]
        for first in range(0, gradient.shape[1], 4096):
            block = slice(first, first + 4096)
            product = torch.mm(gradient[:, block].T, right, out_dtype=total.dtype)
            if weight_total is not None:
                weight_total[block] += product[:, :width]
            if bias_total is not None:
                bias_total[block] += product[:, one if width else 0]
        return
    cells = len(gradient) if gradient.dtype == total.dtype else max(64, 2**21 // sum(gradient.shape[1:], width))
    for first in range(0, len(gradient), cells):
        left = gradient[first : first + cells].to(total.dtype)
        if weight_total is not None:
            weight_total.addmm_(left.T, hidden_and_one[first : first + cells, :width].to(total.dtype))
        if bias_total is not None:
            # torch.sum was seen to take a buffer twice the size of its input on CUDA
            bias_total += torch.mv(left.T, left.new_ones(len(left))) if left.is_cuda else left.sum(dim=0)
