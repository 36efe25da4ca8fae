"""Launches the kernels for the tiles of one batch."""

from __future__ import annotations

import torch

from nemo_sampled_rnnt.loss.cuda.kernels import GROUP, LABELS, LATTICE_THREADS, THREADS, WARP, WARPS, compiled
from nemo_sampled_rnnt.loss.cuda.launch import SIMULATED, BoundKernel
from nemo_sampled_rnnt.loss.cuda.octets import OCTET
from nemo_sampled_rnnt.loss.dropout import threshold
from nemo_sampled_rnnt.loss.problem import Problem, accumulation_dtype
from nemo_sampled_rnnt.loss.tiles import Tile

WIDE = 256 if SIMULATED else 8192  # candidates from which on a block works on a group of cells, and not a warp
WHERE = "iiii"  # first utterance, first frame, last frame, first cell
DROPOUT = "iif"


class CudaCells:
    """See :class:`nemo_sampled_rnnt.loss.tiled.Cells`; the constructor's arguments are those of every device."""

    def __init__(self, encoder, predictor, offsets, workspace, problem: Problem, needs, weights):
        self.problem, self.needs, self.sizes = problem, needs, problem.lattice
        options, device = problem.options, encoder.device
        accumulate = accumulation_dtype(encoder.dtype)
        batch, frames, width = encoder.shape
        positions = predictor.shape[1]
        units = -(-width // OCTET) * OCTET  # of a row of hidden, padded

        def empty(size, dtype=accumulate):
            return torch.empty(size, dtype=dtype, device=device)

        places = problem.lattice.places
        self.costs = empty(batch, torch.float64)
        normaliser, log_blank, log_label = empty((3, places)).unbind()
        alpha, beta = empty((2, places), torch.float64).unbind() if needs.any else (empty(places, torch.float64), None)
        hidden = workspace.hidden_and_one
        later = hidden  # stands where each tile puts its own
        targets, utterances = problem.candidates.target.contiguous(), problem.table
        encoder, predictor = wide_rows(encoder), wide_rows(predictor)

        kind = str(encoder.dtype).removeprefix("torch.")
        wide = offsets.shape[1] >= WIDE
        native = SIMULATED or torch.cuda.get_device_capability(device) >= (8, 0)
        kernels = compiled(kind, options.activation, options.dropout > 0, wide, native)
        dropout = (problem.seed, threshold(options.dropout), 1.0 / (1.0 - options.dropout))
        softmax = (offsets.shape[1], len(offsets), targets.shape[1], problem.candidates.blank)

        self._hidden = BoundKernel(kernels.hidden, [utterances, encoder, predictor, hidden], WHERE + "iiiii" + DROPOUT)
        self._hidden_scalars = (frames, positions, width, units, hidden.shape[1], *dropout)
        self._scores = BoundKernel(
            kernels.scores, [utterances, later, offsets, targets, normaliser, log_blank, log_label], WHERE + "iiii"
        )
        self._scores_scalars = softmax
        self._alpha_beta = BoundKernel(
            kernels.alpha_beta,
            [utterances, log_blank, log_label, alpha, alpha if beta is None else beta, self.costs],
            "i",
        )
        self.encoder_gradient = self.predictor_gradient = None
        if needs.any:
            self._gradient = BoundKernel(
                kernels.gradient,
                [utterances, hidden, later, offsets, targets, normaliser, log_blank, log_label, alpha, beta,
                 self.costs, weights.contiguous()],
                WHERE + "iiiiffi",
            )  # fmt: skip
            self._gradient_scalars = (*softmax, options.fastemit_lambda, options.clamp, hidden.shape[1])
        if needs.encoder:
            total = torch.zeros(batch, frames, units, dtype=accumulate, device=device)
            self.encoder_gradient = total[..., :width]
            self._encoder_gradient = BoundKernel(
                kernels.encoder_gradient,
                [utterances, hidden, later, total],
                WHERE + "iii" + DROPOUT,
            )
            self._encoder_scalars = (frames, hidden.shape[1], units, *dropout)
        if needs.predictor:
            total = torch.zeros(batch, positions, units, dtype=accumulate, device=device)
            self.predictor_gradient = total[..., :width]
            self._predictor_gradient = BoundKernel(
                kernels.predictor_gradient,
                [utterances, hidden, later, total],
                WHERE + "iii" + DROPOUT,
            )
            self._predictor_scalars = (positions, hidden.shape[1], units, *dropout)
        self._unit_threads = min(THREADS, -(-hidden.shape[1] // OCTET // 32) * 32)
        self._warps_of_units = -(-units // OCTET // WARP)
        self._cells_of_a_block = GROUP if wide else GROUP * WARPS

    def hidden(self, tile: Tile) -> None:
        self._hidden(_grid(tile, LABELS), self._unit_threads, *_where(tile), *self._hidden_scalars)

    def scores(self, tile: Tile, logits: torch.Tensor) -> None:
        self._scores.rebind(1, logits)
        self._scores(_grid(tile, self._cells_of_a_block), THREADS, *_where(tile), *self._scores_scalars)

    def lattice(self, first: int, last: int, backward: bool) -> None:
        widest = max(self.sizes.labels[first:last]) + 1
        threads = min(LATTICE_THREADS, -(-widest // 32) * 32)
        self._alpha_beta((last - first, 2 if backward else 1, 1), threads, first)

    def gradient(self, tile: Tile, logits: torch.Tensor) -> None:
        self._gradient.rebind(2, logits)
        self._gradient(_grid(tile, self._cells_of_a_block), THREADS, *_where(tile), *self._gradient_scalars)

    def reduce(self, tile: Tile, hidden_gradient: torch.Tensor) -> None:
        frames, labels, utterances = _grid(tile, 1)
        if self.needs.encoder:
            self._encoder_gradient.rebind(2, hidden_gradient)
            grid = (frames, 1, utterances)
            self._encoder_gradient(grid, self._unit_threads, *_where(tile), *self._encoder_scalars)
        if self.needs.predictor:
            self._predictor_gradient.rebind(2, hidden_gradient)
            grid = (self._warps_of_units, labels, utterances)
            self._predictor_gradient(grid, THREADS, *_where(tile), *self._predictor_scalars)


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
