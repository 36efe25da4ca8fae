"""Drawing on a GPU: numba-cuda kernels for what gumbel.py does with some thirty torch operations."""

import importlib.util
from functools import cache


@cache
def draws_by_kernels(device_type: str) -> bool:
    """Whether batches on such a device are drawn for by the kernels; else by torch."""
    if device_type != "cuda" or importlib.util.find_spec("numba_cuda") is None:
        return False
    from nemo_sampled_rnnt.gpu.launch import SIMULATED  # imports numba, which takes a second

    return not SIMULATED
