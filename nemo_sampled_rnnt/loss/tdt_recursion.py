"""The forward and backward recursions of a token-and-duration transducer on the CPU, compiled by numba.

    log p(k, d | t,u) = log p(k | t,u) - sigma + log p(d | t,u)
    alpha[t,u] = log( sum_{d > 0} exp(alpha[t-d,u] + log p(blank, d | t-d,u))
                    + sum_d       exp(alpha[t-d,u-1] + log p(y_u, d | t-d,u-1)) )
    beta[t,u]  = log( sum_{d > 0} exp(log p(blank, d | t,u) + beta[t+d,u])
                    + sum_d       exp(log p(y_{u+1}, d | t,u) + beta[t+d,u+1]) )        beta[T,U] = 0
    gamma of an arc = exp(alpha at its start + log p(arc) + beta at its end - log P)            log P = beta[0,0]

An arc ends within the lattice, or, by blank, at (T, U). Arrays are (T, U+1), those of durations (T, U+1, D). alpha and
beta are float64. Source: arXiv 2304.06795.
"""

from __future__ import annotations

import math

import numba
import numpy as np

from nemo_sampled_rnnt.loss.recursion import log_add


@numba.njit(nogil=True, cache=True)
def _backward(log_blank, log_label, log_duration, durations, beta):
    """Write beta (T+1, U+2), a frame and a column of -inf behind the lattice, and return log P."""
    frames, width = log_blank.shape
    beta[:] = -math.inf
    beta[frames, width - 1] = 0.0
    for t in range(frames - 1, -1, -1):
        for u in range(width - 1, -1, -1):
            blank, label = -math.inf, -math.inf
            for i in range(len(durations)):
                d = durations[i]
                if d > 0 and t + d <= frames:
                    blank = log_add(blank, log_duration[t, u, i] + beta[t + d, u])
                if t + d < frames:
                    label = log_add(label, log_duration[t, u, i] + beta[t + d, u + 1])
            blank += log_blank[t, u]
            beta[t, u] = log_add(blank, label + log_label[t, u]) if u < width - 1 else blank
    return beta[0, 0]


@numba.njit(nogil=True, cache=True)
def _forward(log_blank, log_label, log_duration, durations, beta, by_blank, by_label, by_duration):
    """Write the posteriors of the arcs: alpha is pushed along them, so that each is visited once."""
    frames, width = log_blank.shape
    alpha = np.full((frames, width), -math.inf)
    alpha[0, 0] = 0.0
    for t in range(frames):
        for u in range(width):
            here = alpha[t, u]
            blank, label = here + log_blank[t, u], here + log_label[t, u] if u < width - 1 else -math.inf
            by_blank[t, u], by_label[t, u] = 0.0, 0.0
            for i in range(len(durations)):
                d, arc, posterior = durations[i], log_duration[t, u, i], 0.0
                if d > 0 and t + d <= frames:
                    gamma = math.exp(blank + arc + beta[t + d, u] - beta[0, 0])
                    by_blank[t, u] += gamma
                    posterior += gamma
                    if t + d < frames:
                        alpha[t + d, u] = log_add(alpha[t + d, u], blank + arc)
                if t + d < frames and u < width - 1:
                    gamma = math.exp(label + arc + beta[t + d, u + 1] - beta[0, 0])
                    by_label[t, u] += gamma
                    posterior += gamma
                    alpha[t + d, u + 1] = log_add(alpha[t + d, u + 1], label + arc)
                by_duration[t, u, i] = posterior


def log_likelihood(log_blank, log_label, log_duration, durations: tuple[int, ...]) -> float:
    """log P(y), -inf where no path ends at T; the last column of labels is not read.

    Args:
        log_blank, log_label: (T, U+1) log p(blank) and log p(next label).
        log_duration: (T, U+1, D) log p(d) - sigma.
        durations: D numbers of frames.
    """
    return _likelihood_and_beta(log_blank, log_label, log_duration, durations)[0]


def arc_posteriors(
    log_blank, log_label, log_duration, durations: tuple[int, ...], by_blank, by_label, by_duration
) -> float:
    """Write gamma of each cell's arcs, summed over durations and over blank and label, and return log P(y).

    Nothing is written where log P is not finite.

    Args:
        by_blank, by_label: (T, U+1).
        by_duration: (T, U+1, D).
    """
    likelihood, beta = _likelihood_and_beta(log_blank, log_label, log_duration, durations)
    if math.isfinite(likelihood):
        durations = np.array(durations)
        _forward(log_blank, log_label, log_duration, durations, beta, by_blank, by_label, by_duration)
    return likelihood


def _likelihood_and_beta(log_blank, log_label, log_duration, durations):
    frames, width = log_blank.shape
    beta = np.empty((frames + 1, width + 1))
    return _backward(log_blank, log_label, log_duration, np.array(durations), beta), beta
