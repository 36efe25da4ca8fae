"""NeMo models."""

from nemo_sampled_rnnt.models.rnnt_bpe import EncDecSampledRNNTBPEModel

__all__ = ["EncDecSampledRNNTBPEModel"]
