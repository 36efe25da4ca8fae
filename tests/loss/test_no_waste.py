"""What is not asked for is not computed, and tiles are as few as fit."""

import pytest
import torch
from truth import LEAVES, SCOPES, make_problem

from nemo_sampled_rnnt import sampled_rnnt_loss
from nemo_sampled_rnnt.ctc import ctc_loss
from nemo_sampled_rnnt.ctc.engine import Engine as CTCEngine
from nemo_sampled_rnnt.loss.tiled import Engine


@pytest.fixture
def engines(monkeypatch):
    """All that run, of either loss."""
    made = []
    for kind in (Engine, CTCEngine):
        run = kind.run
        monkeypatch.setattr(kind, "run", lambda self, run=run: (made.append(self), run(self))[1])
    return made


@pytest.mark.parametrize("without", [torch.no_grad, torch.inference_mode])
def test_no_gradients_without_grad_mode(without, engines):
    """Though weight and bias are parameters, which ask for them."""
    problem = make_problem(0).leaves()
    with without():
        problem.call(sampled_rnnt_loss, impl="cpu")
        weight, bias = torch.nn.Parameter(torch.randn(8, 5)), torch.nn.Parameter(torch.randn(8))
        lengths = torch.tensor([6, 4]), torch.tensor([2, 1])
        ctc_loss(torch.randn(2, 6, 5), weight, bias, torch.tensor([[1, 2], [3, 0]]), *lengths, impl="cpu")
    assert [type(engine) for engine in engines] == [Engine, CTCEngine]
    assert not any(engine.needs.any for engine in engines)
    problem.call(sampled_rnnt_loss, impl="cpu").backward()
    assert engines[-1].needs.any and all(getattr(problem, name).grad is not None for name in LEAVES)


@pytest.mark.parametrize("scope", SCOPES)
def test_one_tile_where_the_workspace_is_ample(scope, engines):
    """The rows of each utterance's own set have room beside its cells."""
    problem = make_problem(1, B=3, T=40, U=3, H=64, V=900, N=700, scope=scope).to(torch.float32)
    problem.call(sampled_rnnt_loss, impl="cpu", workspace_mib=256)
    assert [len(visit) for visit in engines[0].visits] == [1]
