"""The head's output layer: its three matrix products, tile by tile."""

from __future__ import annotations

import torch

from nemo_sampled_rnnt.loss.candidates import ALIGNMENT, aligned
from nemo_sampled_rnnt.loss.problem import accumulation_dtype
from nemo_sampled_rnnt.loss.row_gradients import HAS_OUT_DTYPE
from nemo_sampled_rnnt.loss.shared_rows import every_row


class OutputLayer:
    """z = W h; the bias c is added later, in full precision, where the logits are read.

    V + 1 is odd as a rule, and tensor cores want multiples of ALIGNMENT: a copy of the weight, where one is made
    anyway or is small, gets rows of 0; else the odd rows have products of their own.

    Args:
        weight, bias: (V+1, D) and (V+1,).
        dtype: the compute dtype.
        spare: bytes that a copy of the weight may take.

    Attributes:
        stride: V + 1 rounded up to ALIGNMENT, elements from one row of logits to the next.
        columns: of a row of logits that the product writes.
        offsets: (stride,) float, the bias; -inf in the padding.
        weight_gradient: (V+1, D) float, the sum so far; None before the first tile.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor, dtype: torch.dtype, spare: int):
        self.stride, self._count, self._real = self.stride_of(weight), len(weight), accumulation_dtype(dtype)
        self._rows, (self.offsets,) = every_row(weight, bias, len(weight), dtype, spare)
        self.columns = len(self._rows)
        body = self.columns // ALIGNMENT * ALIGNMENT
        self._parts = [part for part in (slice(0, body), slice(body, self.columns)) if part.stop > part.start]
        self._widens = dtype != self._real and weight.is_cuda and HAS_OUT_DTYPE
        self._total = None

    @staticmethod
    def stride_of(weight: torch.Tensor) -> int:
        return aligned(len(weight))

    @property
    def weight_gradient(self) -> torch.Tensor | None:
        return None if self._total is None else self._total[: self._count]

    def logits(self, hidden: torch.Tensor, out: torch.Tensor) -> None:
        """Write hidden x weight' to the first columns of ``out``, (n, stride)."""
        for part in self._parts:
            torch.mm(hidden, self._rows[part].T, out=out[:, part])

    def hidden_gradient(self, gradient: torch.Tensor, out: torch.Tensor) -> None:
        """Write gradient x weight to ``out``, (n, D) in the accumulation dtype."""
        beta = 0
        for part in reversed(self._parts):
            left, rows = gradient[:, part], self._rows[part]
            if self._widens:
                _widening_product(left, rows, out, add=beta == 1)
            elif out.dtype == rows.dtype:
                torch.addmm(out, left, rows, beta=beta, out=out)
            else:
                product = torch.mm(left, rows)
                out.copy_(product) if beta == 0 else out.add_(product)
            beta = 1

    def accumulate(self, gradient: torch.Tensor, hidden: torch.Tensor) -> None:
        """Add gradient' x hidden to the weight's gradient; a sum of rounded tiles would add up their errors."""
        beta = 1
        if self._total is None:
            self._total, beta = hidden.new_empty(self._rows.shape, dtype=self._real), 0
        for part in self._parts:
            total, left = self._total[part], gradient[:, part]
            if self._widens:
                _widening_product(left.T, hidden, total, add=beta == 1)
                continue
            # Half precision is widened a block at a time, to keep the copies small.
            wide = left.dtype == self._real
            at_once = len(left) if wide else max(64, 2**21 // (left.shape[1] + hidden.shape[1]))
            for first in range(0, len(left), at_once):
                block = slice(first, first + at_once)
                scale = beta if first == 0 else 1
                torch.addmm(total, left[block].to(self._real).T, hidden[block].to(self._real), beta=scale, out=total)


def _widening_product(left: torch.Tensor, right: torch.Tensor, out: torch.Tensor, add: bool) -> None:
    """Write, or add to ``out``, left x right of half precision, unrounded."""
    if add:
        torch.ops.aten.addmm.dtype_out(out, left, right, out.dtype, out=out)
    else:
        torch.ops.aten.mm.dtype_out(left, right, out.dtype, out=out)
