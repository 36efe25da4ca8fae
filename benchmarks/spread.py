"""A few of many, evenly."""

from __future__ import annotations

import numpy as np


def spread(total: int, count: int) -> np.ndarray:
    """Indices from the first to the last, `count` of them or all."""
    return np.linspace(0, total - 1, min(count, total)).astype(int)
