"""NeMo's InterCTC, which puts CTC losses on inner layers of the encoder, without log-probs of them.

NeMo asks the model for a head, a loss and a WER, calls the head on each inner layer's outputs, and hands what comes
to loss and WER. Here it is the outputs themselves, not scored yet.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from nemo_sampled_rnnt.models.ctc_scores import CTCScores


@dataclass
class Layer:
    """(B, D, T) outputs of an inner layer, in the place of their log-probs; and the scores, once they are there."""

    encoded: torch.Tensor
    scores: CTCScores | None = None


class InnerHead:
    """Stands for head, loss and WER of a model with :class:`CTCHeadMixin` where NeMo's InterCTC asks for them."""

    def __init__(self, model):
        self._model = model

    def decoder(self, encoder_output):
        """What was silenced before the encoder is no recording here either."""
        return Layer(encoder_output.masked_fill(self._model.silenced[:, None, None], torch.nan))

    def loss(self, log_probs: Layer, targets, input_lengths, target_lengths):
        log_probs.scores = self._model.score_ctc(log_probs.encoded, input_lengths, targets, target_lengths, False)
        if self._model.training:
            return log_probs.scores.loss
        return torch.where(self._model.silenced.all(), torch.nan, log_probs.scores.loss)  # no part of a mean

    @torch.no_grad()
    def update(self, predictions: Layer, targets, targets_lengths, predictions_lengths):
        scores = predictions.scores
        if scores is None or scores.predictions is None:
            batch = predictions.encoded, predictions_lengths, targets, targets_lengths
            scores = self._model.score_ctc(*batch, compute_wer=True)
        self._model.ctc_wer.update(
            predictions=scores.predictions,
            targets=targets,
            targets_lengths=targets_lengths,
            predictions_lengths=predictions_lengths,
        )

    def compute(self):
        return self._model.ctc_wer.compute()

    def reset(self):
        self._model.ctc_wer.reset()
