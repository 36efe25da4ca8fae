"""The valid frames of a batch on one axis, and back."""

from __future__ import annotations

import math
from types import SimpleNamespace

from numba import cuda, int32, int64

from nemo_sampled_rnnt.ctc.cuda.blocks import real_of, sums_kind
from nemo_sampled_rnnt.gpu.octets import OCTET, octets


def packing_kernels(kind: str, native: bool = True) -> SimpleNamespace:
    """Python functions pack and unpack, to be compiled; arguments as in :func:`softmax_kernels`."""
    real, load_sums = real_of(kind), octets(sums_kind(kind)).load8
    infinity = real(math.inf)
    memory = octets(kind, native)
    load8, store8 = memory.load8, memory.store8

    def pack(table, encoder, out, frames, in_stride, width, out_stride):
        """Block: a frame (x) of an utterance (y). Thread: every blockDim-th octet.

        Writes out (N, out_stride), 0 where a frame is not finite and behind its width, and marks its utterance.
        encoder is (B frames, in_stride).
        """
        t, b = int64(cuda.blockIdx.x), int64(cuda.blockIdx.y)
        if t >= table[4 * b]:
            return
        source, row = (b * frames + t) * in_stride, (table[4 * b + 2] + t) * out_stride
        h = cuda.local.array(OCTET, real)
        bad = int32(0)
        for first in range(OCTET * int64(cuda.threadIdx.x), width, OCTET * int64(cuda.blockDim.x)):
            load8(encoder, source + first, h, 0)
            for i in range(OCTET):
                if first + i < width and not abs(h[i]) < infinity:
                    bad = int32(1)
        bad = cuda.syncthreads_or(bad)
        for first in range(OCTET * int64(cuda.threadIdx.x), out_stride, OCTET * int64(cuda.blockDim.x)):
            load8(encoder, source + first, h, 0)
            for i in range(OCTET):
                h[i] = real(0) if bad or first + i >= width else h[i]
            store8(out, row + first, h, 0)
        if bad and cuda.threadIdx.x == 0:
            table[4 * b + 3] = 0

    def unpack(table, gradient, factor, out, frames, in_stride, out_stride):
        """Block: a frame (x) of an utterance (y). Thread: every blockDim-th octet.

        Writes out (B frames, out_stride): the packed gradient times the factor, 0 beyond the lengths.
        """
        t, b = int64(cuda.blockIdx.x), int64(cuda.blockIdx.y)
        row = (table[4 * b + 2] + t) * in_stride
        g = cuda.local.array(OCTET, real)
        by = factor[0]
        for first in range(OCTET * int64(cuda.threadIdx.x), out_stride, OCTET * int64(cuda.blockDim.x)):
            for i in range(OCTET):
                g[i] = real(0)
            if t < table[4 * b]:
                load_sums(gradient, row + first, g, 0)
                for i in range(OCTET):
                    g[i] *= by
            store8(out, (b * frames + t) * out_stride + first, g, 0)

    return SimpleNamespace(pack=pack, unpack=unpack)
