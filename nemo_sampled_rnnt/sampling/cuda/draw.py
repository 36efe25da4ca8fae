"""A batch's negatives by one launch, two where they follow posteriors; no host synchronisation."""

from __future__ import annotations

from contextlib import nullcontext

import torch

from nemo_sampled_rnnt.gpu.launch import SIMULATED, Atomic, BoundKernel
from nemo_sampled_rnnt.gpu.octets import OCTET
from nemo_sampled_rnnt.sampling.cuda.kernels import (
    COUNTS,
    LOG_WEIGHTS,
    POSTERIORS,
    THREADS,
    UNIFORM,
    draw_kernel,
    totals_kernel,
)

BLOCKS = 4 if SIMULATED else 264  # that a grid should have: two for each multiprocessor of an H100
_kept: dict[tuple, tuple[torch.Tensor, torch.Tensor]] = {}


def draw_negatives(
    targets: torch.Tensor,
    target_lengths: torch.Tensor,
    k: int,
    vocab_size: int,
    seed: int,
    together: bool,
    log_weights: torch.Tensor | None = None,
    posteriors: torch.Tensor | None = None,
    floor: float = 0.0,
    inclusion: bool = True,
    sizes: torch.Tensor | None = None,
    unusable: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Draw k labels without replacement in each group, its own labels excepted.

    Args:
        targets: (B, U) int64 or int32, labels; beyond target_lengths any value.
        target_lengths: (B,) int64 or int32, in labels.
        k: labels to draw, from 1 to V.
        vocab_size: V.
        seed: in [0, 2^63); another for each draw.
        together: one group for the batch (G = 1), from the mean of its distributions; else one an utterance (G = B).
        log_weights: (V,) float, one distribution for all.
        posteriors: (B, V) float, a distribution for each utterance, p_k / sum_j p_j; uniform where that is not finite.
            Without either: uniform.
        floor: share of the uniform distribution mixed into posteriors.
        inclusion: the probabilities are asked for.
        sizes: (G,) int64 or int32, labels to draw in each group, from 0 to k; None: k in all. V or more means every
            label, also those without mass: k must have room for them.
        unusable: (1,) int64, to which the number of utterances that are drawn for uniformly is added.
    Returns:
        ids (G, k) int64, distinct, in an order that means nothing, -1 after them where fewer are to be or can be drawn;
        log_inclusion (G, k) float32, 0 where the id is -1; None where not asked for.
    Exact, as draw_without_replacement, but for times that float32 makes equal: of those, a fixed few are
    drawn. A function of its arguments on one kind of device.
    Memory: 4 G V bytes, e.g. 64 MiB for 16 utterances and V = 1,048,576.
    """
    with torch.cuda.device(targets.device) if targets.is_cuda else nullcontext():
        return _draw(
            targets, target_lengths, k, vocab_size, seed, together, log_weights, posteriors, floor, inclusion, sizes,
            unusable,
        )[:2]  # fmt: skip


def _draw(
    targets, lengths, k, vocabulary, seed, together, log_weights, posteriors, floor, inclusion, sizes, unusable=None
):
    """ids, log_inclusion and times (G, V to whole octets)."""
    device, (batch, longest), lengths, floor = targets.device, targets.shape, lengths.contiguous(), float(floor)
    groups = 1 if together else batch
    stride = -(-vocabulary // OCTET) * OCTET
    times = torch.empty((groups, stride), dtype=torch.float32, device=device)
    ids = torch.empty((groups, k), dtype=torch.int64, device=device)
    log_inclusion = torch.empty((groups, k), dtype=torch.float32, device=device) if inclusion else None
    if groups == 0:
        return ids, log_inclusion, times
    tickets, unused = _tickets(device, groups)
    source, weights, totals = UNIFORM, unused, unused
    if log_weights is not None:
        source, weights = LOG_WEIGHTS, log_weights.float().contiguous()
    elif posteriors is not None:
        source, weights = POSTERIORS, posteriors.detach().float().contiguous()
        totals = torch.empty(batch, dtype=torch.float32, device=device)
        if unusable is None:
            unusable = torch.zeros(1, dtype=torch.int64, device=device)
        BoundKernel(totals_kernel, [Atomic(unusable), weights, totals], 0, (vocabulary,))((batch, 1, 1), THREADS)
    # As many labels to a block as leave BLOCKS of them, in whole rounds of its threads.
    rounds = min(max(1, groups * stride // (THREADS * BLOCKS)), COUNTS // THREADS)
    stretch = rounds * THREADS
    kernel = BoundKernel(
        draw_kernel,
        [Atomic(tickets), ids, log_inclusion if inclusion else unused, times, weights, totals, targets.contiguous(),
         lengths, lengths if sizes is None else sizes.contiguous()],
        0,
        (seed, floor, (1 - floor) * vocabulary, source, int(inclusion), int(sizes is not None), k, batch,
         longest, groups, stretch, stride, vocabulary),
    )  # fmt: skip
    kernel((groups, -(-stride // stretch), 1), THREADS)
    return ids, log_inclusion, times


def _tickets(device: torch.device, groups: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Zeros, which every launch leaves so, and a float for arguments that are not there: kept, a stream's own."""
    stream = torch._C._cuda_getCurrentRawStream(device.index) if device.type == "cuda" else None
    kept = _kept.get((device.index, stream))
    if kept is None or len(kept[0]) < groups:
        kept = torch.zeros(max(groups, 1024), dtype=torch.int32, device=device), torch.zeros(1, device=device)
        _kept[device.index, stream] = kept
    return kept
