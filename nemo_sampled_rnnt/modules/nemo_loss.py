"""What the loss that NeMo built from the config asks for."""

from __future__ import annotations

from dataclasses import dataclass

from nemo.collections.asr.losses.rnnt import RNNTLoss
from nemo.collections.asr.losses.rnnt_pytorch import RNNTLossPytorch, TDTLossPytorch
from nemo.collections.asr.parts.numba.rnnt_loss.rnnt_pytorch import RNNTLossNumba, TDTLossNumba

from nemo_sampled_rnnt.loss.checks import check_durations

MULTI_BLANK = (
    "a multi-blank model's big blanks are classes of the label softmax with arcs of their own, which this lattice does "
    "not have; TDT has taken its place"
)


@dataclass(frozen=True)
class LossSettings:
    """FastEmit's lambda, the bound on logit gradients (0 or less: none), and of a TDT model durations, sigma, omega."""

    fastemit_lambda: float = 0.0
    clamp: float = -1.0
    durations: tuple[int, ...] | None = None
    sigma: float = 0.0
    omega: float = 0.0


def loss_settings(loss: RNNTLoss) -> LossSettings:
    """Read NeMo's loss.

    Raises:
        ValueError: its kind cannot be computed from a sample; durations that no model can have.
    """
    kind = getattr(loss, "_loss", None)
    if isinstance(kind, RNNTLossNumba):
        return LossSettings(float(kind.fastemit_lambda), float(kind.clamp))
    if isinstance(kind, RNNTLossPytorch):
        return LossSettings()
    if isinstance(kind, (TDTLossNumba, TDTLossPytorch)):
        durations = tuple(kind.durations or ())
        check_durations(durations)
        if isinstance(kind, TDTLossPytorch):
            return LossSettings(durations=durations, sigma=float(kind.sigma))
        return LossSettings(
            float(kind.fastemit_lambda), float(kind.clamp), durations, float(kind.sigma), float(kind.omega)
        )
    name = type(kind).__name__
    reason = f": {MULTI_BLANK}" if name.startswith("Multiblank") else ""
    raise ValueError(
        f"SampledRNNTJoint computes RNN-T and TDT, but the model's loss is {name}{reason}. Set model.loss.loss_name to "
        "default or tdt, or use NeMo's RNNTJoint for this model"
    )
