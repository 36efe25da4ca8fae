"""The lattice of a token-and-duration transducer (TDT), as its equations read, in plain PyTorch with autograd.

    log p(k, d | t,u) = log p(k | t,u) - sigma + log p(d | t,u)
    alpha[t,u]        = log( sum_{d > 0} exp(alpha[t-d,u]   + log p(blank, d | t-d,u))
                           + sum_d       exp(alpha[t-d,u-1] + log p(y_u, d   | t-d,u-1)) )
    log P             = log sum_{d > 0} exp(alpha[T-d,U] + log p(blank, d | T-d,U))

Blank has to advance, a label need not (d = 0). A path ends by a blank, exactly at T. Source: arXiv 2304.06795.
"""

from __future__ import annotations

import torch

NOTHING = -1e30  # stands for -inf, whose difference with itself, in logsumexp's gradient, is no number


def log_likelihood(log_blank: torch.Tensor, log_label: torch.Tensor, log_duration: torch.Tensor, durations):
    """() log P(y), by the forward recursion along the anti-diagonals t + u = n; -inf where no path ends at T.

    Args:
        log_blank: (T, U+1) log p(blank | t, u).
        log_label: (T, U) log p(y_{u+1} | t, u).
        log_duration: (T, U+1, D) log p(d | t, u) - sigma.
        durations: D numbers of frames.
    """
    frames, width = log_blank.shape
    n, u = (torch.arange(size, device=log_blank.device) for size in (frames + width - 1, width))
    t = n[:, None] - u
    there = (t >= 0) & (t < frames)

    def along_diagonals(log_prob):
        """(T + U, U+1, D) log-probs of the arcs by blank or label from cell (n - u, u)."""
        arcs = (log_prob[..., None] + log_duration)[t.clamp(0, frames - 1), u]
        return torch.where(there[..., None], arcs, NOTHING)

    by_blank = along_diagonals(log_blank)
    by_label = along_diagonals(torch.nn.functional.pad(log_label, (0, 1), value=NOTHING))
    nothing = log_blank.new_full((width,), NOTHING)
    alpha = [torch.where(u == 0, 0.0, nothing)]
    for here in range(1, len(n)):
        terms = [nothing]
        for i, d in enumerate(durations):
            if 0 < d <= here:
                terms.append(alpha[here - d] + by_blank[here - d, :, i])
            if d < here:
                before = alpha[here - d - 1] + by_label[here - d - 1, :, i]
                terms.append(torch.nn.functional.pad(before[:-1], (1, 0), value=NOTHING))
        alpha.append(torch.stack(terms).logsumexp(dim=0))
    last = [
        (alpha[frames - d + width - 1] + by_blank[frames - d + width - 1, :, i])[-1]
        for i, d in enumerate(durations)
        if 0 < d <= frames
    ]
    log_p = torch.stack([nothing[0], *last]).logsumexp(dim=0)
    return torch.where(log_p > NOTHING / 2, log_p, -torch.inf)
