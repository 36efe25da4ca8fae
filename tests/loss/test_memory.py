"""The cpu implementation never holds B x T x U x H or B x T x U x S, whichever of the two is the larger."""

import tracemalloc

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from truth import SCOPES, make_problem

from nemo_sampled_rnnt import sampled_rnnt_loss

MIB = 2**20


class Largest(TorchDispatchMode):
    """The largest storage that any PyTorch operation returns, in bytes."""

    def __init__(self):
        super().__init__()
        self.size, self.by = 0, None

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().nbytes() > self.size:
                self.size, self.by = tensor.untyped_storage().nbytes(), str(function)
        return out


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("reduction", [None, "mean_batch"])
def test_largest_allocation(scope, reduction):
    """18,600 cells, H = 65, S = 257: 4.8 and 19 MB in float32, one utterance alone 0.8 and 3.2 MB; allowed: 1 MiB of
    workspace and, for the lattice, eight floats a cell (0.6 MB)."""
    problem = make_problem(0, B=6, T=100, U=30, H=65, V=257, N=255, scope=scope, padded=False)
    problem = problem.to(torch.float32).leaves()
    cells = 6 * 100 * 31

    def step():
        with Largest() as largest:
            problem.call(sampled_rnnt_loss, impl="cpu", workspace_mib=1, reduction=reduction).sum().backward()
        return largest

    step()  # what is imported and compiled once is not counted
    tracemalloc.start()
    largest = step()
    numpy_peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    allowed = MIB + cells * 8 * 4
    assert largest.size <= allowed, f"{largest.by} made {largest.size / MIB:.1f} MiB"
    assert numpy_peak <= allowed, f"NumPy and Python held {numpy_peak / MIB:.1f} MiB"
