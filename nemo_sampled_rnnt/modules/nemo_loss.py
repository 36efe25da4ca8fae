"""What the loss that NeMo built from the config asks for."""

from __future__ import annotations

from dataclasses import dataclass

from nemo.collections.asr.losses.rnnt import RNNTLoss
from nemo.collections.asr.losses.rnnt_pytorch import RNNTLossPytorch
from nemo.collections.asr.parts.numba.rnnt_loss.rnnt_pytorch import RNNTLossNumba


@dataclass(frozen=True)
class LossSettings:
    """FastEmit's lambda, and the bound on logit gradients (0 or less: none)."""

    fastemit_lambda: float
    clamp: float


def loss_settings(loss: RNNTLoss) -> LossSettings:
    """Read NeMo's loss.

    Raises:
        ValueError: its kind cannot be computed from a sample.
    """
    kind = getattr(loss, "_loss", None)
    if isinstance(kind, RNNTLossNumba):
        return LossSettings(float(kind.fastemit_lambda), float(kind.clamp))
    if isinstance(kind, RNNTLossPytorch):
        return LossSettings(0.0, -1.0)
    raise ValueError(
        f"SampledRNNTJoint computes plain RNN-T, but the model's loss is {type(kind).__name__}: set "
        "model.loss.loss_name to default (TDT, multi-blank and graph losses are not supported)"
    )
