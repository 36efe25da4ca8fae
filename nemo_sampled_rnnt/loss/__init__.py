"""The numerics: torch in, torch out. Imports no NeMo."""

from nemo_sampled_rnnt.loss.function import sampled_rnnt_loss

__all__ = ["sampled_rnnt_loss"]
