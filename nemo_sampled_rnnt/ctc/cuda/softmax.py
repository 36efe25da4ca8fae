"""The softmax over the vocabulary: log-sum-exp and the scores that the lattice needs, then gradient and mass."""

from __future__ import annotations

import math
from types import SimpleNamespace

from numba import cuda, float64, int64

from nemo_sampled_rnnt.ctc.cuda.blocks import THREADS, WARP, WARPS, real_of, sums_kind
from nemo_sampled_rnnt.gpu.arithmetic import exponentials
from nemo_sampled_rnnt.gpu.launch import SIMULATED, device
from nemo_sampled_rnnt.gpu.numbers import numbers
from nemo_sampled_rnnt.gpu.octets import OCTET, octets
from nemo_sampled_rnnt.gpu.teams import add, reducer

WIDE_THREADS = THREADS if SIMULATED else 512  # that score a group of frames of a large vocabulary
GROUP = 4  # frames that share the loads of their offsets, and are on their way together
GROUP_OF_OCTETS = GROUP * OCTET
BLOCK_OF_OCTETS = THREADS * OCTET
ABREAST = min(2, WARPS)  # warps of a block that share rows of a large vocabulary: it makes gradients of 1 kB of a row


def strip_of(wide: bool) -> int:
    """Columns of a block that makes gradients."""
    return (ABREAST if wide else 1) * WARP * OCTET


def softmax_kernels(kind: str, wide: bool, largest: bool, native: bool = True) -> SimpleNamespace:
    """The kernels of one storage type.

    Args:
        kind: "float64", "float32", "float16" or "bfloat16", of hidden and logits.
        wide: the vocabulary is large: a whole block scores a group of frames, not a warp, and its gradients are made in
            wider strips.
        largest: the mass of a label is its largest posterior, not a sum.
        native: see :func:`octets`.

    Returns:
        Python functions scores, best and gradient, to be compiled.
    """
    real = real_of(kind)
    infinity = real(math.inf)  # typed: a bare constant would draw float32 comparisons into float64
    wide_infinity = float64(math.inf)
    lowest = real(-1e38)  # below every score, and finite: differences of it are no NaN
    memory, sums = octets(kind, native), octets(sums_kind(kind))
    load8, store8, load1 = memory.load8, memory.store8, memory.load1
    load_sums, store_sums = sums.load8, sums.store8
    number, stored = numbers(kind).number, numbers(kind).stored
    scoring_team = WIDE_THREADS if wide else WARP
    strip_columns, abreast = strip_of(wide), ABREAST if wide else 1
    deep = WARPS // abreast  # warps that work on other frames of the same columns

    of = exponentials(kind)
    exp, exp_less, scaled, maximum = of.exp, of.exp_less, of.scaled, of.maximum

    @device
    def smaller(a, b):
        return a if a < b else b

    largest_of_team, sum_of_team, smallest_of_team = (
        reducer(combine, real, scoring_team, THREADS) for combine in (maximum, add, smaller)
    )

    if largest:

        @device
        def joined(mass, weight, p):
            return maximum(p, mass)
    else:

        @device
        def joined(mass, weight, p):
            return mass + weight * p

    def scores(
        table, logits, offsets, targets, normaliser, frame_weight, by_blank, by_label,
        first_utterance, first_frame, last_frame, first_cell, visit_cell, stride, positions, blank, weighted,
    ):  # fmt: skip
        """Block: groups of frames (x) of an utterance (y). Team: a group. Thread: every so many octets of logits.

        One pass: each thread keeps the largest score and the sum of exponentials relative to it. Writes the frames'
        log-sum-exp, their weights in the mass, and the probabilities of blank (frames,) and labels (frames, positions).
        """
        b = first_utterance + cuda.blockIdx.y
        member = int64(cuda.threadIdx.x % scoring_team)
        group = (int64(cuda.blockIdx.x) * cuda.blockDim.x + cuda.threadIdx.x) // scoring_team
        t, end = first_frame + GROUP * group, min(table[4 * b], last_frame)
        if t >= end:
            return
        labels, cell = table[4 * b + 1], table[4 * b + 2] + t
        first_row, kept = (cell - first_cell) * stride, cell - visit_cell
        last = min(int64(GROUP - 1), end - 1 - t)  # of the group that is there
        z = cuda.local.array(GROUP_OF_OCTETS, real)
        offset = cuda.local.array(OCTET, real)
        top = cuda.local.array(GROUP, real)
        mass = cuda.local.array(GROUP, real)
        for place in range(GROUP):
            top[place], mass[place] = lowest, real(0)
        for first in range(OCTET * member, stride, OCTET * scoring_team):
            for place in range(GROUP):  # one that is not there repeats the last
                load8(logits, first_row + min(int64(place), last) * stride + first, z, OCTET * place)
            load_sums(offsets, first, offset, 0)
            for place in range(GROUP):
                high = top[place]
                for i in range(OCTET):
                    z[OCTET * place + i] += offset[i]
                    high = maximum(z[OCTET * place + i], high)
                total, shift = mass[place] * exp(top[place] - high), scaled(high)
                for i in range(OCTET):
                    total += exp_less(z[OCTET * place + i], shift)
                top[place], mass[place] = high, total
        for place in range(GROUP):
            high = largest_of_team(top[place], member)
            total = sum_of_team(mass[place] * exp(top[place] - high), member)
            lse = high + (math.log(total) if total > 0 else total - infinity)
            top[place] = lse
            if member == place and place <= last:
                row = kept + place
                log_blank = load1(logits, first_row + place * stride + blank) + offsets[blank] - lse
                mantissa, exponent = number(log_blank)
                normaliser[row], by_blank[row] = lse, stored(mantissa, exponent)
                frame_weight[row] = -math.expm1(log_blank) if weighted else real(1)
        for u in range(member, labels, scoring_team):
            label = targets[b * positions + u]
            for place in range(GROUP):
                here = first_row + min(int64(place), last) * stride
                mantissa, exponent = number(load1(logits, here + label) + offsets[label] - top[place])
                if place <= last:
                    by_label[(kept + place) * positions + u] = stored(mantissa, exponent)

    def best(
        table, logits, offsets, out, first_utterance, first_frame, last_frame, first_cell, visit_cell, stride, frames
    ):
        """Block, team and thread as in scores, but a frame for a group. Writes to out (B, frames) the first of the
        best columns."""
        b = first_utterance + cuda.blockIdx.y
        member = int64(cuda.threadIdx.x % scoring_team)
        group = (int64(cuda.blockIdx.x) * cuda.blockDim.x + cuda.threadIdx.x) // scoring_team
        t = first_frame + group
        if t >= min(table[4 * b], last_frame):
            return
        row = (table[4 * b + 2] + t - first_cell) * stride
        z = cuda.local.array(OCTET, real)
        offset = cuda.local.array(OCTET, real)
        top, column = lowest, stride
        for first in range(OCTET * member, stride, OCTET * scoring_team):
            load8(logits, row + first, z, 0)
            load_sums(offsets, first, offset, 0)
            for i in range(OCTET):
                if z[i] + offset[i] > top:
                    top, column = z[i] + offset[i], first + i
        high = largest_of_team(top, member)
        # Columns are exact in float32 up to 2^24.
        column = smallest_of_team(real(column) if top == high else real(stride), member)
        if member == 0:
            out[b * frames + t] = int64(column)

    def gradient(
        table, logits, offsets, sorted_labels, normaliser, frame_weight, occupancy, likelihood, weights, masses, totals,
        first_utterance, first_frame, last_frame, first_cell, visit_cell, stride, positions, blank,
        overwrites, has_masses, has_totals,
    ):  # fmt: skip
        """Block: a strip of columns (x) of an utterance (y). Thread: an octet of columns, of every so many groups of
        frames.

        Overwrites the logits by their gradient, and adds over the frames: posteriors to masses (B, stride), gradients
        to totals (B, stride). Sums are of one order: frames of a warp, then warps, then the tiles of a cut utterance,
        which follow each other on one stream.
        """
        partial = cuda.shared.array(BLOCK_OF_OCTETS, real)
        # The utterances scored last are the ones that a cache may still hold.
        b = first_utterance + cuda.gridDim.y - 1 - cuda.blockIdx.y
        thread = int64(cuda.threadIdx.x)
        octet, layer = thread % (abreast * WARP), thread // (abreast * WARP)
        strip = strip_columns * int64(cuda.blockIdx.x)
        first, after = strip + OCTET * octet, min(strip + strip_columns, stride)
        inside = first < stride
        frames, labels, cell = table[4 * b], table[4 * b + 1], table[4 * b + 2]
        end = min(frames, last_frame)
        row, kept, width = cell - first_cell, cell - visit_cell, positions + 1
        alive = abs(likelihood[b]) < wide_infinity
        scale = real(weights[b])

        # The labels that lie in the strip: a few or none, those of an utterance being sorted.
        lower, upper = b * positions, b * positions
        if alive and overwrites:
            upper += labels
            while lower < upper and sorted_labels[lower] < strip:
                lower += 1
            while upper > lower and sorted_labels[upper - 1] >= after:
                upper -= 1
        has_blank = alive and overwrites and blank >= strip and blank < after

        z = cuda.local.array(GROUP_OF_OCTETS, real)
        offset = cuda.local.array(OCTET, real)
        mass = cuda.local.array(OCTET, real)
        total = cuda.local.array(OCTET, real)
        for i in range(OCTET):
            mass[i], total[i] = real(0), real(0)
        if inside:
            load_sums(offsets, first, offset, 0)
            for t in range(first_frame + GROUP * layer, end, GROUP * deep):
                last = min(int64(GROUP - 1), end - 1 - t)  # of the group that is there
                for place in range(GROUP):  # one that is not there repeats the last
                    load8(logits, (row + t + min(int64(place), last)) * stride + first, z, OCTET * place)
                for place in range(GROUP):
                    at = kept + t + min(int64(place), last)
                    shift, weight = scaled(normaliser[at]), frame_weight[at] if place <= last else real(0)
                    for i in range(OCTET):
                        p = exp_less(z[OCTET * place + i] + offset[i], shift)
                        mass[i] = joined(mass[i], weight, p)
                        z[OCTET * place + i] = p
                if overwrites:
                    for n in range(lower, upper):
                        column = sorted_labels[n] - first
                        if column >= 0 and column < OCTET:
                            for place in range(GROUP):
                                at = kept + t + min(int64(place), last)
                                gamma = occupancy[at * width + n - b * positions]
                                for i in range(OCTET):
                                    z[OCTET * place + i] -= gamma if i == column else real(0)
                    if has_blank:
                        column = blank - first
                        for place in range(GROUP):
                            gamma = occupancy[(kept + t + min(int64(place), last)) * width + positions]
                            for i in range(OCTET):
                                z[OCTET * place + i] -= gamma if i == column else real(0)
                    for place in range(GROUP):
                        if place <= last:
                            for i in range(OCTET):
                                g = z[OCTET * place + i] * scale if alive else real(0)
                                total[i] += g
                                z[OCTET * place + i] = g
                            store8(logits, (row + t + place) * stride + first, z, OCTET * place)

        if has_masses:
            for i in range(OCTET):
                partial[i * THREADS + thread] = mass[i]
            cuda.syncthreads()
            if layer == 0 and inside:
                load_sums(masses, b * stride + first, mass, 0)
                share = real(1) if largest else real(1) / real(frames)
                for other in range(deep):
                    for i in range(OCTET):
                        mass[i] = joined(mass[i], share, partial[i * THREADS + other * abreast * WARP + octet])
                store_sums(masses, b * stride + first, mass, 0)
            cuda.syncthreads()
        if has_totals:
            for i in range(OCTET):
                partial[i * THREADS + thread] = total[i]
            cuda.syncthreads()
            if layer == 0 and inside:
                load_sums(totals, b * stride + first, total, 0)
                for other in range(deep):
                    for i in range(OCTET):
                        total[i] += partial[i * THREADS + other * abreast * WARP + octet]
                store_sums(totals, b * stride + first, total, 0)

    return SimpleNamespace(scores=scores, best=best, gradient=gradient)
