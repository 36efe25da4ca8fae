"""Rows of the output layer into a candidate set, and all gradients out of the engine: one launch each.

A launch costs the host as much as a thousand rows cost the GPU, and torch takes five to nine for either.
"""

from __future__ import annotations

import math
from functools import cache

import torch
from numba import cuda, float32, float64

from nemo_sampled_rnnt.gpu.launch import SIMULATED, BoundKernel
from nemo_sampled_rnnt.gpu.octets import OCTET, octets

WARP = 4 if SIMULATED else 32
WARPS = 2 if SIMULATED else 8  # of a block
THREADS = WARP * WARPS


def kind_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def whole_octets(*tensors: torch.Tensor) -> bool:
    """Their rows can be read in octets."""
    return all(x.shape[-1] % OCTET == 0 and x.is_contiguous() and x.data_ptr() % 16 == 0 for x in tensors)


def copied_by_kernel(weight: torch.Tensor, dtype: torch.dtype) -> bool:
    """Rows of the weight can be written in ``dtype`` octet by octet: float64 stays float64, and is made of no other."""
    return whole_octets(weight) and (weight.dtype == torch.float64) == (dtype == torch.float64)


def gather(ids, log_q, weight, bias, rows, offsets) -> None:
    """rows[g, k] = weight[ids[g, k]], offsets[g, k] = bias[ids[g, k]] - log_q[g, k].

    Args:
        ids, log_q: (G, S) int64 and float; their rows may lie apart, both likewise.
        weight, bias: (V+1, H), H in whole octets, and (V+1,).
        rows: (G, S, H) float, written; or None.
        offsets: (G, S) float32 or float64, written.
    """
    if ids.stride() != log_q.stride() or ids.stride(1) != 1:
        ids, log_q = ids.contiguous(), log_q.contiguous()
    kinds = [kind_of(x.dtype) for x in (weight, bias, weight if rows is None else rows, offsets)]
    kernel = BoundKernel(
        gather_kernel(*kinds),
        [ids, log_q, weight, bias, weight if rows is None else rows, offsets],
        0,
        (ids.numel(), ids.shape[1], ids.stride(0), 0 if rows is None else weight.shape[1]),
    )
    kernel((-(-ids.numel() // WARPS), 1, 1), THREADS)


@cache
def gather_kernel(weight_kind: str, bias_kind: str, row_kind: str, real_kind: str):
    load, store, load_bias = octets(weight_kind).load8, octets(row_kind).store8, octets(bias_kind).load1
    real, of_weight = (float64 if x == "float64" else float32 for x in (real_kind, weight_kind))

    @cuda.jit
    def kernel(ids, log_q, weight, bias, rows, offsets, count, columns, pitch, width):
        """Warp: a candidate. Thread: octets of its row; the first of a warp the offset."""
        n = cuda.blockIdx.x * WARPS + cuda.threadIdx.x // WARP
        lane = cuda.threadIdx.x % WARP
        if n >= count:
            return
        place = n // columns * pitch + n % columns
        row = ids[place]
        values = cuda.local.array(OCTET, of_weight)
        for octet in range(OCTET * lane, width, OCTET * WARP):
            load(weight, row * width + octet, values, 0)
            store(rows, n * width + octet, values, 0)
        if lane == 0:
            offsets[n] = real(load_bias(bias, row)) - real(log_q[place])

    return kernel


def pad(weight, bias, scored: int, rows, offsets) -> None:
    """rows = weight, zeros behind; offsets[k] = bias[k], from ``scored`` on -inf.

    Args:
        weight, bias: (N, H), H in whole octets, and (N,).
        scored: blank and labels, of which the softmax is.
        rows: (S, H) float, S >= N, written; or None.
        offsets: (1, S) float32 or float64, written.
    """
    columns = offsets.shape[1]
    kinds = [kind_of(x.dtype) for x in (weight, bias, weight if rows is None else rows, offsets)]
    kernel = BoundKernel(
        pad_kernel(*kinds),
        [weight, bias, weight if rows is None else rows, offsets],
        0,
        (columns, len(weight), scored, 0 if rows is None else weight.shape[1]),
    )
    kernel((-(-columns // WARPS), 1, 1), THREADS)


@cache
def pad_kernel(weight_kind: str, bias_kind: str, row_kind: str, real_kind: str):
    load, store, load_bias = octets(weight_kind).load8, octets(row_kind).store8, octets(bias_kind).load1
    real, of_weight = (float64 if x == "float64" else float32 for x in (real_kind, weight_kind))

    @cuda.jit
    def kernel(weight, bias, rows, offsets, columns, count, scored, width):
        """Warp: a row. Thread: octets of it; the first of a warp the offset."""
        n = cuda.blockIdx.x * WARPS + cuda.threadIdx.x // WARP
        lane = cuda.threadIdx.x % WARP
        if n >= columns:
            return
        values = cuda.local.array(OCTET, of_weight)
        for i in range(OCTET):
            values[i] = of_weight(0)
        for octet in range(OCTET * lane, width, OCTET * WARP):
            if n < count:
                load(weight, n * width + octet, values, 0)
            store(rows, n * width + octet, values, 0)
        if lane == 0:
            offsets[n] = real(load_bias(bias, n)) if n < scored else real(-math.inf)

    return kernel


def deliver(encoder, predictor, sums, has_weight: bool, ids, count: int, total_rows: int, upstream, divisor, outputs):
    """The four gradients, from their sums, in their inputs' dtypes: sum x upstream / divisor.

    Args:
        encoder, predictor: (B, T, H) and (B, U+1, H) float32, H in whole octets, or None.
        sums: (rows, stride) float32: H columns of the weight's gradient if ``has_weight``, in the last octet the
            bias'; or None.
        ids: (rows,) int64, the row of the weight that each is of, -1 is left out; None: they are the first ``count``.
        count: rows that are delivered; each is of another row of the weight.
        total_rows: V + 1.
        upstream, divisor: () float32.
        outputs: dtypes of encoder, predictor, weight, bias; None: not asked for.

    Returns:
        The gradients of encoder, predictor, weight and bias, or None.
    """
    width = next(x.shape[-1] for x in (encoder, predictor, sums) if x is not None)
    if sums is not None:
        width = sums.shape[1] - OCTET if has_weight else width
    device = upstream.device
    whole = ids is None and count == total_rows

    def result(shape, dtype, filled):
        if dtype is None:
            return None
        return (torch.empty if filled else torch.zeros)(shape, dtype=dtype, device=device)

    got = [
        result(None if encoder is None else encoder.shape, outputs[0], True),
        result(None if predictor is None else predictor.shape, outputs[1], True),
        result((total_rows, width), outputs[2], whole),
        result((total_rows,), outputs[3], whole),
    ]
    nothing = upstream
    kinds = ["float32" if x is None else kind_of(x.dtype) for x in got]
    rows = [0 if x is None else x.numel() // width for x in (encoder, predictor)] + [count if sums is not None else 0]
    tensors = [nothing if x is None else x for x in (encoder, predictor, sums, ids, upstream, divisor, *got)]
    kernel = BoundKernel(
        deliver_kernel(*kinds, ids is not None),
        tensors,
        0,
        (*rows, width, 0 if sums is None else sums.shape[1], int(outputs[2] is not None), int(outputs[3] is not None)),
    )
    kernel((-(-sum(rows) // WARPS), 1, 1), THREADS)
    return got


@cache
def deliver_kernel(encoder_kind: str, predictor_kind: str, weight_kind: str, bias_kind: str, some: bool):
    load = octets("float32").load8
    to_encoder, to_predictor, to_weight = (octets(x).store8 for x in (encoder_kind, predictor_kind, weight_kind))
    to_bias = octets(bias_kind).store1

    @cuda.jit
    def kernel(
        encoder, predictor, sums, ids, upstream, divisor, encoder_out, predictor_out, weight_out, bias_out,
        encoder_rows, predictor_rows, weight_rows, width, stride, has_weight, has_bias,
    ):  # fmt: skip
        """Warp: a row of one of the gradients. Thread: octets of it."""
        n = cuda.blockIdx.x * WARPS + cuda.threadIdx.x // WARP
        lane = cuda.threadIdx.x % WARP
        factor = upstream[0] / divisor[0]
        values = cuda.local.array(OCTET, float32)
        if n < encoder_rows:
            for octet in range(OCTET * lane, width, OCTET * WARP):
                load(encoder, n * width + octet, values, 0)
                for i in range(OCTET):
                    values[i] *= factor
                to_encoder(encoder_out, n * width + octet, values, 0)
            return
        n -= encoder_rows
        if n < predictor_rows:
            for octet in range(OCTET * lane, width, OCTET * WARP):
                load(predictor, n * width + octet, values, 0)
                for i in range(OCTET):
                    values[i] *= factor
                to_predictor(predictor_out, n * width + octet, values, 0)
            return
        n -= predictor_rows
        if n >= weight_rows:
            return
        row = ids[n] if some else n
        if row < 0:
            return
        if has_weight:
            for octet in range(OCTET * lane, width, OCTET * WARP):
                load(sums, n * stride + octet, values, 0)
                for i in range(OCTET):
                    values[i] *= factor
                to_weight(weight_out, row * width + octet, values, 0)
        if has_bias and lane == 0:
            to_bias(bias_out, row, sums[(n + 1) * stride - OCTET] * factor)

    return kernel
