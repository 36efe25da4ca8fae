"""Launches the kernels for the tiles of one batch."""

from __future__ import annotations

import torch

from nemo_sampled_rnnt.gpu.launch import SIMULATED, BoundKernel
from nemo_sampled_rnnt.gpu.octets import OCTET
from nemo_sampled_rnnt.loss.cuda.conclude import conclude
from nemo_sampled_rnnt.loss.cuda.kernels import (
    GROUP,
    LABELS,
    LATTICE_THREADS,
    THREADS,
    WARP,
    WARPS,
    compiled,
)
from nemo_sampled_rnnt.loss.dropout import threshold
from nemo_sampled_rnnt.loss.problem import Options, Problem, accumulation_dtype
from nemo_sampled_rnnt.loss.tiles import Tile

WIDE = 256 if SIMULATED else 8192  # candidates from which on a block works on a group of cells, and not a warp
WHERE = 4  # arguments that say which tile: see _frames_of and _cells_of


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
        self.arcs, self.alpha_and_beta = (by_blank, by_label), (alpha, beta)
        hidden = workspace.hidden_and_one
        later = hidden  # stands where each tile puts its own
        targets, utterances = problem.candidates.target.contiguous(), problem.table
        encoder, predictor = wide_rows(encoder), wide_rows(predictor)

        kind = str(encoder.dtype).removeprefix("torch.")
        wide = offsets.shape[1] >= WIDE
        native = SIMULATED or torch.cuda.get_device_capability(device) >= (8, 0)
        own = len(offsets) > 1
        kernels = compiled(kind, options.activation, options.dropout > 0, options.clamp > 0, own, wide, native)
        dropout = (problem.seed, threshold(options.dropout), 1.0 / (1.0 - options.dropout))
        softmax = (offsets.shape[1], targets.shape[1], problem.candidates.blank)

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
                [utterances, hidden, later, offsets, targets, normaliser, by_blank, by_label,
                 *self.around_arcs(alpha, beta), self.costs, weights.contiguous()],
                WHERE + 1,
                (*softmax, float(options.fastemit_lambda), float(options.clamp), hidden_stride),
            )  # fmt: skip
        self.encoder_gradient = self.predictor_gradient = None
        if needs.hidden:
            rows = (batch * frames if needs.encoder else 0, batch * positions if needs.predictor else 0)
            totals = torch.zeros(sum(rows), units, dtype=accumulate, device=device).split(rows)
            if needs.encoder:
                self.encoder_gradient = totals[0].view(batch, frames, units)[..., :width]
            if needs.predictor:
                self.predictor_gradient = totals[1].view(batch, positions, units)[..., :width]
            self._projection_gradients = BoundKernel(
                kernels.projection_gradients,
                [utterances, hidden, later, *totals],
                WHERE + 1,
                (frames, positions, hidden_stride, units, *dropout),
            )
        self._unit_threads = min(THREADS, -(-hidden.shape[1] // OCTET // 32) * 32)
        self._warps_of_units = -(-units // OCTET // WARP)
        self._cells_of_a_block = GROUP if wide else GROUP * WARPS

    def around_arcs(self, alpha: torch.Tensor, beta: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What the gradient finds before and behind an arc."""
        return alpha, beta

    def hidden(self, tile: Tile) -> None:
        grid = (tile.frames, -(-tile.width // LABELS), tile.utterances)
        self._hidden(grid, self._unit_threads, *_frames_of(tile))

    def scores(self, tile: Tile, logits: torch.Tensor) -> None:
        self._scores.rebind(1, logits)
        self._scores(self._blocks_of(tile.cells), THREADS, *_cells_of(tile))

    def conclude(self, target_lengths: torch.Tensor, options: Options):
        return conclude(self.costs, target_lengths, options.reduction, options.fastemit_lambda, self._real)

    def lattice(self, first: int, last: int, backward: bool) -> None:
        widest = max(self.sizes.labels[first:last]) + 1
        threads = min(LATTICE_THREADS, -(-widest // 32) * 32)
        self._alpha_beta((last - first, 2 if backward else 1, 1), threads, first)

    def gradient(self, tile: Tile, logits: torch.Tensor) -> None:
        self._gradient.rebind(2, logits)
        self._gradient(self._blocks_of(tile.rows), THREADS, *_cells_of(tile), tile.rows)

    def reduce(self, tile: Tile, hidden_gradient: torch.Tensor) -> None:
        frames = tile.frames if self.needs.encoder else 0
        blocks = self._warps_of_units * (frames + (tile.width if self.needs.predictor else 0))
        self._projection_gradients.rebind(2, hidden_gradient)
        self._projection_gradients((blocks, 1, tile.utterances), THREADS, *_frames_of(tile), frames)

    def _blocks_of(self, cells: int) -> tuple[int, int, int]:
        return -(-cells // self._cells_of_a_block), 1, 1


def _frames_of(tile: Tile) -> tuple[int, int, int, int]:
    """First utterance, first and last frame, first cell."""
    return tile.first_utterance, tile.first_frame, tile.first_frame + tile.frames, tile.first_cell


def _cells_of(tile: Tile) -> tuple[int, int, int, int]:
    """First and last utterance, first cell, number of cells."""
    return tile.first_utterance, tile.last_utterance, tile.first_cell, tile.cells


def wide_rows(x: torch.Tensor) -> torch.Tensor:
    """(B, N, H) with H padded to whole octets, at an address for wide loads."""
    if x.shape[2] % OCTET:
        return torch.nn.functional.pad(x, (0, -x.shape[2] % OCTET))
    return x.clone() if x.data_ptr() % 16 else x
