"""Sums of the gradients of weight and bias over tiles, and what becomes of them in backward."""

from __future__ import annotations

import torch

from nemo_sampled_rnnt.loss.candidates import ALIGNMENT, aligned
from nemo_sampled_rnnt.loss.problem import accumulation_dtype

HAS_OUT_DTYPE = "dtype_out" in torch.ops.aten.addmm.overloads()  # products of half precision into float32


class ProductSums:
    """Sum over tiles of gradient' [hidden 1]: the gradients of weight and bias, in the accumulation dtype.

    A product rounded to half precision would add its error with every tile, and in float16 overflow.

    Args:
        rows, width: of the weight.
        like: a tensor of the compute dtype and device.
        weight, bias: what is asked for.

    Attributes:
        weight: (rows, width), or None.
        bias: (rows,), or None.
        tensors: what holds them, one for both or one for each.
        both: what holds both, or None.
    """

    def __init__(self, rows: int, width: int, like: torch.Tensor, weight: bool, bias: bool):
        dtype = accumulation_dtype(like.dtype)
        self.weight = self.bias = self.both = None
        self._begun = set()  # first of the rows that hold a product; others hold nothing yet
        if like.is_cuda and like.dtype != dtype and HAS_OUT_DTYPE and (weight or bias):
            # The bias gradient comes with the product, as one more column, without a pass of its own.
            columns = aligned(width) + ALIGNMENT if weight else ALIGNMENT
            self.both = like.new_empty(rows, columns, dtype=dtype)
            self.weight = self.both[:, :width] if weight else None
            self.bias = self.both[:, -ALIGNMENT] if bias else None
        else:
            self.weight = like.new_zeros(rows, width, dtype=dtype) if weight else None
            self.bias = like.new_zeros(rows, dtype=dtype) if bias else None
        self.rows = rows
        held = (self.weight, self.bias) if self.both is None else (self.both,)
        self.tensors = [tensor for tensor in held if tensor is not None]

    def zeroed(self) -> ProductSums:
        """These sums, before the first product: zeros, to which others may add."""
        if self.both is not None:
            self.both.zero_()
        return self

    def set(self, gradient: torch.Tensor, hidden_and_one: torch.Tensor) -> None:
        """Forget what was summed, and begin with this product."""
        self._begun.clear()
        if self.both is None:
            for total in self.tensors:
                total.zero_()
        self.add(gradient, hidden_and_one)

    def add(self, gradient: torch.Tensor, hidden_and_one: torch.Tensor, rows: slice = slice(None)) -> None:
        """Add the product to these rows.

        Args:
            gradient: (cells, rows), of the logits.
            hidden_and_one: (cells, more than width), its last ALIGNMENT columns a one and zeros.
        """
        if self.both is not None:
            total = self.both[rows]
            right = hidden_and_one[:, -total.shape[1] :]
            if rows.start in self._begun:
                torch.ops.aten.addmm.dtype_out(total, gradient.T, right, total.dtype, out=total)
            else:
                torch.ops.aten.mm.dtype_out(gradient.T, right, total.dtype, out=total)
                self._begun.add(rows.start)
            return
        total = self.bias if self.weight is None else self.weight
        if total is None:
            return
        width = 0 if self.weight is None else self.weight.shape[1]
        # Half precision is widened a block at a time, to keep the copies small.
        cells = len(gradient) if gradient.dtype == total.dtype else max(64, 2**21 // sum(gradient.shape[1:], width))
        for first in range(0, len(gradient), cells):
            left = gradient[first : first + cells].to(total.dtype)
            if self.weight is not None:
                self.weight[rows].addmm_(left.T, hidden_and_one[first : first + cells, :width].to(total.dtype))
            if self.bias is not None:
                # torch.sum was seen to take a buffer twice the size of its input on CUDA
                column = torch.mv(left.T, left.new_ones(len(left))) if left.is_cuda else left.sum(dim=0)
                self.bias[rows] += column


class RowGradients:
    """Gradients of some rows of weight and bias, waiting for the factor that comes back from outside.

    Args:
        sums: of the rows.
        count: how many of the rows there are; those behind are padding.
        row_ids: (count or more,) int64, which rows they are, each another one; -1 is of none. None: the first ones.
        total_rows: V + 1.
    """

    def __init__(self, sums: ProductSums, count: int, row_ids, total_rows: int):
        self.sums, self.count, self.row_ids, self.total_rows = sums, count, row_ids, total_rows

    def gradients(self, factor: torch.Tensor, weight_dtype, bias_dtype, keep: bool):
        """Gradients of the whole weight and bias, times ``factor``."""
        return (
            self._whole(self.sums.weight, factor, weight_dtype, keep),
            self._whole(self.sums.bias, factor, bias_dtype, keep),
        )

    def _whole(self, gradient, factor, dtype, keep: bool):
        gradient = scaled(None if gradient is None else gradient[: self.count], factor, dtype, keep)
        if gradient is None or self.row_ids is None:
            return gradient
        whole = gradient.new_zeros(self.total_rows + 1, *gradient.shape[1:])  # the last row: of none
        return whole.index_copy_(0, self.row_ids[: self.count] % len(whole), gradient)[:-1]


def scaled(gradient: torch.Tensor | None, factor: torch.Tensor, dtype: torch.dtype, keep: bool):
    """gradient x factor in ``dtype``, in place where that is possible and it need not be kept; None stays None."""
    if gradient is None:
        return None
    if gradient.dtype == dtype and gradient.is_contiguous() and not keep:
        return gradient.mul_(factor)
    return torch.mul(gradient, factor, out=torch.empty(gradient.shape, dtype=dtype, device=gradient.device))
