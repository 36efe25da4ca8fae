"""The public function: the CTC head and its loss, and what a sampler wants of them."""

from __future__ import annotations

from typing import NamedTuple

import torch

from nemo_sampled_rnnt.ctc.batch import Batch, Options, check_tensors, make_batch, survey
from nemo_sampled_rnnt.ctc.engine import Needs, visited
from nemo_sampled_rnnt.loss.function import device_of
from nemo_sampled_rnnt.loss.once import once_differentiable
from nemo_sampled_rnnt.loss.row_gradients import scaled
from nemo_sampled_rnnt.loss.tiled import graph_is_kept


class CTC(NamedTuple):
    """loss: () the reduced loss, differentiable.
    losses: (B,) before reduction: NaN for an utterance that is not finite.
    posteriors: (B, V) posterior mass of each label, or None.
    best: (B, T) int64, the best label or blank of each frame, blank beyond the lengths; or None."""

    loss: torch.Tensor
    losses: torch.Tensor
    posteriors: torch.Tensor | None
    best: torch.Tensor | None


def ctc_loss(
    encoder: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    targets: torch.Tensor,
    encoder_lengths: torch.Tensor,
    target_lengths: torch.Tensor,
    *,
    frame_weights: str | None = None,
    best: bool = False,
    reduction: str = "mean_batch",
    zero_infinity: bool = True,
    workspace_mib: int = 256,
    impl: str = "auto",
) -> CTC:
    r"""CTC loss of an output layer over the whole vocabulary, in bounded memory, with its posteriors.

        z[t]       = W h[t] + c
        log p_k[t] = z_k[t] - log sum_j exp(z_j[t])
        loss       = -log sum over alignments of the labels  prod_t p[t]
        dz_k[t]    = p_k[t] - occupancy of k at t
        mass_k     = 1/T_b sum_t p_k[t]                    "mean"
                     sum_t w[t] p_k[t] / sum_t w[t]        "nonblank", w[t] = 1 - p_blank[t]
                     max_t p_k[t]                          "max"

    The tensor (B, T, V+1) is never held: beyond the inputs, their gradients and one weight gradient in float32, memory
    is about ``workspace_mib``. The gradients come from the same visit as the loss; backward only scales them.

    Args:
        encoder: (B, T, D) float. Its dtype is the compute dtype; under autocast, autocast's is.
        weight: (V+1, D) or (V+1, D, 1) float, of a linear layer or a convolution of size 1; blank is row V.
        bias: (V+1,) float.
        targets: (B, U) integer label ids in [0, V).
        encoder_lengths: (B,) integer, valid frames, at least 1. Nothing beyond them is read.
        target_lengths: (B,) integer, labels; 0 is an empty transcript.
        frame_weights: "mean", "nonblank" or "max": how the posteriors of an utterance's frames are joined. None: no
            posteriors.
        best: the best label of each frame is wanted.
        reduction: "mean", "sum", "mean_batch" or "mean_volume", as in :mod:`nemo_sampled_rnnt.loss.reduction`.
        zero_infinity: an utterance that is too short for its labels counts with a loss of 0, as in PyTorch; False: it
            is left out.
        workspace_mib: MiB for the logits of the frames worked on together, and (B, V) floats.
        impl: "auto", "reference" (plain PyTorch), "cpu" (tiled) or "cuda" (tiled, numba-cuda kernels).

    Returns:
        :class:`CTC`; losses and posteriors are float32 (float64 for float64 inputs). A frame that is not finite counts
        as 0; its utterance is left out of loss and gradient, and has a loss of NaN.

    Raises:
        ValueError: an argument is out of range; names the argument, the utterance and the value.
        ImportError, RuntimeError: ``impl="cuda"`` and numba-cuda or a GPU is missing.

    Exact.

    Source: the loss and its gradient: standard (Graves et al. 2006). CTC posteriors as sampling distribution: paper
    (abstract) arXiv 2203.16868; how frames are joined, and the tiling: ours.
    """
    options = Options(frame_weights, best, reduction, zero_infinity, workspace_mib, impl)
    if weight.dim() == 3 and weight.shape[2] == 1:
        weight = weight.squeeze(2)
    check_tensors(encoder, weight, bias, targets, encoder_lengths, target_lengths)
    run, survey = _implementation(impl, encoder.device)
    kind = encoder.device.type
    if torch.is_autocast_enabled(kind) and encoder.dtype != torch.float64:
        encoder = encoder.to(torch.get_autocast_dtype(kind))
    # From here on the dtypes are the inputs' own.
    with torch.autocast(kind, enabled=False), device_of(encoder):
        batch = make_batch(encoder, weight, targets, encoder_lengths, target_lengths, options, survey)
        return CTC(*run(encoder, weight, bias, batch))


def _implementation(impl: str, device: torch.device):
    """What computes a checked batch, and what surveys it before."""
    if impl == "auto":
        impl = "cuda" if device.type == "cuda" else "cpu"
    if impl == "reference":
        from nemo_sampled_rnnt.ctc.reference import reference_loss

        return reference_loss, survey
    if impl == "cuda":
        from nemo_sampled_rnnt.ctc.cuda import cuda_implementation

        make_frames, cuda_survey = cuda_implementation(device)
        return _tiled(make_frames), cuda_survey
    if device.type != "cpu":
        raise ValueError(f"impl='cpu' works on CPU tensors, but encoder is on {device}: use impl='cuda'")
    from nemo_sampled_rnnt.ctc.frames_cpu import CpuFrames

    return _tiled(CpuFrames), survey


def _tiled(make_frames):
    def run(encoder, weight, bias, batch):
        if not torch.is_grad_enabled():  # what asks for a gradient gets none: so none is computed
            encoder, weight, bias = (x.detach() for x in (encoder, weight, bias))
        return TiledCTC.apply(encoder, weight, bias, batch, make_frames)

    return run


class TiledCTC(torch.autograd.Function):
    """The fields of :class:`CTC` for a checked batch; the gradients are computed with them, at unit scale."""

    @staticmethod
    def forward(ctx, encoder, weight, bias, batch: Batch, make_frames):
        ctx.needs = Needs(*ctx.needs_input_grad[:3])
        ctx.shape, ctx.dtypes = encoder.shape, [x.dtype for x in (encoder, weight, bias)]
        engine = visited(encoder, weight, bias, batch, make_frames, ctx.needs)
        frames = engine.frames
        loss, losses, divisor = frames.conclude()
        posteriors = None if frames.mass is None else _posteriors(frames.mass, len(weight) - 1, batch.options)
        ctx.set_materialize_grads(False)  # none comes for the posteriors, and zeros would be (B, V)
        ctx.mark_non_differentiable(*(x for x in (losses, posteriors, frames.best) if x is not None))
        if ctx.needs.any:
            rows = len(weight)
            bias_gradient = None if frames.column_sums is None else frames.column_sums.sum(dim=0)[:rows]
            ctx.gradients = engine.hidden_gradient, engine.layer.weight_gradient, bias_gradient
            ctx.unpacking = frames.unpacking()
            ctx.divisor = divisor if engine.scale == 1 else divisor * engine.scale
        return loss, losses, posteriors, frames.best

    @staticmethod
    @once_differentiable
    def backward(ctx, loss_gradient, *_):
        if not ctx.needs.any or loss_gradient is None:
            return None, None, None, None, None
        if ctx.gradients is None:
            raise RuntimeError("backward a second time: pass retain_graph=True to the first backward")
        (hidden, weight, bias), keep, factor = ctx.gradients, graph_is_kept(), loss_gradient / ctx.divisor
        if not keep:
            ctx.gradients = None
        if hidden is not None:
            hidden = ctx.unpacking(hidden, factor, ctx.shape, ctx.dtypes[0])
        rows = (scaled(x, factor, dtype, keep) for x, dtype in zip((weight, bias), ctx.dtypes[1:], strict=True))
        return hidden, *rows, None, None


def _posteriors(mass: torch.Tensor, vocabulary: int, options: Options) -> torch.Tensor:
    """(B, V) of the (B, stride) sums over frames. A frame's posteriors sum to 1, so the mass of all columns is that of
    the weights."""
    labels = mass[:, :vocabulary]
    if options.frame_weights != "nonblank":
        return labels
    return labels / mass.sum(dim=1, keepdim=True).clamp_min(torch.finfo(mass.dtype).tiny)
