"""Hybrids of transducer and CTC with subword tokens."""

from __future__ import annotations

from nemo.collections.asr.models import EncDecHybridRNNTCTCBPEModel

from nemo_sampled_rnnt.models.sampled import SampledSoftmaxMixin


class EncDecSampledHybridRNNTCTCBPEModel(SampledSoftmaxMixin, EncDecHybridRNNTCTCBPEModel):
    """NeMo's subword hybrid, its transducer trained with a sampled softmax.

    Arguments and errors: :class:`SampledSoftmaxMixin`.
    """
