"""The loss as its equations read, in plain PyTorch with autograd: the truth that every engine is compared with.

    h[t,u]     = dropout(act(f[t] + g[u]))
    z_k[t,u]   = w_k . h[t,u] + c_k                                     k in C
    log p(k)   = z_k - log sum_{j in C} exp(z_j - log q_j)
    alpha[t,u] = logadd(alpha[t-1,u] + log p(blank | t-1,u), alpha[t,u-1] + log p(y_u | t,u-1))
    loss       = -(alpha[T-1,U] + log p(blank | T-1,U))

The lattice of a TDT model: ``tdt_reference.py``. It holds the joint of one utterance at a time, and autograd keeps
them all: for tests and small batches.
"""

from __future__ import annotations

import torch

from nemo_sampled_rnnt.loss import tdt_reference
from nemo_sampled_rnnt.loss.dropout import keep_mask
from nemo_sampled_rnnt.loss.once import once_differentiable
from nemo_sampled_rnnt.loss.problem import Problem, accumulation_dtype
from nemo_sampled_rnnt.loss.reduction import reduce


def reference_loss(encoder, predictor, weight, bias, problem: Problem) -> tuple[torch.Tensor, torch.Tensor]:
    """Exact gradient of the loss by autograd.

    Args:
        encoder: (B, T, H) float, projected encoder outputs.
        predictor: (B, U+1, H) float, projected predictor outputs.
        weight: (V+1, H) float, rows of the output layer, blank last; behind them those of durations.
        bias: (V+1,) float, likewise.
        problem: the checked batch.

    Returns:
        The reduced loss, and (B,) the loss of each utterance before reduction, detached.
    """
    accumulate = accumulation_dtype(encoder.dtype)  # their gradients are summed over utterances in this dtype
    weight, bias = weight.to(accumulate), bias.to(accumulate)
    costs = torch.stack(
        [utterance_loss(encoder[b], predictor[b], weight, bias, problem, b) for b in range(problem.lattice.utterances)]
    )
    return reduce(costs, problem.target_lengths, problem.options.reduction), costs.detach()


def utterance_loss(encoder, predictor, weight, bias, problem: Problem, b: int) -> torch.Tensor:
    """() loss of utterance b; encoder (T, H) and predictor (U+1, H) may be longer than the utterance."""
    options, candidates = problem.options, problem.candidates
    frames, labels = problem.lattice.frames[b], problem.lattice.labels[b]
    group = problem.group(b)
    dtype = encoder.dtype

    hidden = activate(encoder[:frames, None] + predictor[None, : labels + 1].to(dtype), options.activation)
    if options.dropout > 0:
        t, u = (torch.arange(n, device=encoder.device) for n in (frames, labels + 1))
        kept = keep_mask(problem.seed, b, t, u, hidden.shape[-1], options.dropout)
        hidden = torch.where(kept, hidden / (1 - options.dropout), 0)

    if candidates.ids is None:
        rows, offsets = weight, bias
    else:
        ids = candidates.ids[group, : problem.rows(group)]
        rows, offsets = weight[ids], bias[ids]
    scores = torch.nn.functional.linear(hidden, rows.to(dtype)).to(accumulation_dtype(dtype)) + offsets
    first = candidates.durations or 0
    scores = scores, scores[..., first : first + len(options.durations or ())]
    target = candidates.target[b, :labels]

    def loss_of(scores, duration_scores):
        log_q = _log_q(problem, group, scores)
        return transducer_loss(scores, duration_scores, target, candidates.blank, log_q, options)

    cost = _ClampedGradient.apply(*scores, loss_of, options.clamp) if options.clamp > 0 else loss_of(*scores)
    # torch.where would still send NaN * 0 = NaN backwards from an utterance that is left out.
    return cost if cost.isfinite() else cost.detach()


def transducer_loss(scores, duration_scores, target, blank: int, log_q, options) -> torch.Tensor:
    """() loss of one utterance from its scores (T, U+1, S), standard; with FastEmit as NeMo has it.

    Those of durations are (T, U+1, D), D = 0 for plain RNN-T. They are among the S, where log q = inf leaves them out.
    """
    normaliser = (scores if log_q is None else scores - log_q).logsumexp(dim=-1)
    log_blank = scores[..., blank] - normaliser  # (T, U+1)
    index = target.expand(scores.shape[0], -1)[..., None]
    log_label = scores[:, :-1].gather(2, index)[..., 0] - normaliser[:, :-1]  # (T, U)
    emit = options.fastemit_lambda
    log_label = log_label * (1 + emit) - log_label.detach() * emit  # its value, (1 + lambda) its gradient
    if options.durations is None:
        cost = -log_likelihood(log_blank, log_label)
    else:
        log_duration = duration_scores.log_softmax(dim=-1) - options.sigma
        cost = -tdt_reference.log_likelihood(log_blank, log_label, log_duration, options.durations)
    return cost + emit * cost.detach()


def log_likelihood(log_blank: torch.Tensor, log_label: torch.Tensor) -> torch.Tensor:
    """() log P(y), by the forward recursion along the anti-diagonals t + u = d.

    Args:
        log_blank: (T, U+1) log p(blank | t, u).
        log_label: (T, U) log p(y_{u+1} | t, u).
    """
    frames, labels = log_blank.shape[0], log_blank.shape[1] - 1
    alpha = log_blank.new_zeros(1)  # cells of diagonal d, from label position `low`
    low = 0
    for d in range(1, frames + labels):
        new_low, new_high = max(0, d - frames + 1), min(labels, d)
        high = low + len(alpha) - 1
        u = torch.arange(low, high + 1, device=log_blank.device)
        t = d - 1 - u
        by_blank = alpha[t + 1 < frames] + log_blank[t, u][t + 1 < frames]  # to (t + 1, u)
        by_label = alpha[u < labels] + log_label[t[u < labels], u[u < labels]]  # to (t, u + 1)
        # Cells new_low..new_high: the first has only a blank arc if u = 0, the last only a label arc if t = 0.
        start = 1 if new_low == 0 else 0
        end = 1 if new_high == d else 0
        both = torch.logaddexp(by_blank[start:], by_label[: len(by_label) - end])
        alpha = torch.cat([by_blank[:start], both, by_label[len(by_label) - end :]])
        low = new_low
    return alpha[-1] + log_blank[-1, -1]


def activate(x: torch.Tensor, activation: str) -> torch.Tensor:
    return {"relu": torch.relu, "tanh": torch.tanh, "sigmoid": torch.sigmoid}[activation](x)


def _log_q(problem: Problem, group: int, scores: torch.Tensor) -> torch.Tensor | None:
    candidates = problem.candidates
    if candidates.log_q is not None:
        return candidates.log_q[group, : scores.shape[-1]].to(scores.dtype)
    if candidates.durations is None:
        return None
    log_q = scores.new_zeros(scores.shape[-1])
    log_q[candidates.durations :] = torch.inf
    return log_q


class _ClampedGradient(torch.autograd.Function):
    """The loss of one utterance, with the gradient at its scores clamped at unit scale, before any weight.

    That at the scores of durations is not, as in NeMo.
    """

    @staticmethod
    def forward(ctx, scores, duration_scores, loss_of, clamp):
        with torch.enable_grad():
            leaves = [x.detach().requires_grad_() for x in (scores, duration_scores)]
            cost = loss_of(*leaves)
            if not cost.isfinite():  # left out; without a path the cost has no graph
                return cost.detach()
            gradient, other = torch.autograd.grad(cost, leaves, allow_unused=True)
        ctx.save_for_backward(gradient.clamp_(-clamp, clamp), other)
        return cost.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx, cost_gradient):
        gradient, other = ctx.saved_tensors
        return cost_gradient * gradient, None if other is None else cost_gradient * other, None, None
