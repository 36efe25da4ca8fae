"""The head and its loss written down plainly, with every log-prob held."""

from __future__ import annotations

import torch

from nemo_sampled_rnnt.ctc.batch import Batch
from nemo_sampled_rnnt.loss.problem import accumulation_dtype
from nemo_sampled_rnnt.loss.reduction import reduce


def reference_loss(encoder, weight, bias, batch: Batch):
    """See :func:`nemo_sampled_rnnt.ctc.ctc_loss`; autograd differentiates it."""
    options, blank = batch.options, len(weight) - 1
    device, dtype = encoder.device, accumulation_dtype(encoder.dtype)
    frames, labels = (torch.tensor(x, device=device) for x in (batch.frames, batch.labels))
    valid = torch.arange(encoder.shape[1], device=device) < frames[:, None]
    finite = encoder.isfinite().all(dim=2)
    encoder = torch.where((valid & finite)[..., None], encoder, 0)
    log_probs = (encoder @ weight.to(encoder.dtype).T).to(dtype) + bias.to(dtype)
    log_probs = log_probs.log_softmax(dim=2)

    positions = torch.arange(max(1, batch.positions), device=device)
    targets = torch.nn.functional.pad(batch.targets, (0, len(positions) - batch.positions))
    targets = torch.where(positions < labels[:, None], targets, 0)
    costs = torch.nn.functional.ctc_loss(
        log_probs.transpose(0, 1), targets, frames, labels, blank=blank, reduction="none", zero_infinity=True
    )
    if not options.zero_infinity:  # between equal labels there is a blank
        repeats = ((targets[:, 1:] == targets[:, :-1]) & (positions[1:] < labels[:, None])).sum(dim=1)
        costs = costs.masked_fill(frames < labels + repeats, torch.inf)
    costs = costs.masked_fill(~(finite | ~valid).all(dim=1), torch.nan)

    posteriors = best = None
    with torch.no_grad():
        if options.frame_weights is not None:
            p = log_probs.exp().masked_fill(~valid[..., None], 0)
            if options.frame_weights == "max":
                posteriors = p.amax(dim=1)[:, :-1]
            else:
                nonblank = options.frame_weights == "nonblank"
                weights = torch.where(valid, -torch.expm1(log_probs[..., -1]) if nonblank else 1.0, 0).to(dtype)
                posteriors = (weights[:, None] @ p)[:, 0, :-1] / weights.sum(dim=1, keepdim=True)
        if options.best:
            best = log_probs.argmax(dim=2).masked_fill(~valid, blank)
    return reduce(costs, batch.target_lengths, options.reduction), costs.detach(), posteriors, best
