"""Measures a training batch by one of its utterances, without ever stopping the training."""

from __future__ import annotations

import logging

import torch

from nemo_sampled_rnnt.meter.advice import Adviser
from nemo_sampled_rnnt.meter.measure import Exact
from nemo_sampled_rnnt.meter.utterance import CandidateSet, Utterance
from nemo_sampled_rnnt.sampling import Negatives, NegativeSampler

logger = logging.getLogger("nemo_sampled_rnnt")


class Meter:
    """What a sampler's negatives do in training.

    No collective: ranks that measure at the same step measure each for itself.

    Args:
        sampler: that draws the negatives.
    """

    def __init__(self, sampler: NegativeSampler):
        self.sampler = sampler
        self._advise = Adviser(sampler.config, sampler.vocab_size)

    @torch.no_grad()
    def __call__(
        self, encoder, predictor, weight, bias, targets, encoder_lengths, target_lengths, negatives: Negatives,
        posteriors: torch.Tensor | None, activation: str, turn: int,
    ) -> dict[str, float]:  # fmt: skip
        """Measure one utterance of a batch, and log advice where the sample stays poor.

        Args:
            encoder, predictor, weight, bias, targets, encoder_lengths, target_lengths, activation: of
                :func:`sampled_rnnt_loss`.
            negatives: that were drawn, with their inclusion probabilities.
            posteriors: (B, V) that they were drawn from, or None.
            turn: number of the measurement; the utterances take turns.
        Returns:
            What to log; nothing where the utterance has no finite loss, or memory is short.
        """
        b, vocabulary = turn % len(targets), self.sampler.vocab_size
        try:
            with torch.autocast(encoder.device.type, enabled=False):
                exact = Exact(
                    Utterance.of_batch(
                        b, encoder, predictor, weight, bias, targets, encoder_lengths, target_lengths, activation
                    ),
                    seed=turn,
                )
                if not exact.finite:
                    return {}
                candidates = CandidateSet.of_batch(b, vocabulary, targets, target_lengths, *negatives)
                measurement = exact.compare(candidates, self.sampler.config.corrects)
                if measurement is None:
                    return {}
                advice = self._advise(
                    measurement, exact, *self.sampler.distribution(targets, target_lengths, posteriors, b)
                )
        except torch.OutOfMemoryError:
            logger.warning("no memory is left to measure the sampled softmax: set sampled_softmax.meter_every to 0")
            return {}
        if advice is not None:
            logger.warning("sampled softmax: %s", advice)
        return measurement.logs()
