"""Checks and gathers a batch on the GPU with one launch and one read.

The kernel does what ``checks.survey`` does with some fifty torch operations; a step that takes two milliseconds
cannot wait for those. Distinct candidates are found by a hash table: every label and negative notes the place it
first comes at, and the noted places are numbered in their order.
"""

from __future__ import annotations

import math

import torch
from numba import cuda, int32, int64

from nemo_sampled_rnnt.gpu.launch import SIMULATED, Atomic, BoundKernel, device
from nemo_sampled_rnnt.loss.candidates import Candidates, Lookup, every_label, recurring

THREADS = 4 if SIMULATED else 512
FREE, NOWHERE = -1, 2**31 - 1


@device
def find(keys, first_slot, capacity, key):
    """The slot that holds the key, or the free one where it belongs."""
    slot = (key * 40503) & (capacity - 1)
    while keys[first_slot + slot] != FREE and keys[first_slot + slot] != key:
        slot = (slot + 1) & (capacity - 1)
    return first_slot + slot


@device
def key_of(item, positives, longest, first, group, drawn, labels, targets, negatives, vocabulary):
    """The id of an item, a label or a negative; -1 where there is none."""
    if item < positives:
        b, u = first + item // longest, item % longest
        key = targets[b * longest + u] if u < labels[b] else int64(-1)
    else:
        key = negatives[group * drawn + item - positives]
    return key if key < vocabulary else int64(-1)


@cuda.jit
def survey_kernel(
    report, keys, firsts, frames, labels, targets, negatives, log_prob, ids, log_q, place, ranks, utterances,
    batch, longest, drawn, stride, capacity, vocabulary, durations, groups, sampled, corrected,
):  # fmt: skip
    """Block: a candidate set. See :func:`survey` for what is written.

    report: (4 B + 4 G), rows of frames, labels, position and value of the first bad target; then rows of count,
    position and value of the first bad negative, and whether a log-prob is improper.
    """
    counts = cuda.shared.array(THREADS, int32)
    group, thread = int64(cuda.blockIdx.x), int64(cuda.threadIdx.x)
    threads = int64(cuda.blockDim.x)
    first, last = (group, group + 1) if groups > 1 else (int64(0), batch)
    positives = (last - first) * longest
    items = positives + drawn
    table = group * capacity

    for b in range(first + thread, last, threads):
        report[b], report[batch + b], report[2 * batch + b] = frames[b], labels[b], NOWHERE
    if thread == 0:
        if group == 0:
            cell, place_of_cell = int64(0), int64(0)
            for b in range(batch):
                utterances[4 * b], utterances[4 * b + 1] = frames[b], labels[b]
                utterances[4 * b + 2], utterances[4 * b + 3] = cell, place_of_cell
                cell += frames[b] * (labels[b] + 1)
                place_of_cell += (frames[b] + labels[b]) * (labels[b] + 1)
        if sampled:
            report[4 * batch + groups + group] = NOWHERE
            report[4 * batch + 3 * groups + group] = 0
    if sampled:
        for slot in range(table + thread, table + capacity, threads):
            keys[slot], firsts[slot] = FREE, NOWHERE
    cuda.syncthreads()

    for item in range(thread, items, threads):
        key = int64(-1)
        if item < positives:
            b, u = first + item // longest, item % longest
            if u < labels[b]:
                key = targets[b * longest + u]
                if key < 0 or key >= vocabulary:
                    cuda.atomic.min(report, 2 * batch + b, u)
                    key = int64(-1)
        else:
            n = item - positives
            key = negatives[group * drawn + n]
            if key < -1 or key >= vocabulary:
                cuda.atomic.min(report, 4 * batch + groups + group, n)
                key = int64(-1)
            if corrected and key >= 0:
                given = log_prob[group * drawn + n]
                if not (given <= 1e-4 and given > -math.inf):
                    report[4 * batch + 3 * groups + group] = 1
        if sampled and key >= 0:
            slot = (key * 40503) & (capacity - 1)
            while True:
                found = cuda.atomic.cas(keys, table + slot, int32(FREE), int32(key))
                if found == FREE or found == key:
                    break
                slot = (slot + 1) & (capacity - 1)
            cuda.atomic.min(firsts, table + slot, int32(item))
    cuda.syncthreads()

    for b in range(first + thread, last, threads):
        bad = report[2 * batch + b]
        report[3 * batch + b] = -1 if bad == NOWHERE else targets[b * longest + bad]
        if bad == NOWHERE:
            report[2 * batch + b] = -1
    if not sampled:
        return

    # Every thread numbers a stretch of items; the numbers of those before come from a sum over the block.
    share = (items + threads - 1) // threads
    begin, end = thread * share, min(items, (thread + 1) * share)
    mine = int32(0)
    for item in range(begin, end):
        key = key_of(item, positives, longest, first, group, drawn, labels, targets, negatives, vocabulary)
        if key >= 0 and firsts[find(keys, table, capacity, key)] == item:
            mine += 1
    counts[thread] = mine
    cuda.syncthreads()
    distance = 1
    while distance < threads:
        before = counts[thread - distance] if thread >= distance else int32(0)
        cuda.syncthreads()
        counts[thread] += before
        cuda.syncthreads()
        distance *= 2
    begun = 1 + durations  # blank is number 0
    rank = int64(counts[thread] - mine) + begun
    total = int64(counts[threads - 1]) + begun
    for item in range(begin, end):
        key = key_of(item, positives, longest, first, group, drawn, labels, targets, negatives, vocabulary)
        if key >= 0:
            slot = find(keys, table, capacity, key)
            if firsts[slot] == item:
                ids[group * stride + rank] = key
                probability = log_prob[group * drawn + item - positives] if corrected and item >= positives else 0.0
                log_q[group * stride + rank] = probability
                ranks[slot] = rank
                rank += 1
    if thread == 0:
        ids[group * stride], log_q[group * stride] = vocabulary, 0.0
        report[4 * batch + group] = total
        bad = report[4 * batch + groups + group]
        report[4 * batch + 2 * groups + group] = -1 if bad == NOWHERE else negatives[group * drawn + bad]
        if bad == NOWHERE:
            report[4 * batch + groups + group] = -1
    for k in range(1 + thread, begun, threads):
        ids[group * stride + k], log_q[group * stride + k] = vocabulary + k, math.inf
    for k in range(total + thread, stride, threads):
        ids[group * stride + k], log_q[group * stride + k] = vocabulary, math.inf
    cuda.syncthreads()
    for item in range(thread, positives, threads):
        key = key_of(item, positives, longest, first, group, drawn, labels, targets, negatives, vocabulary)
        at = first * longest + item
        place[at] = ranks[find(keys, table, capacity, key)] if key >= 0 else 0


def survey(encoder_lengths, target_lengths, targets, negatives, negative_log_prob, vocabulary: int, durations: int):
    """As :func:`nemo_sampled_rnnt.loss.checks.survey`, by one kernel."""
    batch, longest = targets.shape
    device = targets.device
    sampled, corrected = negatives is not None, negative_log_prob is not None
    drawn = negatives.shape[-1] if sampled else 0
    groups = batch if sampled and negatives.dim() == 2 else 1
    items = (longest if groups > 1 else batch * longest) + drawn
    stride = recurring(1 + durations + min(items, vocabulary))
    capacity = 2 ** (2 * items).bit_length()

    def empty(*size, dtype=torch.int64):
        return torch.empty(size, dtype=dtype, device=device)

    report, utterances = empty(4 * batch + 4 * groups), empty(batch, 4)
    targets = targets.contiguous()
    log_prob = negative_log_prob.contiguous() if corrected else empty(1, dtype=torch.float32)
    if log_prob.dtype not in (torch.float32, torch.float64):
        log_prob = log_prob.float()
    # Without negatives there are no candidates to write, and no table to find them by.
    rows, slots, negatives = (groups, groups * capacity, negatives.contiguous()) if sampled else (0, 1, empty(1))
    keys, firsts, ranks = empty(3, slots, dtype=torch.int32).unbind()
    ids, log_q, place = empty(rows, stride), empty(rows, stride, dtype=log_prob.dtype), empty(batch, longest)
    kernel = BoundKernel(
        survey_kernel,
        [Atomic(report), Atomic(keys), Atomic(firsts), encoder_lengths.contiguous(), target_lengths.contiguous(),
         targets, negatives, log_prob, ids, log_q, place, ranks, utterances],
        0,
        (batch, longest, drawn, stride, capacity, vocabulary, durations, groups, int(sampled), int(corrected)),
    )  # fmt: skip
    kernel((groups, 1, 1), THREADS)
    numbers = report.tolist()  # the one read of the device
    if not sampled:
        return numbers[: 4 * batch], every_label(targets, vocabulary, durations), utterances
    candidates = Candidates(
        ids=ids, log_q=log_q, count=report[4 * batch : 4 * batch + groups], blank=0, target=place,
        durations=1 if durations else None, lookup=Lookup(keys, ranks, capacity, vocabulary),
    )  # fmt: skip
    return numbers, candidates, utterances
