"""What NeMo changes in passing, put back: which modules are in training mode, and which parameters learn."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def kept_modes(model: torch.nn.Module) -> Iterator[None]:
    """Afterwards every module is in the mode it was in, and every parameter asks for a gradient if it did."""
    modes = [(module, module.training) for module in model.modules()]
    asking = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter, asks in asking:
            parameter.requires_grad_(asks)
