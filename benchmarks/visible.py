"""A GPU for a process of its own."""

from __future__ import annotations

import os


def visible_gpu(index: int) -> str:
    """CUDA_VISIBLE_DEVICES for a process that is to have the one GPU that is number `index` in this process."""
    names = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    return names[index] if index < len(names) and names[index] else str(index)
