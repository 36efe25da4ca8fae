"""NeMo's InterCTC, which puts CTC losses on inner layers of the encoder, without log-probs of them.

NeMo asks the model for a head, a loss and a WER, calls the head on each inner layer's outputs, and hands what comes
to loss and WER. Here it may be the outputs themselves, not scored yet.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from nemo_sampled_rnnt.models.ctc_scores import at_least_single


@dataclass(frozen=True)
class Unscored:
    """(B, D, T) outputs of an inner layer, in the place of their log-probs."""

    encoded: torch.Tensor


class InnerHead:
    """Stands for head, loss and WER of a model with :class:`CTCHeadMixin` where NeMo's InterCTC asks for them."""

    def __init__(self, model):
        self._model = model

    def decoder(self, encoder_output):
        if self._model.scores_in_tiles(encoder_output):
            return Unscored(encoder_output)
        return self._model.ctc_decoder(encoder_output=encoder_output)

    def loss(self, log_probs, targets, input_lengths, target_lengths):
        if not isinstance(log_probs, Unscored):
            return self._model.ctc_loss(
                log_probs=at_least_single(log_probs),
                targets=targets,
                input_lengths=input_lengths,
                target_lengths=target_lengths,
            )
        return self._model.score_ctc(log_probs.encoded, input_lengths, targets, target_lengths, False).loss

    def update(self, predictions, targets, targets_lengths, predictions_lengths):
        if isinstance(predictions, Unscored):
            with torch.no_grad():
                scores = self._model.score_ctc(
                    predictions.encoded, predictions_lengths, targets, targets_lengths, compute_wer=True
                )
            predictions = scores.predictions
        self._model.ctc_wer.update(
            predictions=predictions,
            targets=targets,
            targets_lengths=targets_lengths,
            predictions_lengths=predictions_lengths,
        )

    def compute(self):
        return self._model.ctc_wer.compute()

    def reset(self):
        self._model.ctc_wer.reset()
