"""Memory-efficient training of RNN-Transducers with sampled softmax, for NVIDIA NeMo."""

from nemo_sampled_rnnt import _targets
from nemo_sampled_rnnt.loss import sampled_rnnt_loss

__version__ = "0.1.0"
__all__ = ["sampled_rnnt_loss"]

_targets.allow_when_nemo_is_imported()
