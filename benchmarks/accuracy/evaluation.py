"""Errors of greedy decoding on the held-out set, and how much of the softmax the candidates cover."""

from __future__ import annotations

import numpy as np
import torch
from corpus import Utterances
from kaldialign import edit_distance
from spread import spread

from nemo_sampled_rnnt.meter import CandidateSet, Utterance
from nemo_sampled_rnnt.meter import coverage as candidate_coverage
from nemo_sampled_rnnt.sampling import Frames, ctc_posteriors

COVERED = 16  # utterances in the measurement of coverage


def units(text: str, unit: str) -> list[str]:
    """What errors are counted in: words, or characters without spaces."""
    return text.split() if unit == "word" else list(text.replace(" ", ""))


@torch.no_grad()
def heard(model, utterances: Utterances, batch_size: int, indices: np.ndarray) -> list[str]:
    """What greedy decoding makes of the utterances of these indices; those of about one length together."""
    texts = {}
    order = indices[np.argsort(utterances.lengths[indices], kind="stable")]
    for batch in np.split(order, range(batch_size, len(order), batch_size)):
        features, lengths, _, _ = utterances.batch(batch)
        encoded, encoded_lengths = model(processed_signal=features, processed_signal_length=lengths)
        hypotheses = model.decoding.rnnt_decoder_predictions_tensor(encoded, encoded_lengths)
        texts |= {i: hypothesis.text for i, hypothesis in zip(batch, hypotheses, strict=True)}
    return [texts[i] for i in indices]


def errors(model, utterances: Utterances, batch_size: int, unit: str) -> np.ndarray:
    """(N,) int, insertions, deletions and substitutions of each utterance."""
    hypotheses = heard(model, utterances, batch_size, np.arange(len(utterances)))
    pairs = zip(utterances.texts, hypotheses, strict=True)
    return np.array([edit_distance(units(said, unit), units(text, unit))["total"] for said, text in pairs], np.int64)


@torch.no_grad()
def coverage(model, utterances: Utterances) -> float:
    """Share of the exact softmax that falls on the candidates, averaged over the lattice cells of a few utterances.

    The candidates are those that training would have: blank, labels, negatives; drawing them leaves the sequence of
    draws as it was. Model in eval mode.
    """
    indices = np.argsort(utterances.lengths, kind="stable")
    indices = indices[spread(len(indices), COVERED)]
    features, lengths, transcripts, transcript_lengths = utterances.batch(indices)
    encoded, encoded_lengths = model(processed_signal=features, processed_signal_length=lengths)
    decoded, _, _ = model.decoder(targets=transcripts, target_length=transcript_lengths)
    joint, draws, posteriors = model.joint, model.joint.draws, None
    if joint.needs_ctc_posteriors:
        posteriors = ctc_posteriors(model.ctc_log_probs(encoded), encoded_lengths, joint.sampled_softmax.frame_weights)
    frames = Frames(encoded_lengths, encoded.shape[2])
    negatives = joint.sampler(transcripts, transcript_lengths, posteriors, frames, joint.step or 0).ids
    joint.continue_draws(draws)
    output, vocabulary = joint.joint_net[-1], len(joint.vocabulary)
    encoded, decoded = joint.project_encoder(encoded.transpose(1, 2)), joint.project_prednet(decoded.transpose(1, 2))
    covered = []
    for i in range(len(encoded)):
        utterance = Utterance.of_batch(
            i, encoded, decoded, output.weight, output.bias, transcripts, encoded_lengths, transcript_lengths,
            joint.activation.lower(),
        )  # fmt: skip
        candidates = CandidateSet.of_batch(i, vocabulary, transcripts, transcript_lengths, negatives)
        covered.append(candidate_coverage(utterance, candidates))
    return torch.cat(covered).mean().item()
