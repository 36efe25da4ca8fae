"""Drawing by kernels: in the simulator, compiled to PTX, and on a GPU. The noise's distribution: test_noise.py."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import race
import torch

from nemo_sampled_rnnt.sampling import NegativeSampler, SampledSoftmax

HERE = Path(__file__).resolve().parent
GPU = pytest.mark.gpu


def run_script(name: str, **environment) -> list[str]:
    """Lines of a script in a process of its own: the simulator is chosen before numba is imported."""
    path = os.pathsep.join([str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")])
    kept = {key: value for key, value in os.environ.items() if key != "NUMBA_ENABLE_CUDASIM"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(HERE / name)],
        env={**kept, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        timeout=580,
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr[-8000:]
    return done.stdout.splitlines()


def test_cases_in_the_simulator():
    lines = run_script("simulator_cases.py", NUMBA_ENABLE_CUDASIM="1")
    assert sum(line.startswith("ok ") for line in lines) == 26


@pytest.mark.skipif(importlib.util.find_spec("numba_cuda") is None, reason="numba-cuda with NVRTC is not installed")
def test_kernels_compile_to_ptx():
    lines = run_script("ptx_cases.py")
    assert len(lines) == 6
    for line in lines:
        assert ": 0 local, 0 double" in line, line
        assert line.startswith("totals") or ", 8 atomics" in line, "the selection's loop over an octet is unrolled"


# ---------------------------------------------------------------------------------------------------------------- GPU


def inputs(batch, vocab_size, longest=50, seed=0):
    """Targets, lengths and posteriors on the GPU; the last utterance's posteriors are not finite."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(vocab_size, (batch, longest), generator=generator)
    lengths = torch.randint(longest // 2, longest + 1, (batch,), generator=generator)
    posteriors = (3 * torch.randn(batch, vocab_size, generator=generator)).softmax(1)
    posteriors[-1, 7 % vocab_size] = torch.nan
    return targets.cuda(), lengths.cuda(), posteriors.cuda()


def drawn(k, vocab_size, batch=5, source="uniform", together=False, floor=0.05, sizes=None, seed=2**61 + 3):
    """ids, log inclusion probabilities and times by the kernels, and the NumPy twin's weights and times."""
    from nemo_sampled_rnnt.sampling.cuda import draw

    targets, lengths, posteriors = inputs(batch, vocab_size)
    log_weights = torch.linspace(-12, 0, vocab_size).cuda() if source == "unigram" else None
    posteriors = posteriors if source == "ctc" else None
    given = None if sizes is None else torch.tensor(sizes).cuda()
    got = draw._draw(targets, lengths, k, vocab_size, seed, together, log_weights, posteriors, floor, True, given)
    at_home = [None if x is None else x.cpu().numpy() for x in (log_weights, posteriors)]
    p = race.weights(*at_home, floor, together, batch, vocab_size)
    p[np.array([k] * len(p) if sizes is None else sizes) >= vocab_size] = 1
    excluded = race.excluded(targets.tolist(), lengths.tolist(), together, vocab_size)
    return *(x.cpu() for x in got), p, race.times(seed, p, excluded)


@GPU
@pytest.mark.parametrize("together", [False, True], ids=["utterance", "batch"])
@pytest.mark.parametrize("source", ["uniform", "unigram", "ctc"])
@pytest.mark.parametrize("vocab_size, k", [(1, 1), (37, 11), (1024, 256), (16384, 1024), (131071, 2048), (4232, 4231)])
def test_the_first_k_are_drawn(vocab_size, k, source, together):
    """Times are the twin's to float32's rounding; ids, their order and their number are exact for these times."""
    from nemo_sampled_rnnt.sampling.cuda.kernels import THREADS

    ids, log_q, times, p, want = drawn(k, vocab_size, source=source, together=together)
    np.testing.assert_allclose(times[:, :vocab_size].numpy(), want, rtol=3e-6)
    for g in range(len(p)):
        winners, tau = race.winners(times[g, :vocab_size].numpy(), k, THREADS)
        n = len(winners)
        assert ids[g].tolist() == winners + [-1] * (k - n)
        np.testing.assert_allclose(log_q[g, :n].numpy(), race.log_inclusion(p[g, winners], tau), rtol=1e-5, atol=1e-6)
        assert log_q[g, n:].eq(0).all()
        if source == "uniform":  # no rounding of weights: the twin alone says who is drawn
            assert winners == race.winners(want[g], k, THREADS)[0]


@GPU
@pytest.mark.parametrize("k", [512, 1000])
def test_sizes(k):
    from nemo_sampled_rnnt.sampling.cuda.kernels import THREADS

    sizes = [0, k, 1, 500, k - 1]
    ids, log_q, times, p, _ = drawn(k, 1000, source="ctc", sizes=sizes)
    for g, size in enumerate(sizes):
        winners, tau = race.winners(times[g, :1000].numpy(), size, THREADS)
        assert ids[g].tolist() == winners + [-1] * (k - len(winners))
        want = race.log_inclusion(p[g, winners], tau)
        np.testing.assert_allclose(log_q[g, : len(winners)].numpy(), want, rtol=1e-5, atol=1e-6)


@GPU
@pytest.mark.parametrize("together", [False, True], ids=["utterance", "batch"])
def test_a_million_labels(together):
    from nemo_sampled_rnnt.sampling.cuda.kernels import THREADS

    vocab_size, k = 2**20, 4096
    ids, _, times, p, want = drawn(k, vocab_size, batch=3, source="uniform", together=together)
    for g in range(len(p)):
        assert ids[g].tolist() == race.winners(want[g], k, THREADS)[0]


def sampler_of(source, scope, vocab_size=16384, k=1024, **config):
    config = SampledSoftmax(k, sampler=source, scope=scope, seed=3, floor=0.05, correction=True, **config)
    return NegativeSampler(config, vocab_size, counts=torch.arange(vocab_size))


@GPU
@pytest.mark.parametrize("scope", ["utterance", "batch"])
@pytest.mark.parametrize("source", ["uniform", "unigram", "ctc"])
def test_a_draw_is_a_function_of_its_number(source, scope):
    """Not of the stream, of what ran before, or of how the GPU was shared."""
    arguments = inputs(16, 16384)
    draw = sampler_of(source, scope)
    first = [draw(*arguments) for _ in range(3)]
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda._sleep(10_000_000)
        again = sampler_of(source, scope)
        second = [again(*arguments) for _ in range(3)]
    beside = sampler_of(source, scope)
    third = [beside(*arguments) for _ in range(3)]
    torch.cuda.synchronize()
    for one, two, three in zip(first, second, third, strict=True):
        assert torch.equal(one.ids, two.ids) and torch.equal(one.ids, three.ids)
        assert torch.equal(one.log_prob, two.log_prob) and torch.equal(one.log_prob, three.log_prob)
    assert not torch.equal(first[0].ids, first[1].ids)


@GPU
def test_inputs_that_arrive_late_are_waited_for():
    arguments = inputs(16, 16384)
    want = sampler_of("ctc", "utterance")(*arguments).ids
    late = [torch.zeros_like(x) for x in arguments]
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda._sleep(200_000_000)  # about 0.1 s
        for tensor, value in zip(late, arguments, strict=True):
            tensor.copy_(value)
        got = sampler_of("ctc", "utterance")(*late).ids
    torch.cuda.synchronize()
    assert torch.equal(got, want)


@GPU
@pytest.mark.parametrize("source", ["uniform", "unigram", "ctc"])
def test_corrected_sum_is_unbiased(source):
    """As test_sampler.py has it for torch: 4 standard errors, each below 1 %."""
    n_draws, vocab_size, generator = 20_011, 23, torch.Generator().manual_seed(2)
    scores = torch.randn(vocab_size, dtype=torch.float64, generator=generator)
    posteriors = (2 * torch.randn(vocab_size, generator=generator)).softmax(0).expand(n_draws, -1)
    targets, lengths = torch.tensor([[3, 8, 20, 5]]).expand(n_draws, -1), torch.full((n_draws,), 3)
    draw = sampler_of(source, "utterance", vocab_size, 7)
    ids, log_prob = (x.cpu() for x in draw(targets.cuda(), lengths.cuda(), posteriors.cuda()))
    estimates = (scores[ids] - log_prob).exp().sum(1) + scores[[3, 8, 20]].exp().sum()
    truth, error = scores.exp().sum(), estimates.std() / n_draws**0.5
    assert error < 0.01 * truth
    assert abs(estimates.mean() - truth) < 4 * error, f"{estimates.mean()} +- {error} instead of {truth}"
