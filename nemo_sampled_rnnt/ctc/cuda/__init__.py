"""The CTC head on the GPU: numba-cuda kernels for everything but its matrix products."""

from __future__ import annotations

import torch

from nemo_sampled_rnnt.loss import cuda


def cuda_implementation(device: torch.device):
    """The class of frame operations for this device, and the survey of a batch.

    Raises:
        ImportError, RuntimeError: as :func:`nemo_sampled_rnnt.loss.cuda.cuda_implementation`.
    """
    cuda.cuda_implementation(device)
    from nemo_sampled_rnnt.ctc.cuda.frames import CudaFrames
    from nemo_sampled_rnnt.ctc.cuda.survey import survey

    return CudaFrames, survey
