"""The kernels of the tiled engine.

Tables, on the device (see :mod:`nemo_sampled_rnnt.loss.lattice`):
    rows (R, 3)         utterance, frame, first cell of each row
    utterances (B, 4)   frames, labels, first cell, first row

A tile starts at row ``first_row`` and cell ``first_cell``; hidden and logits of its cells start at row 0 of their
buffers. What is kept for the lattice (normaliser, log-probs, alpha, beta) is indexed by the cell of the batch.
Cell indices are 64-bit: 131,072 labels x 20,000 cells pass 2^31.

Wide buffers (hidden, its gradient, logits) are read and written four values at a time; in bfloat16 they arrive as
64-bit words of four. Their rows are padded: hidden with zeros, logits with scores whose offset is -inf.
"""

from __future__ import annotations

import math
from functools import cache
from types import SimpleNamespace

from numba import cuda, float32, float64, int64
from numba.core.types import float16

from nemo_sampled_rnnt.loss import dropout as counter
from nemo_sampled_rnnt.loss.cuda.launch import (
    SIMULATED,
    fast_exp,
    merge_by_shared_memory,
    merge_by_shuffles,
    pack_bfloat16,
    unpack_bfloat16,
)

WARP = 4 if SIMULATED else 32
THREADS = 4 if SIMULATED else 256  # of a block: 8 warps
LATTICE_THREADS = 4 if SIMULATED else 1024
TWO_DIAGONALS = 2 * LATTICE_THREADS
MASK, GOLDEN = counter.MASK, counter.GOLDEN


def device(function):
    return function if SIMULATED else cuda.jit(device=True, inline="always")(function)


mix = device(counter.mix)


@device
def is_kept(seed, utterance, frame, label, unit, threshold):
    state = mix(mix(mix(seed ^ utterance) ^ frame) ^ label)
    return mix((state + unit * GOLDEN) & MASK) >= threshold


def storage(kind: str, real) -> SimpleNamespace:
    """How values of one storage type are read and written, four of a row at a time."""
    if kind == "bfloat16":

        @device
        def load_word(rows, i, word):
            return unpack_bfloat16(rows[i, word])

        @device
        def store_word(rows, i, word, a, b, c, d):
            rows[i, word] = pack_bfloat16(a, b, c, d)

        return SimpleNamespace(load4=load_word, store4=store_word)

    stored = {"float64": float64, "float32": float32, "float16": real if SIMULATED else float16}[kind]

    @device
    def load4(rows, i, word):
        k = 4 * word
        return real(rows[i, k]), real(rows[i, k + 1]), real(rows[i, k + 2]), real(rows[i, k + 3])

    @device
    def store4(rows, i, word, a, b, c, d):
        k = 4 * word
        rows[i, k], rows[i, k + 1], rows[i, k + 2], rows[i, k + 3] = stored(a), stored(b), stored(c), stored(d)

    return SimpleNamespace(load4=load4, store4=store4)


def activations(activation: str, real) -> tuple:
    """The activation, and its slope as a function of its value."""
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

    return activate, slope


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
    wide_infinity = float64(math.inf)
    half = kind in ("float16", "bfloat16")
    exp = fast_exp if half else math.exp
    memory = storage(kind, real)
    load4, store4 = memory.load4, memory.store4
    activate, slope = activations(activation, real)

    @device
    def log_add(a, b):
        """Of float64 numbers in the thousands, whose small difference `real` can express."""
        high, low = a, b
        if b > a:
            high, low = b, a
        if low == -wide_infinity:
            return high
        return high + math.log1p(math.exp(real(low - high)))

    if dropout:

        @device
        def drop(value, seed, utterance, frame, label, unit, threshold, scale):
            return value * real(scale) if is_kept(seed, utterance, frame, label, unit, threshold) else real(0)
    else:

        @device
        def drop(value, seed, utterance, frame, label, unit, threshold, scale):
            return value

    @device
    def unit(f, g, b, t, u, k, width, seed, threshold, scale):
        """One hidden unit; 0 in the padding."""
        if k >= width:
            return real(0)
        return drop(activate(f + g), seed, b, t, u, k, threshold, scale)

    def hidden(
        rows, utterances, encoder, predictor, out, first_row, first_cell, frames, labels, width, seed, threshold, scale
    ):
        """Block: a row. Thread: every blockDim-th word of units, for all labels. Writes out (cells, H).

        encoder (B frames, H) and predictor (B (labels + 1), H) are padded as the wide buffers are.
        """
        row = first_row + cuda.blockIdx.x
        b, t, cell = rows[row, 0], rows[row, 1], rows[row, 2] - first_cell
        for word in range(cuda.threadIdx.x, (width + 3) // 4, cuda.blockDim.x):
            k = 4 * word
            f0, f1, f2, f3 = load4(encoder, b * frames + t, word)
            for u in range(utterances[b, 1] + 1):
                g0, g1, g2, g3 = load4(predictor, b * (labels + 1) + u, word)
                store4(
                    out, cell + u, word,
                    unit(f0, g0, b, t, u, k, width, seed, threshold, scale),
                    unit(f1, g1, b, t, u, k + 1, width, seed, threshold, scale),
                    unit(f2, g2, b, t, u, k + 2, width, seed, threshold, scale),
                    unit(f3, g3, b, t, u, k + 3, width, seed, threshold, scale),
                )  # fmt: skip

    @device
    def score(logits, offsets, here, group, k):
        """z_k - log q_k of one candidate."""
        z0, z1, z2, z3 = load4(logits, here, k // 4)
        place = k % 4
        z = z0 if place == 0 else (z1 if place == 1 else (z2 if place == 2 else z3))
        return z + offsets[group, k]

    @device
    def merge(top, mass, other_top, other_mass):
        """Two (largest score, sum of exponentials relative to it) as one."""
        high = top if top > other_top else other_top
        if high == -infinity:
            return high, mass + other_mass  # nothing yet, or NaN, which must be seen
        return high, mass * exp(top - high) + other_mass * exp(other_top - high)

    merge_warp = merge_by_shuffles(merge) if not SIMULATED else merge_by_shared_memory(merge, real)

    def scores(
        rows, utterances, logits, offsets, targets, normaliser, log_blank, log_label, blank, first_row, first_cell
    ):
        """Block: a row. Warp: every so many of its label positions. Lane: every WARP-th word of candidates.

        One pass: each lane keeps the largest score and the sum of exponentials relative to it.
        Writes normaliser, log_blank and log_label of the row's cells.
        """
        row = first_row + cuda.blockIdx.x
        lane = cuda.threadIdx.x % WARP
        b, cell = rows[row, 0], rows[row, 2]
        labels = utterances[b, 1]
        group = b if offsets.shape[0] > 1 else int64(0)
        for u in range(cuda.threadIdx.x // WARP, labels + 1, cuda.blockDim.x // WARP):
            here = cell - first_cell + u
            top, mass = -infinity, real(0)
            for word in range(lane, offsets.shape[1] // 4, WARP):
                k = 4 * word
                z0, z1, z2, z3 = load4(logits, here, word)
                z0 += offsets[group, k]
                z1 += offsets[group, k + 1]
                z2 += offsets[group, k + 2]
                z3 += offsets[group, k + 3]
                high = max(max(z0, z1), max(z2, z3))
                if high > top:
                    mass *= exp(top - high)
                    top = high
                if high != high:
                    mass = high  # NaN must be seen
                elif top != -infinity:
                    mass += exp(z0 - top) + exp(z1 - top) + exp(z2 - top) + exp(z3 - top)
            top, mass = merge_warp(top, mass, lane)
            if lane == 0:
                lse = top + (math.log(mass) if mass > 0 else mass - infinity)
                normaliser[cell + u] = lse
                log_blank[cell + u] = score(logits, offsets, here, group, blank) - lse
                if u < labels:
                    log_label[cell + u] = score(logits, offsets, here, group, targets[b, u]) - lse

    def alpha_beta(utterances, log_blank, log_label, alpha, beta, costs, first_utterance):
        """Block x: an utterance; y = 0 writes alpha and the cost, y = 1 beta. Thread: a label position.

        The cells of an anti-diagonal t + u = d are computed together; each thread keeps its own last value (the
        cell one frame before), takes its neighbour's (one label before) from shared memory, and loads the arcs of
        the next diagonal ahead of time. U + 1 beyond the block: panels of labels, one after the other, the edge
        between two read back from memory. beta runs the same way from the far corner.

        alpha, beta and costs are float64: they run into the thousands, and their difference is the posterior.
        """
        neighbour = cuda.shared.array(TWO_DIAGONALS, float64)  # of this diagonal and the one before
        b = first_utterance + cuda.blockIdx.x
        frames, labels, first = utterances[b, 0], utterances[b, 1], utterances[b, 2]
        width = labels + 1
        thread = int64(cuda.threadIdx.x)
        forward = cuda.blockIdx.y == 0
        for panel in range(0, width, cuda.blockDim.x):
            members = min(int64(cuda.blockDim.x), width - panel)
            mine = panel + thread  # label positions passed so far, from the start or from the end
            u = mine if forward else labels - mine
            own = float64(0)
            blank_ahead, label_ahead = real(0), real(0)
            for step in range(frames + members - 1):
                passed = step - thread  # frames passed so far
                if thread < members and passed >= 0 and passed < frames:
                    t = passed if forward else frames - 1 - passed
                    cell = first + t * width + u
                    if passed == 0:  # nothing was loaded ahead yet
                        if forward:
                            if u > 0:
                                label_ahead = log_label[cell - 1]
                        else:
                            blank_ahead = log_blank[cell]
                            if u < labels:
                                label_ahead = log_label[cell]
                    by_blank, by_label = blank_ahead, label_ahead
                    if passed + 1 < frames:
                        if forward:
                            blank_ahead = log_blank[cell]
                            if u > 0:
                                label_ahead = log_label[cell - 1 + width]
                        else:
                            blank_ahead = log_blank[cell - width]
                            if u < labels:
                                label_ahead = log_label[cell - width]
                    if thread > 0:
                        side = neighbour[((step + 1) & 1) * LATTICE_THREADS + thread - 1]
                    elif mine > 0:
                        side = alpha[cell - 1] if forward else beta[cell + 1]
                    else:
                        side = float64(0)
                    if passed == 0 and mine == 0:
                        own = float64(0) if forward else float64(by_blank)
                    elif passed == 0:
                        own = side + by_label
                    elif mine == 0:
                        own = own + by_blank
                    else:
                        own = log_add(own + by_blank, side + by_label)
                    if forward:
                        alpha[cell] = own
                    else:
                        beta[cell] = own
                    neighbour[(step & 1) * LATTICE_THREADS + thread] = own
                cuda.syncthreads()
            if forward and thread < members and u == labels:
                costs[b] = -(own + log_blank[first + frames * width - 1])
            cuda.syncthreads()

    def gradient(
        rows, utterances, hidden, logits, offsets, targets, normaliser, log_blank, log_label,
        alpha, beta, costs, weights, blank, emit, clamp, first_row, first_cell, hidden_words,
    ):  # fmt: skip
        """Block: a row. Warp: every so many of its label positions. Lane: every WARP-th word of candidates.

        Overwrites the logits of the row's cells by their gradient; zeroes both logits and hidden of an utterance
        without a finite loss, since 0 x NaN would pass into the sums of others.
        """
        row = first_row + cuda.blockIdx.x
        lane = cuda.threadIdx.x % WARP
        b, t, cell = rows[row, 0], rows[row, 1], rows[row, 2]
        frames, labels = utterances[b, 0], utterances[b, 1]
        group = b if offsets.shape[0] > 1 else int64(0)
        likelihood, weight = -costs[b], weights[b]
        finite = abs(likelihood) < wide_infinity
        bound = real(clamp) if clamp > 0 else infinity
        for u in range(cuda.threadIdx.x // WARP, labels + 1, cuda.blockDim.x // WARP):
            here, there = cell - first_cell + u, cell + u
            if not finite:
                for word in range(lane, offsets.shape[1] // 4, WARP):
                    store4(logits, here, word, real(0), real(0), real(0), real(0))
                for word in range(lane, hidden_words, WARP):
                    store4(hidden, here, word, real(0), real(0), real(0), real(0))
                continue
            by_blank, by_label, label = real(0), real(0), int64(-1)
            if t + 1 < frames:
                by_blank = math.exp(real(alpha[there] + log_blank[there] + beta[there + labels + 1] - likelihood))
            elif u == labels:
                by_blank = math.exp(real(alpha[there] + log_blank[there] - likelihood))
            if u < labels:
                by_label = math.exp(real(alpha[there] + log_label[there] + beta[there + 1] - likelihood))
                by_label *= real(1) + real(emit)
                label = targets[b, u]
            occupancy, lse = by_blank + by_label, normaliser[there]
            for word in range(lane, offsets.shape[1] // 4, WARP):
                k = 4 * word
                g0, g1, g2, g3 = load4(logits, here, word)
                g0 = occupancy * exp(g0 + offsets[group, k] - lse)
                g1 = occupancy * exp(g1 + offsets[group, k + 1] - lse)
                g2 = occupancy * exp(g2 + offsets[group, k + 2] - lse)
                g3 = occupancy * exp(g3 + offsets[group, k + 3] - lse)
                if k // 4 == blank // 4:
                    place = blank % 4
                    g0 -= by_blank if place == 0 else real(0)
                    g1 -= by_blank if place == 1 else real(0)
                    g2 -= by_blank if place == 2 else real(0)
                    g3 -= by_blank if place == 3 else real(0)
                if k // 4 == label // 4:  # -1 // 4 is -1: no label
                    place = label % 4
                    g0 -= by_label if place == 0 else real(0)
                    g1 -= by_label if place == 1 else real(0)
                    g2 -= by_label if place == 2 else real(0)
                    g3 -= by_label if place == 3 else real(0)
                g0 = min(max(g0, -bound), bound) * weight
                g1 = min(max(g1, -bound), bound) * weight
                g2 = min(max(g2, -bound), bound) * weight
                g3 = min(max(g3, -bound), bound) * weight
                store4(logits, here, word, g0, g1, g2, g3)

    @device
    def pulled_back(value, h, seed, b, t, u, k, threshold, scale):
        """A gradient at a hidden unit, taken through dropout and activation."""
        a = h / real(scale) if dropout else h
        return drop(value * slope(a), seed, b, t, u, k, threshold, scale)

    def encoder_gradient(
        rows, utterances, hidden, hidden_gradient, out, first_row, first_cell, seed, threshold, scale
    ):
        """Block: a row. Thread: every blockDim-th word of units; sums over its labels. Writes out[b, t]."""
        row = first_row + cuda.blockIdx.x
        b, t, cell = rows[row, 0], rows[row, 1], rows[row, 2] - first_cell
        width = out.shape[2]
        for word in range(cuda.threadIdx.x, (width + 3) // 4, cuda.blockDim.x):
            k = 4 * word
            s0, s1, s2, s3 = real(0), real(0), real(0), real(0)
            for u in range(utterances[b, 1] + 1):
                h0, h1, h2, h3 = load4(hidden, cell + u, word)
                g0, g1, g2, g3 = load4(hidden_gradient, cell + u, word)
                s0 += pulled_back(g0, h0, seed, b, t, u, k, threshold, scale)
                s1 += pulled_back(g1, h1, seed, b, t, u, k + 1, threshold, scale)
                s2 += pulled_back(g2, h2, seed, b, t, u, k + 2, threshold, scale)
                s3 += pulled_back(g3, h3, seed, b, t, u, k + 3, threshold, scale)
            out[b, t, k] = s0
            if k + 1 < width:
                out[b, t, k + 1] = s1
            if k + 2 < width:
                out[b, t, k + 2] = s2
            if k + 3 < width:
                out[b, t, k + 3] = s3

    def predictor_gradient(
        utterances, hidden, hidden_gradient, out, first_utterance, first_row, last_row, first_cell, seed, threshold,
        scale,
    ):  # fmt: skip
        """Block: a label position (x) of an utterance (y). Thread: every blockDim-th word of units; sums over the
        tile's frames.

        Adds to out[b, u]: the tiles of a cut utterance follow each other on one stream, so the sum has one order.
        """
        b, u = first_utterance + cuda.blockIdx.y, int64(cuda.blockIdx.x)
        frames, labels, cell, row = utterances[b, 0], utterances[b, 1], utterances[b, 2], utterances[b, 3]
        if u > labels:
            return
        begin, end = max(int64(0), first_row - row), min(frames, last_row - row)
        width = out.shape[2]
        for word in range(cuda.threadIdx.x, (width + 3) // 4, cuda.blockDim.x):
            k = 4 * word
            s0, s1, s2, s3 = real(0), real(0), real(0), real(0)
            for t in range(begin, end):
                here = cell - first_cell + t * (labels + 1) + u
                h0, h1, h2, h3 = load4(hidden, here, word)
                g0, g1, g2, g3 = load4(hidden_gradient, here, word)
                s0 += pulled_back(g0, h0, seed, b, t, u, k, threshold, scale)
                s1 += pulled_back(g1, h1, seed, b, t, u, k + 1, threshold, scale)
                s2 += pulled_back(g2, h2, seed, b, t, u, k + 2, threshold, scale)
                s3 += pulled_back(g3, h3, seed, b, t, u, k + 3, threshold, scale)
            out[b, u, k] += s0
            if k + 1 < width:
                out[b, u, k + 1] += s1
            if k + 2 < width:
                out[b, u, k + 2] += s2
            if k + 3 < width:
                out[b, u, k + 3] += s3

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
