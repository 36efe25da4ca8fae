"""The kernels of the tiled engine.

A tile is some utterances from ``first_utterance`` on, or the frames ``first_frame`` to ``last_frame`` of one. The table

    utterances (B, 4)   frames, labels, first cell, first place

says where its cells are. Hidden and logits of the tile's cells start at row 0 of their buffers, which is cell
``first_cell`` of the batch; kernels of the softmax take the cells as they lie there, whatever utterance they are of.
What is kept for the lattice (normaliser, arcs, alpha, beta) lies by anti-diagonals, (t, u) at place
(t + u)(U + 1) + u, so that the cells that alpha_beta works on together are neighbours in memory.
Indices are 64-bit: 131,072 labels x 20,000 cells pass 2^31.

Tensors arrive as pointers to their elements, the length of a row as a scalar. Rows of hidden, logits and weights are
read and written in octets (octets.py). They are padded: hidden with zeros, logits with scores whose offset is -inf.
"""

from __future__ import annotations

import math
from functools import cache
from types import SimpleNamespace

from numba import cuda, float32, float64, int32, int64

from nemo_sampled_rnnt.gpu.arithmetic import exponentials
from nemo_sampled_rnnt.gpu.launch import SIMULATED, at_most, device
from nemo_sampled_rnnt.gpu.numbers import numbers
from nemo_sampled_rnnt.gpu.octets import OCTET, octets
from nemo_sampled_rnnt.gpu.teams import add, reducer
from nemo_sampled_rnnt.loss import dropout as counter

WARP = 4 if SIMULATED else 32
WARPS = 2 if SIMULATED else 8  # of a block
THREADS = WARP * WARPS
LATTICE_THREADS = 4 if SIMULATED else 512
DIAGONAL = LATTICE_THREADS + 1
TWO_DIAGONALS = 2 * DIAGONAL
AHEAD = 8  # diagonals whose arcs are on their way: a load takes as long as some steps
GROUP = 4  # cells that share the loads of their offsets
GROUP_OF_OCTETS = GROUP * OCTET
BLOCK_OF_OCTETS = THREADS * OCTET
LABELS = 16  # label positions of a block that makes hidden
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
    kind: str, activation: str, dropout: bool, clamped: bool, own: bool, wide: bool, native: bool = True
) -> SimpleNamespace:
    """The kernels of one storage type.

    Args:
        kind: "float64", "float32", "float16" or "bfloat16", of hidden and logits.
        activation: "relu", "tanh" or "sigmoid".
        dropout: whether units are dropped.
        clamped: whether the logits' gradients are.
        own: each utterance has a candidate set, and so offsets, of its own.
        wide: candidate sets are large: a whole block works on a group of cells, not a warp.
        native: see :func:`octets`.

    Returns:
        Python functions hidden, scores, alpha_beta, gradient, projection_gradients, to be compiled.
    """
    real = float64 if kind == "float64" else float32  # what is computed in
    infinity = real(math.inf)  # typed: a bare constant would draw float32 comparisons into float64
    wide_infinity = float64(math.inf)
    lowest = real(-1e38)  # below every score, and finite: differences of it are no NaN
    memory, sums = octets(kind, native), octets("float64" if kind == "float64" else "float32")
    load8, store8, load1, store1, fetch = memory.load8, memory.store8, memory.load1, memory.store1, memory.fetch
    load_sums, store_sums = sums.load8, sums.store8
    activate, slope = activations(activation, real)
    team = THREADS if wide else WARP  # that works on a group of cells
    cells_of_block = GROUP * THREADS // team

    of = exponentials(kind)
    exp, exp_less, scaled, maximum = of.exp, of.exp_less, of.scaled, of.maximum
    largest_of_team, sum_of_team = (reducer(combine, real, team, THREADS) for combine in (maximum, add))

    if clamped:

        @device
        def bounded(x, clamp):
            return min(max(x, -real(clamp)), real(clamp))
    else:

        @device
        def bounded(x, clamp):
            return x

    of = numbers(kind)
    number, stored, loaded, log_of = of.number, of.stored, of.loaded, of.log_of
    sum_of_products, settled, posterior = of.sum_of_products, of.settled, of.posterior
    zero, zero_exponent = of.zero, of.zero_exponent

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

    @device
    def utterance_of(utterances, first_utterance, last_utterance, cell):
        """The one of these utterances that a cell of the batch belongs to."""
        low, high = first_utterance, last_utterance - 1
        while low < high:
            middle = (low + high + 1) // 2
            if utterances[4 * middle + 2] <= cell:
                low = middle
            else:
                high = middle - 1
        return low

    def scores(
        utterances, logits, offsets, targets, normaliser, by_blank, by_label,
        first_utterance, last_utterance, first_cell, cells, stride, positions, blank,
    ):  # fmt: skip
        """Block: consecutive cells. Team: a group of them. Thread: every so many octets of candidates.

        One pass: each thread keeps the largest score and the sum of exponentials relative to it. Writes the cells'
        normaliser, and the probabilities of their arcs by blank and by label: a thread each.
        """
        member = int64(cuda.threadIdx.x % team)
        # The last cells first: their logits were written last, and those of the first cells, which the gradient begins
        # with, are then the last that were read. The cache may hold them still.
        block = int64(cuda.gridDim.x - 1 - cuda.blockIdx.x)
        first = GROUP * ((block * cuda.blockDim.x + cuda.threadIdx.x) // team)
        if first >= cells:
            return
        first_row = first * stride
        last = min(int64(GROUP - 1), cells - 1 - first)  # of the group that is there
        z = cuda.local.array(GROUP_OF_OCTETS, real)
        offset = cuda.local.array(OCTET, real)
        offset_row = cuda.local.array(GROUP, int64)
        top = cuda.local.array(GROUP, real)
        mass = cuda.local.array(GROUP, real)
        for place in range(GROUP):
            top[place], mass[place], offset_row[place] = lowest, real(0), int64(0)
            if own:
                cell = first_cell + first + min(int64(place), last)
                offset_row[place] = stride * utterance_of(utterances, first_utterance, last_utterance, cell)

        # What the arcs of this thread's cell need is on its way while the sums are made.
        there, at_blank, at_label = int64(-1), real(0), real(0)
        if member <= last:
            cell, row = first_cell + first + member, first_row + member * stride
            b = utterance_of(utterances, first_utterance, last_utterance, cell)
            labels, offsets_here = utterances[4 * b + 1], b * stride if own else int64(0)
            t = (cell - utterances[4 * b + 2]) // (labels + 1)
            u = cell - utterances[4 * b + 2] - t * (labels + 1)
            there = utterances[4 * b + 3] + (t + u) * (labels + 1) + u
            at_blank = load1(logits, row + blank) + offsets[offsets_here + blank]
            if u < labels:
                label = targets[b * positions + u]
                at_label = load1(logits, row + label) + offsets[offsets_here + label]

        for octet in range(OCTET * member, stride, OCTET * team):
            if not wide:  # the compiler makes some of the loads wait for registers
                for place in range(GROUP):
                    fetch(logits, first_row + min(int64(place), last) * stride + octet)
            for place in range(GROUP):  # one that is not there repeats the last
                load8(logits, first_row + min(int64(place), last) * stride + octet, z, OCTET * place)
            if not own:
                load_sums(offsets, octet, offset, 0)
            for place in range(GROUP):
                if own:
                    load_sums(offsets, offset_row[place] + octet, offset, 0)
                high = top[place]
                for i in range(OCTET):
                    z[OCTET * place + i] += offset[i]
                    high = maximum(z[OCTET * place + i], high)
                total, shift = mass[place] * exp(top[place] - high), scaled(high)
                for i in range(OCTET):
                    total += exp_less(z[OCTET * place + i], shift)
                top[place], mass[place] = high, total

        my_high, my_total = real(0), real(1)
        for place in range(GROUP):
            high = largest_of_team(top[place], member)
            total = sum_of_team(mass[place] * exp(top[place] - high), member)
            if member == place:
                my_high, my_total = high, total
        if there >= 0:
            lse = my_high + (math.log(my_total) if my_total > 0 else my_total - infinity)
            normaliser[there] = lse
            mantissa, exponent = number(at_blank - lse)
            by_blank[there] = stored(mantissa, exponent)
            mantissa, exponent = number(at_label - lse)  # read of cells with a label only
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
            beside_edge, has_label = panel > 0 and thread == 0, mine > 0
            for place in range(AHEAD):
                label_ahead[place] = none
            for begin in range(-AHEAD, frames + members - 1, AHEAD):
                passed_before = int32(int32(begin) - thread)
                for place in range(AHEAD):
                    passed = int32(passed_before + int32(place))  # frames passed so far
                    if passed >= 0 and passed < last:
                        side = neighbour[(1 - place % 2) * DIAGONAL + thread]
                        if beside_edge:
                            side = values[here - right]
                        a, a_exponent = loaded(side)
                        # alpha[0, 0] is no arc's end, and no label comes before the first position
                        p, p_exponent = loaded(one if forward and passed == 0 else blank_ahead[place])
                        q, q_exponent = loaded(label_ahead[place])
                        own, own_exponent = sum_of_products(
                            own, own_exponent, p, p_exponent, a, a_exponent, q, q_exponent
                        )
                        if place == AHEAD - 1:
                            own, own_exponent = settled(own, own_exponent)
                        word = stored(own, own_exponent)
                        neighbour[place % 2 * DIAGONAL + thread + 1] = word
                        values[here] = word
                        here += down
                    coming_next = int32(passed + int32(AHEAD))
                    if coming_next >= 0 and coming_next < last:
                        blank_ahead[place] = by_blank[coming + (to_blank_arc if coming_next > 0 else int64(0))]
                        if has_label:
                            label_ahead[place] = by_label[coming + to_label_arc]
                        coming += down
                    cuda.syncthreads()
            if forward and thread < members and mine == labels:
                p, p_exponent = loaded(by_blank[corner])
                own, own_exponent = settled(own, own_exponent)
                costs[b] = -(log_of(own, own_exponent) + log_of(p, p_exponent))
            cuda.syncthreads()

    def gradient(
        utterances, hidden, logits, offsets, targets, normaliser, by_blank, by_label, alpha, beta, costs, weights,
        first_utterance, last_utterance, first_cell, cells, rows, stride, positions, blank, emit, clamp, hidden_stride,
    ):  # fmt: skip
        """Block, team and thread as in scores; the arcs of a cell: a thread.

        Overwrites the logits of the cells by their gradient; zeroes both logits and hidden of an utterance without
        a finite loss, since 0 x NaN would pass into the sums of others, and of the rows from ``cells`` to ``rows``.
        """
        occupancies = cuda.shared.array(cells_of_block, real)  # NaN: no finite loss
        shifts = cuda.shared.array(cells_of_block, real)
        signs = cuda.shared.array(cells_of_block, real)
        offset_rows = cuda.shared.array(cells_of_block, int64)
        thread, member = int64(cuda.threadIdx.x), int64(cuda.threadIdx.x % team)
        mine = int64(cuda.blockIdx.x) * cells_of_block + thread
        label, at_blank, at_label = int64(-2), real(0), real(0)
        if thread < cells_of_block and mine < cells:
            cell, row = first_cell + mine, mine * stride
            b = utterance_of(utterances, first_utterance, last_utterance, cell)
            frames, labels = utterances[4 * b], utterances[4 * b + 1]
            t = (cell - utterances[4 * b + 2]) // (labels + 1)
            u = cell - utterances[4 * b + 2] - t * (labels + 1)
            there, offsets_here = utterances[4 * b + 3] + (t + u) * (labels + 1) + u, b * stride if own else int64(0)
            likelihood, weight = -costs[b], weights[b]
            occupancies[thread], shifts[thread], offset_rows[thread] = real(math.nan), real(0), offsets_here
            if abs(likelihood) < wide_infinity:
                mantissa, exponent = number(real(0))
                one, label = stored(mantissa, exponent), int64(-1)
                score, shift = load1(logits, row + blank) + offsets[offsets_here + blank], normaliser[there]
                label_score, gamma_blank, gamma_label = real(0), real(0), real(0)
                if t + 1 < frames or u == labels:
                    after = beta[there + labels + 1] if t + 1 < frames else one
                    gamma_blank = posterior(alpha[there], by_blank[there], after, likelihood)
                if u < labels:
                    label = targets[b * positions + u]
                    label_score = load1(logits, row + label) + offsets[offsets_here + label]
                    arc = posterior(alpha[there], by_label[there], beta[there + labels + 2], likelihood)
                    gamma_label = arc * (real(1) + real(emit))
                occupancy = gamma_blank + gamma_label
                occupancies[thread], shifts[thread] = occupancy if clamped else occupancy * weight, scaled(shift)
                at_blank = bounded(occupancy * exp(score - shift) - gamma_blank, clamp) * weight
                at_label = bounded(occupancy * exp(label_score - shift) - gamma_label, clamp) * weight
            signs[thread] = weight
        cuda.syncthreads()

        first_of_team = GROUP * (thread // team)
        first = int64(cuda.blockIdx.x) * cells_of_block + first_of_team
        last = min(int64(GROUP - 1), cells - 1 - first)
        z = cuda.local.array(GROUP_OF_OCTETS, real)
        offset = cuda.local.array(OCTET, real)
        occupancy_of = cuda.local.array(GROUP, real)
        shift_of = cuda.local.array(GROUP, real)
        weight_of = cuda.local.array(GROUP, real)
        if last >= 0:
            for place in range(GROUP):
                there = first_of_team + min(int64(place), last)
                occupancy_of[place], shift_of[place] = occupancies[there], shifts[there]
                weight_of[place] = signs[there]
            for octet in range(OCTET * member, stride, OCTET * team):
                for place in range(GROUP):
                    fetch(logits, (first + min(int64(place), last)) * stride + octet)
                for place in range(GROUP):
                    load8(logits, (first + min(int64(place), last)) * stride + octet, z, OCTET * place)
                if not own:
                    load_sums(offsets, octet, offset, 0)
                for place in range(GROUP):
                    if own:
                        there = first_of_team + min(int64(place), last)
                        load_sums(offsets, offset_rows[there] + octet, offset, 0)
                    for i in range(OCTET):
                        j = OCTET * place + i
                        z[j] = occupancy_of[place] * exp_less(z[j] + offset[i], shift_of[place])
                        if clamped:
                            z[j] = bounded(z[j], clamp) * weight_of[place]
                    if place <= last:
                        store8(logits, (first + place) * stride + octet, z, OCTET * place)
        for place in range(GROUP):
            if first + place < rows and (place > last or occupancy_of[place] != occupancy_of[place]):
                for i in range(OCTET):
                    z[i] = real(0)
                for octet in range(OCTET * member, stride, OCTET * team):
                    store8(logits, (first + place) * stride + octet, z, 0)
                for octet in range(OCTET * member, hidden_stride, OCTET * team):
                    store8(hidden, (first + place) * hidden_stride + octet, z, 0)
        cuda.syncthreads()
        if label > -2:
            store1(logits, mine * stride + blank, at_blank)
            if label >= 0:
                store1(logits, mine * stride + label, at_label)

    @device
    def add_pulled_back(total, h, g, seed, b, t, u, first, threshold, scale):
        """Add the gradient g at an octet of hidden h, taken through dropout and activation."""
        for i in range(OCTET):
            a = h[i] / real(scale) if dropout else h[i]
            total[i] += drop(g[i] * slope(a), seed, b, t, u, first + i, threshold, scale)

    def projection_gradients(
        utterances, hidden, hidden_gradient, encoder, predictor, first_utterance, first_frame, last_frame, first_cell,
        encoder_rows, frames, positions, hidden_stride, stride, seed, threshold, scale,
    ):  # fmt: skip
        """Block: a warp of octets of a frame (the first encoder_rows) or of a label position (after those).

        Both are counted on x, octets first: there may be more than the 65,535 that end y. Warp: every WARPS-th of the
        cells that are summed, the frame's or the label position's. Adds to encoder (B frames, stride) and predictor
        (B positions, stride): the tiles of a cut utterance follow each other on one stream, so the sum has one order.
        """
        partial = cuda.shared.array(BLOCK_OF_OCTETS, real)
        b, labels = first_utterance + cuda.blockIdx.z, utterances[4 * (first_utterance + cuda.blockIdx.z) + 1]
        last_frame = min(utterances[4 * b], last_frame)
        warps_of_octets = int32((stride // OCTET + WARP - 1) // WARP)
        line = int64(cuda.blockIdx.x // warps_of_octets)
        of_frame = line < encoder_rows
        t, u = first_frame, int64(0)
        if of_frame:
            t += line
            count, step = labels + 1, int64(1)
        else:
            u += line - encoder_rows
            count, step = last_frame - first_frame, labels + 1
        if t >= last_frame or u > labels:
            return
        lane, warp = int64(cuda.threadIdx.x % WARP), int64(cuda.threadIdx.x // WARP)
        first_row = utterances[4 * b + 2] - first_cell + t * (labels + 1) + u
        h = cuda.local.array(OCTET, real)
        g = cuda.local.array(OCTET, real)
        total = cuda.local.array(OCTET, real)
        for i in range(OCTET):
            total[i] = real(0)
        first = OCTET * (int64(cuda.blockIdx.x % warps_of_octets) * WARP + lane)
        if first < stride:
            for n in range(warp, count, WARPS):
                load8(hidden, (first_row + n * step) * hidden_stride + first, h, 0)
                load8(hidden_gradient, (first_row + n * step) * stride + first, g, 0)
                frame, label = (t, n) if of_frame else (t + n, u)
                add_pulled_back(total, h, g, seed, b, frame, label, first, threshold, scale)
        for i in range(OCTET):
            partial[i * THREADS + cuda.threadIdx.x] = total[i]
        cuda.syncthreads()
        if warp == 0 and first < stride:
            out = encoder if of_frame else predictor
            row = b * frames + t if of_frame else b * positions + u
            load_sums(out, row * stride + first, total, 0)
            for other in range(WARPS):
                for i in range(OCTET):
                    total[i] += partial[i * THREADS + other * WARP + lane]
            store_sums(out, row * stride + first, total, 0)

    return SimpleNamespace(
        hidden=hidden,
        scores=scores,
        alpha_beta=alpha_beta,
        gradient=gradient,
        projection_gradients=projection_gradients,
    )


@cache
def compiled(
    kind: str, activation: str, dropout: bool, clamped: bool, own: bool, wide: bool, native: bool = True
) -> SimpleNamespace:
    """As :func:`kernels`, compiled at their first launch."""
    built = vars(kernels(kind, activation, dropout, clamped, own, wide, native))
    many_blocks = {"hidden"} if wide else {"hidden", "scores"}  # measured: benchmarks/NOTES.md, Engine 9
    return SimpleNamespace(
        **{
            name: cuda.jit(**at_most(LATTICE_THREADS, alone=name not in many_blocks))(function)
            for name, function in built.items()
        }
    )
