"""Compile every kernel to PTX and print a line for each; run by test_ptx.py."""

from numba import cuda, float32, float64, int16, int64
from numba.core.types import float16

from nemo_sampled_rnnt.loss.cuda.kernels import kernels


def signatures(stored, real):
    """Argument types as :class:`nemo_sampled_rnnt.loss.cuda.cells.CudaCells` passes them."""
    table, ids, lists = int64[:, ::1], int64[::1], real[::1]
    matrix, cube, sums = stored[:, ::1], stored[:, :, ::1], real[:, :, ::1]
    where, dropout = (int64, int64), (int64, int64, float64)
    return {
        "hidden": (table, table, cube, cube, matrix, *where, *dropout),
        "scores": (table, table, matrix, real[:, ::1], ids, table, lists, lists, lists, int64, *where),
        "alpha_beta": (table, *[lists] * 5, int64),
        "gradient": (
            table,
            table,
            matrix,
            matrix,
            real[:, ::1],
            ids,
            table,
            *[lists] * 7,
            int64,
            float64,
            float64,
            *where,
        ),
        "encoder_gradient": (table, table, matrix, matrix, sums, *where, *dropout),
        "predictor_gradient": (table, matrix, matrix, sums, int64, int64, int64, int64, *dropout),
    }


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
