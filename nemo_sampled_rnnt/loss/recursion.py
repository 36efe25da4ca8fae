"""The forward and backward recursions of one utterance on the CPU, compiled by numba.

    alpha[t,u] = logadd(alpha[t-1,u] + log p(blank | t-1,u), alpha[t,u-1] + log p(y_u | t,u-1))
    beta[t,u]  = logadd(log p(blank | t,u) + beta[t+1,u],    log p(y_{u+1} | t,u) + beta[t,u+1])
    gamma of an arc = exp(alpha at its start + log p(arc) + beta at its end - log P)

Standard (Graves 2012). All arrays are (T, U+1). alpha and beta are float64: they run into the thousands, and the
posterior is their difference.
"""

from __future__ import annotations

import math

import numba
import numpy as np


@numba.njit(inline="always")
def log_add(a, b):
    high, low = (a, b) if a > b else (b, a)
    # -inf: no path. `not (low > ...)` lets NaN through to the sum, so that it is seen.
    return high if low == -math.inf else high + math.log1p(math.exp(low - high))


@numba.njit(nogil=True, cache=True)
def _forward(log_blank, log_label, alpha):
    frames, width = log_blank.shape
    for t in range(frames):
        for u in range(width):
            if t == 0 and u == 0:
                alpha[t, u] = 0.0
            elif t == 0:
                alpha[t, u] = alpha[t, u - 1] + log_label[t, u - 1]
            elif u == 0:
                alpha[t, u] = alpha[t - 1, u] + log_blank[t - 1, u]
            else:
                alpha[t, u] = log_add(alpha[t - 1, u] + log_blank[t - 1, u], alpha[t, u - 1] + log_label[t, u - 1])
    return alpha[frames - 1, width - 1] + log_blank[frames - 1, width - 1]


@numba.njit(nogil=True, cache=True)
def _backward(log_blank, log_label, alpha, likelihood, by_blank, by_label):
    frames, width = log_blank.shape
    beta = np.empty(width + 1, dtype=alpha.dtype)  # beta[u] holds row t + 1 until row t overwrites it
    beta[:] = -math.inf
    beta[width - 1] = 0.0
    for t in range(frames - 1, -1, -1):
        for u in range(width - 1, -1, -1):
            blank = log_blank[t, u] + beta[u]
            label = log_label[t, u] + beta[u + 1] if u < width - 1 else -math.inf
            by_blank[t, u] = math.exp(alpha[t, u] + blank - likelihood)
            by_label[t, u] = math.exp(alpha[t, u] + label - likelihood)
            beta[u] = log_add(blank, label)


def forward_log_likelihood(log_blank: np.ndarray, log_label: np.ndarray) -> float:
    """log P(y) from the log-probs (T, U+1) of blank and next label; the last column of labels is not read."""
    return _forward(log_blank, log_label, np.empty(log_blank.shape))


def arc_posteriors(log_blank, log_label, by_blank, by_label) -> float:
    """Write gamma of each cell's blank and label arc, and return log P(y); arrays are (T, U+1)."""
    alpha = np.empty(log_blank.shape)
    likelihood = _forward(log_blank, log_label, alpha)
    _backward(log_blank, log_label, alpha, likelihood, by_blank, by_label)
    return likelihood
