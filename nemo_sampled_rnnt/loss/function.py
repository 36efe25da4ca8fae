"""The public loss."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial

import torch

from nemo_sampled_rnnt.loss.checks import check_options, check_tensors, make_problem, survey
from nemo_sampled_rnnt.loss.finite import FiniteWatch
from nemo_sampled_rnnt.loss.problem import Options, Problem

_watch = FiniteWatch()


def sampled_rnnt_loss(
    encoder: torch.Tensor,
    predictor: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    targets: torch.Tensor,
    encoder_lengths: torch.Tensor,
    target_lengths: torch.Tensor,
    *,
    negatives: torch.Tensor | None = None,
    negative_log_prob: torch.Tensor | None = None,
    activation: str = "relu",
    dropout: float = 0.0,
    fastemit_lambda: float = 0.0,
    clamp: float = -1.0,
    reduction: str | None = "mean_batch",
    workspace_mib: int = 256,
    impl: str = "auto",
    durations: Sequence[int] | None = None,
    sigma: float = 0.0,
    omega: float = 0.0,
) -> torch.Tensor:
    r"""RNN-T loss of joint and softmax over a candidate set, in bounded memory.

        h[t,u]     = dropout(act(f[t] + g[u]))
        z_k[t,u]   = w_k . h[t,u] + c_k                                  k in C = {blank} + positives + negatives
        log p(k)   = z_k - log sum_{j in C} exp(z_j - log q_j)
        alpha[t,u] = logadd(alpha[t-1,u] + log p(blank | t-1,u), alpha[t,u-1] + log p(y_u | t,u-1))
        loss       = -(alpha[T-1,U] + log p(blank | T-1,U))

    With ``durations``, the token-and-duration transducer (TDT): an arc advances by one of D durations, which have a
    softmax of their own,

        log p(k, d) = log p(k) - sigma + z_d - log sum_{d' in durations} exp(z_d')
        alpha[t,u]  = log( sum_{d > 0} exp(alpha[t-d,u]   + log p(blank, d | t-d,u))
                         + sum_d       exp(alpha[t-d,u-1] + log p(y_u, d   | t-d,u-1)) )
        loss        = -log sum_{d > 0} exp(alpha[T-d,U] + log p(blank, d | T-d,U))

    The joint tensor (B, T, U+1, V+1) is never built; beyond the inputs, their gradients and one float32 sum of the
    weight's, memory is about ``workspace_mib``.

    Args:
        encoder: (B, T, H) float, projected encoder outputs, before the activation. Its dtype is the compute dtype.
        predictor: (B, U+1, H) float, projected predictor outputs.
        weight: (V+1, H) float, rows of the output layer; blank is row V. With durations (V+1+D, H), theirs behind it.
        bias: (V+1,) float, or (V+1+D,).
        targets: (B, U) integer label ids in [0, V).
        encoder_lengths: (B,) integer, valid frames, at least 1. Nothing beyond them is read.
        target_lengths: (B,) integer, labels; 0 is an empty transcript.
        negatives: None: exact, over the whole vocabulary. (N,) one set for the batch: candidates are blank, every
            label of the batch and the negatives. (B, N) a set for each utterance: blank, its own labels, its own
            negatives. -1 is padding; a negative that is also a label, or comes twice, counts once.
        negative_log_prob: same shape, log inclusion probability log q of each negative; subtracted from its score
            in the sum, which makes the sum an unbiased estimate of the full one. None: q = 1.
        activation: "relu", "tanh" or "sigmoid".
        dropout: probability of dropping a hidden unit, in [0, 1); drawn from torch's generator.
        fastemit_lambda: FastEmit regularisation, as NeMo has it: the label arcs' gradient is scaled by 1 + lambda (not
            that of the duration logits).
        clamp: > 0 bounds the gradient of every label and blank logit at unit scale, before the reduction.
        reduction: None, "mean", "sum", "mean_batch" or "mean_volume", as in NeMo.
        workspace_mib: MiB for the lattice, the sums of the projections' gradients, and, with the rest but at least
            half, hidden, its gradient and logits of the cells worked on together.
        impl: "auto", "reference" (plain PyTorch), "cpu" (tiled) or "cuda" (tiled, numba-cuda kernels).
        durations: None: plain RNN-T. Otherwise TDT's durations in frames, ascending, with one above 0.
        sigma: TDT's logit under-normalisation, subtracted from every arc.
        omega: probability that TDT trains this call's batch as plain RNN-T, without durations; drawn from torch's
            generator on the CPU. Leave it at 0 in validation.

    Returns:
        () float32 (float64 for float64 inputs), or (B,) for reduction None.

    Raises:
        ValueError: an argument is out of range; names the argument, the utterance and the value.
        FloatingPointError: no utterance has a finite loss (on CUDA raised by the next call on that GPU). A single
            utterance without a finite loss is left out of loss, gradient and mean, and logged. So is one that durations
            cannot take to its last frame.
        ImportError, RuntimeError: ``impl="cuda"`` and numba-cuda or a GPU is missing.
        RuntimeError: backward was called with ``create_graph=True``: there are no second derivatives.

    Exact without negatives or with all labels as negatives; otherwise an approximation of the full softmax.

    Source: sampled softmax for RNN-T, over a batch and from auxiliary CTC: paper (abstract) arXiv 2203.16868.
    Correction by inclusion probability: standard. TDT: arXiv 2304.06795, in NeMo's layout; sampling its labels: ours.
    Tiling, counter-based dropout: ours.
    """
    loss, costs, _ = transducer_loss(
        encoder, predictor, weight, bias, targets, encoder_lengths, target_lengths, negatives, negative_log_prob,
        Options(
            activation, dropout, fastemit_lambda, clamp, reduction, workspace_mib, impl,
            tuple(durations) if isinstance(durations, Iterable) else durations, sigma, omega,
        ),
    )  # fmt: skip
    _watch.submit(costs)
    return loss


def transducer_loss(
    encoder, predictor, weight, bias, targets, encoder_lengths, target_lengths, negatives, negative_log_prob,
    options: Options,
) -> tuple[torch.Tensor, torch.Tensor, Problem]:  # fmt: skip
    """As :func:`sampled_rnnt_loss`; (B,) the losses before reduction, which are the caller's to report; and the
    checked batch, which knows its sizes and sets."""
    check_options(options)
    durations = len(options.durations or ())
    check_tensors(
        encoder, predictor, weight, bias, targets, encoder_lengths, target_lengths, negatives, negative_log_prob,
        durations,
    )  # fmt: skip
    if options.omega > 0 and torch.rand((), device="cpu") < options.omega:
        weight, bias = weight[:-durations], bias[:-durations]
        options = replace(options, durations=None, sigma=0.0, omega=0.0)
    run, survey = _implementation(options, encoder.device)
    # The dtypes are the inputs' own: an enclosing autocast must not change them under way.
    with torch.autocast(encoder.device.type, enabled=False), device_of(encoder):
        problem = make_problem(
            encoder, weight, targets, encoder_lengths, target_lengths, negatives, negative_log_prob, options, survey
        )
        return *run(encoder, predictor, weight, bias, problem), problem


def device_of(tensor: torch.Tensor):
    """Kernels are launched on the current device: make it the tensors'."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()


def _implementation(options: Options, device: torch.device):
    """What computes the loss of a checked batch, and what surveys the batch before."""
    impl, tdt = options.impl, options.durations is not None
    if impl == "auto":
        impl = "cuda" if device.type == "cuda" else "cpu"
    if impl == "reference":
        from nemo_sampled_rnnt.loss.reference import reference_loss

        return reference_loss, survey
    if impl == "cuda":
        from nemo_sampled_rnnt.loss.cuda import cuda_implementation

        make_cells, cuda_survey = cuda_implementation(device, tdt)
        return _tiled(make_cells), cuda_survey
    if device.type != "cpu":
        raise ValueError(f"impl='cpu' works on CPU tensors, but encoder is on {device}: use impl='cuda'")
    if tdt:
        from nemo_sampled_rnnt.loss.tdt_cells_torch import TdtTorchCells as make_cells
    else:
        from nemo_sampled_rnnt.loss.cells_torch import TorchCells as make_cells
    return _tiled(make_cells), survey


def _tiled(make_cells):
    """The tiled engine with these operations on cells; those of TDT know the durations' bias."""
    from nemo_sampled_rnnt.loss.tiled import TiledLoss

    def run(encoder, predictor, weight, bias, problem):
        durations = len(problem.options.durations or ())
        if not torch.is_grad_enabled():  # what asks for a gradient gets none: so none is computed
            encoder, predictor, weight, bias = (x.detach() for x in (encoder, predictor, weight, bias))
        cells = partial(make_cells, duration_bias=bias.detach()[-durations:]) if durations else make_cells
        return TiledLoss.apply(encoder, predictor, weight, bias, problem, cells)

    return run
