"""The lattice of CTC: alpha, beta and likelihoods, and from them the occupancies of blank and labels."""

from __future__ import annotations

import math
from types import SimpleNamespace

from numba import cuda, float64, int32, int64

from nemo_sampled_rnnt.ctc.cuda.blocks import THREADS, WARP, real_of
from nemo_sampled_rnnt.gpu.launch import SIMULATED
from nemo_sampled_rnnt.gpu.numbers import numbers
from nemo_sampled_rnnt.gpu.teams import add, reducer

LATTICE_THREADS = 4 if SIMULATED else 512
SLOTS = LATTICE_THREADS + 1
TWO_SLOTS = 2 * SLOTS
AHEAD = 8  # frames whose scores are on their way: a load takes as long as some steps
BLANK, LABEL = 0, 1  # kinds of states: alpha and beta are (frames, 2, positions + 1)


def lattice_kernels(kind: str) -> SimpleNamespace:
    """Python functions lattice and occupancies, to be compiled, for a storage type of logits."""
    real, of = real_of(kind), numbers(kind)
    number, stored, loaded, plus, times, log_of = of.number, of.stored, of.loaded, of.plus, of.product, of.log_of
    posterior, zero, zero_exponent = of.posterior_of_state, of.zero, of.zero_exponent
    wide_infinity = float64(math.inf)
    sum_of_warp = reducer(add, real, WARP, THREADS)

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

    return SimpleNamespace(lattice=lattice, occupancies=occupancies)
