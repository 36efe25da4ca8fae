"""The rows of the output layer when all cells have one candidate set."""

from __future__ import annotations

import torch

from nemo_sampled_rnnt.loss.candidates import ALIGNMENT, aligned
from nemo_sampled_rnnt.loss.problem import Problem, accumulation_dtype
from nemo_sampled_rnnt.loss.row_gradients import ProductSums, RowGradients
from nemo_sampled_rnnt.loss.tiles import Tile, Visit


class SharedRows:
    """One candidate set for every cell: the whole vocabulary, or that of the scope *batch*.

    Args:
        weight, bias: (V+1, H) and (V+1,).
        problem: the checked batch.
        dtype: the compute dtype.
        needs: gradients to compute.
        spare: bytes that a copy of the weight may take.

    Attributes:
        columns: S, columns of a tile's logits.
        stride: S rounded up to ALIGNMENT.
        offsets: (1, stride) float, c_k - log q_k, what is added to the product before the log-sum-exp; -inf in the
            padding. Scores of blank and labels need no more, since q = 1 there.
        utterance_bytes: of workspace for an utterance beside its cells.
    """

    utterance_bytes = 0

    def __init__(self, weight, bias, problem: Problem, dtype: torch.dtype, needs, spare: int):
        self._total_rows = len(weight)
        if problem.candidates.ids is None:
            self._ids = None
            rows, self.offsets = len(weight), _padded_offsets(bias[None], len(weight), dtype)
            copied = weight.dtype != dtype or weight.numel() * weight.element_size() <= spare
            if rows % ALIGNMENT and copied:  # V + 1 is odd as a rule, and tensor cores want multiples of ALIGNMENT
                self._rows = weight.new_zeros(aligned(rows), weight.shape[1], dtype=dtype)
                self._rows[:rows] = weight
            else:
                self._rows = weight.to(dtype)
        else:
            self._ids = problem.candidates.ids[0]
            self.offsets = candidate_offsets(bias, problem, dtype)
            self._rows = weight[self._ids].to(dtype)
        self.columns, self.stride = len(self._rows), aligned(len(self._rows))
        body = self.columns // ALIGNMENT * ALIGNMENT
        parts = slice(0, body), slice(body, self.columns)
        self._parts = [(part, self._rows[part]) for part in parts if part.stop > part.start]
        self._sums = ProductSums(self.columns, weight.shape[1], self._rows, needs.weight, needs.bias)

    def prepare(self, visits: list[Visit]) -> None:
        """The tiles are planned; what is needed of them can be made before the first."""

    def logits(self, tile: Tile, hidden: torch.Tensor, out) -> torch.Tensor:
        """w_k . hidden for the candidates of each cell (without the offsets).

        Args:
            hidden: (cells, H).
            out: called for the (cells, stride) buffer of the workspace.

        Returns:
            (cells, stride) of which the first ``columns`` are written.
        """
        logits = out()
        for part, rows in self._parts:
            torch.mm(hidden, rows.T, out=logits[:, part])
        return logits

    def hidden_gradient(self, tile: Tile, logits_gradient: torch.Tensor, out) -> torch.Tensor:
        """logits_gradient x weight, in the (cells, H or wider) buffer that ``out`` returns."""
        gradient, beta = out(), 0
        hidden = gradient[:, : self._rows.shape[1]]
        for part, rows in reversed(self._parts):  # the small product first: the large one adds to it unrounded
            torch.addmm(hidden, logits_gradient[:, part], rows, beta=beta, out=hidden)
            beta = 1
        return gradient

    def accumulate(self, tile: Tile, hidden_and_one: torch.Tensor, logits_gradient: torch.Tensor) -> None:
        """Add this tile's weight and bias gradients.

        Args:
            hidden_and_one: (cells, more than H), behind the hidden a column of ones (see :class:`Workspace`).
            logits_gradient: (cells, stride).
        """
        for part, _ in self._parts:
            self._sums.add(logits_gradient[:, part], hidden_and_one, part)

    def release(self) -> RowGradients:
        weight, bias = self._sums.weight, self._sums.bias
        if self._ids is None:
            weight, bias = (None if x is None else x[: self._total_rows] for x in (weight, bias))
        return RowGradients(weight, bias, self._ids, self._total_rows)


def candidate_offsets(bias: torch.Tensor, problem: Problem, dtype: torch.dtype) -> torch.Tensor:
    """(G, S) c_k - log q_k of each candidate."""
    candidates = problem.candidates
    return bias.to(accumulation_dtype(dtype))[candidates.ids] - candidates.log_q.to(accumulation_dtype(dtype))


def _padded_offsets(bias: torch.Tensor, columns: int, dtype: torch.dtype) -> torch.Tensor:
    offsets = bias.to(accumulation_dtype(dtype))
    return torch.nn.functional.pad(offsets, (0, aligned(columns) - columns), value=-torch.inf)
