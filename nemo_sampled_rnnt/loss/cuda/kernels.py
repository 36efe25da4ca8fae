"""The kernels of the tiled engine.

A tile is some utterances from ``first_utterance`` on, or the frames ``first_frame`` to ``last_frame`` of one. Blocks
lie on a grid of its frames (x), groups of label positions (y) and utterances (z); the table

    utterances (B, 4)   frames, labels, first cell, first place

says which of them are there. Hidden and logits of the tile's cells start at row 0 of their buffers, which is cell
``first_cell`` of the batch. What is kept for the lattice (normaliser, arcs, alpha, beta) lies by anti-diagonals,
(t, u) at place (t + u)(U + 1) + u, so that the cells that alpha_beta works on together are neighbours in memory.
Indices are 64-bit: 131,072 labels x 20,000 cells pass 2^31.

Tensors arrive as pointers to their elements, the length of a row as a scalar. Rows of hidden, logits and weights are
read and written in octets (octets.py). They are padded: hidden with zeros, logits with scores whose offset is -inf.
"""

from __future__ import annotations

import math
from functools import cache
from types import SimpleNamespace

from numba import cuda, float32, float64, int32, int64

from nemo_sampled_rnnt.gpu.launch import (
    LOG2_E,
    NOTHING,
    SIMULATED,
    bits_of_double,
    device,
    double_of_bits,
    exp2_less,
    exp_split,
    fast_exp,
    larger,
    normalised,
    pack_number,
    reduce_by_shared_memory,
    reduce_by_shuffles,
    times_power_of_2,
    unpack_number,
)
from nemo_sampled_rnnt.gpu.octets import OCTET, octets
from nemo_sampled_rnnt.loss import dropout as counter

WARP = 4 if SIMULATED else 32
WARPS = 2 if SIMULATED else 8  # of a block
THREADS = WARP * WARPS
WIDE_THREADS = THREADS if SIMULATED else 512  # that score a group of cells with a large candidate set
LATTICE_THREADS = 4 if SIMULATED else 512
DIAGONAL = LATTICE_THREADS + 1
TWO_DIAGONALS = 2 * DIAGONAL
AHEAD = 8  # diagonals whose arcs are on their way: a load takes as long as some steps
GROUP = 4  # cells that share the loads of their offsets
GROUP_OF_OCTETS = GROUP * OCTET
BLOCK_OF_OCTETS = THREADS * OCTET
LABELS = 16  # label positions of a block that makes hidden
LOG_2 = float64(math.log(2))
MASK, GOLDEN = counter.MASK, counter.GOLDEN


mix = device(counter.mix)


@device
def is_kept(seed, utterance, frame, label, unit, threshold):
    state = mix(mix(mix(seed ^ utterance) ^ frame) ^ label)
    return mix((state + unit * GOLDEN) & MASK) >= threshold


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
def kernels(
    kind: str, activation: str, dropout: bool, clamped: bool, wide: bool, native: bool = True
) -> SimpleNamespace:
    """The kernels of one storage type.

    Args:
        kind: "float64", "float32", "float16" or "bfloat16", of hidden and logits.
        activation: "relu", "tanh" or "sigmoid".
        dropout: whether units are dropped.
        clamped: whether the logits' gradients are.
        wide: candidate sets are large: a whole block works on a group of cells, not a warp.
        native: see :func:`octets`.

    Returns:
        Python functions hidden, scores, alpha_beta, gradient, encoder_gradient, predictor_gradient, to be compiled.
    """
    real = float64 if kind == "float64" else float32  # what is computed in
    infinity = real(math.inf)  # typed: a bare constant would draw float32 comparisons into float64
    wide_infinity = float64(math.inf)
    lowest = real(-1e38)  # below every score, and finite: differences of it are no NaN
    memory, sums = octets(kind, native), octets("float64" if kind == "float64" else "float32")
    load8, store8, load1, store1 = memory.load8, memory.store8, memory.load1, memory.store1
    load_sums, store_sums = sums.load8, sums.store8
    activate, slope = activations(activation, real)
    # Threads that work on a group of cells.
    scoring_team, team = (WIDE_THREADS, THREADS) if wide else (WARP, WARP)

    def reducer(combine):
        if SIMULATED:
            return reduce_by_shared_memory(combine, real, scoring_team, THREADS)
        return reduce_by_shuffles(combine, real, scoring_team)

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
    def add(a, b):
        return a + b

    largest_of_team, sum_of_team = reducer(maximum), reducer(add)

    if clamped:

        @device
        def bounded(x, clamp):
            return min(max(x, -real(clamp)), real(clamp))
    else:

        @device
        def bounded(x, clamp):
            return x

    # The lattice's numbers, from e^0 down to e^-10000: in float32 a mantissa and an exponent, which multiply and add
    # in few steps and as exactly as float32 does; in float64 a logarithm, with an exponent of 0. In memory: a word.
    if kind == "float64":

        @device
        def number(log_value):
            return log_value, int32(0)

        @device
        def stored(mantissa, exponent):
            return bits_of_double(mantissa)

        @device
        def loaded(word):
            return double_of_bits(word), int32(0)

        @device
        def sum_of_products(a, a_exponent, p, p_exponent, b, b_exponent, q, q_exponent):
            high, low = a + p, b + q
            if low > high:
                high, low = low, high
            if low == -infinity:
                return high, int32(0)
            return high + math.log1p(math.exp(low - high)), int32(0)

        @device
        def log_of(mantissa, exponent):
            return mantissa

        @device
        def posterior(alpha, arc, beta, log_likelihood):
            return math.exp(double_of_bits(alpha) + double_of_bits(arc) + double_of_bits(beta) - log_likelihood)

        zero, zero_exponent = -infinity, int32(0)
    else:

        @device
        def number(log_value):
            return exp_split(log_value)

        @device
        def stored(mantissa, exponent):
            return pack_number(mantissa, exponent)

        @device
        def loaded(word):
            return unpack_number(word)

        @device
        def sum_of_products(a, a_exponent, p, p_exponent, b, b_exponent, q, q_exponent):
            """a p + b q."""
            first, second = a_exponent + p_exponent, b_exponent + q_exponent
            exponent = max(first, second)
            total = times_power_of_2(a * p, first - exponent) + times_power_of_2(b * q, second - exponent)
            return normalised(total, exponent)

        @device
        def log_of(mantissa, exponent):
            if mantissa == 0:
                return -wide_infinity
            return float64(exponent) * LOG_2 + float64(math.log(mantissa))

        @device
        def posterior(alpha, arc, beta, log_likelihood):
            """alpha arc beta / P."""
            a, a_exponent = unpack_number(alpha)
            p, p_exponent = unpack_number(arc)
            b, b_exponent = unpack_number(beta)
            whole = math.floor(log_likelihood / LOG_2)
            rest = math.exp(real(whole * LOG_2 - log_likelihood))
            return times_power_of_2(a * p * b * rest, a_exponent + p_exponent + b_exponent - int32(whole))

        zero, zero_exponent = real(0), int32(NOTHING)

    if dropout:

        @device
        def drop(value, seed, utterance, frame, label, unit, threshold, scale):
            return value * real(scale) if is_kept(seed, utterance, frame, label, unit, threshold) else real(0)
    else:

        @device
        def drop(value, seed, utterance, frame, label, unit, threshold, scale):
            return value

    def hidden(
        utterances, encoder, predictor, out, first_utterance, first_frame, last_frame, first_cell,
        frames, positions, width, in_stride, out_stride, seed, threshold, scale,
    ):  # fmt: skip
        """Block: LABELS label positions of a frame. Thread: every blockDim-th octet of units.

        Writes out (cells, out_stride): units, padded by zeros to whole octets, and an octet of a one and zeros.
        encoder (B frames, in_stride) and predictor (B positions, in_stride) are padded likewise.
        """
        b, t = first_utterance + cuda.blockIdx.z, first_frame + cuda.blockIdx.x
        labels, first_label = utterances[4 * b + 1], LABELS * int64(cuda.blockIdx.y)
        if t >= min(utterances[4 * b], last_frame) or first_label > labels:
            return
        row = utterances[4 * b + 2] - first_cell + t * (labels + 1)
        last_label = min(first_label + LABELS, labels + 1)
        f = cuda.local.array(OCTET, real)
        g = cuda.local.array(OCTET, real)
        for octet in range(cuda.threadIdx.x, out_stride // OCTET, cuda.blockDim.x):
            first = int64(OCTET * octet)
            if first < width:
                load8(encoder, (b * frames + t) * in_stride + first, f, 0)
            for u in range(first_label, last_label):
                if first < width:
                    load8(predictor, (b * positions + u) * in_stride + first, g, 0)
                    for i in range(OCTET):
                        h = drop(activate(f[i] + g[i]), seed, b, t, u, first + i, threshold, scale)
                        g[i] = h if first + i < width else real(0)
                else:
                    for i in range(OCTET):
                        g[i] = real(1) if i == 0 else real(0)
                store8(out, (row + u) * out_stride + first, g, 0)

    def scores(
        utterances, logits, offsets, targets, normaliser, by_blank, by_label,
        first_utterance, first_frame, last_frame, first_cell, stride, groups, positions, blank,
    ):  # fmt: skip
        """Block: groups of label positions of a frame. Team: a group. Thread: every so many octets of candidates.

        One pass: each thread keeps the largest score and the sum of exponentials relative to it. Writes the cells'
        normaliser, and the probabilities of their arcs by blank and by label.
        """
        b, t = first_utterance + cuda.blockIdx.z, first_frame + cuda.blockIdx.x
        member = int64(cuda.threadIdx.x % scoring_team)
        u = GROUP * ((int64(cuda.blockIdx.y) * cuda.blockDim.x + cuda.threadIdx.x) // scoring_team)
        labels = utterances[4 * b + 1]
        if t >= min(utterances[4 * b], last_frame) or u > labels:
            return
        first_row = (utterances[4 * b + 2] - first_cell + t * (labels + 1) + u) * stride
        first_place = utterances[4 * b + 3] + (t + u) * (labels + 1) + u
        first_offset = b * stride if groups > 1 else int64(0)
        last = min(int64(GROUP - 1), labels - u)  # of the group that is there
        z = cuda.local.array(GROUP_OF_OCTETS, real)
        offset = cuda.local.array(OCTET, real)
        top = cuda.local.array(GROUP, real)
        mass = cuda.local.array(GROUP, real)
        for place in range(GROUP):
            top[place], mass[place] = lowest, real(0)
        for first in range(OCTET * member, stride, OCTET * scoring_team):
            for place in range(GROUP):  # one that is not there repeats the last
                load8(logits, first_row + min(int64(place), last) * stride + first, z, OCTET * place)
            load_sums(offsets, first_offset + first, offset, 0)
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
            if member == place and place <= last:
                here, there = first_row + place * stride, first_place + place * (labels + 2)
                lse = high + (math.log(total) if total > 0 else total - infinity)
                normaliser[there] = lse
                log_blank = load1(logits, here + blank) + offsets[first_offset + blank] - lse
                mantissa, exponent = number(log_blank)
                by_blank[there] = stored(mantissa, exponent)
                if u + place < labels:
                    label = targets[b * positions + u + place]
                    log_label = load1(logits, here + label) + offsets[first_offset + label] - lse
                    mantissa, exponent = number(log_label)
                    by_label[there] = stored(mantissa, exponent)

    def alpha_beta(utterances, by_blank, by_label, alpha, beta, costs, first_utterance):
        """Block x: an utterance; y = 0 writes alpha and the cost, y = 1 beta. Thread: a label position.

        The cells of an anti-diagonal t + u = d are computed together; each thread keeps its own last value (the
        cell one frame before), takes its neighbour's (one label before) from shared memory, and loads the arcs of
        the diagonals that come next ahead of time. U + 1 beyond the block: panels of labels, one after the other,
        the edge between two read back from memory. beta runs the same way from the far corner.
        """
        neighbour = cuda.shared.array(TWO_DIAGONALS, int64)  # of this diagonal and the one before; slot 0: no neighbour
        blank_ahead = cuda.local.array(AHEAD, int64)
        label_ahead = cuda.local.array(AHEAD, int64)
        b = first_utterance + cuda.blockIdx.x
        frames, labels, first = int32(utterances[4 * b]), utterances[4 * b + 1], utterances[4 * b + 3]
        width = labels + 1
        thread = int32(cuda.threadIdx.x)
        forward = cuda.blockIdx.y == 0
        values = alpha if forward else beta
        down, right = (width, width + 1) if forward else (-width, -width - 1)
        corner = first + (frames - 1 + labels) * width + labels
        origin = first if forward else corner
        own, own_exponent = number(real(0))
        one, none = stored(own, own_exponent), stored(zero, zero_exponent)
        if thread == 0:
            neighbour[0], neighbour[DIAGONAL] = none, none
        for panel in range(0, width, cuda.blockDim.x):
            members = int32(min(int64(cuda.blockDim.x), width - panel))
            mine = panel + thread  # label positions passed so far, from the start or from the end
            here = origin + right * mine
            coming = here  # the cell whose arcs are loaded next
            # The arcs into a cell of alpha start in the cells before it, those of beta in the cell itself.
            to_blank_arc, to_label_arc = int64(0), int64(0)
            if forward:
                to_blank_arc, to_label_arc = -width, -right if mine > 0 else int64(0)
            last = frames if thread < members else int32(0)
            own, own_exponent = zero, zero_exponent
            if mine == 0:  # the corner: e^0
                own, own_exponent = number(real(0))
            for begin in range(-AHEAD, frames + members - 1, AHEAD):
                for place in range(AHEAD):
                    step = int32(begin + place)
                    passed = step - thread  # frames passed so far
                    if passed >= 0 and passed < last:
                        side = neighbour[((step + 1) & 1) * DIAGONAL + thread]
                        if panel > 0 and thread == 0:
                            side = values[here - right]
                        a, a_exponent = loaded(side)
                        # alpha[0, 0] is no arc's end, and no label comes before the first position
                        p, p_exponent = loaded(one if forward and passed == 0 else blank_ahead[place])
                        q, q_exponent = loaded(label_ahead[place] if mine > 0 else none)
                        own, own_exponent = sum_of_products(
                            own, own_exponent, p, p_exponent, a, a_exponent, q, q_exponent
                        )
                        word = stored(own, own_exponent)
                        neighbour[(step & 1) * DIAGONAL + thread + 1] = word
                        values[here] = word
                        here += down
                    if passed + AHEAD >= 0 and passed + AHEAD < last:
                        blank_ahead[place] = by_blank[coming + (to_blank_arc if passed + AHEAD > 0 else int64(0))]
                        label_ahead[place] = by_label[coming + to_label_arc]
                        coming += down
                    cuda.syncthreads()
            if forward and thread < members and mine == labels:
                p, p_exponent = loaded(by_blank[corner])
                costs[b] = -(log_of(own, own_exponent) + log_of(p, p_exponent))
            cuda.syncthreads()

    def gradient(
        utterances, hidden, logits, offsets, targets, normaliser, by_blank, by_label, alpha, beta, costs, weights,
        first_utterance, first_frame, last_frame, first_cell, stride, groups, positions, blank,
        emit, clamp, hidden_stride,
    ):  # fmt: skip
        """Block, team and thread as in scores.

        Overwrites the logits of the cells by their gradient; zeroes both logits and hidden of an utterance without
        a finite loss, since 0 x NaN would pass into the sums of others.
        """
        b, t = first_utterance + cuda.blockIdx.z, first_frame + cuda.blockIdx.x
        member = int64(cuda.threadIdx.x % team)
        u = GROUP * ((int64(cuda.blockIdx.y) * cuda.blockDim.x + cuda.threadIdx.x) // team)
        frames, labels = utterances[4 * b], utterances[4 * b + 1]
        if t >= min(frames, last_frame) or u > labels:
            return
        row = utterances[4 * b + 2] - first_cell + t * (labels + 1) + u
        first_place = utterances[4 * b + 3] + (t + u) * (labels + 1) + u
        first_row, first_offset = row * stride, b * stride if groups > 1 else int64(0)
        last = min(int64(GROUP - 1), labels - u)
        likelihood, weight = -costs[b], weights[b]
        z = cuda.local.array(GROUP_OF_OCTETS, real)
        offset = cuda.local.array(OCTET, real)
        occupancy = cuda.local.array(GROUP, real)
        shift = cuda.local.array(GROUP, real)
        at_blank = cuda.local.array(GROUP, real)
        at_label = cuda.local.array(GROUP, real)
        label = cuda.local.array(GROUP, int64)

        if not abs(likelihood) < wide_infinity:
            for i in range(OCTET):
                z[i] = real(0)
            for place in range(last + 1):
                for first in range(OCTET * member, stride, OCTET * team):
                    store8(logits, first_row + place * stride + first, z, 0)
                for first in range(OCTET * member, hidden_stride, OCTET * team):
                    store8(hidden, (row + place) * hidden_stride + first, z, 0)
            return

        mantissa, exponent = number(real(0))
        one = stored(mantissa, exponent)
        # Blank and label have an arc to subtract. The thread that overwrites their octets puts them right after.
        mine = blank // OCTET % team == member
        for place in range(GROUP):
            occupancy[place], shift[place], label[place] = real(0), real(0), int64(-1)
            there, here = first_place + place * (labels + 2), first_row + place * stride
            if place <= last:
                normalised_by = normaliser[there]
                gamma_blank, gamma_label = real(0), real(0)
                if t + 1 < frames or u + place == labels:
                    after = beta[there + labels + 1] if t + 1 < frames else one
                    gamma_blank = posterior(alpha[there], by_blank[there], after, likelihood)
                if u + place < labels:
                    after = beta[there + labels + 2]
                    arc = posterior(alpha[there], by_label[there], after, likelihood)
                    gamma_label = arc * (real(1) + real(emit))
                occ, shift[place] = gamma_blank + gamma_label, scaled(normalised_by)
                occupancy[place] = occ if clamped else occ * weight
                if mine:
                    score = load1(logits, here + blank) + offsets[first_offset + blank]
                    at_blank[place] = bounded(occ * exp(score - normalised_by) - gamma_blank, clamp) * weight
                if u + place < labels:
                    target = targets[b * positions + u + place]
                    if target // OCTET % team == member:
                        label[place] = target
                        score = load1(logits, here + target) + offsets[first_offset + target]
                        at_label[place] = bounded(occ * exp(score - normalised_by) - gamma_label, clamp) * weight
        for first in range(OCTET * member, stride, OCTET * team):
            for place in range(GROUP):
                load8(logits, first_row + min(int64(place), last) * stride + first, z, OCTET * place)
            load_sums(offsets, first_offset + first, offset, 0)
            for place in range(GROUP):
                for i in range(OCTET):
                    j = OCTET * place + i
                    z[j] = bounded(occupancy[place] * exp_less(z[j] + offset[i], shift[place]), clamp)
                    if clamped:
                        z[j] *= weight
                if place <= last:
                    store8(logits, first_row + place * stride + first, z, OCTET * place)
        for place in range(GROUP):
            if place <= last:
                if mine:
                    store1(logits, first_row + place * stride + blank, at_blank[place])
                if label[place] >= 0:
                    store1(logits, first_row + place * stride + label[place], at_label[place])

    @device
    def add_pulled_back(total, h, g, seed, b, t, u, first, threshold, scale):
        """Add the gradient g at an octet of hidden h, taken through dropout and activation."""
        for i in range(OCTET):
            a = h[i] / real(scale) if dropout else h[i]
            total[i] += drop(g[i] * slope(a), seed, b, t, u, first + i, threshold, scale)

    def encoder_gradient(
        utterances, hidden, hidden_gradient, out, first_utterance, first_frame, last_frame, first_cell,
        frames, hidden_stride, stride, seed, threshold, scale,
    ):  # fmt: skip
        """Block: a frame. Thread: every blockDim-th octet of units; sums over labels. Writes out (B frames, stride)."""
        b, t = first_utterance + cuda.blockIdx.z, first_frame + cuda.blockIdx.x
        if t >= min(utterances[4 * b], last_frame):
            return
        labels = utterances[4 * b + 1]
        row = utterances[4 * b + 2] - first_cell + t * (labels + 1)
        h = cuda.local.array(OCTET, real)
        g = cuda.local.array(OCTET, real)
        total = cuda.local.array(OCTET, real)
        for octet in range(cuda.threadIdx.x, stride // OCTET, cuda.blockDim.x):
            first = int64(OCTET * octet)
            for i in range(OCTET):
                total[i] = real(0)
            for u in range(labels + 1):
                load8(hidden, (row + u) * hidden_stride + first, h, 0)
                load8(hidden_gradient, (row + u) * stride + first, g, 0)
                add_pulled_back(total, h, g, seed, b, t, u, first, threshold, scale)
            store_sums(out, (b * frames + t) * stride + first, total, 0)

    def predictor_gradient(
        utterances, hidden, hidden_gradient, out, first_utterance, first_frame, last_frame, first_cell,
        positions, hidden_stride, stride, seed, threshold, scale,
    ):  # fmt: skip
        """Block: a label position (y) and a warp of octets (x). Warp: every WARPS-th of the tile's frames.

        Adds to out (B positions, stride): the tiles of a cut utterance follow each other on one stream, so the sum
        has one order.
        """
        partial = cuda.shared.array(BLOCK_OF_OCTETS, real)
        b, u = first_utterance + cuda.blockIdx.z, int64(cuda.blockIdx.y)
        labels, first_row = utterances[4 * b + 1], utterances[4 * b + 2] - first_cell
        if u > labels:
            return
        lane, warp = int64(cuda.threadIdx.x % WARP), int64(cuda.threadIdx.x // WARP)
        h = cuda.local.array(OCTET, real)
        g = cuda.local.array(OCTET, real)
        total = cuda.local.array(OCTET, real)
        for i in range(OCTET):
            total[i] = real(0)
        first = OCTET * (int64(cuda.blockIdx.x) * WARP + lane)
        if first < stride:
            for t in range(first_frame + warp, min(utterances[4 * b], last_frame), WARPS):
                row = first_row + t * (labels + 1) + u
                load8(hidden, row * hidden_stride + first, h, 0)
                load8(hidden_gradient, row * stride + first, g, 0)
                add_pulled_back(total, h, g, seed, b, t, u, first, threshold, scale)
        for i in range(OCTET):
            partial[i * THREADS + cuda.threadIdx.x] = total[i]
        cuda.syncthreads()
        if warp == 0 and first < stride:
            load_sums(out, (b * positions + u) * stride + first, total, 0)
            for other in range(WARPS):
                for i in range(OCTET):
                    total[i] += partial[i * THREADS + other * WARP + lane]
            store_sums(out, (b * positions + u) * stride + first, total, 0)

    return SimpleNamespace(
        hidden=hidden,
        scores=scores,
        alpha_beta=alpha_beta,
        gradient=gradient,
        encoder_gradient=encoder_gradient,
        predictor_gradient=predictor_gradient,
    )


@cache
def compiled(
    kind: str, activation: str, dropout: bool, clamped: bool, wide: bool, native: bool = True
) -> SimpleNamespace:
    """As :func:`kernels`, compiled at their first launch."""
    built = vars(kernels(kind, activation, dropout, clamped, wide, native))
    return SimpleNamespace(**{name: cuda.jit(function) for name, function in built.items()})
