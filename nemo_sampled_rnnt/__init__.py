"""Memory-efficient training of RNN-Transducers with sampled softmax, for NVIDIA NeMo."""

from typing import TYPE_CHECKING

from nemo_sampled_rnnt import _targets

if TYPE_CHECKING:
    from nemo_sampled_rnnt.loss import sampled_rnnt_loss

__version__ = "0.1.0"
__all__ = ["sampled_rnnt_loss"]

_targets.allow_when_nemo_is_imported()


def __getattr__(name: str):
    """The loss is loaded when it is asked for: torch takes two seconds."""
    if name == "sampled_rnnt_loss":
        from nemo_sampled_rnnt.loss import sampled_rnnt_loss

        return sampled_rnnt_loss
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
