"""The cpu implementation never holds B x T x V."""

import tracemalloc

import pytest
import torch
from ctc_truth import LEAVES, make_problem

from nemo_sampled_rnnt.ctc import ctc_loss, engine
from nemo_sampled_rnnt.memory import peak_memory

MIB = 2**20


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("backward", [True, False])
def test_peak(backward, dtype, monkeypatch):
    """B=8, T=60, V=20,000: 37 MiB of float32 logits. Allowed beside the gradients: 2 MiB of workspace, masses and sums
    (0.7 MiB), the chunks that are worked on (three of 2 MiB), and copies of a weight of 16 columns (1.3 MiB each)."""
    monkeypatch.setattr(engine, "SMALL", 2**20)
    problem = make_problem(0, B=8, T=60, U=9, D=16, V=20_000, lengths=[60] * 8, labels=[9] * 8).to(dtype)
    leaves = [getattr(problem, name).requires_grad_(backward) for name in LEAVES]

    def step():
        loss = problem.call(ctc_loss, impl="cpu", workspace_mib=2, frame_weights="mean").loss
        if backward:
            loss.backward()

    step()  # what is imported and compiled once is not counted
    tracemalloc.start()
    step()
    numpy_peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    for leaf in leaves:
        leaf.grad = None
    with peak_memory("cpu") as peak:
        step()
    gradients = sum(leaf.grad.nbytes for leaf in leaves if leaf.grad is not None)
    allowed = 2 * MIB + 0.7 * MIB + 6 * MIB + 2 * 1.3 * MIB
    assert peak.bytes - gradients <= allowed, f"{(peak.bytes - gradients) / MIB:.1f} MiB"
    assert numpy_peak <= MIB, f"NumPy and Python held {numpy_peak / MIB:.1f} MiB"


def test_two_runs_are_bitwise_equal():
    problem = make_problem(1, B=5, T=23, U=7, D=9, V=301, fill=0.0).to(torch.bfloat16)
    leaves = [getattr(problem, name).requires_grad_() for name in LEAVES]
    runs = []
    for _ in range(2):
        out = problem.call(ctc_loss, frame_weights="mean")
        runs.append([out.loss, out.posteriors, *torch.autograd.grad(out.loss, leaves)])
    assert all(torch.equal(one, other) for one, other in zip(*runs, strict=True))


def test_out_of_memory_is_tried_again_in_halves(monkeypatch, caplog):
    problem = make_problem(2, B=3, T=40, U=3, D=4, V=5000, lengths=[40] * 3, labels=[3] * 3)
    want = problem.call(ctc_loss).loss
    make, refused = engine.Engine, []

    def engine_with_little_memory(*inputs):
        if inputs[-1] > MIB:
            refused.append(inputs[-1])
            raise torch.OutOfMemoryError("no room")
        return make(*inputs)

    monkeypatch.setattr(engine, "Engine", engine_with_little_memory)
    engine._warn_once.cache_clear()
    assert problem.call(ctc_loss).loss == pytest.approx(want.item(), rel=1e-12)
    assert len(refused) == 3 and "ran out of memory with workspace_mib=256" in caplog.text
    monkeypatch.setattr(engine, "Engine", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("no room")))
    with pytest.raises(torch.OutOfMemoryError, match="one frame at a time, of 5001 logits"):
        problem.call(ctc_loss)
