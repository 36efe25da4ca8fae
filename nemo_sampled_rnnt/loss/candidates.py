"""The candidate set: whose scores enter the softmax.

    C = {blank} + positives + negatives
    log p(k) = z_k - log sum_{j in C} exp(z_j - log q_j)          q = 1 for blank and positives

Scope *utterance*: a set for each utterance, of its own labels and its own negatives. Scope *batch*: one set
for everybody, of all labels of the batch and one list of negatives. Without negatives: every row of the weight.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

ALIGNMENT = 8  # elements; 16 bytes in half precision, which tensor cores and wide loads want


def aligned(size: int) -> int:
    """``size`` rounded up to ALIGNMENT."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def recurring(size: int) -> int:
    """``size`` rounded up, by 3 % at most beyond ALIGNMENT, to one of few sizes, which batches share.

    For a matrix product of a size that it has not met cuBLAS takes 0.2 to 0.4 ms of the host to choose an algorithm.
    """
    step = _step(size)
    return -(-size // step) * step


def recurring_below(size: int) -> int:
    """``size`` rounded down to one of these sizes; what is smaller than ALIGNMENT stays."""
    return size // _step(size) * _step(size) or size


def _step(size: int) -> int:
    """From one recurring size to the next."""
    return max(ALIGNMENT, 1 << max(0, size.bit_length() - 6))


@dataclass(frozen=True)
class Lookup:
    """Where a label stands in each set: a hash table of so many slots for each, one after the other.

    Attributes:
        keys: int32 labels; -1 is a free slot.
        ranks: int32 positions in the set.
        capacity: slots of a table, a power of 2.
        vocabulary: V; row V + i of the weight, of blank and durations, stands at position i of every set.
    """

    keys: torch.Tensor
    ranks: torch.Tensor
    capacity: int
    vocabulary: int


@dataclass(frozen=True)
class Candidates:
    """Candidate sets of a batch, padded to one size, a multiple of ALIGNMENT.

    Attributes:
        ids: (G, S) int64 rows of the weight, G = B (scope utterance) or 1 (scope batch), or None: all rows.
            Position 0 is blank, TDT's durations follow, the others stand in any order; padding repeats blank.
        log_q: (G, S) log inclusion probabilities, 0 for blank and positives; inf, out of the softmax, in
            the padding and for durations; or None: all rows, and all 0.
        count: (G,) int64, candidates in each set, durations with them, on the device.
        blank: position of blank in a set.
        target: (B, U) int64, position of each target in its set.
        durations: position of TDT's first duration; else None.
        lookup: tables of the sets' labels, where a kernel made them; else None.
    """

    ids: torch.Tensor | None
    log_q: torch.Tensor | None
    count: torch.Tensor | None
    blank: int
    target: torch.Tensor
    durations: int | None = None
    lookup: Lookup | None = None


def every_label(targets: torch.Tensor, vocabulary: int, durations: int) -> Candidates:
    """The exact softmax: candidates are all V labels and blank, which is row V.

    Args:
        targets: (B, U) int64 label ids.
        vocabulary: V.
        durations: D, of a TDT model; theirs are the rows behind blank's.
    """
    first = vocabulary + 1 if durations else None
    return Candidates(ids=None, log_q=None, count=None, blank=vocabulary, target=targets, durations=first)


def gather_candidates(
    targets: torch.Tensor,
    labelled: torch.Tensor,
    negatives: torch.Tensor,
    negative_log_prob: torch.Tensor | None,
    vocabulary: int,
) -> Candidates:
    """Blank, positives and negatives without repetition; sizes stay on the device (no synchronisation).

    Args:
        targets: (B, U) int64 label ids; anything may stand where ``labelled`` is False.
        labelled: (B, U) bool, position lies within the transcript.
        negatives: (N,) or (B, N) int64 label ids; -1 is padding.
        negative_log_prob: log inclusion probability of each negative, or None.
        vocabulary: V; blank is id V.

    Returns:
        The sets. A negative that is also a label, or comes twice, counts once: the first one's probability holds.
    """
    batch, longest = targets.shape
    nothing = vocabulary + 1  # sorts behind every id
    labels = torch.where(labelled, targets, nothing)
    drawn = torch.where(negatives < 0, nothing, negatives)
    if negatives.dim() == 1:
        labels, drawn = labels.reshape(1, -1), drawn.reshape(1, -1)

    keys, order = torch.cat([labels, drawn], dim=1).sort(dim=1, stable=True)  # stable: labels before negatives
    first = torch.ones_like(keys, dtype=torch.bool)
    first[:, 1:] = keys[:, 1:] != keys[:, :-1]
    first &= keys != nothing
    count = first.sum(dim=1) + 1
    place = first.argsort(dim=1, stable=True, descending=True)  # distinct ids to the front, ascending
    ids = torch.where(first.gather(1, place), keys.gather(1, place), nothing)

    if longest == 0:
        target = targets
    elif negatives.dim() == 1:
        target = 1 + torch.searchsorted(ids[0], targets.contiguous())
    else:
        target = 1 + torch.searchsorted(ids, targets.contiguous())

    log_q = torch.zeros(1, device=ids.device)
    if negative_log_prob is not None:
        probability = negative_log_prob.reshape(ids.shape[0], -1)
        probability = torch.cat([probability.new_zeros(labels.shape), probability], dim=1)
        log_q = probability.gather(1, order).gather(1, place)
    log_q = torch.where(ids == nothing, torch.inf, log_q)
    padding = aligned(ids.shape[1] + 1) - ids.shape[1] - 1
    ids = torch.nn.functional.pad(ids.clamp(max=vocabulary), (1, padding), value=vocabulary)
    log_q = torch.nn.functional.pad(log_q, (0, padding), value=torch.inf)
    log_q = torch.cat([log_q.new_zeros(len(log_q), 1), log_q], dim=1)
    return Candidates(ids=ids, log_q=log_q, count=count, blank=0, target=target)


def with_durations(candidates: Candidates, vocabulary: int, durations: int) -> Candidates:
    """The same sets, and in them, right behind blank, the rows of TDT's durations, which every cell needs.

    They are no candidates: log_q takes them out of the softmax over labels and blank, as it does padding.

    Args:
        candidates: labels and blank in sets.
        vocabulary: V; blank is row V of the weight.
        durations: D; theirs are the rows behind it.
    """
    ids, log_q = candidates.ids, candidates.log_q
    rows = torch.arange(vocabulary + 1, vocabulary + 1 + durations, device=ids.device)

    def insert(kept, new, padding):
        kept = torch.cat([kept[:, :1], new.expand(len(kept), -1), kept[:, 1:]], dim=1)
        return torch.nn.functional.pad(kept, (0, aligned(kept.shape[1]) - kept.shape[1]), value=padding)

    return replace(
        candidates,
        ids=insert(ids, rows, vocabulary),
        count=candidates.count + durations,
        log_q=insert(log_q, log_q.new_full((durations,), torch.inf), torch.inf),
        target=candidates.target + durations,
        durations=1,
    )
