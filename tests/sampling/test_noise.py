"""The noise of the kernels that draw, by its NumPy twin (race.py): uniform, independent, right in the tails.

Bounds are 5 standard errors (one comparison in 1.7 million fails by chance; here are some 500, with fixed seeds).
"""

import itertools
import math

import numpy as np
import pytest
import race

ONE = np.uint64(1)
N_BITS = 64


def bits(words: np.ndarray) -> np.ndarray:
    """(n, 64) 0 or 1."""
    return np.unpackbits(words.reshape(-1, 1).view(np.uint8), axis=1)


def assert_fair(words: np.ndarray):
    """Every bit is 1 half of the time."""
    ones, n = bits(words).sum(0), words.size
    z = (ones - n / 2) / math.sqrt(n / 4)
    assert np.abs(z).max() < 5, f"bit {np.abs(z).argmax()}: {z}"


WORDS = race.words(17, 64, 4001)


def test_bits_are_fair():
    assert_fair(WORDS)


@pytest.mark.parametrize("distance", [1, 2, 8, 1024])
def test_neighbours_are_independent(distance):
    """Of labels, of groups, of seeds as they are counted up, and of seeds that differ in one bit."""
    assert_fair(WORDS[:, distance:] ^ WORDS[:, :-distance])
    groups = race.words(17, 2048, 131)
    assert_fair(groups[distance:] ^ groups[:-distance])
    assert_fair(race.words(17 + distance, 64, 4001) ^ WORDS)
    assert_fair(race.words(17 ^ distance << 40, 64, 4001) ^ WORDS)


def test_no_word_comes_twice():
    """4.2 million words of 64 bits: two alike by chance once in two million runs."""
    words = np.concatenate([race.words(seed, 16, 2**16).ravel() for seed in range(4)])
    assert len(np.unique(words)) == words.size


def test_pairs_of_bits():
    """Any two bits of a word agree half of the time: 2,016 pairs, 5.5 standard errors."""
    signs = 1 - 2 * bits(WORDS).astype(np.float32)
    correlation = signs.T @ signs / math.sqrt(len(signs))
    np.fill_diagonal(correlation, 0)
    assert np.abs(correlation).max() < 5.5


def test_exponential_is_right_to_float32_at_both_ends():
    ends = [ONE << np.uint64(n) for n in range(N_BITS)]
    generator = np.random.default_rng(0)
    some = generator.integers(0, 2**64, 10_000, dtype=np.uint64) >> generator.integers(0, 64, 10_000, dtype=np.uint64)
    words = np.concatenate([np.array(ends), some])
    for word, near_0 in ((words[words > 0], True), (~words[words > 0], False)):
        small = (word if near_0 else ~word).astype(np.longdouble) / np.longdouble(2) ** 64
        exact = -np.log1p(-small) if near_0 else -np.log(small)
        np.testing.assert_allclose(race.exponential(word), exact.astype(np.float64), rtol=3e-7)
    assert race.exponential(np.array([0], np.uint64)) == 0
    assert race.exponential(np.array([1], np.uint64)) == pytest.approx(2.0**-64)


def test_exponential_has_its_distribution():
    """Shares below 60 thresholds from 2^-20 to 14, of 12.8 million; and mean and variance."""
    times = np.concatenate([race.exponential(race.words(seed, 16, 2**16)).ravel() for seed in range(12)])
    times, n = np.sort(times), times.size
    thresholds = np.geomspace(2**-20, 14, 60)
    below, share = np.searchsorted(times, thresholds), -np.expm1(-thresholds)
    z = (below - n * share) / np.sqrt(n * share * (1 - share))
    assert np.abs(z).max() < 5, z
    assert abs(times.mean(dtype=np.float64) - 1) < 5 / math.sqrt(n)
    assert abs(times.var(dtype=np.float64) - 1) < 5 * math.sqrt(8 / n)


def race_of(p: np.ndarray, k: int, n_draws: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(n, k) the drawn, sorted by time, and (n, k) their log inclusion probabilities: each group is a draw."""
    times = race.times(seed, np.tile(p, (n_draws, 1)), np.zeros((1, len(p)), bool))
    order = np.argsort(times, axis=1, kind="stable")
    ids = order[:, :k]
    tau = np.take_along_axis(times, order[:, k : k + 1], 1)
    return ids, race.log_inclusion(p[ids], tau)


def test_rare_labels_come_as_often_as_they_should():
    """First of four: in proportion to weights from 1 down to 1e-4."""
    p, n_draws = np.array([1.0, 1e-2, 1e-3, 1e-4]), 1_000_003
    ids, _ = race_of(p, 1, n_draws, seed=1)
    expected = p / p.sum()
    z = (np.bincount(ids[:, 0], minlength=4) / n_draws - expected) / np.sqrt(expected * (1 - expected) / n_draws)
    assert np.abs(z).max() < 5, z


def test_frequencies_are_those_of_successive_sampling():
    p, k, n_draws = np.exp(np.random.default_rng(0).normal(size=7)), 3, 200_003
    expected = np.zeros(7)
    for order in itertools.permutations(range(7), k):
        left, probability = p.sum(), 1.0
        for j in order:
            probability, left = probability * p[j] / left, left - p[j]
        expected[list(order)] += probability
    ids, _ = race_of(p, k, n_draws, seed=2)
    z = (np.bincount(ids.ravel(), minlength=7) / n_draws - expected) / np.sqrt(expected * (1 - expected) / n_draws)
    assert np.abs(z).max() < 5, z


@pytest.mark.parametrize(("vocab_size", "k"), [(41, 7), (41, 3), (13, 12), (131, 29)])
def test_corrected_sum_is_unbiased(vocab_size, k):
    generator = np.random.default_rng(vocab_size + k)
    p, scores = np.exp(generator.normal(size=(2, vocab_size)))
    ids, log_q = race_of(p, k, 60_013, seed=3)
    estimates = (scores[ids] * np.exp(-log_q)).sum(1)
    error = estimates.std() / math.sqrt(len(estimates))
    assert error < 0.01 * scores.sum(), "too few draws to tell"
    assert abs(estimates.mean() - scores.sum()) < 5 * error


def test_groups_are_drawn_independently():
    """Labels that two neighbouring groups share: k^2 / V on average, with the hypergeometric's variance."""
    vocab_size, k, n_draws = 101, 20, 20_001
    ids, _ = race_of(np.ones(vocab_size), k, n_draws, seed=4)
    came = np.zeros((n_draws, vocab_size), bool)
    np.put_along_axis(came, ids, True, axis=1)
    shared = (came[1:] & came[:-1]).sum(1)
    mean = k * k / vocab_size
    variance = mean * (1 - k / vocab_size) * (vocab_size - k) / (vocab_size - 1)
    assert abs(shared.mean() - mean) < 5 * math.sqrt(variance / len(shared))
