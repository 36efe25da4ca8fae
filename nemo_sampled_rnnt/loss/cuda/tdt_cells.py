"""Launches the kernels for the tiles of one batch of a TDT model."""

from __future__ import annotations

import torch

from nemo_sampled_rnnt.gpu.launch import SIMULATED, BoundKernel
from nemo_sampled_rnnt.loss.cuda.cells import WHERE, CudaCells, _frames_of
from nemo_sampled_rnnt.loss.cuda.tdt_kernels import CELL_THREADS, TDT_LATTICE_THREADS, compiled
from nemo_sampled_rnnt.loss.problem import Problem
from nemo_sampled_rnnt.loss.tiles import Tile


class TdtCudaCells(CudaCells):
    """The softmax over labels and blank is plain RNN-T's, whose offsets leave the durations' columns out.

    Args:
        duration_bias: (D,) float; the others as those of :class:`CudaCells`.
    """

    def __init__(self, encoder, predictor, offsets, workspace, problem: Problem, needs, weights, *, duration_bias):
        super().__init__(encoder, predictor, offsets, workspace, problem, needs, weights)
        durations, sigma = problem.options.durations, float(problem.options.sigma)
        column, places, stride = problem.candidates.durations, problem.lattice.places, offsets.shape[1]
        utterances, later = problem.table, workspace.hidden_and_one
        native = SIMULATED or torch.cuda.get_device_capability(encoder.device) >= (8, 0)
        kernels = compiled(str(encoder.dtype).removeprefix("torch."), durations, native)
        # Weight of each duration in the lattice, then gradient of its logit.
        kept = torch.empty(len(durations) * places, dtype=torch.int64, device=encoder.device)
        lattice = [utterances, *self.arcs, kept, *self.alpha_and_beta, self.costs]
        self._duration_scores = BoundKernel(
            kernels.duration_scores,
            [utterances, later, duration_bias.to(self._real).contiguous(), kept],
            WHERE,
            (stride, column, places, sigma),
        )
        self._tdt_alpha_beta = BoundKernel(kernels.alpha_beta, lattice, 1, (places,))
        self._posteriors = BoundKernel(kernels.posteriors, lattice, 1, (places, sigma))
        self._duration_gradient = BoundKernel(
            kernels.duration_gradient,
            [utterances, later, kept, self.costs, weights.contiguous()],
            WHERE,
            (stride, column, places),
        )

    def around_arcs(self, alpha, beta):
        """`posteriors` has multiplied alpha and beta into the arcs, and alpha by then holds ones."""
        return alpha, alpha

    def scores(self, tile: Tile, logits: torch.Tensor) -> None:
        super().scores(tile, logits)
        self._duration_scores.rebind(1, logits)
        self._duration_scores(*_cell_blocks(tile.frames, tile.width, tile.utterances), *_frames_of(tile))

    def lattice(self, first: int, last: int, backward: bool) -> None:
        widest = max(self.sizes.labels[first:last]) + 1
        threads = min(TDT_LATTICE_THREADS, -(-widest // 32) * 32)
        self._tdt_alpha_beta((last - first, 2 if backward else 1, 1), threads, first)
        if backward:
            longest = max(self.sizes.frames[first:last])
            self._posteriors(*_cell_blocks(longest, widest, last - first), first)

    def gradient(self, tile: Tile, logits: torch.Tensor) -> None:
        super().gradient(tile, logits)
        self._duration_gradient.rebind(1, logits)
        self._duration_gradient(*_cell_blocks(tile.frames, tile.width, tile.utterances), *_frames_of(tile))


def _cell_blocks(frames: int, width: int, utterances: int) -> tuple[tuple[int, int, int], int]:
    """Grid and threads of a kernel with a thread for each cell: frames, groups of label positions, utterances."""
    return (frames, -(-width // CELL_THREADS), utterances), CELL_THREADS
