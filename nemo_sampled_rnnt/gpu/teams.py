"""Values of a team of threads, a warp or a block, combined into one that all of them get."""

from __future__ import annotations

from numba import cuda

from nemo_sampled_rnnt.gpu.launch import SIMULATED, device


def reducer(combine, real, members: int, threads: int):
    """A device function (value, member) -> the combined value of a team, the same in every member.

    Args:
        combine: (value, other) -> value, commutative.
        real: float32 or float64.
        members: of a team: a warp, or a whole block of warps.
        threads: of a block; a simulated one may hold several teams.
    """
    return _by_shared_memory(combine, real, members, threads) if SIMULATED else _by_shuffles(combine, real, members)


@device
def add(a, b):
    return a + b


def _by_shared_memory(combine, real, members: int, threads: int):
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


def _by_shuffles(combine, real, members: int):
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
