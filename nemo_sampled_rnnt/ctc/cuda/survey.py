"""Checks a batch on the GPU with one launch and one read; see :func:`nemo_sampled_rnnt.ctc.batch.survey`."""

from __future__ import annotations

import torch
from numba import cuda, int32, int64

from nemo_sampled_rnnt.gpu.launch import SIMULATED, BoundKernel

THREADS = 4 if SIMULATED else 128
NOWHERE = 2**31 - 1


@cuda.jit
def survey_kernel(
    encoder_lengths, target_lengths, targets, report, table, sorted_labels, order, batch, positions, vocabulary
):
    """Block: an utterance. Thread: every blockDim-th label position.

    Writes report (4, B), table (B, 4), and sorted_labels and order (B, positions): a label's place
    is the number of those before it, so nothing is compared twice with another order.
    """
    first_bad = cuda.shared.array(THREADS, int32)
    b, thread, threads = int64(cuda.blockIdx.x), int64(cuda.threadIdx.x), int64(cuda.blockDim.x)
    row, labels = b * positions, min(target_lengths[b], positions)
    bad = int32(NOWHERE)
    for u in range(thread, positions, threads):
        if u >= labels:
            sorted_labels[row + u], order[row + u] = vocabulary + 1, u
            continue
        label, place = targets[row + u], int64(0)
        if label < 0 or label >= vocabulary:
            bad = min(bad, int32(u))
        for v in range(labels):
            other = targets[row + v]
            if other < label or (other == label and v < u):
                place += 1
        sorted_labels[row + place], order[row + place] = label, u
    first_bad[thread] = bad
    cuda.syncthreads()
    if thread == 0:
        for other in range(threads):
            bad = min(bad, first_bad[other])
        report[b], report[batch + b] = encoder_lengths[b], target_lengths[b]
        report[2 * batch + b] = int64(-1) if bad == NOWHERE else int64(bad)
        report[3 * batch + b] = int64(-1) if bad == NOWHERE else targets[row + bad]
        first = int64(0)
        for other in range(b):
            first += encoder_lengths[other]
        table[4 * b], table[4 * b + 1], table[4 * b + 2] = encoder_lengths[b], target_lengths[b], first
        table[4 * b + 3] = 1  # usable until a frame is found that is not finite


def survey(encoder_lengths, target_lengths, targets, vocabulary: int):
    """As :func:`nemo_sampled_rnnt.ctc.batch.survey`, by one kernel; and the table of :class:`Batch`."""
    batch, positions = targets.shape
    numbers = torch.empty(8 * batch + 2 * batch * positions, dtype=torch.int64, device=targets.device)
    report, table, sorted_labels, order = numbers.split([4 * batch, 4 * batch, *[batch * positions] * 2])
    kernel = BoundKernel(
        survey_kernel,
        [encoder_lengths.contiguous(), target_lengths.contiguous(), targets.contiguous(), report, table,
         sorted_labels, order],
        0,
        (batch, positions, vocabulary),
    )  # fmt: skip
    kernel((batch, 1, 1), THREADS)
    read = report.tolist()  # the one read of the device
    shape = batch, positions
    return read, sorted_labels.view(shape), order.view(shape), table.view(batch, 4)
