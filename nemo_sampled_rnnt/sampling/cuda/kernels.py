"""Drawing without replacement as a race: every label arrives after a random time, and the first k are drawn.

    time_j = E_j / p_j,  E_j ~ Exponential(1)     tau = the (k+1)-th smallest time     log q_j = log(1 - exp(-p_j tau))

which is Gumbel top-k (gumbel.py) without logarithms: key_j = -log time_j, kappa = -log tau. Weights p may have any
scale; here they are 1 for a uniform distribution. What may not be drawn never arrives (infinity).

One kernel makes the times on the whole GPU; the block of a group that is ready last goes on and selects. Before it,
for posteriors only, another sums each row.
"""

from __future__ import annotations

import math

import numpy as np
from numba import cuda, float32, int64

from nemo_sampled_rnnt.gpu.arithmetic import bits_of_single, single_of_bits
from nemo_sampled_rnnt.gpu.launch import SIMULATED, device
from nemo_sampled_rnnt.gpu.octets import OCTET, octets
from nemo_sampled_rnnt.sampling.cuda import noise

THREADS = 4 if SIMULATED else 1024
LANES = 4 if SIMULATED else 32
BITS = 2 if SIMULATED else 8  # of a digit; a time has 32, the first of them 0
DIGITS = 32 // BITS
BINS = 2**BITS
COUNTS = BINS * LANES  # 32 KiB of shared memory
UNIFORM, LOG_WEIGHTS, POSTERIORS = 0, 1, 2  # what a distribution comes from

NEVER, LATEST = float32(math.inf), float32(3.4028234e38)  # LATEST: the largest finite time
NEVER_BITS = 0x7F800000
SCALE = float32(2.0**-64)
HALF, ALL = np.uint64(2**63), np.uint64(2**64 - 1)
ALL_32 = 2**32 - 1
LIMITS = {} if SIMULATED else {"launch_bounds": THREADS}  # else the compiler may give a thread too many registers

load8 = octets("float32").load8
mix, counter = device(noise.mix), device(noise.counter)


@device
def word_of(stream, number):
    return mix(counter(stream, number))


@device
def exponential(word):
    """-log of 1 - word / 2^64, with the precision of float32 at both ends: rare labels are drawn by the smallest."""
    if word < HALF:
        return -math.log1p(-(float32(word) * SCALE))
    return -math.log(float32(word ^ ALL) * SCALE)


@device
def weight(label, first, last, source, weights, totals, floor, gain, vocabulary):
    """V times the probability of a label, mean over utterances first to last."""
    if source == UNIFORM:
        return float32(1)
    if source == LOG_WEIGHTS:
        return math.exp(weights[label])
    total = float32(0)
    for b in range(first, last):
        mass, row = weights[b * vocabulary + label], totals[b]
        share = float32(floor) + float32(gain) * (max(mass, float32(0)) / row)
        total += share if row > 0 else float32(1)
    return total / float32(last - first)


@device
def running_sums(sums, thread, threads):
    """Turns each thread's number into the sum of all up to it."""
    cuda.syncthreads()
    distance = int64(1)
    while distance < threads:
        before = sums[thread - distance] if thread >= distance else int64(0)
        cuda.syncthreads()
        sums[thread] += before
        cuda.syncthreads()
        distance *= 2


@cuda.jit(**LIMITS)
def totals_kernel(unusable, posteriors, totals, vocabulary):
    """Block: an utterance. Thread: every blockDim-th label.

    Writes totals (B,), the mass of the posteriors; 0 where it is not finite: a draw is then uniform. Adds to unusable
    (1,) the utterances with a 0.
    """
    sums = cuda.shared.array(THREADS, float32)
    b, thread, threads = int64(cuda.blockIdx.x), int64(cuda.threadIdx.x), int64(cuda.blockDim.x)
    part = cuda.local.array(OCTET, float32)
    for i in range(OCTET):
        part[i] = float32(0)
    for label in range(thread, vocabulary, OCTET * threads):
        for i in range(OCTET):  # eight loads on their way at a time
            if label + i * threads < vocabulary:
                mass = posteriors[b * vocabulary + label + i * threads]
                part[i] += float32(0) if mass <= 0 else mass  # NaN is added
    sums[thread] = ((part[0] + part[1]) + (part[2] + part[3])) + ((part[4] + part[5]) + (part[6] + part[7]))
    cuda.syncthreads()
    distance = threads // 2
    while distance > 0:
        if thread < distance:
            sums[thread] += sums[thread + distance]
        cuda.syncthreads()
        distance //= 2
    if thread == 0:
        total = sums[0] if sums[0] < NEVER else float32(0)
        totals[b] = total
        if total == 0:
            cuda.atomic.add(unusable, 0, 1)


@device
def arrange(
    times, weights, totals, targets, lengths, flags, group, first, last, start, stop,
    seed, source, floor, gain, longest, stride, vocabulary, thread, threads,
):  # fmt: skip
    """Writes the times of labels start to stop; `flags` marks those that are labels of the group."""
    for i in range(thread, stop - start, threads):
        flags[i] = 0
    cuda.syncthreads()
    for item in range(thread, (last - first) * longest, threads):
        b, u = first + item // longest, item % longest
        if u < lengths[b]:
            label = int64(targets[b * longest + u])
            if start <= label < stop:
                flags[label - start] = 1
    cuda.syncthreads()
    stream = word_of(np.uint64(seed), group)
    for label in range(start + thread, stop, threads):
        time = NEVER
        if label < vocabulary and flags[label - start] == 0:
            p = weight(label, first, last, source, weights, totals, floor, gain, vocabulary)
            if p > 0:
                time = min(float32(exponential(word_of(stream, label)) / p), LATEST)
        times[group * stride + label] = time


@device
def select(times, begin, end, rank, octet, counts, sums, chosen, thread, threads):
    """The bits of the time at a rank (from 0) among those from begin to end, and its rank among its equals.

    Radix selection: positive floats are ordered as their bits are. Each lane counts in columns of its own, since most
    times share their first digit.
    """
    lane, lowest = np.uint32(thread % LANES), np.uint32(0)  # lowest: bits that begin with the digits chosen so far
    for digit in range(DIGITS):
        shift, farthest = np.uint32(BITS * (DIGITS - 1 - digit)), np.uint32(ALL_32 >> BITS * digit)
        for i in range(thread, COUNTS, threads):
            counts[i] = 0
        cuda.syncthreads()
        for place in range(begin + OCTET * thread, end, OCTET * threads):
            load8(times, place, octet, 0)
            for i in range(OCTET):
                above = np.uint32(np.uint32(bits_of_single(octet[i])) - lowest)
                if above <= farthest:
                    cuda.atomic.add(counts, np.uint32((above >> shift) * np.uint32(LANES) + lane), 1)
        cuda.syncthreads()
        mine = int64(0)
        if thread < BINS:
            for i in range(LANES):
                mine += counts[thread * LANES + (thread + i) % LANES]
        sums[thread] = mine
        running_sums(sums, thread, threads)
        before = sums[thread] - mine
        if before <= rank < sums[thread]:
            chosen[0], chosen[1] = thread, rank - before
        cuda.syncthreads()
        lowest, rank = np.uint32(lowest + (np.uint32(chosen[0]) << shift)), chosen[1]
    return int64(lowest), rank


@cuda.jit(**LIMITS)
def draw_kernel(
    tickets, ids, log_q, times, weights, totals, targets, lengths, sizes,
    seed, floor, gain, source, corrected, sized, k, batch, longest, groups, stretch, stride, vocabulary,
):  # fmt: skip
    """Block: a stretch of labels (y) of a group (x); the last one that is ready also selects the group's.

    Thread: every blockDim-th label, and in the selection every blockDim-th octet. Writes times (G, stride), padded to
    octets by what never arrives; ids (G, k) and, if corrected, log_q (G, k): the drawn labels in the order of the
    threads that own them, -1 and 0 after them. tickets (G,) count the blocks that are ready; 0 before and after.
    """
    counts = cuda.shared.array(COUNTS, np.int32)
    sums = cuda.shared.array(THREADS, int64)
    chosen = cuda.shared.array(2, int64)
    octet = cuda.local.array(OCTET, float32)
    group, thread, threads = int64(cuda.blockIdx.x), int64(cuda.threadIdx.x), int64(cuda.blockDim.x)
    first, last = (group, group + 1) if groups > 1 else (int64(0), batch)
    start = cuda.blockIdx.y * stretch
    size = int64(sizes[group]) if sized else k
    if size >= vocabulary:
        source = UNIFORM  # everything comes, also what the distribution gives no mass
    arrange(
        times, weights, totals, targets, lengths, counts, group, first, last, start, min(start + stretch, stride),
        seed, source, floor, gain, longest, stride, vocabulary, thread, threads,
    )  # fmt: skip
    cuda.threadfence()
    cuda.syncthreads()
    if thread == 0:
        chosen[0] = cuda.atomic.add(tickets, group, 1)
    cuda.syncthreads()
    if chosen[0] < cuda.gridDim.y - 1:
        return
    cuda.threadfence()  # what the other blocks wrote is seen
    if thread == 0:
        tickets[group] = 0

    begin, end = group * stride, (group + 1) * stride
    size = min(max(size, int64(0)), k)
    bits, ties = int64(NEVER_BITS), int64(0)
    if size < vocabulary:
        bits, ties = select(times, begin, end, size, octet, counts, sums, chosen, thread, threads)
    tau = single_of_bits(bits)
    if bits == NEVER_BITS:
        ties = int64(0)

    # Drawn: what comes before tau, and so many of its equals as are missing. The sums hold both counts, in a word.
    mine = int64(0)
    for place in range(begin + OCTET * thread, end, OCTET * threads):
        load8(times, place, octet, 0)
        for i in range(OCTET):
            mine += int64(octet[i] < tau) + (int64(octet[i] == tau) << 32)
    sums[thread] = mine
    running_sums(sums, thread, threads)
    before = sums[thread] - mine
    earlier, equal = before & ALL_32, before >> 32
    for place in range(begin + OCTET * thread, end, OCTET * threads):
        load8(times, place, octet, 0)
        for i in range(OCTET):
            time = octet[i]
            if time < tau or (time == tau and equal < ties):
                ids[group * k + earlier + min(equal, ties)] = place - begin + i
            if time < tau:
                earlier += 1
            elif time == tau:
                equal += 1
    drawn = (sums[threads - 1] & ALL_32) + ties
    cuda.syncthreads()
    for i in range(thread, k, threads):
        at, log_probability = group * k + i, float32(0)
        if i >= drawn:
            ids[at] = -1
        elif corrected:
            p = weight(ids[at], first, last, source, weights, totals, floor, gain, vocabulary)
            log_probability = math.log(-math.expm1(-(p * tau)))
        if corrected:
            log_q[at] = log_probability
