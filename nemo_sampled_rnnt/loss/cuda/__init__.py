"""The tiled engine on the GPU: numba-cuda kernels for the survey of a batch and for its cells."""

from __future__ import annotations

import torch

INSTALL = (
    "impl='cuda' needs numba-cuda with the CUDA runtime of your torch: pip install 'nemo_sampled_rnnt[cu13]' "
    "(or [cu12]; torch.version.cuda says which)"
)


def cuda_implementation(device: torch.device, tdt: bool = False):
    """The class of cell operations for this device, and the survey of a batch.

    Raises:
        ImportError: numba-cuda is not installed.
        RuntimeError: there is no GPU, or the tensors are not on it (numba's simulator works on CPU tensors).
    """
    try:
        import numba.cuda  # noqa: F401
    except ImportError as missing:  # pragma: no cover - numba always brings a cuda module
        raise ImportError(INSTALL) from missing
    from nemo_sampled_rnnt.gpu.launch import SIMULATED, numba_cuda_is_installed

    if SIMULATED:
        if device.type != "cpu":
            raise RuntimeError(f"numba's CUDA simulator works on CPU tensors, but encoder is on {device}")
    elif device.type != "cuda":
        raise RuntimeError(
            f"impl='cuda' works on CUDA tensors, but encoder is on {device}: move the tensors to a GPU, or use "
            f"impl='cpu'. {INSTALL}"
        )
    elif not numba_cuda_is_installed():
        raise ImportError(INSTALL)
    from nemo_sampled_rnnt.loss.cuda.survey import survey

    if tdt:
        from nemo_sampled_rnnt.loss.cuda.tdt_cells import TdtCudaCells

        return TdtCudaCells, survey
    from nemo_sampled_rnnt.loss.cuda.cells import CudaCells

    return CudaCells, survey
