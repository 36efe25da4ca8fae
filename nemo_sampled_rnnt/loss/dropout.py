"""Dropout of the joint's hidden from a counter, not from a stored mask.

Whether unit k of cell (b, t, u) is kept is a hash of (seed, b, t, u, k). So the mask depends neither on the
tiling nor on the device, and a recomputed hidden gets the mask it had. Source: ours; the mixer is the 32-bit
finaliser "lowbias32" of Chris Wellons' hash prospector (public domain).
"""

from __future__ import annotations

import torch

MASK = 0xFFFFFFFF
GOLDEN = 0x9E3779B9


def mix(x):
    """32-bit mixer, on Python ints, numba integers and int64 tensors alike."""
    x = x ^ (x >> 16)
    x = (x * 0x7FEB352D) & MASK
    x = x ^ (x >> 15)
    x = (x * 0x846CA68B) & MASK
    return x ^ (x >> 16)


def threshold(dropout: float) -> int:
    """Units whose 32-bit hash lies below this are dropped."""
    return min(int(dropout * 2**32), MASK)


def draw_seed(dropout: float) -> int:
    """A seed from torch's global generator on the CPU (none is drawn without dropout)."""
    return int(torch.randint(0, 2**31 - 1, (), device="cpu")) if dropout > 0 else 0


def keep_mask(seed: int, utterance: int, frames: torch.Tensor, labels: torch.Tensor, hidden: int, dropout: float):
    """Which hidden units of a block of cells are kept.

    Args:
        seed: of this call of the loss.
        utterance: index in the batch.
        frames: (t,) int64, the frames of the block.
        labels: (u,) int64, the label positions of the block.
        hidden: H, the joint's width.
        dropout: share of units dropped, in [0, 1).

    Returns:
        (t, u, H) bool.
    """
    state = mix(mix(seed ^ utterance) ^ frames)[:, None]
    state = mix(state ^ labels[None, :])[:, :, None]
    units = torch.arange(hidden, device=frames.device) * GOLDEN
    return mix((state + units) & MASK) >= threshold(dropout)
