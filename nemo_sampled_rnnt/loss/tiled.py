"""The tiled engine: joint, loss and all gradients in one visit to each tile, in a workspace of fixed size.

For a tile of whole utterances: hidden, logits = hidden x weight', log-sum-exp and the two log-probs of each
cell, the lattice, the logits turned into their gradient in place,

    dz_k = w_b (occ p~(k) - [k = blank] gamma_blank - [k = y] gamma_label)
    p~(k) = exp(z_k - log q_k - log-sum-exp)

and from it the gradients of weight, bias and hidden, summed over u and t. Nothing of size cells x H or
cells x S outlives the visit. An utterance larger than the workspace is visited twice: its rows are scored for
the lattice first, and scored again for the gradient. The steps on single cells are a :class:`Cells` of the
device: ``cells_torch.py`` for the CPU, ``cuda/`` for the GPU.

Design: ours (after NeMo's fused joint, which still keeps every sub-batch for backward).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch.autograd.function import once_differentiable

from nemo_sampled_rnnt.loss.problem import Problem, accumulation_dtype
from nemo_sampled_rnnt.loss.reduction import denominator, utterance_weight
from nemo_sampled_rnnt.loss.tiles import Tile, plan_tiles
from nemo_sampled_rnnt.loss.weights import ALIGNMENT, WeightRows, aligned, scaled


class Workspace:
    """What the cells of a tile are worked on in; a tile's first cell lies at row 0.

    Rows start at multiples of 16 bytes, which wide loads and tensor cores want. Behind the hidden stands a column
    of ones: the bias gradient then comes out of the same product as the weight gradient.

    Args:
        cells: of the largest tile.
        width: H.
        columns, stride: S, and the elements from one row of logits to the next.
        like: a tensor of the compute dtype and device.
        backward: a gradient goes to the hidden.

    Attributes:
        hidden: (cells, H), of hidden_and_one (cells, aligned H + ALIGNMENT).
        logits: (cells, S), then their gradient; of logits_padded (cells, stride), zero in the padding.
        hidden_gradient: (cells, H), of hidden_gradient_padded (cells, aligned H); None without ``backward``.
    """

    def __init__(self, cells: int, width: int, columns: int, stride: int, like: torch.Tensor, backward: bool):
        self.hidden_and_one = like.new_empty(cells, aligned(width) + ALIGNMENT)
        self.hidden_and_one[:, width:] = 0
        self.hidden_and_one[:, aligned(width)] = 1
        self.hidden = self.hidden_and_one[:, :width]
        self.logits_padded = like.new_empty(cells, stride)
        self.logits_padded[:, columns:] = 0
        self.logits = self.logits_padded[:, :columns]
        self.hidden_gradient_padded = like.new_empty(cells, aligned(width)) if backward else None
        self.hidden_gradient = self.hidden_gradient_padded[:, :width] if backward else None

    @staticmethod
    def bytes_per_cell(width: int, stride: int, itemsize: int) -> int:
        """Hidden with its ones, gradient of the hidden, and logits of every candidate."""
        return (2 * aligned(width) + ALIGNMENT + stride) * itemsize


class Cells(Protocol):
    """What a device does with the cells of a tile, in the workspace it was made with."""

    costs: torch.Tensor  # (B,) float64
    encoder_gradient: torch.Tensor | None
    predictor_gradient: torch.Tensor | None

    def hidden(self, tile: Tile) -> None:
        """Write dropout(act(f[t] + g[u])) to the workspace's hidden."""

    def scores(self, tile: Tile) -> None:
        """From the logits, keep log-sum-exp and the log-probs of blank and label."""

    def lattice(self, first: int, last: int, backward: bool) -> None:
        """Costs, and with ``backward`` what the arcs' posteriors need, of utterances first..last-1."""

    def gradient(self, tile: Tile) -> None:
        """Turn logits into their gradient in place; zero it and hidden for an utterance without a finite loss."""

    def reduce(self, tile: Tile) -> None:
        """Take the hidden's gradient through dropout and activation, and sum it: over u for the encoder, over t
        for the predictor."""


@dataclass
class Needs:
    """Which inputs ask for a gradient."""

    encoder: bool
    predictor: bool
    weight: bool
    bias: bool

    @property
    def hidden(self) -> bool:
        return self.encoder or self.predictor

    @property
    def any(self) -> bool:
        return self.hidden or self.weight or self.bias


CellsFactory = Callable[..., Cells]


class Engine:
    """One pass over a batch.

    Args:
        encoder, predictor, weight, bias: detached inputs, see :func:`sampled_rnnt_loss`.
        problem: the checked batch.
        make_cells: the device's cell operations.
        needs: gradients to compute; none at all runs forward only and keeps O(cells) floats.
        weights: (B,) weight of each utterance's gradient.
    """

    def __init__(self, encoder, predictor, weight, bias, problem: Problem, make_cells: CellsFactory, needs, weights):
        self.problem, self.needs = problem, needs
        # In half precision gradients of the logits at unit scale underflow: 2^8 shifts them to where float16 is dense.
        self.scale = 256.0 if encoder.dtype == torch.float16 else 1.0
        self.rows = WeightRows(weight, bias, problem, encoder.dtype, needs)
        width, stride = encoder.shape[2], self.rows.stride
        cell_bytes = Workspace.bytes_per_cell(width, stride, encoder.element_size())
        budget = problem.options.workspace_mib * 2**20
        if encoder.device.type == "cpu":  # caches are small: past some size a larger tile is only more memory
            largest = max(t * (u + 1) for t, u in zip(problem.lattice.frames, problem.lattice.labels, strict=True))
            budget = min(budget, max(32 * 2**20, largest * cell_bytes))
        self.tiles = plan_tiles(problem.lattice, cell_bytes, budget)
        most = max(tile.cells(problem.lattice) for tile in self.tiles)
        self.workspace = Workspace(most, width, self.rows.columns, stride, encoder, needs.hidden)
        self.cells = make_cells(
            encoder.contiguous(),
            predictor.to(encoder.dtype).contiguous(),
            self.rows.offsets,
            self.workspace,
            problem,
            needs,
            weights * self.scale,
        )

    def run(self) -> None:
        """Visit every tile; afterwards costs and gradients lie in ``cells`` and ``rows``."""
        cut: list[Tile] = []
        for tile in self.tiles:
            if cut and cut[0].segments[0].utterance != tile.segments[0].utterance:
                self._finish_cut(cut)
                cut = []
            self._score(tile)
            self.cells.scores(tile)
            if not tile.whole:
                cut.append(tile)
                continue
            self.cells.lattice(tile.segments[0].utterance, tile.segments[-1].utterance + 1, self.needs.any)
            if self.needs.any:
                self._backward(tile)
        if cut:
            self._finish_cut(cut)

    def _finish_cut(self, cut: list[Tile]) -> None:
        """All rows of an utterance are scored: its lattice, then score again for the gradient."""
        utterance = cut[0].segments[0].utterance
        self.cells.lattice(utterance, utterance + 1, self.needs.any)
        if self.needs.any:
            for tile in cut:
                self._score(tile)
                self._backward(tile)

    def _score(self, tile: Tile) -> None:
        cells = tile.cells(self.problem.lattice)
        self.cells.hidden(tile)
        self.rows.logits(tile, self.workspace.hidden[:cells], self.workspace.logits[:cells])

    def _backward(self, tile: Tile) -> None:
        cells = tile.cells(self.problem.lattice)
        logits = self.workspace.logits[:cells]
        self.cells.gradient(tile)
        self.rows.accumulate(tile, self.workspace.hidden_and_one[:cells], logits)
        if self.needs.hidden:
            self.rows.hidden_gradient(tile, logits, self.workspace.hidden_gradient[:cells])
            self.cells.reduce(tile)


class TiledLoss(torch.autograd.Function):
    """Loss and gradients of a checked batch; returns the reduced loss and the (B,) losses before reduction.

    A scalar loss gets its gradients in the forward visit, at unit scale: what comes back is one number. A vector
    of losses needs a weight for each utterance that only backward knows, so it is computed there, again.
    """

    @staticmethod
    def forward(ctx, encoder, predictor, weight, bias, problem: Problem, make_cells: CellsFactory):
        ctx.needs = Needs(*ctx.needs_input_grad[:4])
        ctx.dtypes = [x.dtype for x in (encoder, predictor, weight, bias)]
        dtype, options = accumulation_dtype(encoder.dtype), problem.options
        weights = utterance_weight(problem.target_lengths, options.reduction, dtype)
        vector = options.reduction is None
        needs = Needs(False, False, False, False) if vector else ctx.needs
        engine = Engine(encoder, predictor, weight, bias, problem, make_cells, needs, weights)
        engine.run()

        costs = (engine.cells.costs * (1 + options.fastemit_lambda)).to(dtype)
        finite = costs.isfinite()
        losses = torch.where(finite, costs, 0)
        ctx.mark_non_differentiable(costs)
        ctx.vector = vector
        if vector:
            ctx.save_for_backward(encoder, predictor, weight, bias)
            ctx.problem, ctx.make_cells = problem, make_cells
            return losses, costs
        divisor = denominator(finite, problem.target_lengths, options.reduction, dtype)
        if needs.any:
            ctx.gradients = Gradients(engine)
            ctx.divisor = divisor * engine.scale
        return (losses * weights).sum() / divisor, costs

    @staticmethod
    @once_differentiable
    def backward(ctx, loss_gradient, _):
        if not ctx.needs.any:
            return None, None, None, None, None, None
        if ctx.vector:
            weights = loss_gradient.to(accumulation_dtype(ctx.dtypes[0]))
            engine = Engine(*ctx.saved_tensors, ctx.problem, ctx.make_cells, ctx.needs, weights)
            engine.run()
            gradients, factor, keep = Gradients(engine), weights.new_ones(()) / engine.scale, False
        else:
            gradients, keep = ctx.gradients, _graph_is_kept()
            if gradients is None:
                raise RuntimeError("backward a second time: pass retain_graph=True to the first backward")
            factor = loss_gradient / ctx.divisor
            if not keep:
                ctx.gradients = None
        return (*gradients.scaled(factor, ctx.dtypes, keep), None, None)


class Gradients:
    """What a visit leaves behind: gradients of the four inputs at unit scale (None where not needed)."""

    def __init__(self, engine: Engine):
        self.encoder, self.predictor = engine.cells.encoder_gradient, engine.cells.predictor_gradient
        self.rows = engine.rows.release()

    def scaled(self, factor: torch.Tensor, dtypes, keep: bool):
        """The four gradients times ``factor`` in their inputs' dtypes; in place unless they must be kept."""
        weight, bias = self.rows.gradients(factor, dtypes[2], dtypes[3], keep)
        return (
            scaled(self.encoder, factor, dtypes[0], keep),
            scaled(self.predictor, factor, dtypes[1], keep),
            weight,
            bias,
        )


def _graph_is_kept() -> bool:
    """backward(retain_graph=True) may ask again, so what was computed must survive; unknown counts as kept."""
    asks = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)
    return True if asks is None else asks()
