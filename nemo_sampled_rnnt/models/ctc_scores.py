"""The CTC head's scores of a batch: from log-probs that are held where they are few, and tile by tile where they are
many."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from nemo.collections.asr.modules import ConvASRDecoder

from nemo_sampled_rnnt.ctc import ctc_loss
from nemo_sampled_rnnt.loss.reduction import reduce
from nemo_sampled_rnnt.sampling import ctc_posteriors

# Bytes of a batch's log-probs in float32 from which on they are not held. In training they come three times: 64 MiB
# are 3,200 frames of 5,243 labels, and 192 MiB.
LARGE = 64 * 2**20


@dataclass(frozen=True)
class CTCScores:
    """What the head makes of a batch.

    Attributes:
        loss: () the reduced loss; an utterance that is not finite is left out.
        posteriors: (B, V) posterior mass of each label, or None.
        predictions: what the head's WER decodes, (B, T, V+1) log-probs or the (B, T) best labels; or None.
    """

    loss: torch.Tensor
    posteriors: torch.Tensor | None
    predictions: torch.Tensor | None


def finite_frames(encoded: torch.Tensor) -> torch.Tensor:
    """(B, T) bool, which frames of encoder outputs (B, D, T) are finite."""
    return encoded.isfinite().all(dim=1)


def log_probs(head: torch.nn.Module, encoded: torch.Tensor) -> torch.Tensor:
    """(B, T, V+1) log-probs of the head from encoder outputs (B, D, T); a frame that is not finite counts as 0.

    Such frames would reach the head's weights as 0 x NaN.
    """
    return head(encoder_output=torch.where(finite_frames(encoded)[:, None], encoded, 0))


def at_least_single(log_probs: torch.Tensor) -> torch.Tensor:
    """torch's CTC loss knows no half precision on a CPU."""
    return log_probs.to(torch.promote_types(log_probs.dtype, torch.float32))


def scores_of_log_probs(
    log_probs, encoded, encoded_len, transcript, transcript_len, reduction: str, frame_weights: str | None
) -> CTCScores:
    """Scores from log-probs (B, T, V+1); arguments as in :func:`scores_in_tiles`."""
    log_probs = at_least_single(log_probs)
    costs = torch.nn.functional.ctc_loss(
        log_probs.transpose(0, 1), transcript.long(), encoded_len.long(), transcript_len.long(),
        blank=log_probs.shape[2] - 1, reduction="none", zero_infinity=True,
    )  # fmt: skip
    beyond = torch.arange(encoded.shape[2], device=encoded.device) >= encoded_len[:, None]
    usable = (finite_frames(encoded) | beyond).all(dim=1)
    loss = reduce(costs.masked_fill(~usable, torch.nan), transcript_len, reduction)
    log_probs = log_probs.detach()
    posteriors = None if frame_weights is None else ctc_posteriors(log_probs, encoded_len, frame_weights)
    return CTCScores(loss, posteriors, log_probs)


def scores_in_tiles(
    head: ConvASRDecoder, encoded, encoded_len, transcript, transcript_len, reduction: str,
    frame_weights: str | None, best: bool, workspace_mib: int, impl: str,
) -> CTCScores:  # fmt: skip
    """Scores from encoder outputs, without log-probs; the predictions are the best labels.

    Args:
        head: with a single layer, see :func:`has_tiles`.
        encoded: (B, D, T) float.
        encoded_len, transcript, transcript_len: (B,), (B, U) and (B,) integers.
        reduction: of NeMo's CTCLoss; "none" is summed up.
        frame_weights, best, workspace_mib, impl: see :func:`nemo_sampled_rnnt.ctc.ctc_loss`.
    """
    layer = head.decoder_layers[0]
    result = ctc_loss(
        encoded.transpose(1, 2), layer.weight, layer.bias, transcript, encoded_len, transcript_len,
        frame_weights=frame_weights, best=best, reduction="sum" if reduction == "none" else reduction,
        workspace_mib=workspace_mib, impl=impl,
    )  # fmt: skip
    return CTCScores(result.loss, result.posteriors, result.best)


def why_no_tiles(head: torch.nn.Module) -> str | None:
    """What keeps a head from being scored in tiles, in words; None: nothing."""
    layers = getattr(head, "decoder_layers", None)
    if not isinstance(head, ConvASRDecoder) or len(layers) != 1 or layers[0].kernel_size != (1,):
        return f"it is no ConvASRDecoder of one layer, but a {type(head).__name__}"
    if head.is_adapter_available() and head.get_enabled_adapters():
        return f"it has adapters ({', '.join(head.get_enabled_adapters())})"
    if head.temperature != 1.0:
        return f"its temperature is {head.temperature}"
    return None


def decodes_labels(decoding) -> bool:
    """The head's decoding strategy needs no more than the best label of each frame."""
    decoder = decoding.decoding
    return decoding.cfg.strategy in ("greedy", "greedy_batch") and not (
        decoder.preserve_alignments or decoder.preserve_frame_confidence or getattr(decoder, "fusion_models", None)
    )
