"""Exponential noise from a counter, so that a draw depends neither on the grid nor on what was drawn before.

The functions take numba's numbers and, as the twin that tests use, NumPy's arrays.
Source: standard (the finaliser of splitmix64, which passes BigCrush on counters that are multiples of GOLDEN).
"""

from __future__ import annotations

import numpy as np

GOLDEN, FIRST, SECOND = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
BY_30, BY_27, BY_31 = np.uint64(30), np.uint64(27), np.uint64(31)


def mix(x):
    """64-bit mixer of a uint64."""
    x = (x ^ (x >> BY_30)) * FIRST
    x = (x ^ (x >> BY_27)) * SECOND
    return x ^ (x >> BY_31)


def counter(stream, number):
    """What the mixer turns into a stream's random word of this number; a stream is such a word itself, or a seed."""
    return stream + (np.uint64(number) + np.uint64(1)) * GOLDEN
