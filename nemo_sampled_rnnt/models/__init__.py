"""NeMo models."""

from nemo_sampled_rnnt.models.hybrid_rnnt_ctc import EncDecSampledHybridRNNTCTCModel
from nemo_sampled_rnnt.models.hybrid_rnnt_ctc_bpe import EncDecSampledHybridRNNTCTCBPEModel
from nemo_sampled_rnnt.models.rnnt import EncDecSampledRNNTModel
from nemo_sampled_rnnt.models.rnnt_bpe import EncDecSampledRNNTBPEModel

__all__ = [
    "EncDecSampledHybridRNNTCTCBPEModel",
    "EncDecSampledHybridRNNTCTCModel",
    "EncDecSampledRNNTBPEModel",
    "EncDecSampledRNNTModel",
]
