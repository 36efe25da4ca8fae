"""NeMo modules."""

from nemo_sampled_rnnt.modules.joint import SampledRNNTJoint

__all__ = ["SampledRNNTJoint"]
