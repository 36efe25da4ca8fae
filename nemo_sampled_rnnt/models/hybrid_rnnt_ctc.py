"""Hybrids of transducer and CTC with characters."""

from __future__ import annotations

from nemo.collections.asr.models import EncDecHybridRNNTCTCModel

from nemo_sampled_rnnt.models.sampled import SampledSoftmaxMixin


class EncDecSampledHybridRNNTCTCModel(SampledSoftmaxMixin, EncDecHybridRNNTCTCModel):
    """NeMo's character hybrid, its transducer trained with a sampled softmax.

    Arguments and errors: :class:`SampledSoftmaxMixin`.
    """
