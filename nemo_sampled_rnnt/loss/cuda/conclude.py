"""The loss of the batch from those of its utterances, in one launch."""

from __future__ import annotations

import math
from functools import cache

import torch
from numba import cuda, float32, float64

from nemo_sampled_rnnt.gpu.launch import SIMULATED, BoundKernel
from nemo_sampled_rnnt.loss.problem import REDUCTIONS

CONCLUDING_THREADS = 4 if SIMULATED else 128
MEAN, MEAN_BATCH, MEAN_VOLUME = (REDUCTIONS.index(name) for name in ("mean", "mean_batch", "mean_volume"))


def conclude(costs, target_lengths, reduction: str | None, fastemit_lambda: float, dtype: torch.dtype):
    """As :func:`nemo_sampled_rnnt.loss.reduction.conclude`, in one launch instead of fifteen."""
    batch = len(costs)
    results = torch.empty(batch + 2, dtype=dtype, device=costs.device)
    kernel = BoundKernel(
        conclude_kernel(dtype),
        [costs, target_lengths.contiguous(), results],
        0,
        (batch, REDUCTIONS.index(reduction), float(fastemit_lambda)),
    )
    kernel((1, 1, 1), CONCLUDING_THREADS)
    return results[0].clone(), results[2:], results[1]  # a loss may be changed in place, a view of it not


@cache
def conclude_kernel(dtype: torch.dtype):
    """The kernel for results in float32 or float64, compiled at its first launch."""
    real = float64 if dtype == torch.float64 else float32

    @cuda.jit
    def kernel(costs, labels, results, batch, reduction, emit):
        """One block. Thread: every blockDim-th utterance.

        Writes to results: the reduced loss, the divisor, and the loss of each utterance before reduction. The sum
        has one order, whatever the block.
        """
        sums = cuda.shared.array(CONCLUDING_THREADS, float64)
        counts = cuda.shared.array(CONCLUDING_THREADS, float64)
        thread = cuda.threadIdx.x
        total, count = float64(0), float64(0)
        for b in range(thread, batch, cuda.blockDim.x):
            cost = costs[b] * (1.0 + emit)
            results[2 + b] = real(cost)
            if abs(cost) < math.inf:
                weight = 1.0 / max(labels[b], 1) if reduction == MEAN else 1.0
                total += cost * weight
                count += float64(labels[b]) if reduction == MEAN_VOLUME else 1.0
        sums[thread], counts[thread] = total, count
        cuda.syncthreads()
        if thread == 0:
            total, count = float64(0), float64(0)
            for other in range(cuda.blockDim.x):
                total += sums[other]
                count += counts[other]
            divided = reduction == MEAN or reduction == MEAN_BATCH or reduction == MEAN_VOLUME
            divisor = max(count, 1.0) if divided else 1.0
            results[0], results[1] = real(total / divisor), real(divisor)

    return kernel
