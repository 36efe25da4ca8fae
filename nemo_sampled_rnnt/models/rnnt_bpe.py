"""Transducers with subword tokens."""

from __future__ import annotations

from nemo.collections.asr.models import EncDecRNNTBPEModel

from nemo_sampled_rnnt.models.sampled import SampledSoftmaxMixin


class EncDecSampledRNNTBPEModel(SampledSoftmaxMixin, EncDecRNNTBPEModel):
    """NeMo's subword transducer, trained with a sampled softmax and an optional auxiliary CTC head.

    Arguments and errors: :class:`SampledSoftmaxMixin`.
    """
