"""Transducers with characters."""

from __future__ import annotations

from nemo.collections.asr.models import EncDecRNNTModel

from nemo_sampled_rnnt.models.sampled import SampledSoftmaxMixin


class EncDecSampledRNNTModel(SampledSoftmaxMixin, EncDecRNNTModel):
    """NeMo's character transducer, trained with a sampled softmax and an optional auxiliary CTC head.

    Arguments and errors: :class:`SampledSoftmaxMixin`.
    """
