"""From a loss for each utterance to the loss of the batch; an utterance without a finite loss has no part in it.

sum          sum_b l_b
mean_batch   sum_b l_b / #finite                       (standard: NeMo's default)
mean         sum_b (l_b / max(U_b, 1)) / #finite
mean_volume  sum_b l_b / max(sum_b U_b, 1)             sums over finite utterances
None         l, with 0 for the utterances left out
"""

from __future__ import annotations

import torch

from nemo_sampled_rnnt.loss.problem import Options


def utterance_weight(target_lengths: torch.Tensor, reduction: str | None, dtype: torch.dtype) -> torch.Tensor:
    """(B,) weight of each utterance in the numerator; known before any loss is."""
    if reduction == "mean":
        return target_lengths.clamp(min=1).to(dtype).reciprocal()
    return torch.ones_like(target_lengths, dtype=dtype)


def denominator(finite: torch.Tensor, target_lengths: torch.Tensor, reduction: str | None, dtype) -> torch.Tensor:
    """() the common divisor; 1 at least, so that an empty transcript or a batch left out divides by no zero."""
    if reduction in ("mean", "mean_batch"):
        return finite.sum().clamp(min=1).to(dtype)
    if reduction == "mean_volume":
        return torch.where(finite, target_lengths, 0).sum().clamp(min=1).to(dtype)
    return torch.ones((), dtype=dtype, device=finite.device)


def reduce(costs: torch.Tensor, target_lengths: torch.Tensor, reduction: str | None) -> torch.Tensor:
    """Reduce the (B,) losses; differentiable in those that are finite.

    Args:
        costs: (B,) loss of each utterance, possibly inf or NaN.
        target_lengths: (B,) int64.
        reduction: None, "mean", "sum", "mean_batch" or "mean_volume".

    Returns:
        () the reduced loss, or (B,) for None.
    """
    finite = costs.isfinite()
    costs = torch.where(finite, costs, 0)
    if reduction is None:
        return costs
    weight = utterance_weight(target_lengths, reduction, costs.dtype)
    return (costs * weight).sum() / denominator(finite, target_lengths, reduction, costs.dtype)


def conclude(costs: torch.Tensor, target_lengths: torch.Tensor, options: Options, dtype: torch.dtype):
    """The results of a visit.

    Args:
        costs: (B,) float64, -log P of each utterance, possibly inf or NaN.
        target_lengths: (B,) int64.
        options: reduction and FastEmit.
        dtype: of the results.

    Returns:
        () the reduced loss, (B,) the losses before reduction, () the common divisor.
    """
    costs = (costs * (1 + options.fastemit_lambda)).to(dtype)
    finite = costs.isfinite()
    weights = utterance_weight(target_lengths, options.reduction, dtype)
    divisor = denominator(finite, target_lengths, options.reduction, dtype)
    return (torch.where(finite, costs, 0) * weights).sum() / divisor, costs, divisor
