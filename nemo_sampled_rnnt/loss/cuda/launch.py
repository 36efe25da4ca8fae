"""Where the GPU and numba's simulator differ: arrays, streams, and reinterpreted bits.

The simulator (NUMBA_ENABLE_CUDASIM=1) runs the same kernels in Python on NumPy arrays. It knows neither
``as_cuda_array`` nor ``external_stream`` nor libdevice: their twins are here, and nowhere else.
"""

from __future__ import annotations

import importlib.util
import math

import numpy as np
import torch
from numba import config, cuda, float32, int16, int32, int64

SIMULATED = bool(config.ENABLE_CUDASIM)


def numba_cuda_is_installed() -> bool:
    """numba's built-in CUDA target is frozen at CUDA 11.7; the package numba-cuda replaces it."""
    return importlib.util.find_spec("numba_cuda") is not None


def as_array(tensor: torch.Tensor):
    """A contiguous tensor as what a kernel takes; bfloat16, which numba does not know, as its 16 bits."""
    if tensor.dtype == torch.bfloat16:
        tensor = tensor.view(torch.int16)
    return tensor.numpy() if SIMULATED else cuda.as_cuda_array(tensor)


def as_words(tensor: torch.Tensor):
    """As :func:`as_array`, but bfloat16 as 64-bit words of four, for wide loads; rows are multiples of four long."""
    return as_array(tensor.view(torch.int64) if tensor.dtype == torch.bfloat16 else tensor)


def current_stream():
    """Torch's current stream as a numba stream: kernels stay ordered with torch's own work."""
    return 0 if SIMULATED else cuda.external_stream(torch.cuda.current_stream().cuda_stream)


if SIMULATED:

    def widen_bfloat16(bits):
        return (np.array(bits, dtype=np.int16).astype(np.int32) << 16).view(np.float32)[()]

    def narrow_bfloat16(value):
        bits = int(np.array(value, dtype=np.float32).view(np.int32))
        if value != value:
            return np.int16(0x7FC0)
        return np.array((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.int16)[()]

    def unpack_bfloat16(word):
        return tuple(widen_bfloat16(bits) for bits in np.array([word], dtype=np.int64).view(np.int16))

    def pack_bfloat16(a, b, c, d):
        return np.array([narrow_bfloat16(x) for x in (a, b, c, d)], dtype=np.int16).view(np.int64)[0]

    fast_exp = math.exp

else:
    from numba.cuda import libdevice

    fast_exp = libdevice.fast_expf  # ex2.approx: 2 ulp, below what half precision keeps

    @cuda.jit(device=True, inline="always")
    def widen_bfloat16(bits):
        """The float32 whose upper half these 16 bits are."""
        return libdevice.int_as_float(int32(bits) << int32(16))

    @cuda.jit(device=True, inline="always")
    def narrow_bfloat16(value):
        """Round a float32 to nearest even; NaN stays NaN."""
        value = float32(value)
        if value != value:
            return int16(0x7FC0)
        bits = libdevice.float_as_int(value)
        return int16((bits + int32(0x7FFF) + ((bits >> int32(16)) & int32(1))) >> int32(16))

    @cuda.jit(device=True, inline="always")
    def unpack_bfloat16(word):
        """The four values of a word, lowest address first."""
        upper = int32(-65536)
        return (
            libdevice.int_as_float(int32(word) << int32(16)),
            libdevice.int_as_float(int32(word) & upper),
            libdevice.int_as_float(int32(word >> int64(16)) & upper),
            libdevice.int_as_float(int32(word >> int64(32)) & upper),
        )

    @cuda.jit(device=True, inline="always")
    def pack_bfloat16(a, b, c, d):
        low = (int64(narrow_bfloat16(b)) << int64(16)) | (int64(narrow_bfloat16(a)) & int64(0xFFFF))
        high = (int64(narrow_bfloat16(d)) << int64(16)) | (int64(narrow_bfloat16(c)) & int64(0xFFFF))
        return (high << int64(32)) | (low & int64(0xFFFFFFFF))
