"""Compile every kernel to PTX and print a line for each; run by test_ptx.py."""

from numba import cuda, float32, float64, int16, int32, int64
from numba.core.types import Array, CPointer

from nemo_sampled_rnnt.loss.cuda.kernels import kernels
from nemo_sampled_rnnt.loss.cuda.places import add_rows, places_kernel
from nemo_sampled_rnnt.loss.cuda.survey import survey_kernel
from nemo_sampled_rnnt.loss.cuda.weight_rows import deliver_kernel, gather_kernel, pad_kernel


def signatures(stored, real):
    """Argument types as :class:`nemo_sampled_rnnt.loss.cuda.cells.CudaCells` passes them."""
    table, wide, some, exact = (CPointer(of) for of in (int64, stored, real, float64))
    where, softmax, dropout = (int64,) * 4, (int64,) * 3, (int64, int64, float64)
    return {
        "hidden": (table, wide, wide, wide, *where, *(int64,) * 5, *dropout),
        "scores": (table, wide, some, table, some, table, table, *where, *softmax),
        "alpha_beta": (table, table, table, table, table, exact, int64),
        "gradient": (
            table, wide, wide, some, table, some, table, table, table, table, exact, some,
            *where, int64, *softmax, float64, float64, int64,
        ),
        "projection_gradients": (table, wide, wide, some, some, *where, *(int64,) * 5, *dropout),
    }  # fmt: skip


def report(kind, name, function, types, capability):
    ptx, _ = cuda.compile_ptx(function, types, cc=capability)
    spills = ptx.count("ld.local") + ptx.count("st.local")
    print(f"{kind} {name}: {ptx.count('.f64')} float64 instructions, {spills} accesses of local memory", flush=True)


CASES = [
    ("float64", float64, float64, "tanh", True, True, True, True, (8, 0)),
    ("float32", float32, float32, "sigmoid", False, True, True, False, (9, 0)),
    ("float16", int16, float32, "relu", True, False, False, True, (7, 5)),
    ("bfloat16", int16, float32, "relu", False, False, False, False, (9, 0)),
    ("bfloat16", int16, float32, "relu", False, True, False, True, (7, 5)),
]
for kind, stored, real, activation, dropout, clamped, own, wide, capability in CASES:
    built = vars(kernels(kind, activation, dropout, clamped, own, wide, native=capability >= (8, 0)))
    types = signatures(stored, real)
    assert built.keys() == types.keys(), (built.keys(), types.keys())
    for name, function in built.items():
        report(kind, name, function, types[name], capability)
numbers, atomics = CPointer(int64), Array(int32, 1, "C")
survey_types = (
    Array(int64, 1, "C"), atomics, atomics, *[numbers] * 4, CPointer(float32), numbers, CPointer(float32), numbers,
    CPointer(int32), numbers, *[int64] * 10,
)  # fmt: skip
report("any", "survey", survey_kernel.py_func, survey_types, (7, 5))
real, word = CPointer(float32), CPointer(int16)
report("bfloat16", "gather", gather_kernel("bfloat16", "bfloat16", "bfloat16", "float32").py_func,
       (numbers, real, word, word, word, real, *[int64] * 4), (9, 0))  # fmt: skip
report("bfloat16", "pad", pad_kernel("bfloat16", "bfloat16", "bfloat16", "float32").py_func,
       (word, word, word, real, *[int64] * 4), (9, 0))  # fmt: skip
report("bfloat16", "deliver", deliver_kernel("bfloat16", "bfloat16", "float32", "float32", True).py_func,
       (real, real, real, numbers, real, real, word, word, real, real, *[int64] * 7), (9, 0))  # fmt: skip
table = CPointer(int32)
report("any", "places", places_kernel.py_func, (*[numbers] * 2, table, table, *[numbers] * 2, *[int64] * 5), (7, 5))
report("bfloat16", "add_rows", add_rows().py_func,
       (real, word, *[numbers] * 3, table, table, *[int64] * 7), (9, 0))  # fmt: skip
