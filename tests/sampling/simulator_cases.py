"""The kernels that draw, in numba's CUDA simulator, against NumPy; run with NUMBA_ENABLE_CUDASIM=1 by test_cuda.py.

A simulated thread costs about 0.1 ms: vocabularies are tiny. Prints a line for each case, `ok` or `FAILED` first;
exits with the number of failures.
"""

import sys
import time
import traceback

import numpy as np
import race
import torch

from nemo_sampled_rnnt.sampling import NegativeSampler, SampledSoftmax, sampler
from nemo_sampled_rnnt.sampling.cuda import draw, kernels

SEED, B, U = 2**62 + 12345, 3, 4
LENGTHS = [4, 0, 2]
PADDING = [-1, 23, -(2**40), 2**40]


def batch(vocab_size):
    generator = torch.Generator().manual_seed(0)
    targets = torch.randint(vocab_size, (B, U), generator=generator)
    for b, length in enumerate(LENGTHS):
        targets[b, length:] = torch.tensor(PADDING[: U - length])
    return targets, torch.tensor(LENGTHS), torch.rand(B, vocab_size, generator=generator).pow(4)


def check(k, vocab_size, together=False, source="uniform", floor=0.0, sizes=None, change=None, dtype=torch.int64):
    """Times, winners, their order, padding and inclusion probabilities; and the same winners without these."""
    targets, lengths, posteriors = batch(vocab_size)
    if change is not None:
        change(targets, posteriors)
    if dtype == torch.int32:
        targets, lengths = targets.clamp(-1, vocab_size).int(), lengths.int()
    log_weights = torch.linspace(-9, 0, vocab_size) if source == "unigram" else None
    posteriors = posteriors if source == "ctc" else None
    given, unusable = None if sizes is None else torch.tensor(sizes), torch.tensor([100])
    ids, log_q, got = draw._draw(
        targets, lengths, k, vocab_size, SEED, together, log_weights, posteriors, floor, True, given, unusable
    )
    without = 0 if posteriors is None else race.unusable(posteriors.numpy()).sum()
    assert unusable.item() == 100 + without
    p = race.weights(log_weights, posteriors, floor, together, B, vocab_size)
    p[np.array([k] * len(p) if sizes is None else sizes) >= vocab_size] = 1
    want = race.times(SEED, p, race.excluded(targets.tolist(), lengths, together, vocab_size))
    np.testing.assert_allclose(got[:, :vocab_size].numpy(), want, rtol=2e-6)
    assert got[:, vocab_size:].isposinf().all(), "padding to octets never arrives"
    assert ids.shape == log_q.shape == (len(p), k) and ids.dtype == torch.int64 and log_q.dtype == torch.float32
    for g in range(len(p)):
        drawn, tau = race.winners(got[g, :vocab_size].numpy(), k if sizes is None else sizes[g], kernels.THREADS)
        n = len(drawn)
        assert ids[g].tolist() == drawn + [-1] * (k - n), (g, ids[g].tolist(), drawn)
        np.testing.assert_allclose(log_q[g, :n].numpy(), race.log_inclusion(p[g, drawn], tau), rtol=1e-5, atol=1e-6)
        assert log_q[g, n:].eq(0).all()
    assert all(kept[0].eq(0).all() for kept in draw._kept.values()), "tickets are 0 again"


def nothing_but_labels(targets, posteriors):
    """The first utterance has mass at its labels alone, the second none at all."""
    posteriors[0] = 0
    posteriors[0, targets[0, :2]] = 0.5
    posteriors[1] = 0


def not_finite(targets, posteriors):
    posteriors[0, 3], posteriors[1, 5], posteriors[2, 1] = torch.nan, torch.inf, -3.0


def at_the_last_moment(targets, posteriors):
    """Two labels with mass; times of the others overflow, and so are equal."""
    posteriors[:] = 2.0**-148
    posteriors[:, [2, 17]] = 1.0


def wrong_labels(targets, posteriors):
    targets[0, :2] = torch.tensor([23, -5])


CASES = {
    "uniform": dict(k=7, vocab_size=23),
    "uniform, batch scope": dict(k=7, vocab_size=23, together=True),
    "unigram": dict(k=5, vocab_size=19, source="unigram"),
    "unigram, batch scope": dict(k=5, vocab_size=19, source="unigram", together=True),
    "ctc": dict(k=7, vocab_size=23, source="ctc", floor=0.05),
    "ctc, batch scope": dict(k=7, vocab_size=23, source="ctc", floor=0.05, together=True),
    "ctc without a floor": dict(k=6, vocab_size=24, source="ctc"),
    "floor of 1": dict(k=6, vocab_size=23, source="ctc", floor=1.0),
    "several rounds and stretches": dict(k=40, vocab_size=150, together=True),
    "one": dict(k=1, vocab_size=23, together=True),
    "all but one": dict(k=22, vocab_size=23, together=True),
    "everything": dict(k=23, vocab_size=23),
    "everything, whole octets": dict(k=24, vocab_size=24, together=True),
    "sizes": dict(k=9, vocab_size=23, sizes=[0, 9, 4]),
    "sizes, ctc": dict(k=23, vocab_size=23, sizes=[23, 1, 22], source="ctc", floor=0.1),
    "sizes, some everything": dict(k=22, vocab_size=23, sizes=[23, 22, 3], source="ctc", change=nothing_but_labels),
    "sizes, batch scope": dict(k=9, vocab_size=23, sizes=[3], together=True),
    "fewer than k": dict(k=5, vocab_size=23, source="ctc", change=nothing_but_labels),
    "not finite": dict(k=5, vocab_size=23, source="ctc", floor=0.1, change=not_finite),
    "not finite, batch scope": dict(k=5, vocab_size=23, source="ctc", floor=0.1, change=not_finite, together=True),
    "ties": dict(k=9, vocab_size=150, source="ctc", change=at_the_last_moment, together=True),
    "wrong labels": dict(k=7, vocab_size=23, change=wrong_labels),
    "int32": dict(k=7, vocab_size=23, dtype=torch.int32),
    "one label": dict(k=1, vocab_size=1, change=lambda targets, posteriors: targets.fill_(5)),
}


def run_sampler():
    """NegativeSampler by the kernels: every sampler and scope, counted draws, the exact limit."""
    sampler.draws_by_kernels = lambda device_type: True
    vocab_size, k = 23, 6
    targets, lengths, posteriors = batch(vocab_size)
    for name, scope in (("uniform", "utterance"), ("unigram", "batch"), ("ctc", "batch"), ("ctc", "utterance")):
        together, correction = scope == "batch", name != "uniform"
        config = SampledSoftmax(k, sampler=name, scope=scope, correction=correction, seed=5, floor=0.1)
        draws = NegativeSampler(config, vocab_size, rank=1, counts=torch.arange(vocab_size))
        draws.draws = 7
        drawn = draws(targets, lengths, posteriors)
        assert draws.draws == 8 and drawn.ids.shape == ((k,) if together else (B, k))
        log_weights = draws._fixed if name == "unigram" else None
        p = race.weights(log_weights, posteriors if name == "ctc" else None, 0.1, together, B, vocab_size)
        excluded = race.excluded(targets.tolist(), lengths, together, vocab_size)
        times = race.times(sampler.mixed_seed(5, 1, 7), p, excluded)
        assert drawn.ids.view(-1, k).tolist() == [race.winners(row, k, kernels.THREADS)[0] for row in times]
        assert (drawn.log_prob is not None) == correction
    everything = SampledSoftmax(vocab_size, sampler="ctc", floor=0.0, correction=True, seed=0)
    ids, log_q = NegativeSampler(everything, vocab_size)(targets, lengths, posteriors * 0)
    for b in range(B):
        labels = set(targets[b, : lengths[b]].tolist())
        assert sorted(i for i in ids[b].tolist() if i >= 0) == sorted(set(range(vocab_size)) - labels)
    assert log_q.eq(0).all()


def run_budget():
    """Under a budget the kernels draw as many labels for each set as torch does."""
    vocab_size = 23
    targets, lengths, posteriors = batch(vocab_size)
    posteriors[1] = float("nan")
    frames = sampler.Frames(torch.tensor([11, 4, 7]), 11)
    for scope, max_logits in (("utterance", 900), ("batch", 900), ("utterance", 10**6), ("utterance", 1)):
        config = SampledSoftmax("auto", max_logits=max_logits, scope=scope, correction=True, seed=5)
        drawn = []
        for by_kernels in (True, False):
            sampler.draws_by_kernels = lambda device_type, by_kernels=by_kernels: by_kernels
            draw = NegativeSampler(config, vocab_size)
            drawn.append(draw(targets, lengths, posteriors, frames))
            assert draw.uniform_instead == 1
        ours, torchs = drawn
        assert torch.equal(ours.ids >= 0, torchs.ids >= 0)
        assert ours.log_prob[ours.ids < 0].eq(0).all() and ours.log_prob.isfinite().all()


def main():
    jobs = {name: (check, case) for name, case in CASES.items()}
    jobs |= {"sampler": (run_sampler, {}), "budget": (run_budget, {})}
    failures = 0
    for name, (job, case) in jobs.items():
        try:
            start = time.perf_counter()
            job(**case)
            print("ok", name, f"({time.perf_counter() - start:.1f} s)", flush=True)
        except Exception:
            failures += 1
            print("FAILED", name, flush=True)
            traceback.print_exc()
    return failures


if __name__ == "__main__":
    sys.exit(main())
