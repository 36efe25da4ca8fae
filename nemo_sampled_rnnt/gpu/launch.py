"""Launches, on the GPU and in numba's simulator.

The simulator (NUMBA_ENABLE_CUDASIM=1) runs the same kernels in Python on NumPy arrays, and knows no streams.
"""

from __future__ import annotations

import ctypes
import importlib.util
import struct
import sys
import threading
from functools import cache
from typing import NamedTuple

import torch
from numba import config, cuda, float32, float64, int16, int32, int64
from numba.core.types import Array, CPointer

SIMULATED = bool(config.ENABLE_CUDASIM)
MOST_BLOCKS = 2**31 - 1, 2**16 - 1, 2**16 - 1  # of a grid, on x, y and z


def numba_cuda_is_installed() -> bool:
    """numba's built-in CUDA target is frozen at CUDA 11.7; the package numba-cuda replaces it."""
    return importlib.util.find_spec("numba_cuda") is not None


def device(function):
    """A function that kernels call; inlined, so that a kernel compiles on a machine without a GPU too."""
    return function if SIMULATED else cuda.jit(device=True, inline="always")(function)


def at_most(threads: int, alone: bool = False) -> dict:
    """Options of ``cuda.jit`` for blocks of up to so many threads: else one may get more registers than they have.

    ``alone``: one such block may fill a multiprocessor, so that a thread gets more registers, and loads do not wait for
    them.
    """
    return {} if SIMULATED else {"launch_bounds": (threads, 1) if alone else threads}


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
        self._kernel, self._tensors, self._varying, self._constants = kernel, tensors, varying, constants
        self._arguments = None

    def rebind(self, index: int, tensor: torch.Tensor) -> None:
        """Another tensor of the same dtype for an argument; its memory is the caller's to keep. No :class:`Atomic` may
        stand before."""
        if tensor.dtype != self._tensors[index].dtype:  # the kernel is compiled for the first one's
            raise TypeError(f"argument {index} was bound as {self._tensors[index].dtype}, not {tensor.dtype}")
        if self._arguments is None:
            self._bind()
        self._arguments[index] = _elements(tensor) if SIMULATED else tensor.data_ptr()

    def __call__(self, grid: tuple[int, int, int], threads: int, *scalars: int) -> None:
        x, y, z = grid
        if x > MOST_BLOCKS[0] or y > MOST_BLOCKS[1] or z > MOST_BLOCKS[2]:  # the simulator would take it
            raise ValueError(f"CUDA takes a grid of {MOST_BLOCKS} blocks at most, got {grid}: make the batch smaller")
        if self._arguments is None:
            self._bind()
        if SIMULATED:
            self._kernel[grid, threads](*self._arguments, *scalars, *self._constants)
            return
        function, values, parameters = self._launch
        values[:] = [*self._arguments, *scalars, *self._bits]
        status = _driver().cuLaunchKernel(function, x, y, z, threads, 1, 1, 0, self._stream, parameters, None)
        if status:
            raise RuntimeError(f"the CUDA driver refused a launch with error {status} (grid {grid}, block {threads})")

    def _bind(self) -> None:
        """At the first launch: a GPU that waits for the first of several kernels does not wait for the others too."""
        tensors = self._tensors
        if SIMULATED:
            self._arguments = [_elements(x.tensor if isinstance(x, Atomic) else x) for x in tensors]
            return
        kinds = tuple([(Atomic, x.tensor.dtype) if type(x) is Atomic else x.dtype for x in tensors])
        reals = tuple([type(x) is float for x in self._constants])
        device = (tensors[0].tensor if type(tensors[0]) is Atomic else tensors[0]).device.index
        self._launch = _launcher(threading.get_ident(), self._kernel, kinds, self._varying, reals, device)
        self._stream = torch._C._cuda_getCurrentRawStream(device)
        arguments = []
        for x in tensors:
            if type(x) is Atomic:
                # numba's layout of an array: meminfo, parent, items, bytes of an item, address, shape, strides in bytes
                size = x.tensor.element_size()
                arguments += [0, 0, x.tensor.numel(), size, x.tensor.data_ptr(), x.tensor.numel(), size]
            else:
                arguments.append(x.data_ptr())
        self._arguments = arguments
        self._bits = [_as_bits(x) if type(x) is float else x for x in self._constants]


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
