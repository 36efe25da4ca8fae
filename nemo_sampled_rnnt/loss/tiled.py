"""The tiled engine: joint, loss and all gradients in one visit to each tile, in a workspace of fixed size.

For a tile of whole utterances: hidden, logits = hidden x weight', log-sum-exp and the two log-probs of each
cell, the lattice, the logits turned into their gradient in place,

    dz_k = w_b (occ p~(k) - [k = blank] gamma_blank - [k = y] gamma_label)
    p~(k) = exp(z_k - log q_k - log-sum-exp)

and from it the gradients of weight, bias and hidden, summed over u and t. Nothing of size cells x H or
cells x S outlives the visit. An utterance larger than the workspace is cut: all its rows are scored for the
lattice, and those that are no longer in the workspace again for the gradient. The durations of a TDT model are columns
of the same products, which the softmax over candidates leaves out. The steps on single cells are a
:class:`Cells` of the device: ``cells_torch.py`` for the CPU, ``cuda/`` for the GPU.

Design: ours (after NeMo's fused joint, which still keeps every sub-batch for backward).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Protocol

import torch

from nemo_sampled_rnnt.loss.candidates import ALIGNMENT, aligned, recurring
from nemo_sampled_rnnt.loss.lattice import Lattice
from nemo_sampled_rnnt.loss.once import once_differentiable
from nemo_sampled_rnnt.loss.own_rows import OwnRows, set_bytes
from nemo_sampled_rnnt.loss.problem import Options, Problem, accumulation_dtype
from nemo_sampled_rnnt.loss.reduction import utterance_weight
from nemo_sampled_rnnt.loss.row_gradients import scaled
from nemo_sampled_rnnt.loss.shared_rows import SharedRows
from nemo_sampled_rnnt.loss.tiles import Tile, plan_tiles

logger = logging.getLogger("nemo_sampled_rnnt")
WORD = 8  # bytes of a number of the lattice


class Workspace:
    """What the cells of a tile are worked on in; a tile's first cell lies at row 0.

    Rows beyond its cells hold anything: what is computed from them is not used, and :meth:`Cells.gradient` zeroes them
    for the products that sum over rows.

    Rows start at multiples of 16 bytes, which wide loads and tensor cores want. Behind the hidden stands a column
    of ones: the bias gradient then comes out of the same product as the weight gradient.

    Args:
        cells: rows of the largest tile.
        width: H.
        columns, stride: S, and the elements from one row of logits to the next.
        like: a tensor of the compute dtype and device.

    Attributes:
        hidden_and_one: (cells, aligned H + ALIGNMENT).
    """

    def __init__(self, cells: int, width: int, columns: int, stride: int, like: torch.Tensor):
        self._cells, self._width, self._columns, self._stride, self._like = cells, width, columns, stride, like
        self.hidden_and_one = like.new_empty(cells, aligned(width) + ALIGNMENT)
        if not like.is_cuda:  # there the kernel of the hidden writes them
            self.hidden_and_one[:, width:] = 0
            self.hidden_and_one[:, aligned(width)] = 1

    @cached_property
    def logits(self) -> torch.Tensor:
        """(cells, stride), then their gradient; zero in the padding."""
        logits = self._like.new_empty(self._cells, self._stride)
        if self._columns < self._stride:
            logits[:, self._columns :] = 0
        return logits

    @cached_property
    def hidden_gradient(self) -> torch.Tensor:
        """(cells, aligned H)."""
        return self._like.new_empty(self._cells, aligned(self._width))

    @staticmethod
    def bytes_per_cell(width: int, stride: int, itemsize: int, backward: bool) -> int:
        """Hidden with its ones, gradient of the hidden, and logits of every candidate."""
        return ((1 + backward) * aligned(width) + ALIGNMENT + stride) * itemsize


def bytes_beside(
    lattice: Lattice, frames: int, positions: int, width: int, real: int, durations: int, encoder: bool, predictor: bool
) -> int:
    """What is held beside the tiles from the first to the last: the lattice, and sums of the projections' gradients.

    Args:
        lattice: sizes of the utterances.
        frames, positions: T and U + 1 of the padded batch.
        width: H.
        real: bytes of the accumulation dtype.
        durations: of a TDT model.
        encoder, predictor: which gradients are asked for.
    """
    place = real + (4 + durations) * WORD  # log-sum-exp, two log-probs, alpha, beta; TDT: the durations'
    rows = lattice.utterances * (encoder * frames + predictor * positions)
    return lattice.places * place + rows * aligned(width) * real


def left_for_tiles(workspace: int, beside: int) -> int:
    """Bytes; where little is left, half of the workspace: a tile of a few rows would cost more time than it saves."""
    return max(workspace - beside, workspace // 2)


class Cells(Protocol):
    """What a device does with the cells of a tile; buffers begin with the tile's first cell."""

    costs: torch.Tensor  # (B,) float64
    encoder_gradient: torch.Tensor | None
    predictor_gradient: torch.Tensor | None

    def hidden(self, tile: Tile) -> None:
        """Write dropout(act(f[t] + g[u])) to the workspace's hidden_and_one."""

    def scores(self, tile: Tile, logits: torch.Tensor) -> None:
        """From the (rows, stride) logits, keep log-sum-exp and the log-probs of blank and label."""

    def lattice(self, first: int, last: int, backward: bool) -> None:
        """Costs, and with ``backward`` what the arcs' posteriors need, of utterances first..last-1."""

    def gradient(self, tile: Tile, logits: torch.Tensor) -> None:
        """Turn logits into their gradient in place; zero it and hidden for an utterance without a finite loss, and in
        rows beyond the tile's cells."""

    def conclude(self, target_lengths: torch.Tensor, options: Options):
        """See :func:`nemo_sampled_rnnt.loss.reduction.conclude`."""

    def reduce(self, tile: Tile, hidden_gradient: torch.Tensor) -> None:
        """Take the hidden's (cells, aligned H) gradient through dropout and activation, and sum it: over u for the
        encoder, over t for the predictor."""


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
        workspace_bytes: for hidden, its gradient and logits of a tile.
    """

    def __init__(
        self, encoder, predictor, weight, bias, problem: Problem, make_cells: CellsFactory, needs, weights,
        workspace_bytes: int,
    ):  # fmt: skip
        self.needs = needs
        # In half precision gradients of the logits at unit scale underflow: 2^8 shifts them to where float16 is dense.
        self.scale = 256.0 if encoder.dtype == torch.float16 else 1.0
        self.rows = rows_class(problem, encoder)(weight, bias, problem, encoder.dtype, needs, workspace_bytes // 8)
        width, stride = encoder.shape[2], self.rows.stride
        self.width = width
        cell_bytes = Workspace.bytes_per_cell(width, stride, encoder.element_size(), needs.hidden)
        if encoder.device.type == "cpu":  # caches are small: past some size a larger tile is only more memory
            largest = max(t * (u + 1) for t, u in zip(problem.lattice.frames, problem.lattice.labels, strict=True))
            enough = largest * cell_bytes + self.rows.utterance_bytes
            workspace_bytes = min(workspace_bytes, max(32 * 2**20, enough))
        recur = self.rows.more_rows and problem.table is not None  # the kernels know rows that are no cells
        self.visits = plan_tiles(problem.lattice, cell_bytes, workspace_bytes, self.rows.utterance_bytes, recur)
        largest = max(tile.rows for tiles in self.visits for tile in tiles)
        self.workspace = Workspace(largest, width, self.rows.columns, stride, encoder)
        self.cells = make_cells(
            encoder.contiguous(),
            predictor.to(encoder.dtype).contiguous(),
            self.rows.offsets,
            self.workspace,
            problem,
            needs,
            weights if self.scale == 1 else weights * self.scale,
        )
        self.rows.prepare(self.visits)

    def run(self) -> None:
        """Visit every tile; afterwards costs and gradients lie in ``cells`` and ``rows``."""
        for tiles in self.visits:
            for tile in tiles:
                logits = None  # a grouped product makes its own: the old ones go before the new come
                logits = self._logits(tile)
                self.cells.scores(tile, logits)
            self.cells.lattice(tiles[0].first_utterance, tiles[-1].last_utterance, self.needs.any)
            if self.needs.any:
                *earlier, last = tiles
                self._backward(last, logits)
                logits = None
                for tile in earlier:  # these are no longer in the workspace
                    self._backward(tile, self._logits(tile))

    def _logits(self, tile: Tile) -> torch.Tensor:
        self.cells.hidden(tile)
        width, workspace = self.width, self.workspace
        hidden = workspace.hidden_and_one[: tile.rows, :width]
        return self.rows.logits(tile, hidden, lambda: workspace.logits[: tile.rows])

    def _backward(self, tile: Tile, logits: torch.Tensor) -> None:
        workspace = self.workspace
        self.cells.gradient(tile, logits)
        self.rows.accumulate(tile, workspace.hidden_and_one[: tile.rows], logits)
        if self.needs.hidden:
            gradient = self.rows.hidden_gradient(tile, logits, lambda: workspace.hidden_gradient[: tile.rows])
            self.cells.reduce(tile, gradient)


def rows_class(problem: Problem, like: torch.Tensor):
    """How the output layer's products are made: see :class:`SharedRows`."""
    if not problem.per_utterance:
        return SharedRows
    if like.is_cuda:
        from nemo_sampled_rnnt.loss.cuda.grouped_rows import GroupedRows, grouped_products

        if grouped_products(like, like.shape[2]):
            return GroupedRows
    return OwnRows


def visited(encoder, predictor, weight, bias, problem: Problem, make_cells: CellsFactory, needs, weights) -> Engine:
    """An engine that has run; where the device is out of memory, with half the workspace, and half of that.

    Nothing but the engine holds what a visit makes, so that a visit that fails leaves nothing behind.

    Raises:
        torch.OutOfMemoryError: not even a row of the lattice at a time fits.
    """
    ids, lattice, options = problem.candidates.ids, problem.lattice, problem.options
    columns = aligned(len(weight)) if ids is None else ids.shape[1]
    (_, frames, width), itemsize = encoder.shape, encoder.element_size()
    cell = Workspace.bytes_per_cell(width, columns, itemsize, needs.hidden)
    sets = set_bytes(columns, width, itemsize) if problem.per_utterance else 0
    widest = max(lattice.labels) + 1
    beside = bytes_beside(
        lattice, frames, predictor.shape[1], width, accumulation_dtype(encoder.dtype).itemsize,
        len(options.durations or ()), needs.encoder, needs.predictor,
    )  # fmt: skip
    asked = left_for_tiles(int(options.workspace_mib * 2**20), beside)
    asked = min(asked, recurring(lattice.cells) * cell + lattice.utterances * sets)  # more would not be used
    budget = asked
    while True:
        engine = None
        try:
            engine = Engine(encoder, predictor, weight, bias, problem, make_cells, needs, weights, budget)
            engine.run()
            if budget < asked:
                _warn_once(
                    f"the loss ran out of memory with workspace_mib={problem.options.workspace_mib} and went on with "
                    f"{budget / 2**20:.1f} MiB, slower: set workspace_mib to less, or make the batch smaller."
                )
            return engine
        except torch.OutOfMemoryError as error:
            reason = str(error)
        del engine  # and what it holds; an except clause would hold it still
        if budget <= widest * cell:
            rows = columns if ids is None or len(ids) == 1 else min(len(weight), ids.numel())
            sums = rows * encoder.shape[2] * accumulation_dtype(encoder.dtype).itemsize if needs.weight else 0
            raise torch.OutOfMemoryError(
                f"the loss is out of memory with one frame at a time: {widest} label positions x {cell} bytes (hidden, "
                f"its gradient and {columns} candidates) are {widest * cell / 2**20:.1f} MiB, the sum of the weight's "
                f"gradient {sums / 2**20:.1f} MiB. Free memory on {encoder.device}, make the batch smaller, or draw "
                f"fewer negatives. ({reason})"
            )
        budget = max(widest * cell, budget // 2)


@cache
def _warn_once(message: str) -> None:
    logger.warning(message)


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
        engine = visited(encoder, predictor, weight, bias, problem, make_cells, needs, weights)
        loss, costs, divisor = engine.cells.conclude(problem.target_lengths, options)
        ctx.mark_non_differentiable(costs)
        ctx.set_materialize_grads(False)  # none comes for them, and zeros would take a launch
        ctx.vector = vector
        if vector:
            finite = costs.isfinite()
            ctx.save_for_backward(encoder, predictor, weight, bias, finite)
            ctx.problem, ctx.make_cells = problem.kept(), make_cells
            return torch.where(finite, costs, 0), costs
        if needs.any:
            ctx.gradients = Gradients(engine)
            ctx.divisor = divisor if engine.scale == 1 else divisor * engine.scale
        return loss, costs

    @staticmethod
    @once_differentiable
    def backward(ctx, loss_gradient, _):
        if not ctx.needs.any or loss_gradient is None:
            return None, None, None, None, None, None
        if ctx.vector:
            *inputs, finite = ctx.saved_tensors
            weights = torch.where(finite, loss_gradient, 0).to(accumulation_dtype(ctx.dtypes[0]))
            # A gradient scaler's factor would overflow float16 on the way: as for a scalar loss, it comes at the end.
            largest = weights.abs().amax()
            upstream = torch.where(largest > 0, largest, 1)
            engine = visited(*inputs, ctx.problem, ctx.make_cells, ctx.needs, weights / upstream)
            gradients, keep, divisor = Gradients(engine), False, torch.full_like(upstream, engine.scale)
            del engine  # its workspace goes before the gradients come
        else:
            gradients, keep = ctx.gradients, graph_is_kept()
            if gradients is None:
                raise RuntimeError("backward a second time: pass retain_graph=True to the first backward")
            upstream, divisor = loss_gradient, ctx.divisor
            if not keep:
                ctx.gradients = None
        return (*gradients.over(upstream, divisor, ctx.dtypes, keep), None, None)


class Gradients:
    """What a visit leaves behind: gradients of the four inputs at unit scale (None where not needed)."""

    def __init__(self, engine: Engine):
        self.encoder, self.predictor = engine.cells.encoder_gradient, engine.cells.predictor_gradient
        self.rows = engine.rows.release()

    def over(self, upstream: torch.Tensor, divisor: torch.Tensor, dtypes, keep: bool):
        """The four gradients times upstream / divisor in their inputs' dtypes; in place unless they must be kept."""
        sums = self.rows.sums
        asked = (self.encoder, self.predictor, sums.weight, sums.bias)
        octets = all(x is None or x.shape[-1] % ALIGNMENT == 0 for x in asked[:3])
        if sums.both is not None and octets and torch.float64 not in dtypes:
            from nemo_sampled_rnnt.loss.cuda.weight_rows import deliver

            return deliver(
                self.encoder, self.predictor, sums.both, sums.weight is not None, self.rows.row_ids, self.rows.count,
                self.rows.total_rows, upstream.float(), divisor.float(),
                [None if x is None else dtype for x, dtype in zip(asked, dtypes, strict=True)],
            )  # fmt: skip
        factor = upstream / divisor
        weight, bias = self.rows.gradients(factor, dtypes[2], dtypes[3], keep)
        return (
            scaled(self.encoder, factor, dtypes[0], keep),
            scaled(self.predictor, factor, dtypes[1], keep),
            weight,
            bias,
        )


def graph_is_kept() -> bool:
    """backward(retain_graph=True) may ask again, so what was computed must survive; unknown counts as kept."""
    asks = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)
    return True if asks is None else asks()
