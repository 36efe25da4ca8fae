"""The race of sampling/cuda in NumPy: the same random words, the same times to float32's rounding, the same winners."""

import numpy as np

from nemo_sampled_rnnt.gpu.octets import OCTET
from nemo_sampled_rnnt.sampling.cuda import noise

HALF, SCALE = np.uint64(2**63), np.float32(2.0**-64)
LATEST = np.finfo(np.float32).max


def words(seed: int, groups: int, vocab_size: int, first_group: int = 0) -> np.ndarray:
    """(G, V) uint64."""
    streams = noise.mix(noise.counter(np.uint64(seed), first_group + np.arange(groups)))
    return noise.mix(noise.counter(streams[:, None], np.arange(vocab_size)))


def exponential(word: np.ndarray) -> np.ndarray:
    """float32."""
    with np.errstate(divide="ignore"):
        near_0 = -np.log1p(-(word.astype(np.float32) * SCALE))
        return np.where(word < HALF, near_0, -np.log((~word).astype(np.float32) * SCALE))


def times(seed: int, p: np.ndarray, excluded: np.ndarray, first_group: int = 0) -> np.ndarray:
    """(G, V) float32: arrival times for weights p (G, V), infinity for excluded labels and weights of 0."""
    p = p.astype(np.float32)
    with np.errstate(divide="ignore", over="ignore"):
        time = np.minimum(exponential(words(seed, *p.shape, first_group)) / p, LATEST)
    return np.where(excluded | (p == 0), np.float32(np.inf), time)


def winners(time: np.ndarray, k: int, threads: int) -> tuple[list[int], float]:
    """The k labels that arrive first, in the order in which the kernel writes them, and tau."""
    label = np.arange(len(time))
    owner = label // OCTET % threads
    by_time = np.lexsort((label, owner, time))
    drawn = by_time[:k]
    drawn = drawn[np.isfinite(time[drawn])]
    tau = float(time[by_time[k]]) if k < len(time) else np.inf
    return drawn[np.lexsort((drawn, owner[drawn]))].tolist(), tau


def weights(log_weights, posteriors, floor: float, together: bool, batch: int, vocab_size: int) -> np.ndarray:
    """(G, V) float64: V times the probability of each label, or any multiple for log_weights."""
    groups = 1 if together else batch
    if log_weights is not None:
        return np.exp(np.asarray(log_weights, np.float64))[None].repeat(groups, 0)
    if posteriors is None:
        return np.ones((groups, vocab_size))
    mass = np.maximum(np.asarray(posteriors, np.float64), 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        share = np.where(unusable(posteriors)[:, None], 1 / vocab_size, mass / mass.sum(1, keepdims=True))
    p = vocab_size * (1 - floor) * share + floor
    return p.mean(0, keepdims=True) if together else p


def unusable(posteriors) -> np.ndarray:
    """(B,) bool."""
    total = np.maximum(np.asarray(posteriors, np.float64), 0).sum(1)
    return ~(np.isfinite(total) & (total > 0))


def excluded(targets, lengths, together: bool, vocab_size: int) -> np.ndarray:
    """(G, V) bool."""
    flags = np.zeros((len(targets), vocab_size), bool)
    for b, length in enumerate(lengths):
        labels = [x for x in targets[b][: int(length)] if 0 <= x < vocab_size]
        flags[b, labels] = True
    return flags.any(0, keepdims=True) if together else flags


def log_inclusion(p: np.ndarray, tau: float) -> np.ndarray:
    return np.log(-np.expm1(-(p.astype(np.float64) * tau)))
