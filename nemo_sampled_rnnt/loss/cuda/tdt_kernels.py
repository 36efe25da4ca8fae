"""The kernels that a TDT model needs beside those of plain RNN-T (kernels.py, whose conventions hold here too).

    alpha[t,u] = sum_{d > 0} alpha[t-d,u] b[t-d,u] w_d[t-d,u]   + sum_d alpha[t-d,u-1] y[t-d,u-1] w_d[t-d,u-1]
    beta[t,u]  = b[t,u] sum_{d > 0} w_d[t,u] beta[t+d,u]        + y[t,u] sum_d w_d[t,u] beta[t+d,u+1]

with b and y the probabilities of blank and of the next label, and w_d = p(d) e^-sigma. beta[T,U] = 1, and no other cell
lies beyond the last frame: a path ends by a blank. Label and blank softmax and the gradient of their logits are plain
RNN-T's kernels: duration columns have the offset -inf there. For the gradient, `posteriors` turns b and y into what
paths through the two arcs of a cell weigh together, and w_d into the gradient of the duration's logit.

``weights`` (D, places) holds w_d in words, a duration after the other: neighbours on an anti-diagonal are so in memory.
"""

from __future__ import annotations

import math
from functools import cache
from types import SimpleNamespace

from numba import cuda, float32, float64, int32, int64

from nemo_sampled_rnnt.gpu.launch import SIMULATED, device
from nemo_sampled_rnnt.gpu.numbers import numbers
from nemo_sampled_rnnt.gpu.octets import octets

CELL_THREADS = 4 if SIMULATED else 64  # of a block that works on label positions of one frame
TDT_LATTICE_THREADS = 4 if SIMULATED else 256  # each may then have all the registers there are
DIAGONAL = TDT_LATTICE_THREADS + 1
TWO_DIAGONALS = 2 * DIAGONAL


@cache
def tdt_kernels(kind: str, durations: tuple[int, ...], native: bool = True) -> SimpleNamespace:
    """The kernels of one storage type and one set of durations, over which their loops are unrolled.

    Args:
        kind: "float64", "float32", "float16" or "bfloat16", of the logits.
        durations: D numbers of frames, ascending.
        native: see :func:`octets`.

    Returns:
        Python functions duration_scores, alpha_beta, posteriors, duration_gradient, to be compiled.
    """
    real = float64 if kind == "float64" else float32
    wide_infinity = float64(math.inf)
    lowest = real(-1e38)
    load1, store1 = octets(kind, native).load1, octets(kind, native).store1
    of = numbers(kind)
    number, stored, loaded, log_of = of.number, of.stored, of.loaded, of.log_of
    sum_of_products, posterior, product = of.sum_of_products, of.posterior, of.product
    added, settled = of.added, of.settled
    zero, zero_exponent = of.zero, of.zero_exponent
    count, longest = len(durations), durations[-1]
    history = longest + 1

    def duration_scores(
        utterances, logits, bias, weights, first_utterance, first_frame, last_frame, first_cell, stride, column, places,
        sigma,
    ):  # fmt: skip
        """Block: label positions (y) of a frame (x) of an utterance (z). Thread: one of them. Writes its weights."""
        b, t = first_utterance + cuda.blockIdx.z, first_frame + cuda.blockIdx.x
        u = int64(cuda.blockIdx.y) * cuda.blockDim.x + cuda.threadIdx.x
        labels = utterances[4 * b + 1]
        if t >= min(utterances[4 * b], last_frame) or u > labels:
            return
        row = (utterances[4 * b + 2] - first_cell + t * (labels + 1) + u) * stride + column
        there = utterances[4 * b + 3] + (t + u) * (labels + 1) + u
        z = cuda.local.array(count, real)
        high = lowest
        for i in range(count):
            z[i] = load1(logits, row + i) + bias[i]
            high = max(high, z[i])
        total = real(0)
        for i in range(count):
            total += math.exp(z[i] - high)
        lse = high + math.log(total) + real(sigma)
        for i in range(count):
            mantissa, exponent = number(z[i] - lse)
            weights[i * places + there] = stored(mantissa, exponent)

    @device
    def edge(here, passed, down, alpha, by_label, weights, places):
        """What arrives by label from the last cells of the panel before, whose frames are ``down`` apart."""
        side, side_exponent = zero, zero_exponent
        for i in range(count):
            if passed >= durations[i]:
                before = here - durations[i] * down
                a, a_exponent = loaded(alpha[before])
                q, q_exponent = loaded(by_label[before])
                a, a_exponent = product(a, a_exponent, q, q_exponent)
                w, w_exponent = loaded(weights[i * places + before])
                side, side_exponent = added(side, side_exponent, a, a_exponent, w, w_exponent)
        return settled(side, side_exponent)

    @device
    def push(p, p_exponent, q, q_exponent, arcs, straight, straight_exponent, across, across_exponent):
        """Add the arcs of a cell to what will arrive, p by blank and q by label; what does so in its own frame."""
        for i in range(count):
            d = durations[i]
            w, w_exponent = loaded(arcs[i])
            across[d], across_exponent[d] = added(across[d], across_exponent[d], q, q_exponent, w, w_exponent)
            if d > 0:
                mass, exponent = added(straight[d], straight_exponent[d], p, p_exponent, w, w_exponent)
                straight[d], straight_exponent[d] = mass, exponent
        told, told_exponent = settled(across[0], across_exponent[0])
        for k in range(longest):
            straight[k], straight_exponent[k] = straight[k + 1], straight_exponent[k + 1]
            across[k], across_exponent[k] = across[k + 1], across_exponent[k + 1]
        straight[longest], straight_exponent[longest] = zero, zero_exponent
        across[longest], across_exponent[longest] = zero, zero_exponent
        return told, told_exponent

    @device
    def gather(p, p_exponent, q, q_exponent, arcs, straight, straight_exponent, across, across_exponent):
        """beta of a cell, which becomes the last of its label position."""
        a, a_exponent = zero, zero_exponent
        c, c_exponent = zero, zero_exponent
        for i in range(count):
            d = durations[i]
            w, w_exponent = loaded(arcs[i])
            c, c_exponent = added(c, c_exponent, across[d], across_exponent[d], w, w_exponent)
            if d > 0:
                a, a_exponent = added(a, a_exponent, straight[d], straight_exponent[d], w, w_exponent)
        own, own_exponent = sum_of_products(a, a_exponent, p, p_exponent, c, c_exponent, q, q_exponent)
        own, own_exponent = settled(own, own_exponent)
        for k in range(longest, 0, -1):
            straight[k], straight_exponent[k] = straight[k - 1], straight_exponent[k - 1]
            across[k], across_exponent[k] = across[k - 1], across_exponent[k - 1]
        straight[1], straight_exponent[1] = own, own_exponent
        return own, own_exponent

    def alpha_beta(utterances, by_blank, by_label, weights, alpha, beta, costs, first_utterance, places):
        """Block x: an utterance; y = 0 writes alpha and the cost, y = 1 beta. Thread: a label position.

        The cells of an anti-diagonal are computed together. alpha is pushed along the arcs of its own cell: a thread
        keeps what will arrive at its next frames by blank, and by label at those of its neighbour, whom it tells the
        nearest. beta is gathered over the same arcs: a thread keeps the last values of its own and of its neighbour.
        Both wait in ``straight`` and ``across``, a place for each frame to come. The arcs of the next cell are on
        their way while one is worked on. U + 1 beyond the block: panels of labels, one after the other, the edge
        between two read back from memory.
        """
        neighbour = cuda.shared.array(TWO_DIAGONALS, int64)  # of this diagonal and the one before; slot 0: none
        arcs = cuda.local.array(count, int64)
        next_arcs = cuda.local.array(count, int64)
        straight = cuda.local.array(history, real)
        straight_exponent = cuda.local.array(history, int32)
        across = cuda.local.array(history, real)
        across_exponent = cuda.local.array(history, int32)
        b = first_utterance + cuda.blockIdx.x
        frames, labels, first = int32(utterances[4 * b]), utterances[4 * b + 1], utterances[4 * b + 3]
        width = labels + 1
        thread = int32(cuda.threadIdx.x)
        forward = cuda.blockIdx.y == 0
        values = alpha if forward else beta
        down, right = (width, width + 1) if forward else (-width, -width - 1)
        origin = first if forward else first + (frames - 1 + labels) * width + labels
        one, one_exponent = number(real(0))
        none = stored(zero, zero_exponent)
        if thread == 0:
            neighbour[0], neighbour[DIAGONAL] = none, none
        for panel in range(0, width, cuda.blockDim.x):
            members = int32(min(int64(cuda.blockDim.x), width - panel))
            mine = panel + thread  # label positions passed so far, from the start or from the end
            has_label = mine != (labels if forward else 0)
            here = origin + right * mine
            last = frames if thread < members else int32(0)
            blank, label, next_blank, next_label = none, none, none, none
            for k in range(history):
                straight[k], straight_exponent[k] = zero, zero_exponent
                across[k], across_exponent[k] = zero, zero_exponent
            if mine == 0:  # e^0 at the first cell, or beyond the last
                if forward:
                    straight[0], straight_exponent[0] = one, one_exponent
                else:
                    straight[1], straight_exponent[1] = one, one_exponent
            for step in range(-1, frames + members - 1):
                passed = int32(step - thread)  # frames passed so far
                if passed >= -1 and passed < last - 1:
                    coming = here + down if passed >= 0 else here
                    next_blank, next_label = by_blank[coming], by_label[coming] if has_label else none
                    for i in range(count):
                        next_arcs[i] = weights[i * places + coming]
                if passed >= 0 and passed < last:
                    side, side_exponent = loaded(neighbour[((step + 1) & 1) * DIAGONAL + thread])
                    at_edge = panel > 0 and thread == 0
                    p, p_exponent = loaded(blank)
                    q, q_exponent = loaded(label)
                    if forward:
                        if at_edge:
                            side, side_exponent = edge(here - right, passed, down, alpha, by_label, weights, places)
                        own, own_exponent = sum_of_products(
                            straight[0], straight_exponent[0], one, one_exponent, side, side_exponent, one, one_exponent
                        )
                        own, own_exponent = settled(own, own_exponent)
                        p, p_exponent = product(own, own_exponent, p, p_exponent)
                        q, q_exponent = product(own, own_exponent, q, q_exponent)
                        told, told_exponent = push(
                            p, p_exponent, q, q_exponent, arcs, straight, straight_exponent, across, across_exponent
                        )
                        if mine == labels and passed == last - 1:  # what arrives beyond the last frame
                            end, end_exponent = settled(straight[0], straight_exponent[0])
                            costs[b] = -log_of(end, end_exponent)
                    else:
                        if at_edge:
                            side, side_exponent = loaded(beta[here - right])
                        across[0], across_exponent[0] = side, side_exponent
                        own, own_exponent = gather(
                            p, p_exponent, q, q_exponent, arcs, straight, straight_exponent, across, across_exponent
                        )
                        told, told_exponent = own, own_exponent
                    values[here] = stored(own, own_exponent)
                    neighbour[(step & 1) * DIAGONAL + thread + 1] = stored(told, told_exponent)
                    here += down
                blank, label = next_blank, next_label
                for i in range(count):
                    arcs[i] = next_arcs[i]
                cuda.syncthreads()
            cuda.syncthreads()

    def posteriors(
        utterances, by_blank, by_label, weights, alpha, beta, costs, first_utterance, places, sigma,
    ):  # fmt: skip
        """Block and thread as in duration_scores, over all frames. Where the loss is finite, overwrites

        by_blank, by_label   what all paths through the cell's arcs by blank, and by label, weigh
        alpha                one: what the gradient finds before and behind these arcs, which have it all
        weights              the gradient of the duration logits at unit scale, p(d) occ - gamma_d
        """
        b, t = first_utterance + cuda.blockIdx.z, int64(cuda.blockIdx.x)
        u = int64(cuda.blockIdx.y) * cuda.blockDim.x + cuda.threadIdx.x
        frames, labels, likelihood = utterances[4 * b], utterances[4 * b + 1], -costs[b]
        if t >= frames or u > labels or not abs(likelihood) < wide_infinity:
            return
        there = utterances[4 * b + 3] + (t + u) * (labels + 1) + u
        gamma = cuda.local.array(count, real)
        mantissa, exponent = number(real(0))
        start, one = alpha[there], stored(mantissa, exponent)
        p, p_exponent = loaded(by_blank[there])
        q, q_exponent = loaded(by_label[there])
        a, a_exponent = zero, zero_exponent
        c, c_exponent = zero, zero_exponent
        occupancy = real(0)
        for i in range(count):
            d = durations[i]
            w, w_exponent = loaded(weights[i * places + there])
            end, end_exponent = zero, zero_exponent  # beta behind the blank
            after, after_exponent = zero, zero_exponent  # and behind the label
            if d > 0:
                if t + d < frames:
                    end, end_exponent = loaded(beta[there + d * (labels + 1)])
                elif t + d == frames and u == labels:
                    end, end_exponent = loaded(one)
                a, a_exponent = added(a, a_exponent, end, end_exponent, w, w_exponent)
            arcs, arcs_exponent = product(p, p_exponent, end, end_exponent)
            if u < labels and t + d < frames:
                after, after_exponent = loaded(beta[there + (d + 1) * (labels + 1) + 1])
                c, c_exponent = added(c, c_exponent, after, after_exponent, w, w_exponent)
                arcs, arcs_exponent = sum_of_products(
                    p, p_exponent, end, end_exponent, q, q_exponent, after, after_exponent
                )
            gamma[i] = posterior(start, weights[i * places + there], stored(arcs, arcs_exponent), likelihood)
            occupancy += gamma[i]
        for i in range(count):
            w, w_exponent = loaded(weights[i * places + there])
            mantissa, exponent = number(real(sigma))
            w, w_exponent = product(w, w_exponent, mantissa, exponent)
            p_duration = posterior(one, stored(w, w_exponent), one, float64(0))
            weights[i * places + there] = stored(occupancy * p_duration - gamma[i], int32(0))
        own, own_exponent = loaded(start)
        a, a_exponent = settled(a, a_exponent)
        a, a_exponent = product(a, a_exponent, own, own_exponent)
        a, a_exponent = product(a, a_exponent, p, p_exponent)
        by_blank[there] = stored(a, a_exponent)
        if u < labels:
            c, c_exponent = settled(c, c_exponent)
            c, c_exponent = product(c, c_exponent, own, own_exponent)
            c, c_exponent = product(c, c_exponent, q, q_exponent)
            by_label[there] = stored(c, c_exponent)
        alpha[there] = one

    def duration_gradient(
        utterances, logits, gradients, costs, scale,
        first_utterance, first_frame, last_frame, first_cell, stride, column, places,
    ):  # fmt: skip
        """Block and thread as in duration_scores. Overwrites the cells' logits of durations; scale (B,)."""
        b, t = first_utterance + cuda.blockIdx.z, first_frame + cuda.blockIdx.x
        u = int64(cuda.blockIdx.y) * cuda.blockDim.x + cuda.threadIdx.x
        labels = utterances[4 * b + 1]
        if t >= min(utterances[4 * b], last_frame) or u > labels or not abs(costs[b]) < wide_infinity:
            return
        row = (utterances[4 * b + 2] - first_cell + t * (labels + 1) + u) * stride + column
        there = utterances[4 * b + 3] + (t + u) * (labels + 1) + u
        for i in range(count):
            gradient, _ = loaded(gradients[i * places + there])
            store1(logits, row + i, gradient * scale[b])

    return SimpleNamespace(
        duration_scores=duration_scores,
        alpha_beta=alpha_beta,
        posteriors=posteriors,
        duration_gradient=duration_gradient,
    )


@cache
def compiled(kind: str, durations: tuple[int, ...], native: bool = True) -> SimpleNamespace:
    """As :func:`tdt_kernels`, compiled at their first launch."""
    built = vars(tdt_kernels(kind, durations, native))
    return SimpleNamespace(**{name: cuda.jit(function) for name, function in built.items()})
