"""CUDA takes 65,535 blocks on the axes y and z of a grid: a long utterance or a large batch may not pass that."""

import pytest
import torch

from nemo_sampled_rnnt.gpu.launch import MOST_BLOCKS, BoundKernel
from nemo_sampled_rnnt.loss.cuda.tdt_cells import TdtCudaCells
from nemo_sampled_rnnt.loss.lattice import Lattice
from nemo_sampled_rnnt.loss.tiled import Needs
from nemo_sampled_rnnt.loss.tiles import plan_tiles


class Recorder(list):
    """In a kernel's place."""

    def rebind(self, index, tensor):
        pass

    def __call__(self, grid, threads, *scalars):
        self.append(grid)


def grids_of(lattice):
    """Of every launch for the cells of a batch."""
    cells, grids = object.__new__(TdtCudaCells), Recorder()
    cells.sizes, cells.needs = lattice, Needs(True, True, True, True)
    cells._hidden = cells._scores = cells._alpha_beta = cells._gradient = cells._projection_gradients = grids
    cells._duration_scores = cells._tdt_alpha_beta = cells._posteriors = cells._duration_gradient = grids
    cells._unit_threads, cells._warps_of_units, cells._scoring_threads, cells._cells_of_a_block = 96, 3, 256, 4
    for visit in plan_tiles(lattice, cell_bytes=1, workspace_bytes=2**50):
        for tile in visit:
            cells.hidden(tile)
            cells.scores(tile, torch.empty(0))
            cells.gradient(tile, torch.empty(0))
            cells.reduce(tile, torch.empty(0))
        cells.lattice(visit[0].first_utterance, visit[-1].last_utterance, backward=True)
    return grids


@pytest.mark.parametrize(
    "frames, labels",
    [([65_500, 7], [44, 3]), ([5, 90_000], [900_000, 3]), ([1] * 70_000, [0] * 70_000)],
    ids=["frames", "labels", "utterances"],
)
def test_grids(frames, labels):
    grids = grids_of(Lattice(frames, labels))
    assert len(grids) >= 8
    for grid in grids:
        assert all(n <= most for n, most in zip(grid, MOST_BLOCKS, strict=True)), grid


def test_a_grid_that_is_too_large_is_refused():
    kernel = object.__new__(BoundKernel)
    for grid in ((1, 65_536, 1), (1, 1, 65_536), (2**31, 1, 1)):
        with pytest.raises(ValueError, match=str(max(grid))):
            kernel(grid, 32)
