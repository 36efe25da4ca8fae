"""The softmax over candidates, cell by cell, on the CPU, compiled by numba.

One pass over the scores for each of the two, where a chain of torch operations makes six and stops all threads at the
end of each.
"""

from __future__ import annotations

import math
from functools import cache

import numba
import torch


def _normalise(scores, offsets, targets, blank, normaliser, log_blank, log_label):
    for cell in numba.prange(scores.shape[0]):
        top = -math.inf
        for k in range(scores.shape[1]):
            z = scores[cell, k] + offsets[k]
            if z > top:
                top = z
        total = offsets.dtype.type(0)
        for k in range(scores.shape[1]):
            total += math.exp(scores[cell, k] + offsets[k] - top)
        lse = top + math.log(total)
        y = targets[cell]
        normaliser[cell] = lse
        log_blank[cell] = scores[cell, blank] + offsets[blank] - lse
        log_label[cell] = scores[cell, y] + offsets[y] - lse


def _differentiate(scores, offsets, targets, blank, normaliser, by_blank, by_label, clamp, weight):
    for cell in numba.prange(scores.shape[0]):
        occupancy, lse = by_blank[cell] + by_label[cell], normaliser[cell]
        for k in range(scores.shape[1]):
            scores[cell, k] = occupancy * math.exp(scores[cell, k] + offsets[k] - lse)
        scores[cell, blank] -= by_blank[cell]
        scores[cell, targets[cell]] -= by_label[cell]
        for k in range(scores.shape[1]):
            value = scores[cell, k]
            if clamp > 0:
                value = min(max(value, -clamp), clamp)
            scores[cell, k] = value * weight


SMALL = 2**16  # elements, below which waking other threads costs more than they save


@cache
def _compiled(function, parallel: bool):
    # numba's cache on disk does not tell the two apart, so only one of them is kept there.
    return numba.njit(parallel=parallel, nogil=True, cache=not parallel)(function)


def _for(scores: torch.Tensor, function):
    """The function compiled for one thread, or for as many as torch uses."""
    threads = min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS)
    parallel = threads > 1 and scores.numel() >= SMALL
    if parallel:
        numba.set_num_threads(threads)
    return _compiled(function, parallel)


def normalise(scores, offsets, targets, blank: int, normaliser, log_blank, log_label) -> None:
    """Write log-sum-exp, and the log-probs of blank and label, of each cell.

    Args:
        scores: (n, S) float, w_k . h.
        offsets: (S,) float, c_k - log q_k.
        targets: (n,) int64, position of the next label.
        blank: position of blank.
        normaliser, log_blank, log_label: (n,) float, written.
    """
    _for(scores, _normalise)(*_arrays(scores, offsets, targets), blank, *_arrays(normaliser, log_blank, log_label))


def differentiate(scores, offsets, targets, blank: int, normaliser, by_blank, by_label, clamp: float, weight: float):
    """Overwrite the scores (n, S) by their gradient; by_blank and by_label (n,) are the arcs' posteriors."""
    _for(scores, _differentiate)(
        *_arrays(scores, offsets, targets), blank, *_arrays(normaliser, by_blank, by_label), clamp, weight
    )


def _arrays(*tensors: torch.Tensor):
    return (x.numpy() for x in tensors)
