"""Out of memory within a visit: it is made again with half the workspace; where one frame does not fit, it says so."""

import logging

import pytest
import torch
from truth import assert_same, gradients_of, make_problem

from nemo_sampled_rnnt import sampled_rnnt_loss
from nemo_sampled_rnnt.loss import tiled

SIZES = {"B": 5, "T": 23, "U": 7, "H": 13, "V": 29, "N": 11}


@pytest.fixture
def memory(monkeypatch):
    """How many cells fit; more are out of memory, as the buffers are allocated or in the middle of a visit."""
    limit = {"cells": 10**9, "late": False}
    asked = []

    class Workspace(tiled.Workspace):
        def __init__(self, cells, *args):
            asked.append(cells)
            if cells > limit["cells"] and not limit["late"]:
                raise torch.OutOfMemoryError("no memory")
            super().__init__(cells, *args)

    class Engine(tiled.Engine):
        def _backward(self, tile, logits):
            if asked[-1] > limit["cells"]:
                raise torch.OutOfMemoryError("no memory")
            super()._backward(tile, logits)

    monkeypatch.setattr(tiled, "Workspace", Workspace)
    monkeypatch.setattr(tiled, "Engine", Engine)
    tiled._warn_once.cache_clear()
    limit["asked"] = asked
    return limit


@pytest.mark.parametrize("scope", [None, "batch", "utterance"])
@pytest.mark.parametrize("late", [False, True], ids=["allocating", "visiting"])
@pytest.mark.parametrize("cells", [150, 9])
def test_goes_on_with_less(memory, caplog, scope, late, cells):
    problem = make_problem(0, **SIZES, scope=scope)
    options = {"impl": "cpu", "dropout": 0.3}
    torch.manual_seed(1)
    want = gradients_of(problem, sampled_rnnt_loss, **options)
    del memory["asked"][:]
    memory["cells"], memory["late"] = cells, late
    with caplog.at_level(logging.WARNING, "nemo_sampled_rnnt"):
        for _ in range(2):
            torch.manual_seed(1)
            assert_same(gradients_of(problem, sampled_rnnt_loss, **options), want, 1e-10)
    assert memory["asked"][0] > cells >= memory["asked"][-1]
    assert sum("ran out of memory with workspace_mib=256" in record.message for record in caplog.records) == 1


def test_one_frame_does_not_fit(memory):
    problem = make_problem(1, **SIZES)
    memory["cells"] = 3
    with pytest.raises(
        torch.OutOfMemoryError, match="one frame at a time: 8 label positions x .* are .* MiB.*no memory"
    ):
        problem.call(sampled_rnnt_loss, impl="cpu")
