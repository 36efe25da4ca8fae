"""Compile every kernel to PTX and print a line for each; run by test_ptx.py."""

from numba import cuda, float32, float64, int16, int64
from numba.core.types import float16

from nemo_sampled_rnnt.loss.cuda.kernels import kernels


def signatures(stored, real):
    """Argument types as :class:`nemo_sampled_rnnt.loss.cuda.cells.CudaCells` passes them."""
    table, lists, sums, offsets = int64[:, ::1], real[::1], real[:, :, ::1], real[:, ::1]
    wide = (int64 if stored is int16 else stored)[:, ::1]
    where, dropout = (int64, int64), (int64, int64, float64)
    return {
        "hidden": (table, table, wide, wide, wide, *where, int64, int64, int64, *dropout),
        "scores": (table, table, wide, offsets, table, lists, lists, lists, int64, *where),
        "alpha_beta": (table, lists, lists, *[float64[::1]] * 3, int64),
        "gradient": (
            table, table, wide, wide, offsets, table, lists, lists, lists, *[float64[::1]] * 3, lists,
            int64, float64, float64, *where, int64,
        ),
        "encoder_gradient": (table, table, wide, wide, sums, *where, *dropout),
        "predictor_gradient": (table, wide, wide, sums, int64, int64, int64, int64, *dropout),
    }  # fmt: skip


CASES = [
    ("float64", float64, float64, "tanh", True, (8, 0)),
    ("float32", float32, float32, "sigmoid", False, (9, 0)),
    ("float16", float16, float32, "relu", True, (7, 5)),
    ("bfloat16", int16, float32, "relu", False, (9, 0)),
]
for kind, stored, real, activation, dropout, capability in CASES:
    built = vars(kernels(kind, activation, dropout))
    types = signatures(stored, real)
    assert built.keys() == types.keys(), (built.keys(), types.keys())
    for name, function in built.items():
        ptx, _ = cuda.compile_ptx(function, types[name], cc=capability)
        print(kind, name, "float64 instructions", ptx.count(".f64"), flush=True)
