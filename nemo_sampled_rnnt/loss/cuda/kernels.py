"""The kernels of the tiled engine.

Tables, on the device (see :mod:`nemo_sampled_rnnt.loss.lattice`):
    rows (R, 3)         utterance, frame, first cell of each row
    utterances (B, 4)   frames, labels, first cell, first row

A tile starts at row ``first_row`` and cell ``first_cell``; hidden and logits of its cells start at row 0 of their
buffers. What is kept for the lattice (normaliser, log-probs, alpha, beta) is indexed by the cell of the batch.
Cell indices are 64-bit: 131,072 labels x 20,000 cells pass 2^31.
"""

from __future__ import annotations

import math
from functools import cache
from types import SimpleNamespace

from numba import cuda, float32, float64, int64
from numba.core.types import float16

from nemo_sampled_rnnt.loss import dropout as counter
from nemo_sampled_rnnt.loss.cuda.launch import SIMULATED, narrow_bfloat16, widen_bfloat16

THREADS = 4 if SIMULATED else 256  # of a block; a power of two, for the tree of a reduction
MASK, GOLDEN = counter.MASK, counter.GOLDEN

mix = counter.mix if SIMULATED else cuda.jit(device=True, inline="always")(counter.mix)


def device(function):
    return function if SIMULATED else cuda.jit(device=True, inline="always")(function)


@device
def is_kept(seed, utterance, frame, label, unit, threshold):
    state = mix(mix(mix(seed ^ utterance) ^ frame) ^ label)
    return mix((state + unit * GOLDEN) & MASK) >= threshold


@cache
def kernels(kind: str, activation: str, dropout: bool) -> SimpleNamespace:
    """The kernels of one storage type.

    Args:
        kind: "float64", "float32", "float16" or "bfloat16", of hidden and logits.
        activation: "relu", "tanh" or "sigmoid".
        dropout: whether units are dropped.

    Returns:
        Python functions hidden, scores, alpha_beta, gradient, encoder_gradient, predictor_gradient, to be compiled.
    """
    real = float64 if kind == "float64" else float32  # what is computed in
    infinity = real(math.inf)  # typed: a bare constant would draw float32 comparisons into float64

    @device
    def log_add(a, b):
        high, low = a, b
        if b > a:
            high, low = b, a
        if low == -infinity:
            return high
        return high + math.log1p(math.exp(low - high))

    if kind == "bfloat16":
        load, store = widen_bfloat16, narrow_bfloat16
    else:
        stored = {"float64": float64, "float32": float32, "float16": real if SIMULATED else float16}[kind]

        @device
        def load(value):
            return real(value)

        @device
        def store(value):
            return stored(value)

    if activation == "relu":

        @device
        def activate(x):
            return x if x > 0 or x != x else real(0)  # NaN passes through, as in torch

        @device
        def slope(a):
            return real(1) if a > 0 else real(0)
    elif activation == "tanh":

        @device
        def activate(x):
            return math.tanh(x)

        @device
        def slope(a):
            return real(1) - a * a
    else:

        @device
        def activate(x):
            return real(1) / (real(1) + math.exp(-x))

        @device
        def slope(a):
            return a * (real(1) - a)

    if dropout:

        @device
        def drop(value, seed, utterance, frame, label, unit, threshold, scale):
            return value * real(scale) if is_kept(seed, utterance, frame, label, unit, threshold) else real(0)
    else:

        @device
        def drop(value, seed, utterance, frame, label, unit, threshold, scale):
            return value

    def hidden(rows, utterances, encoder, predictor, out, first_row, first_cell, seed, threshold, scale):
        """Block: a row. Thread: every THREADS-th unit, for all labels. Writes out (cells, H)."""
        row = first_row + cuda.blockIdx.x
        b, t, cell = rows[row, 0], rows[row, 1], rows[row, 2] - first_cell
        for k in range(cuda.threadIdx.x, encoder.shape[2], cuda.blockDim.x):
            f = load(encoder[b, t, k])
            for u in range(utterances[b, 1] + 1):
                value = activate(f + load(predictor[b, u, k]))
                out[cell + u, k] = store(drop(value, seed, b, t, u, k, threshold, scale))

    def scores(
        rows, utterances, logits, offsets, counts, targets, normaliser, log_blank, log_label,
        blank, first_row, first_cell,
    ):  # fmt: skip
        """Block: a row and every gridDim.y-th label position. Thread: every THREADS-th candidate.

        One pass: each thread keeps the largest score and the sum of exponentials relative to it.
        Writes normaliser, log_blank and log_label of the row's cells.
        """
        largest = cuda.shared.array(THREADS, real)
        total = cuda.shared.array(THREADS, real)
        row = first_row + cuda.blockIdx.x
        thread = cuda.threadIdx.x
        b, cell = rows[row, 0], rows[row, 2]
        labels = utterances[b, 1]
        group = b if offsets.shape[0] > 1 else int64(0)
        for u in range(cuda.blockIdx.y, labels + 1, cuda.gridDim.y):
            here = cell - first_cell + u
            top, mass = -infinity, real(0)
            for k in range(thread, counts[group], THREADS):
                z = load(logits[here, k]) + offsets[group, k]
                if z > top:
                    mass = mass * math.exp(top - z) + real(1)
                    top = z
                elif z != -infinity:
                    mass += math.exp(z - top)
            largest[thread] = top
            total[thread] = mass
            cuda.syncthreads()
            half = THREADS // 2
            while half > 0:
                if thread < half:
                    a, c = largest[thread], largest[thread + half]
                    high = a if a > c else c
                    if high != -infinity:
                        total[thread] = total[thread] * math.exp(a - high) + total[thread + half] * math.exp(c - high)
                    else:
                        total[thread] += total[thread + half]  # both 0, or NaN, which must be seen
                    largest[thread] = high
                cuda.syncthreads()
                half //= 2
            if thread == 0:
                lse = largest[0] + math.log(total[0])
                normaliser[cell + u] = lse
                log_blank[cell + u] = load(logits[here, blank]) + offsets[group, blank] - lse
                if u < labels:
                    y = targets[b, u]
                    log_label[cell + u] = load(logits[here, y]) + offsets[group, y] - lse
            cuda.syncthreads()

    def alpha_beta(utterances, log_blank, log_label, alpha, beta, costs, first_utterance):
        """Block x: an utterance; y = 0 writes alpha and the cost, y = 1 beta. Thread: label positions u of an
        anti-diagonal t + u = d, every blockDim.x-th, so that U + 1 may exceed the block."""
        b = first_utterance + cuda.blockIdx.x
        frames, labels, first = utterances[b, 0], utterances[b, 1], utterances[b, 2]
        width = labels + 1
        thread = cuda.threadIdx.x
        if cuda.blockIdx.y == 0:
            for d in range(frames + labels):
                for u in range(thread, min(labels, d) + 1, cuda.blockDim.x):
                    t = d - u
                    if t < frames:
                        cell = first + t * width + u
                        if d == 0:
                            value = real(0)
                        elif t == 0:
                            value = alpha[cell - 1] + log_label[cell - 1]
                        elif u == 0:
                            value = alpha[cell - width] + log_blank[cell - width]
                        else:
                            value = log_add(
                                alpha[cell - width] + log_blank[cell - width], alpha[cell - 1] + log_label[cell - 1]
                            )
                        alpha[cell] = value
                cuda.syncthreads()
            if thread == 0:
                last = first + frames * width - 1
                costs[b] = -(alpha[last] + log_blank[last])
        else:
            for step in range(frames + labels):
                d = frames - 1 + labels - step
                for u in range(thread, min(labels, d) + 1, cuda.blockDim.x):
                    t = d - u
                    if t < frames:
                        cell = first + t * width + u
                        if step == 0:
                            value = log_blank[cell]
                        elif t == frames - 1:
                            value = log_label[cell] + beta[cell + 1]
                        elif u == labels:
                            value = log_blank[cell] + beta[cell + width]
                        else:
                            value = log_add(log_blank[cell] + beta[cell + width], log_label[cell] + beta[cell + 1])
                        beta[cell] = value
                cuda.syncthreads()

    def gradient(
        rows, utterances, hidden, logits, offsets, counts, targets, normaliser, log_blank, log_label,
        alpha, beta, costs, weights, blank, emit, clamp, first_row, first_cell,
    ):  # fmt: skip
        """Block: a row and every gridDim.y-th label position. Thread: every THREADS-th candidate (or unit).

        Overwrites the logits of the row's cells by their gradient; zeroes both logits and hidden of an utterance
        without a finite loss, since 0 x NaN would pass into the sums of others.
        """
        row = first_row + cuda.blockIdx.x
        thread = cuda.threadIdx.x
        b, t, cell = rows[row, 0], rows[row, 1], rows[row, 2]
        frames, labels = utterances[b, 0], utterances[b, 1]
        group = b if offsets.shape[0] > 1 else int64(0)
        likelihood, weight = -costs[b], weights[b]
        finite = abs(likelihood) < infinity
        for u in range(cuda.blockIdx.y, labels + 1, cuda.gridDim.y):
            here, there = cell - first_cell + u, cell + u
            if not finite:
                for k in range(thread, counts[group], THREADS):
                    logits[here, k] = store(real(0))
                for k in range(thread, hidden.shape[1], THREADS):
                    hidden[here, k] = store(real(0))
                continue
            by_blank, by_label, label = real(0), real(0), int64(-1)
            if t + 1 < frames:
                by_blank = math.exp(alpha[there] + log_blank[there] + beta[there + labels + 1] - likelihood)
            elif u == labels:
                by_blank = math.exp(alpha[there] + log_blank[there] - likelihood)
            if u < labels:
                by_label = math.exp(alpha[there] + log_label[there] + beta[there + 1] - likelihood)
                by_label *= real(1) + real(emit)
                label = targets[b, u]
            occupancy, lse = by_blank + by_label, normaliser[there]
            for k in range(thread, counts[group], THREADS):
                value = occupancy * math.exp(load(logits[here, k]) + offsets[group, k] - lse)
                if k == blank:
                    value -= by_blank
                if k == label:
                    value -= by_label
                if clamp > 0:
                    value = min(max(value, -real(clamp)), real(clamp))
                logits[here, k] = store(value * weight)

    def encoder_gradient(
        rows, utterances, hidden, hidden_gradient, out, first_row, first_cell, seed, threshold, scale
    ):
        """Block: a row. Thread: every THREADS-th unit; sums over its labels. Writes out[b, t]."""
        row = first_row + cuda.blockIdx.x
        b, t, cell = rows[row, 0], rows[row, 1], rows[row, 2] - first_cell
        for k in range(cuda.threadIdx.x, hidden.shape[1], cuda.blockDim.x):
            total = real(0)
            for u in range(utterances[b, 1] + 1):
                a = load(hidden[cell + u, k]) / real(scale)
                value = load(hidden_gradient[cell + u, k]) * slope(a)
                total += drop(value, seed, b, t, u, k, threshold, scale)
            out[b, t, k] = total

    def predictor_gradient(
        utterances, hidden, hidden_gradient, out, first_utterance, first_row, last_row, first_cell, seed, threshold,
        scale,
    ):  # fmt: skip
        """Block: a label position (x) of an utterance (y). Thread: every THREADS-th unit; sums over the tile's frames.

        Adds to out[b, u]: the tiles of a cut utterance follow each other on one stream, so the sum has one order.
        """
        b, u = first_utterance + cuda.blockIdx.y, int64(cuda.blockIdx.x)
        frames, labels, cell, row = utterances[b, 0], utterances[b, 1], utterances[b, 2], utterances[b, 3]
        if u > labels:
            return
        begin, end = max(int64(0), first_row - row), min(frames, last_row - row)
        for k in range(cuda.threadIdx.x, hidden.shape[1], cuda.blockDim.x):
            total = real(0)
            for t in range(begin, end):
                here = cell - first_cell + t * (labels + 1) + u
                a = load(hidden[here, k]) / real(scale)
                value = load(hidden_gradient[here, k]) * slope(a)
                total += drop(value, seed, b, t, u, k, threshold, scale)
            out[b, u, k] += total

    return SimpleNamespace(
        hidden=hidden,
        scores=scores,
        alpha_beta=alpha_beta,
        gradient=gradient,
        encoder_gradient=encoder_gradient,
        predictor_gradient=predictor_gradient,
    )


@cache
def compiled(kind: str, activation: str, dropout: bool) -> SimpleNamespace:
    """As :func:`kernels`, compiled at their first launch."""
    return SimpleNamespace(**{name: cuda.jit(f) for name, f in vars(kernels(kind, activation, dropout)).items()})
