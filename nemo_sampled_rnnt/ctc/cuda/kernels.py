"""The kernels of the CTC head.

Frames are packed, those of all utterances on one axis without padding. A tile is some utterances from
``first_utterance`` on, or the frames ``first_frame`` to ``last_frame`` of one; a visit is a tile, or all tiles of an
utterance that was cut. The table

    table (B, 4)   frames, labels, first packed frame, and whether all its frames are finite

says which utterance lies where. Logits begin with the tile's first packed frame, ``first_cell``; what is kept for the
lattice begins with the visit's, ``visit_cell``. Indices are 64-bit. Tensors arrive as pointers to their elements; rows
of logits, hidden and sums are read and written in octets (gpu/octets.py) and padded to multiples of eight.
"""

from __future__ import annotations

import math
from functools import cache
from types import SimpleNamespace

from numba import cuda, float32, float64, int32, int64

from nemo_sampled_rnnt.ctc.cuda.numbers import numbers
from nemo_sampled_rnnt.gpu.launch import (
    LOG2_E,
    SIMULATED,
    device,
    exp2_less,
    fast_exp,
    larger,
    reduce_by_shared_memory,
    reduce_by_shuffles,
)
from nemo_sampled_rnnt.gpu.octets import OCTET, octets

WARP = 4 if SIMULATED else 32
WARPS = 2 if SIMULATED else 8  # of a block
THREADS = WARP * WARPS
WIDE_THREADS = THREADS if SIMULATED else 512  # that score a group of frames of a large vocabulary
LATTICE_THREADS = 4 if SIMULATED else 512
SLOTS = LATTICE_THREADS + 1
TWO_SLOTS = 2 * SLOTS
AHEAD = 8  # frames whose scores are on their way: a load takes as long as some steps
GROUP = 4  # frames that share the loads of their offsets, and are on their way together
GROUP_OF_OCTETS = GROUP * OCTET
BLOCK_OF_OCTETS = THREADS * OCTET
STRIP = WARP * OCTET  # columns of a block that makes gradients
BLANK, LABEL = 0, 1  # kinds of states: alpha and beta are (frames, 2, positions + 1)


@cache
def kernels(kind: str, wide: bool, largest: bool, native: bool = True) -> SimpleNamespace:
    """The kernels of one storage type.

    Args:
        kind: "float64", "float32", "float16" or "bfloat16", of hidden and logits.
        wide: a whole block works on a group of frames, not a warp.
        largest: the mass of a label is its largest posterior, not a sum.
        native: see :func:`octets`.

    Returns:
        Python functions pack, scores, best, lattice, occupancies, gradient, unpack, to be compiled.
    """
    real = float64 if kind == "float64" else float32  # what is computed in
    infinity = real(math.inf)  # typed: a bare constant would draw float32 comparisons into float64
    wide_infinity = float64(math.inf)
    lowest = real(-1e38)  # below every score, and finite: differences of it are no NaN
    memory, sums = octets(kind, native), octets("float64" if kind == "float64" else "float32")
    load8, store8, load1 = memory.load8, memory.store8, memory.load1
    load_sums, store_sums = sums.load8, sums.store8
    scoring_team = WIDE_THREADS if wide else WARP
    of = numbers(kind)
    number, stored, loaded, plus, times, log_of = of.number, of.stored, of.loaded, of.plus, of.times, of.log_of
    posterior, zero, zero_exponent = of.posterior, of.zero, of.zero_exponent

    def reducer(combine, team):
        if SIMULATED:
            return reduce_by_shared_memory(combine, real, team, THREADS)
        return reduce_by_shuffles(combine, real, team)

    # e^(x - y), where many x meet one y: half precision takes two instructions, and y as it is scaled once.
    if kind in ("float16", "bfloat16"):
        exp, exp_less, maximum = fast_exp, exp2_less, larger

        @device
        def scaled(y):
            return y * LOG2_E
    else:
        exp = math.exp

        @device
        def exp_less(x, y):
            return math.exp(x - y)

        @device
        def scaled(y):
            return y

        @device
        def maximum(a, b):
            return a if a > b else b

    @device
    def smaller(a, b):
        return a if a < b else b

    @device
    def add(a, b):
        return a + b

    largest_of_team, sum_of_team = reducer(maximum, scoring_team), reducer(add, scoring_team)
    smallest_of_team, sum_of_warp = reducer(smaller, scoring_team), reducer(add, WARP)

    if largest:

        @device
        def joined(mass, weight, p):
            return maximum(p, mass)
    else:

        @device
        def joined(mass, weight, p):
            return mass + weight * p

    def pack(table, encoder, out, frames, in_stride, width, out_stride):
        """Block: a frame (x) of an utterance (y). Thread: every blockDim-th octet.

        Writes out (N, out_stride), 0 where a frame is not finite and behind its width, and marks its utterance.
        encoder is (B frames, in_stride).
        """
        t, b = int64(cuda.blockIdx.x), int64(cuda.blockIdx.y)
        if t >= table[4 * b]:
            return
        source, row = (b * frames + t) * in_stride, (table[4 * b + 2] + t) * out_stride
        h = cuda.local.array(OCTET, real)
        bad = int32(0)
        for first in range(OCTET * int64(cuda.threadIdx.x), width, OCTET * int64(cuda.blockDim.x)):
            load8(encoder, source + first, h, 0)
            for i in range(OCTET):
                if first + i < width and not abs(h[i]) < infinity:
                    bad = int32(1)
        bad = cuda.syncthreads_or(bad)
        for first in range(OCTET * int64(cuda.threadIdx.x), out_stride, OCTET * int64(cuda.blockDim.x)):
            load8(encoder, source + first, h, 0)
            for i in range(OCTET):
                h[i] = real(0) if bad or first + i >= width else h[i]
            store8(out, row + first, h, 0)
        if bad and cuda.threadIdx.x == 0:
            table[4 * b + 3] = 0

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

    def lattice(
        table, targets, by_blank, by_label, alpha, beta, likelihood, costs,
        first_utterance, visit_cell, positions, zero_infinity,
    ):  # fmt: skip
        """Block x: an utterance; y = 0 writes alpha, log-likelihood and cost, y = 1 beta. Thread: a blank and a label.

            b'_u = (b_u + y_{u-1}) p(blank | t)      y'_u = (y_u + b_u + [y_u is not y_{u-1}] y_{u-1}) p(y_u | t)

        Frame by frame: each thread keeps its own two states, takes its neighbour's label (of the frame before) from
        shared memory, and loads the scores of the frames that come next ahead of time. U + 1 beyond the block: panels
        of labels, one after the other, the edge between two read back from memory. beta runs the same way from the
        far corner, the scores of its own frame in it.
        """
        neighbour = cuda.shared.array(TWO_SLOTS, int64)  # of the frame before and of this one; slot 0: no neighbour
        blank_ahead = cuda.local.array(AHEAD, int64)
        label_ahead = cuda.local.array(AHEAD, int64)
        b = first_utterance + cuda.blockIdx.x
        frames, labels, first = int32(table[4 * b]), table[4 * b + 1], table[4 * b + 2] - visit_cell
        thread = int32(cuda.threadIdx.x)
        forward = cuda.blockIdx.y == 0
        values = alpha if forward else beta
        width = positions + 1
        origin, onward = (first, int64(1)) if forward else (first + frames - 1, int64(-1))
        none = stored(zero, zero_exponent)
        if thread == 0:
            neighbour[0], neighbour[SLOTS] = none, none
        for panel in range(0, labels + 1, cuda.blockDim.x):
            mine = panel + thread  # states passed so far, from the start or from the end
            here, has_label = mine <= labels, mine < labels
            u, y = (mine, mine) if forward else (labels - mine, labels - 1 - mine)
            before = y - onward
            skips = False
            if has_label and mine > 0:
                skips = targets[b * positions + y] != targets[b * positions + before]
            own_blank, own_blank_exponent = zero, zero_exponent
            own_label, own_label_exponent = zero, zero_exponent
            if mine == 0:  # before the first frame: e^0
                own_blank, own_blank_exponent = number(real(0))
            neighbour[thread + 1] = none
            last = frames if here else int32(0)
            cuda.syncthreads()
            for begin in range(-AHEAD, frames, AHEAD):
                for place in range(AHEAD):
                    step = int32(begin + place)
                    if step >= 0 and step < last:
                        row = origin + step * onward
                        side = neighbour[(step & 1) * SLOTS + thread]
                        if panel > 0 and thread == 0 and step > 0:
                            side = values[((row - onward) * 2 + LABEL) * width + before]
                        a, a_exponent = loaded(side)
                        p, p_exponent = loaded(blank_ahead[place])
                        q, q_exponent = loaded(label_ahead[place])
                        x, x_exponent = plus(own_label, own_label_exponent, own_blank, own_blank_exponent)
                        if skips:
                            x, x_exponent = plus(x, x_exponent, a, a_exponent)
                        own_label, own_label_exponent = times(x, x_exponent, q, q_exponent)
                        x, x_exponent = plus(own_blank, own_blank_exponent, a, a_exponent)
                        own_blank, own_blank_exponent = times(x, x_exponent, p, p_exponent)
                        word = stored(own_label, own_label_exponent)
                        neighbour[((step + 1) & 1) * SLOTS + thread + 1] = word
                        values[(row * 2 + BLANK) * width + u] = stored(own_blank, own_blank_exponent)
                        if has_label:
                            values[(row * 2 + LABEL) * width + y] = word
                    if step + AHEAD >= 0 and step + AHEAD < last:
                        coming = origin + (step + AHEAD) * onward
                        blank_ahead[place] = by_blank[coming]
                        label_ahead[place] = by_label[coming * positions + y] if has_label else none
                    cuda.syncthreads()
            if forward and mine == labels:
                row = (first + frames - 1) * 2
                x, x_exponent = own_blank, own_blank_exponent
                if labels > 0:
                    a, a_exponent = loaded(values[(row + LABEL) * width + labels - 1])
                    x, x_exponent = plus(x, x_exponent, a, a_exponent)
                log_likelihood = log_of(x, x_exponent) if table[4 * b + 3] else wide_infinity - wide_infinity
                likelihood[b] = log_likelihood
                costs[b] = 0.0 if zero_infinity and log_likelihood == -wide_infinity else -log_likelihood

    def occupancies(
        table, order, by_blank, by_label, alpha, beta, likelihood, out, first_utterance, visit_cell, positions
    ):
        """Block: frames (x) of an utterance (y). Warp: a frame. Thread: every so many states.

        Writes out (frames, positions + 1): gamma of the labels in their ascending order, and in the last column of
        blank.
        """
        b = first_utterance + cuda.blockIdx.y
        member = int64(cuda.threadIdx.x % WARP)
        t = int64(cuda.blockIdx.x) * (cuda.blockDim.x // WARP) + cuda.threadIdx.x // WARP
        log_likelihood = likelihood[b]
        if t >= table[4 * b] or not abs(log_likelihood) < wide_infinity:
            return
        labels, row, width = table[4 * b + 1], table[4 * b + 2] - visit_cell + t, positions + 1
        first_blank, first_label = (2 * row + BLANK) * width, (2 * row + LABEL) * width
        of_blank, total = by_blank[row], real(0)
        for u in range(member, labels + 1, WARP):
            total += posterior(alpha[first_blank + u], beta[first_blank + u], of_blank, log_likelihood)
        total = sum_of_warp(total, member)
        if member == 0:
            out[row * width + positions] = total
        for place in range(member, labels, WARP):
            y = order[b * positions + place]
            out[row * width + place] = posterior(
                alpha[first_label + y], beta[first_label + y], by_label[row * positions + y], log_likelihood
            )

    def gradient(
        table, logits, offsets, sorted_labels, normaliser, frame_weight, occupancy, likelihood, weights, masses, totals,
        first_utterance, first_frame, last_frame, first_cell, visit_cell, stride, positions, blank,
        overwrites, has_masses, has_totals,
    ):  # fmt: skip
        """Block: a strip of columns (x) of an utterance (y). Thread: an octet of columns. Warp: every so many groups of
        frames.

        Overwrites the logits by their gradient, and adds over the frames: posteriors to masses (B, stride), gradients
        to totals (B, stride). Sums are of one order: frames of a warp, then warps, then the tiles of a cut utterance,
        which follow each other on one stream.
        """
        partial = cuda.shared.array(BLOCK_OF_OCTETS, real)
        b = first_utterance + cuda.blockIdx.y
        lane, warp = int64(cuda.threadIdx.x % WARP), int64(cuda.threadIdx.x // WARP)
        strip = STRIP * int64(cuda.blockIdx.x)
        first, after = strip + OCTET * lane, min(strip + STRIP, stride)
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
            for t in range(first_frame + GROUP * warp, end, GROUP * WARPS):
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
                partial[i * THREADS + cuda.threadIdx.x] = mass[i]
            cuda.syncthreads()
            if warp == 0 and inside:
                load_sums(masses, b * stride + first, mass, 0)
                share = real(1) if largest else real(1) / real(frames)
                for other in range(WARPS):
                    for i in range(OCTET):
                        mass[i] = joined(mass[i], share, partial[i * THREADS + other * WARP + lane])
                store_sums(masses, b * stride + first, mass, 0)
            cuda.syncthreads()
        if has_totals:
            for i in range(OCTET):
                partial[i * THREADS + cuda.threadIdx.x] = total[i]
            cuda.syncthreads()
            if warp == 0 and inside:
                load_sums(totals, b * stride + first, total, 0)
                for other in range(WARPS):
                    for i in range(OCTET):
                        total[i] += partial[i * THREADS + other * WARP + lane]
                store_sums(totals, b * stride + first, total, 0)

    def unpack(table, gradient, factor, out, frames, in_stride, out_stride):
        """Block: a frame (x) of an utterance (y). Thread: every blockDim-th octet.

        Writes out (B frames, out_stride): the packed gradient times the factor, 0 beyond the lengths.
        """
        t, b = int64(cuda.blockIdx.x), int64(cuda.blockIdx.y)
        row = (table[4 * b + 2] + t) * in_stride
        g = cuda.local.array(OCTET, real)
        by = factor[0]
        for first in range(OCTET * int64(cuda.threadIdx.x), out_stride, OCTET * int64(cuda.blockDim.x)):
            for i in range(OCTET):
                g[i] = real(0)
            if t < table[4 * b]:
                load_sums(gradient, row + first, g, 0)
                for i in range(OCTET):
                    g[i] *= by
            store8(out, (b * frames + t) * out_stride + first, g, 0)

    return SimpleNamespace(
        pack=pack, scores=scores, best=best, lattice=lattice, occupancies=occupancies, gradient=gradient, unpack=unpack
    )


@cache
def compiled(kind: str, wide: bool, largest: bool, native: bool = True) -> SimpleNamespace:
    """As :func:`kernels`, compiled at their first launch."""
    built = vars(kernels(kind, wide, largest, native))
    return SimpleNamespace(**{name: cuda.jit(function) for name, function in built.items()})
