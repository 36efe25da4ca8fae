"""Drawing without replacement, with known inclusion probabilities: Gumbel top-k."""

import math

import torch


def draw_without_replacement(
    log_weights: torch.Tensor,
    k: int,
    excluded: torch.Tensor | None = None,
    generator: torch.Generator | None = None,
    inclusion: bool = True,
    sizes: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Draw k labels without replacement in each group, with each one's log inclusion probability.

        key_j = log p_j + G_j,  G_j ~ Gumbel(0, 1)      drawn: the k largest keys
        kappa = the (k+1)-th largest key                log q_j = log(1 - exp(-exp(log p_j - kappa)))

    Given kappa, j is drawn when its key passes kappa, so E[sum over drawn j of x_j / q_j] = sum over all j of x_j.
    With the k-th key for kappa that does not hold. When everything is drawn kappa = -inf and q = 1; else the sum's
    variance is finite from k = 2 on.

    Args:
        log_weights: (G, V) float, natural logarithm of weights of any scale; -inf is never drawn. No NaN, no +inf.
        k: labels to draw in each group, >= 1.
        excluded: (G, V) bool, True is never drawn; None excludes nothing.
        generator: on the device of `log_weights`; None for torch's own.
        inclusion: the probabilities are asked for.
        sizes: (G,) int64 on the device of `log_weights`, labels to draw in each group, from 0 to k; None: k in all. A
            group's kappa is then its own (k_g + 1)-th key.
    Returns:
        ids (G, k) int64, distinct, largest key first, -1 where fewer than k are to be, or can be drawn;
        log_inclusion (G, k) float32, log q_j, 0 where the id is -1; None where not asked for.
    Raises:
        ValueError: k below 1.
    Exact: the draw is successive sampling in proportion to p, and sums weighted by 1 / q are unbiased.
    Never waits for a GPU: shapes depend on shapes alone.
    Source: standard.
    """
    if k < 1:
        raise ValueError(f"draw_without_replacement: expected k of at least 1, got {k}")
    n_groups, vocab_size = log_weights.shape
    # float64: uniform numbers in float32 come in steps of 2^-24, too coarse for labels that are rarely drawn, and tie
    log_p = log_weights.double()
    if excluded is not None:
        log_p = log_p.masked_fill(excluded, -math.inf)
    noise = torch.empty((n_groups, vocab_size), dtype=log_p.dtype, device=log_p.device)
    noise.exponential_(generator=generator).clamp_min_(torch.finfo(noise.dtype).tiny)
    keys = noise.log_().neg_().add_(log_p)  # -log of an exponential variable is a Gumbel variable
    if k >= vocab_size:  # room for all k and the threshold after them
        keys = torch.nn.functional.pad(keys, (0, k + 1 - vocab_size), value=-math.inf)
    keys, ids = keys.topk(k + 1, dim=1)
    kappa = keys[:, k:] if sizes is None else keys.gather(1, sizes.unsqueeze(1))
    keys, ids = keys[:, :k], ids[:, :k]

    drawn = keys > -math.inf
    if sizes is not None:
        drawn &= torch.arange(k, device=keys.device) < sizes.unsqueeze(1)
    ids = torch.where(drawn, ids, -1)
    if not inclusion:
        return ids, None
    log_odds = log_p.gather(1, ids.clamp_min(0)) - kappa
    log_inclusion = torch.log(-torch.expm1(-torch.exp(log_odds)))
    return ids, torch.where(drawn, log_inclusion, 0.0).float()
