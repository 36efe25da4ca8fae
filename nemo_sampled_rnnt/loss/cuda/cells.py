"""Launches the kernels for the tiles of one batch."""

from __future__ import annotations

import torch

from nemo_sampled_rnnt.gpu.launch import SIMULATED, BoundKernel
from nemo_sampled_rnnt.gpu.octets import OCTET
from nemo_sampled_rnnt.loss.cuda.conclude import CONCLUDING_THREADS, conclude_kernel
from nemo_sampled_rnnt.loss.cuda.kernels import (
    GROUP,
    LABELS,
    LATTICE_THREADS,
    THREADS,
    WARP,
    WARPS,
    WIDE_THREADS,
    compiled,
)
from nemo_sampled_rnnt.loss.dropout import threshold
from nemo_sampled_rnnt.loss.problem import REDUCTIONS, Options, Problem, accumulation_dtype
from nemo_sampled_rnnt.loss.tiles import Tile

WIDE = 256 if SIMULATED else 8192  # candidates from which on a block works on a group of cells, and not a warp
WHERE = 4  # arguments that say which tile: first utterance, first frame, last frame, first cell


class CudaCells:
    """See :class:`nemo_sampled_rnnt.loss.tiled.Cells`; the constructor's arguments are those of every device."""

    def __init__(self, encoder, predictor, offsets, workspace, problem: Problem, needs, weights):
        self.problem, self.needs, self.sizes = problem, needs, problem.lattice
        options, device = problem.options, encoder.device
        accumulate = self._real = accumulation_dtype(encoder.dtype)
        batch, frames, width = encoder.shape
        positions = predictor.shape[1]
        units = -(-width // OCTET) * OCTET  # of a row of hidden, padded

        def empty(size, dtype=accumulate):
            return torch.empty(size, dtype=dtype, device=device)

        places = problem.lattice.places
        self.costs = empty(batch, torch.float64)
        normaliser = empty(places)
        by_blank, by_label, alpha = empty((3, places), torch.int64).unbind()
        beta = empty(places, torch.int64) if needs.any else alpha  # not written without gradients
        hidden = workspace.hidden_and_one
        later = hidden  # stands where each tile puts its own
        targets, utterances = problem.candidates.target.contiguous(), problem.table
        encoder, predictor = wide_rows(encoder), wide_rows(predictor)

        kind = str(encoder.dtype).removeprefix("torch.")
        wide = offsets.shape[1] >= WIDE
        native = SIMULATED or torch.cuda.get_device_capability(device) >= (8, 0)
        kernels = compiled(kind, options.activation, options.dropout > 0, options.clamp > 0, wide, native)
        dropout = (problem.seed, threshold(options.dropout), 1.0 / (1.0 - options.dropout))
        softmax = (offsets.shape[1], len(offsets), targets.shape[1], problem.candidates.blank)

        hidden_stride = hidden.shape[1]
        self._hidden = BoundKernel(
            kernels.hidden,
            [utterances, encoder, predictor, hidden],
            WHERE,
            (frames, positions, width, units, hidden_stride, *dropout),
        )
        self._scores = BoundKernel(
            kernels.scores, [utterances, later, offsets, targets, normaliser, by_blank, by_label], WHERE, softmax
        )
        self._alpha_beta = BoundKernel(kernels.alpha_beta, [utterances, by_blank, by_label, alpha, beta, self.costs], 1)
        if needs.any:
            self._gradient = BoundKernel(
                kernels.gradient,
                [utterances, hidden, later, offsets, targets, normaliser, by_blank, by_label, alpha, beta,
                 self.costs, weights.contiguous()],
                WHERE,
                (*softmax, float(options.fastemit_lambda), float(options.clamp), hidden_stride),
            )  # fmt: skip
        self.encoder_gradient = self.predictor_gradient = None
        if needs.encoder:
            total = torch.zeros(batch, frames, units, dtype=accumulate, device=device)
            self.encoder_gradient = total[..., :width]
            self._encoder_gradient = BoundKernel(
                kernels.encoder_gradient,
                [utterances, hidden, later, total],
                WHERE,
                (frames, hidden_stride, units, *dropout),
            )
        if needs.predictor:
            total = torch.zeros(batch, positions, units, dtype=accumulate, device=device)
            self.predictor_gradient = total[..., :width]
            self._predictor_gradient = BoundKernel(
                kernels.predictor_gradient,
                [utterances, hidden, later, total],
                WHERE,
                (positions, hidden_stride, units, *dropout),
            )
        self._unit_threads = min(THREADS, -(-hidden.shape[1] // OCTET // 32) * 32)
        self._warps_of_units = -(-units // OCTET // WARP)
        self._scoring_threads = WIDE_THREADS if wide else THREADS
        self._cells_of_a_block = GROUP if wide else GROUP * WARPS

    def hidden(self, tile: Tile) -> None:
        self._hidden(_grid(tile, LABELS), self._unit_threads, *_where(tile))

    def scores(self, tile: Tile, logits: torch.Tensor) -> None:
        self._scores.rebind(1, logits)
        self._scores(_grid(tile, self._cells_of_a_block), self._scoring_threads, *_where(tile))

    def conclude(self, target_lengths: torch.Tensor, options: Options):
        """As :func:`nemo_sampled_rnnt.loss.reduction.conclude`, in one launch instead of fifteen."""
        batch = len(self.costs)
        results = torch.empty(batch + 2, dtype=self._real, device=self.costs.device)
        kernel = BoundKernel(
            conclude_kernel(self._real),
            [self.costs, target_lengths, results],
            0,
            (batch, REDUCTIONS.index(options.reduction), float(options.fastemit_lambda)),
        )
        kernel((1, 1, 1), CONCLUDING_THREADS)
        return results[0], results[2:], results[1]

    def lattice(self, first: int, last: int, backward: bool) -> None:
        widest = max(self.sizes.labels[first:last]) + 1
        threads = min(LATTICE_THREADS, -(-widest // 32) * 32)
        self._alpha_beta((last - first, 2 if backward else 1, 1), threads, first)

    def gradient(self, tile: Tile, logits: torch.Tensor) -> None:
        self._gradient.rebind(2, logits)
        self._gradient(_grid(tile, self._cells_of_a_block), THREADS, *_where(tile))

    def reduce(self, tile: Tile, hidden_gradient: torch.Tensor) -> None:
        frames, labels, utterances = _grid(tile, 1)
        if self.needs.encoder:
            self._encoder_gradient.rebind(2, hidden_gradient)
            grid = (frames, 1, utterances)
            self._encoder_gradient(grid, self._unit_threads, *_where(tile))
        if self.needs.predictor:
            self._predictor_gradient.rebind(2, hidden_gradient)
            grid = (self._warps_of_units, labels, utterances)
            self._predictor_gradient(grid, THREADS, *_where(tile))


def _grid(tile: Tile, labels: int) -> tuple[int, int, int]:
    """Frames, groups of so many label positions, utterances; the largest of the tile."""
    return tile.frames, -(-tile.width // labels), len(tile.segments)


def _where(tile: Tile) -> tuple[int, int, int, int]:
    return tile.first_utterance, tile.first_frame, tile.first_frame + tile.frames, tile.first_cell


def wide_rows(x: torch.Tensor) -> torch.Tensor:
    """(B, N, H) with H padded to whole octets, at an address for wide loads."""
    if x.shape[2] % OCTET:
        return torch.nn.functional.pad(x, (0, -x.shape[2] % OCTET))
    return x.clone() if x.data_ptr() % 16 else x
