"""Where the GPU and numba's simulator differ: launches and reinterpreted bits.

The simulator (NUMBA_ENABLE_CUDASIM=1) runs the same kernels in Python on NumPy arrays. It knows neither streams nor
libdevice: their twins are here, and nowhere else.
"""

from __future__ import annotations

import ctypes
import importlib.util
import math
import sys
from functools import cache

import numpy as np
import torch
from numba import config, cuda, float32, float64, int16, int32, int64
from numba.core.types import Array, float16

SIMULATED = bool(config.ENABLE_CUDASIM)


def numba_cuda_is_installed() -> bool:
    """numba's built-in CUDA target is frozen at CUDA 11.7; the package numba-cuda replaces it."""
    return importlib.util.find_spec("numba_cuda") is not None


def words(tensor: torch.Tensor) -> torch.Tensor:
    """Wide buffers, whose rows are multiples of four long: bfloat16 as 64-bit words of four values."""
    return tensor.view(torch.int64) if tensor.dtype == torch.bfloat16 else tensor


class BoundKernel:
    """A kernel with its arrays: a launch then differs by grid, block and scalars only, and costs the host little.

    numba converts every argument at every launch (60 us for twelve arrays). Here the arguments are laid out once,
    as the compiled kernel takes them, and the driver is called directly, on torch's current stream. In the simulator
    the kernel is called as usual, on NumPy arrays.

    Args:
        kernel: what ``cuda.jit`` made.
        tensors: contiguous, the first arguments; bfloat16 arrives as 16-bit integers.
        scalars: "i" (int64) or "f" (float64) for each argument after them.
    """

    def __init__(self, kernel, tensors: list[torch.Tensor], scalars: str):
        tensors = [x.view(torch.int16) if x.dtype == torch.bfloat16 else x for x in tensors]
        self._tensors = tensors  # keeps their memory
        if SIMULATED:
            self._kernel = kernel
            self._arrays = [x.numpy() for x in tensors]
            return
        arrays = tuple((x.dtype, x.dim()) for x in tensors)
        self._function = _driver_function(kernel, arrays, scalars, torch.cuda.current_device())
        self._stream = torch.cuda.current_stream().cuda_stream
        # numba's layout of an array: meminfo, parent, items, bytes of an item, address, shape, strides in bytes.
        flat = []
        for x in tensors:
            size = x.element_size()
            flat += [0, 0, x.numel(), size, x.data_ptr(), *x.shape, *(stride * size for stride in x.stride())]
        self._first = len(flat)
        self._values = (ctypes.c_int64 * (len(flat) + len(scalars)))(*flat)
        base = ctypes.addressof(self._values)
        self._reals = {
            i: ctypes.c_double.from_address(base + 8 * (len(flat) + i)) for i, kind in enumerate(scalars) if kind == "f"
        }
        self._parameters = (ctypes.c_void_p * len(self._values))(*(base + 8 * i for i in range(len(self._values))))

    def __call__(self, grid: tuple[int, int], threads: int, *scalars) -> None:
        if SIMULATED:
            self._kernel[grid, threads](*self._arrays, *scalars)
            return
        for i, value in enumerate(scalars):
            if i in self._reals:
                self._reals[i].value = value
            else:
                self._values[self._first + i] = value
        status = _driver().cuLaunchKernel(
            self._function, grid[0], grid[1], 1, threads, 1, 1, 0, self._stream, self._parameters, None
        )
        if status:
            raise RuntimeError(f"the CUDA driver refused a launch with error {status} (grid {grid}, block {threads})")


_NUMBA_TYPES = {
    torch.int16: int16,
    torch.int64: int64,
    torch.float16: float16,
    torch.float32: float32,
    torch.float64: float64,
}


@cache
def _driver_function(kernel, arrays: tuple, scalars: str, device: int) -> int:
    """The driver's handle of the kernel, compiled for these types; looked up once, since numba takes 0.3 ms."""
    types = [Array(_NUMBA_TYPES[dtype], dims, "C") for dtype, dims in arrays]
    types += [{"i": int64, "f": float64}[kind] for kind in scalars]
    return int(kernel.compile(tuple(types))._codelibrary.get_cufunc().kernel.handle)


@cache
def _driver():
    driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    integers = [ctypes.c_uint] * 7
    driver.cuLaunchKernel.argtypes = [ctypes.c_void_p, *integers, *[ctypes.c_void_p] * 3]
    return driver


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
    merge_by_shuffles = None

    def merge_by_shared_memory(merge, real):
        """The twin of :func:`merge_by_shuffles`; the simulated block is one warp of four."""

        @cuda.jit(device=True)
        def merged(top, mass, lane):
            tops = cuda.shared.array(4, real)
            masses = cuda.shared.array(4, real)  # on a line of its own: the simulator knows an array by its line
            tops[lane], masses[lane] = top, mass
            cuda.syncthreads()
            for other in range(4):
                if other != lane:
                    top, mass = merge(top, mass, tops[other], masses[other])
            cuda.syncthreads()
            return top, mass

        return merged

else:
    from numba.cuda import libdevice

    merge_by_shared_memory = None
    fast_exp = libdevice.fast_expf  # ex2.approx: 2 ulp, below what half precision keeps

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

    def merge_by_shuffles(merge):
        """A device function (top, mass, lane) -> the warp's merged (top, mass), the same in every lane."""

        @cuda.jit(device=True, inline="always")
        def merged(top, mass, lane):
            distance = 16
            while distance > 0:
                other_top = cuda.shfl_xor_sync(-1, top, distance)
                other_mass = cuda.shfl_xor_sync(-1, mass, distance)
                top, mass = merge(top, mass, other_top, other_mass)
                distance //= 2
            return top, mass

        return merged
