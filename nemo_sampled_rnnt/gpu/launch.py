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
import threading
from functools import cache
from typing import NamedTuple

import numpy as np
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


def at_most(threads: int) -> dict:
    """Options of ``cuda.jit`` for blocks of up to so many threads: else one may get more registers than they have."""
    return {} if SIMULATED else {"launch_bounds": threads}


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """Half precision as 16-bit integers; others as they are."""
    return tensor.view(torch.int16) if tensor.element_size() == 2 else tensor


class Atomic(NamedTuple):
    """A tensor that a kernel takes as an array of one dimension, as numba's atomics want it, and not as a pointer."""

    tensor: torch.Tensor


class BoundKernel:
    """A kernel with its pointers and constants: a launch costs the host little.

    numba converts every argument at every launch (60 us for twelve arrays). Here they are written where the compiled
    kernel takes them, and the driver is called directly, on torch's current stream. In the simulator the kernel is
    called as usual, on NumPy arrays.

    Args:
        kernel: what ``cuda.jit`` made.
        tensors: contiguous, the first arguments; a kernel gets pointers to their elements, half precision as 16-bit
            integers.
        varying: how many int64 arguments come next, given at each launch.
        constants: the last arguments, int (int64) or float (float64).
    """

    def __init__(self, kernel, tensors: list[torch.Tensor | Atomic], varying: int, constants: tuple = ()):
        self._tensors = tensors  # keeps their memory
        if SIMULATED:
            self._kernel, self._constants = kernel, constants
            self._arrays = [_elements(x.tensor if isinstance(x, Atomic) else x) for x in tensors]
            return
        kinds = tuple([(Atomic, x.tensor.dtype) if type(x) is Atomic else x.dtype for x in tensors])
        reals = tuple([type(x) is float for x in constants])
        device = (tensors[0].tensor if type(tensors[0]) is Atomic else tensors[0]).device.index
        self._launch = _launcher(threading.get_ident(), kernel, kinds, varying, reals, device)
        self._stream = torch._C._cuda_getCurrentRawStream(device)
        self._pointers = []
        for x in tensors:
            if type(x) is Atomic:
                # numba's layout of an array: meminfo, parent, items, bytes of an item, address, shape, strides in bytes
                size = x.tensor.element_size()
                self._pointers += [0, 0, x.tensor.numel(), size, x.tensor.data_ptr(), x.tensor.numel(), size]
            else:
                self._pointers.append(x.data_ptr())
        self._constants = [_as_bits(x) if type(x) is float else x for x in constants]

    def rebind(self, index: int, tensor: torch.Tensor) -> None:
        """Another tensor of the same dtype for an argument; its memory is the caller's to keep. No :class:`Atomic` may
        stand before."""
        if tensor.dtype != self._tensors[index].dtype:  # the kernel is compiled for the first one's
            raise TypeError(f"argument {index} was bound as {self._tensors[index].dtype}, not {tensor.dtype}")
        if SIMULATED:
            self._arrays[index] = _elements(tensor)
        else:
            self._pointers[index] = tensor.data_ptr()

    def __call__(self, grid: tuple[int, int, int], threads: int, *scalars: int) -> None:
        if SIMULATED:
            self._kernel[grid, threads](*self._arrays, *scalars, *self._constants)
            return
        function, values, parameters = self._launch
        values[:] = [*self._pointers, *scalars, *self._constants]
        status = _driver().cuLaunchKernel(function, *grid, threads, 1, 1, 0, self._stream, parameters, None)
        if status:
            raise RuntimeError(f"the CUDA driver refused a launch with error {status} (grid {grid}, block {threads})")


def _elements(tensor: torch.Tensor):
    """What lies in memory from the first element to the last, as a pointer sees it: gaps between rows too."""
    extent = 1 + sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return bits(tensor.as_strided((extent if tensor.numel() else 0,), (1,))).numpy()


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
def _launcher(thread: int, kernel, kinds: tuple, varying: int, reals: tuple, device: int):
    """The driver's handle of the kernel compiled for these types, and room for its arguments.

    Looked up once, since numba takes 0.3 ms. The room is a thread's own: the driver has copied the arguments when a
    launch returns.
    """
    types = [
        Array(_NUMBA_TYPES[kind[1]], 1, "C") if isinstance(kind, tuple) else CPointer(_NUMBA_TYPES[kind])
        for kind in kinds
    ]
    types += [int64] * varying + [float64 if real else int64 for real in reals]
    function = int(kernel.compile(tuple(types))._codelibrary.get_cufunc().kernel.handle)
    size = sum(7 if isinstance(kind, tuple) else 1 for kind in kinds) + varying + len(reals)
    values = (ctypes.c_int64 * size)()
    base = ctypes.addressof(values)
    return function, values, (ctypes.c_void_p * size)(*range(base, base + 8 * size, 8))


@cache
def _driver():
    driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    integers = [ctypes.c_uint] * 7
    driver.cuLaunchKernel.argtypes = [ctypes.c_void_p, *integers, *[ctypes.c_void_p] * 3]
    return driver


LOG2_E = float32(1 / math.log(2))


if SIMULATED:
    fast_exp, larger = math.exp, max

    def exp2_less(x, shift):
        """2^(x log2 e - shift) = e^x / 2^shift."""
        return 2.0 ** (x * LOG2_E - shift) if x > -math.inf else x - x if x != x else 0.0

    def exp_split(x):
        """e^x as a mantissa near 1 and an exponent of 2; (0, NOTHING) for -inf. NaN stays a NaN mantissa."""
        if x < -1e8:
            return 0.0, NOTHING
        whole = round(x / math.log(2)) if x == x else 0
        return math.exp(x - whole * math.log(2)), whole

    def pack_number(mantissa, exponent):
        """A float32 and an int32 in one word."""
        return np.array([mantissa], np.float32).view(np.int32).astype(np.int64)[0] & 0xFFFFFFFF | int(exponent) << 32

    def unpack_number(word):
        return np.array([word], np.int64).view(np.float32)[0], int(word) >> 32

    def bits_of_single(x):
        return np.array([x], np.float32).view(np.int32)[0]

    def single_of_bits(word):
        return np.array([word], np.int32).view(np.float32)[0]

    def bits_of_double(x):
        return np.array([x], np.float64).view(np.int64)[0]

    def double_of_bits(word):
        return np.array([word], np.int64).view(np.float64)[0]

    def times_power_of_2(mantissa, exponent):
        """mantissa x 2^exponent, for exponents that float32 has; 0 below."""
        return math.ldexp(mantissa, int(exponent)) if exponent > -127 else mantissa * 0.0

    def sum_of_powers(a, a_exponent, b, b_exponent):
        """a 2^a_exponent + b 2^b_exponent, not normalised; of a sum 0 the exponent is at least NOTHING."""
        exponent = max(a_exponent, b_exponent, NOTHING)
        scaled = times_power_of_2(a, a_exponent - exponent) + times_power_of_2(b, b_exponent - exponent)
        return scaled, exponent

    def normalised(mantissa, exponent):
        """The same number with a mantissa in [1, 2); (0, NOTHING) for 0."""
        if not mantissa > 0:
            return mantissa, NOTHING
        fraction, shift = math.frexp(mantissa)
        return 2 * fraction, exponent + shift - 1

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
    larger = libdevice.fmaxf  # one instruction; a NaN gives way to a number

    def _exp2():
        from llvmlite import ir
        from numba.core import types
        from numba.cuda.extending import intrinsic

        @intrinsic
        def exp2(typingctx, x):
            """2^x to 2 ulp, which is below what half precision keeps; 0 where it is no normal float32."""

            def codegen(context, builder, signature, arguments):
                single = ir.FloatType()
                instruction = ir.InlineAsm(ir.FunctionType(single, [single]), "ex2.approx.ftz.f32 $0, $1;", "=f,f")
                return builder.call(instruction, arguments)

            return types.float32(types.float32), codegen

        return exp2

    _power_of_2 = _exp2()

    @device
    def exp2_less(x, shift):
        """2^(x log2 e - shift) = e^x / 2^shift."""
        return _power_of_2(libdevice.fmaf(x, LOG2_E, -shift))

    @device
    def fast_exp(x):
        return _power_of_2(x * LOG2_E)

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
    def pack_number(mantissa, exponent):
        """A float32 and an int32 in one word."""
        return (int64(exponent) << int64(32)) | (int64(libdevice.float_as_int(mantissa)) & int64(0xFFFFFFFF))

    @device
    def unpack_number(word):
        return libdevice.int_as_float(int32(word)), int32(word >> int64(32))

    bits_of_single, single_of_bits = libdevice.float_as_int, libdevice.int_as_float
    bits_of_double, double_of_bits = libdevice.double_as_longlong, libdevice.longlong_as_double

    # numba adds two int32 as int64, which a GPU does in two instructions or three: so int32() at every step.

    @device
    def times_power_of_2(mantissa, exponent):
        """mantissa x 2^exponent, for exponents that float32 has; 0 below."""
        within = libdevice.min(libdevice.max(int32(exponent + int32(127)), int32(0)), int32(254))
        return mantissa * libdevice.int_as_float(int32(within << int32(23)))

    @device
    def sum_of_powers(a, a_exponent, b, b_exponent):
        """a 2^a_exponent + b 2^b_exponent, not normalised; of a sum 0 the exponent is at least NOTHING."""
        exponent = libdevice.max(libdevice.max(a_exponent, b_exponent), int32(NOTHING))
        a_within = libdevice.max(int32(int32(a_exponent - exponent) + int32(127)), int32(0))
        b_within = libdevice.max(int32(int32(b_exponent - exponent) + int32(127)), int32(0))
        a_scaled = a * libdevice.int_as_float(int32(a_within << int32(23)))
        b_scaled = b * libdevice.int_as_float(int32(b_within << int32(23)))
        return a_scaled + b_scaled, exponent

    @device
    def normalised(mantissa, exponent):
        """The same number with a mantissa in [1, 2); (0, NOTHING) for 0."""
        bits = libdevice.float_as_int(mantissa)
        shift = int32(int32(bits >> int32(23)) - int32(127))
        within = libdevice.int_as_float(int32(int32(bits & int32(0x007FFFFF)) | int32(0x3F800000)))
        return (within, int32(exponent + shift)) if mantissa > 0 else (mantissa, int32(NOTHING))

    def reduce_by_shuffles(combine, real, members: int):
        """A device function (value, member) -> the combined value of a team, the same in every member.

        Args:
            combine: (value, other) -> value, commutative.
            real: float32 or float64.
            members: of a team: a warp, or a whole block of warps.
        """
        warps = members // 32

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
