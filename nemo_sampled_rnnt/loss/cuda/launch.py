"""Where the GPU and numba's simulator differ: launches and reinterpreted bits.

The simulator (NUMBA_ENABLE_CUDASIM=1) runs the same kernels in Python on NumPy arrays. It knows neither streams nor
libdevice: their twins are here, and nowhere else.
"""

from __future__ import annotations

import ctypes
import importlib.util
import math
import struct
import sys
from functools import cache
from typing import NamedTuple

import torch
from numba import config, cuda, float32, float64, int16, int32, int64
from numba.core.types import Array, CPointer

SIMULATED = bool(config.ENABLE_CUDASIM)
NOTHING = -(2**29)  # exponent of 0


def numba_cuda_is_installed() -> bool:
    """numba's built-in CUDA target is frozen at CUDA 11.7; the package numba-cuda replaces it."""
    return importlib.util.find_spec("numba_cuda") is not None


def device(function):
    """A function that kernels call; inlined, so that a kernel compiles on a machine without a GPU too."""
    return function if SIMULATED else cuda.jit(device=True, inline="always")(function)


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """Half precision as 16-bit integers; others as they are."""
    return tensor.view(torch.int16) if tensor.element_size() == 2 else tensor


class Atomic(NamedTuple):
    """A tensor that a kernel takes as an array of one dimension, as numba's atomics want it, and not as a pointer."""

    tensor: torch.Tensor


class BoundKernel:
    """A kernel with its pointers: a launch then differs by grid, block and scalars only, and costs the host little.

    numba converts every argument at every launch (60 us for twelve arrays). Here the arguments are laid out once,
    as the compiled kernel takes them, and the driver is called directly, on torch's current stream. In the simulator
    the kernel is called as usual, on NumPy arrays.

    Args:
        kernel: what ``cuda.jit`` made.
        tensors: contiguous, the first arguments; a kernel gets pointers to their elements, half precision as 16-bit
            integers.
        scalars: "i" (int64) or "f" (float64) for each argument after them.
    """

    def __init__(self, kernel, tensors: list[torch.Tensor | Atomic], scalars: str):
        self._tensors = tensors  # keeps their memory
        if SIMULATED:
            self._kernel = kernel
            self._arrays = [bits(x.tensor if isinstance(x, Atomic) else x).numpy().reshape(-1) for x in tensors]
            return
        kinds = tuple((Atomic, x.tensor.dtype) if isinstance(x, Atomic) else x.dtype for x in tensors)
        self._function = _driver_function(kernel, kinds, scalars, torch.cuda.current_device())
        self._stream = torch.cuda.current_stream().cuda_stream
        flat = []
        for x in tensors:
            if isinstance(x, Atomic):
                # numba's layout of an array: meminfo, parent, items, bytes of an item, address, shape, strides in bytes
                size = x.tensor.element_size()
                flat += [0, 0, x.tensor.numel(), size, x.tensor.data_ptr(), x.tensor.numel(), size]
            else:
                flat.append(x.data_ptr())
        self._first = len(flat)
        self._reals = {i for i, kind in enumerate(scalars) if kind == "f"}
        self._values = (ctypes.c_int64 * (len(flat) + len(scalars)))(*flat)
        base = ctypes.addressof(self._values)
        self._parameters = (ctypes.c_void_p * len(self._values))(*range(base, base + 8 * len(self._values), 8))

    def rebind(self, index: int, tensor: torch.Tensor) -> None:
        """Another tensor for an argument; its memory is the caller's to keep. Not for an :class:`Atomic`'s."""
        if SIMULATED:
            self._arrays[index] = bits(tensor).numpy().reshape(-1)
        else:
            self._values[index] = tensor.data_ptr()

    def __call__(self, grid: tuple[int, int, int], threads: int, *scalars) -> None:
        if SIMULATED:
            self._kernel[grid, threads](*self._arrays, *scalars)
            return
        if self._reals:
            scalars = [_as_bits(x) if i in self._reals else x for i, x in enumerate(scalars)]
        self._values[self._first :] = scalars
        status = _driver().cuLaunchKernel(
            self._function, *grid, threads, 1, 1, 0, self._stream, self._parameters, None
        )  # fmt: skip
        if status:
            raise RuntimeError(f"the CUDA driver refused a launch with error {status} (grid {grid}, block {threads})")


def _as_bits(x: float) -> int:
    return int.from_bytes(struct.pack("d", x), sys.byteorder, signed=True)


_NUMBA_TYPES = {
    torch.int16: int16,
    torch.int32: int32,
    torch.int64: int64,
    torch.bfloat16: int16,
    torch.float16: int16,
    torch.float32: float32,
    torch.float64: float64,
}


@cache
def _driver_function(kernel, kinds: tuple, scalars: str, device: int) -> int:
    """The driver's handle of the kernel, compiled for these types; looked up once, since numba takes 0.3 ms."""
    types = [
        Array(_NUMBA_TYPES[kind[1]], 1, "C") if isinstance(kind, tuple) else CPointer(_NUMBA_TYPES[kind])
        for kind in kinds
    ]
    types += [{"i": int64, "f": float64}[kind] for kind in scalars]
    return int(kernel.compile(tuple(types))._codelibrary.get_cufunc().kernel.handle)


@cache
def _driver():
    driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    integers = [ctypes.c_uint] * 7
    driver.cuLaunchKernel.argtypes = [ctypes.c_void_p, *integers, *[ctypes.c_void_p] * 3]
    return driver


if SIMULATED:
    fast_exp = math.exp

    fast_log = math.log

    def exp_split(x):
        """e^x as a mantissa near 1 and an exponent of 2; (0, NOTHING) for -inf. NaN stays a NaN mantissa."""
        if x < -1e8:
            return 0.0, NOTHING
        whole = round(x / math.log(2)) if x == x else 0
        return math.exp(x - whole * math.log(2)), whole

    def normalised(mantissa, exponent):
        """The same number with a mantissa in [1, 2); (0, NOTHING) for 0."""
        if not mantissa > 0:
            return mantissa, NOTHING
        fraction, shift = math.frexp(mantissa)
        return 2 * fraction, exponent + shift - 1

    def halved(mantissa, times):
        """mantissa x 2^-times; 0 where float32 has nothing left."""
        return math.ldexp(mantissa, -int(times)) if times < 126 else 0.0

    reduce_by_shuffles = None

    def reduce_by_shared_memory(combine, real, members: int, threads: int):
        """The twin of :func:`reduce_by_shuffles`, for teams of so many members in a block of so many threads."""

        @cuda.jit(device=True)
        def reduced(value, member):
            values = cuda.shared.array(threads, real)
            first = cuda.threadIdx.x - member
            values[first + member] = value
            cuda.syncthreads()
            value = values[first]
            for other in range(1, members):
                value = combine(value, values[first + other])
            cuda.syncthreads()
            return value

        return reduced

else:
    from numba.cuda import libdevice

    reduce_by_shared_memory = None
    fast_exp = libdevice.fast_expf  # ex2.approx: 2 ulp, below what half precision keeps

    fast_log = libdevice.fast_logf

    @device
    def exp_split(x):
        """e^x as a mantissa near 1 and an exponent of 2; (0, NOTHING) for -inf. NaN stays a NaN mantissa."""
        low = max(x, float32(-1e8))
        whole = libdevice.rintf(low * float32(1.44269504))
        # ln 2 in two parts, the first with few bits: the remainder is exact to float32
        rest = libdevice.fmaf(whole, float32(2.12194440e-4), libdevice.fmaf(whole, float32(-0.693359375), low))
        mantissa, exponent = libdevice.fast_expf(rest), int32(whole)
        return (float32(0), int32(NOTHING)) if x < float32(-1e8) else (mantissa, exponent)

    @device
    def normalised(mantissa, exponent):
        """The same number with a mantissa in [1, 2); (0, NOTHING) for 0."""
        bits = libdevice.float_as_int(mantissa)
        shift = (bits >> int32(23)) - int32(127)
        within = libdevice.int_as_float((bits & int32(0x007FFFFF)) | int32(0x3F800000))
        return (within, exponent + shift) if mantissa > 0 else (mantissa, int32(NOTHING))

    @device
    def halved(mantissa, times):
        """mantissa x 2^-times; 0 where float32 has nothing left."""
        return mantissa * libdevice.int_as_float(max(int32(127) - times, int32(0)) << int32(23))

    def reduce_by_shuffles(combine, real, warps: int):
        """A device function (value, member) -> the combined value of a team, the same in every member.

        Args:
            combine: (value, other) -> value, commutative.
            real: float32 or float64.
            warps: of a team; more than one are a whole block.
        """

        @cuda.jit(device=True, inline="always")
        def reduced_warp(value, member):
            distance = 16
            while distance > 0:
                value = combine(value, cuda.shfl_xor_sync(-1, value, distance))
                distance //= 2
            return value

        @cuda.jit(device=True, inline="always")
        def reduced_block(value, member):
            values = cuda.shared.array(warps, real)
            value = reduced_warp(value, member)
            cuda.syncthreads()
            if member % 32 == 0:
                values[member // 32] = value
            cuda.syncthreads()
            value = values[0]
            for warp in range(1, warps):
                value = combine(value, values[warp])
            return value

        return reduced_warp if warps == 1 else reduced_block
