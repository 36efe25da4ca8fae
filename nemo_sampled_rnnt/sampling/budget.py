"""A budget in place of a count: how many candidates each set may have, so that a batch has so many logits at most."""

import torch

LEAST_NEGATIVES = 2  # from two on the variance of the corrected sum is finite
SPREAD = 4  # no set is larger than so many times an even split over the padded batch: what is drawn has a fixed width


def widest(max_logits: int, padded_cells: int, vocab_size: int) -> int:
    """Negatives that a set may have at most, from what the host knows: the draw has this width.

    Args:
        max_logits: the budget.
        padded_cells: B T (U + 1), of the padded batch.
        vocab_size: V.
    """
    return min(vocab_size, max(LEAST_NEGATIVES, SPREAD * max_logits // padded_cells))


def allot(
    max_logits: int, cells: torch.Tensor, merit: torch.Tensor, least: torch.Tensor, most: torch.Tensor
) -> torch.Tensor:
    """Candidates of each set under a budget on the logits of all.

        S_g = clamp(lambda r_g, least_g, most_g),  with the largest lambda of which sum_g cells_g S_g <= max_logits

    The sum is piecewise linear in lambda, with corners where a set leaves its least, from which on it grows by
    cells_g r_g more, or reaches its most: lambda lies on the line after the last corner that the budget allows.

    Args:
        max_logits: budget, lattice cells times candidates, over the batch.
        cells: (G,) lattice cells of the utterances that share a set.
        merit: (G,) r > 0, see :func:`merit`.
        least, most: (G,) candidates that a set must have, and may have; 1 <= least <= most.
    Returns:
        (G,) int64. Where even `least` is too much for the budget: `least`, which is the caller's to refuse.
    Exact up to rounding down. Never waits for a GPU.
    Source: water-filling, standard.
    """
    cells, merit, least, most = (x.double() for x in (cells, merit, least, most))
    corners, order = torch.cat([least / merit, most / merit]).sort()
    slope = torch.cat([cells * merit, -cells * merit])[order].cumsum(dim=0)
    logits = (cells @ least) + torch.nn.functional.pad((slope[:-1] * corners.diff()).cumsum(dim=0), (1, 0))
    last = (torch.searchsorted(logits, logits.new_full((1,), max_logits), right=True) - 1).clamp_min(0)
    after = (last + 1).clamp_max(len(corners) - 1)
    # 0 / 0 where there is no corner after the last, or a flat stretch: then lambda stays
    share = ((max_logits - logits[last]) / (logits[after] - logits[last])).nan_to_num(0, 0, 0).clamp(0, 1)
    level = corners[last] + share * (corners[after] - corners[last])
    # a whole number that rounding left a hair below itself counts as the whole number
    return torch.floor((level * merit).clamp(least, most) + 1e-9).long()


def merit(frames: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """How many candidates a cell of an utterance deserves beside those of others: (B,) float64.

        minimise sum_b (T_b + U_b) / S_b  for a given sum_b cells_b S_b:    S_b ~ sqrt((T_b + U_b) / cells_b)

    An alignment visits T + U of the T (U + 1) cells, and the variance of a sampled softmax falls as 1 / S in each: so
    the sum is that of the batch. Short transcripts get more candidates, long ones fewer.

    Args: frames, labels: (B,) T_b >= 1 and U_b.
    Source: ours.
    """
    frames, labels = frames.double(), labels.double()
    return ((frames + labels) / (frames * (labels + 1))).sqrt()
