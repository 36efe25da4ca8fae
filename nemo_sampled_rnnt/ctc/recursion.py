"""The forward and backward recursions of CTC, of one utterance on the CPU, compiled by numba.

States are the blanks before, between and after the labels, b_0 .. b_U, and the labels y_0 .. y_{U-1}:

    alpha[t, b_u] = (alpha[t-1, b_u] + alpha[t-1, y_{u-1}]) p(blank | t)
    alpha[t, y_u] = (alpha[t-1, y_u] + alpha[t-1, b_u] + [y_u != y_{u-1}] alpha[t-1, y_{u-1}]) p(y_u | t)
    P = alpha[T-1, b_U] + alpha[T-1, y_{U-1}]
    gamma = alpha beta / (p P),     beta the same recursion from the far end

Standard (Graves et al. 2006). In logarithms and float64: they run into the thousands, and gamma is their difference.
"""

from __future__ import annotations

import math

import numba
import numpy as np


@numba.njit(inline="always")
def _log_add(a, b):
    high, low = (a, b) if a > b else (b, a)
    # -inf: no path. `not (low > ...)` lets NaN through to the sum, so that it is seen.
    return high if low == -math.inf else high + math.log1p(math.exp(low - high))


@numba.njit(nogil=True, cache=True)
def _passed(log_blank, log_label, labels, at_blank, at_label):
    """Fill alpha of the blanks (T, U+1) and of the labels (T, U+1; its last column is -inf)."""
    frames, width = at_blank.shape
    for t in range(frames):
        for u in range(width):
            if t == 0:
                blank = 0.0 if u == 0 else -math.inf
                label, before = -math.inf, -math.inf
            else:
                blank, label = at_blank[t - 1, u], at_label[t - 1, u]
                before = at_label[t - 1, u - 1] if u > 0 else -math.inf
            at_blank[t, u] = _log_add(blank, before) + log_blank[t]
            at_label[t, u] = -math.inf
            if u < width - 1:
                total = _log_add(label, blank)
                if u > 0 and labels[u] != labels[u - 1]:
                    total = _log_add(total, before)
                at_label[t, u] = total + log_label[t, u]
    last = at_label[frames - 1, width - 2] if width > 1 else -math.inf
    return _log_add(at_blank[frames - 1, width - 1], last)


def _alpha(log_blank, log_label, labels):
    at_blank, at_label = np.empty((2, len(log_blank), len(labels) + 1))
    return _passed(log_blank, log_label, labels, at_blank, at_label), at_blank, at_label[:, :-1]


def log_likelihood(log_blank: np.ndarray, log_label: np.ndarray, labels: np.ndarray) -> float:
    """log P(labels) from the log-probs of blank (T,) and of each label (T, U), -inf where no path fits."""
    return _alpha(log_blank, log_label, labels)[0]


def occupancies(log_blank: np.ndarray, log_label: np.ndarray, labels: np.ndarray):
    """log P, and gamma of blank (T,) and of each label (T, U); NaN or no path makes them NaN."""
    likelihood, at_blank, at_label = _alpha(log_blank, log_label, labels)
    mirrored = (x[::-1].copy() for x in (log_blank, log_label[:, ::-1], labels))
    _, from_blank, from_label = _alpha(*mirrored)
    with np.errstate(invalid="ignore"):
        of_blank = np.exp(at_blank + from_blank[::-1, ::-1] - log_blank[:, None] - likelihood).sum(axis=1)
        of_label = np.exp(at_label + from_label[::-1, ::-1] - log_label - likelihood)
    return likelihood, of_blank, of_label
