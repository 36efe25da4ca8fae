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
            padding and for TDT's durations. Scores of blank and labels need no more, since q = 1 there.
        utterance_bytes: of workspace for an utterance beside its cells.
        more_rows: a tile may have more rows than cells, so that sizes of products recur.
    """

    utterance_bytes = 0
    more_rows = True

    def __init__(self, weight, bias, problem: Problem, dtype: torch.dtype, needs, spare: int):
        self._total_rows = len(weight)
        if problem.candidates.ids is None:
            self._ids = None
            scored = problem.candidates.durations or len(weight)
            self._rows, self.offsets = every_row(weight, bias, scored, dtype, spare)
        else:
            self._ids, self._count = problem.candidates.ids[0], problem.rows(0)
            self._rows, self.offsets = candidate_rows(weight, bias, problem, dtype)
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
            hidden: (rows, H).
            out: called for the (rows, stride) buffer of the workspace.

        Returns:
            (rows, stride) of which the first ``columns`` are written.
        """
        logits = out()
        for part, rows in self._parts:
            torch.mm(hidden, rows.T, out=logits[:, part])
        return logits

    def hidden_gradient(self, tile: Tile, logits_gradient: torch.Tensor, out) -> torch.Tensor:
        """logits_gradient x weight, in the (rows, H or wider) buffer that ``out`` returns."""
        gradient, beta = out(), 0
        hidden = gradient[:, : self._rows.shape[1]]
        for part, rows in reversed(self._parts):  # the small product first: the large one adds to it unrounded
            torch.addmm(hidden, logits_gradient[:, part], rows, beta=beta, out=hidden)
            beta = 1
        return gradient

    def accumulate(self, tile: Tile, hidden_and_one: torch.Tensor, logits_gradient: torch.Tensor) -> None:
        """Add this tile's weight and bias gradients.

        Args:
            hidden_and_one: (rows, more than H), behind the hidden a column of ones (see :class:`Workspace`).
            logits_gradient: (rows, stride).
        """
        for part, _ in self._parts:
            self._sums.add(logits_gradient[:, part], hidden_and_one, part)

    def release(self) -> RowGradients:
        count = self._total_rows if self._ids is None else self._count
        return RowGradients(self._sums, count, self._ids, self._total_rows)


def every_row(weight, bias, scored: int, dtype: torch.dtype, spare: int) -> tuple[torch.Tensor, torch.Tensor]:
    """All rows of the weight in ``dtype``, and (1, S) their offsets, S in whole ALIGNMENTs: the bias, then -inf.

    V + 1 is odd as a rule, and tensor cores want multiples of ALIGNMENT: rows of zeros follow where a copy is due or
    costs little.

    Args:
        weight, bias: (N, H) and (N,).
        scored: rows that are in the softmax: all, or those before TDT's durations.
        dtype: the compute dtype.
        spare: bytes that a copy may take.
    """
    rows, columns = len(weight), aligned(len(weight))
    copied = rows < columns and (weight.dtype != dtype or weight.numel() * weight.element_size() <= spare)
    if weight.is_cuda:
        from nemo_sampled_rnnt.loss.cuda.weight_rows import copied_by_kernel, pad

        if copied_by_kernel(weight, dtype):
            padded = weight.new_empty(columns, weight.shape[1], dtype=dtype) if copied else None
            offsets = weight.new_empty(1, columns, dtype=accumulation_dtype(dtype))
            pad(weight, bias.contiguous(), scored, padded, offsets)
            return weight.to(dtype) if padded is None else padded, offsets
    offsets = bias[None, :scored].to(accumulation_dtype(dtype))
    offsets = torch.nn.functional.pad(offsets, (0, columns - scored), value=-torch.inf)
    if not copied:
        return weight.to(dtype), offsets
    padded = weight.new_zeros(columns, weight.shape[1], dtype=dtype)
    padded[:rows] = weight
    return padded, offsets


def candidate_rows(weight, bias, problem: Problem, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the one candidate set that a batch has: (S, H) rows of the weight, and (1, S) c_k - log q_k."""
    ids, log_q = problem.candidates.ids, problem.candidates.log_q
    if weight.is_cuda:
        from nemo_sampled_rnnt.loss.cuda.weight_rows import copied_by_kernel, gather

        if copied_by_kernel(weight, dtype):
            rows = weight.new_empty(ids.shape[1], weight.shape[1], dtype=dtype)
            offsets = weight.new_empty(ids.shape, dtype=accumulation_dtype(dtype))
            gather(ids, log_q, weight, bias.contiguous(), rows, offsets)
            return rows, offsets
    return weight[ids[0]].to(dtype), candidate_offsets(bias, problem, dtype)


def candidate_offsets(bias: torch.Tensor, problem: Problem, dtype: torch.dtype) -> torch.Tensor:
    """(G, S) c_k - log q_k of each candidate."""
    candidates, dtype = problem.candidates, accumulation_dtype(dtype)
    if bias.is_cuda:
        from nemo_sampled_rnnt.loss.cuda.weight_rows import gather

        offsets = bias.new_empty(candidates.ids.shape, dtype=dtype)
        gather(candidates.ids, candidates.log_q, bias[None], bias.contiguous(), None, offsets)
        return offsets
    return bias.to(dtype)[candidates.ids] - candidates.log_q.to(dtype)
