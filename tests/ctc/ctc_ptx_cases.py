"""Compile every kernel of the CTC head to PTX and print a line for each; run by test_kernels.py."""

from numba import cuda, float32, float64, int16, int64
from numba.core.types import CPointer

from nemo_sampled_rnnt.ctc.cuda.lattice import lattice_kernels
from nemo_sampled_rnnt.ctc.cuda.packing import packing_kernels
from nemo_sampled_rnnt.ctc.cuda.softmax import softmax_kernels
from nemo_sampled_rnnt.ctc.cuda.survey import survey_kernel


def signatures(stored, real):
    """Argument types as :class:`nemo_sampled_rnnt.ctc.cuda.frames.CudaFrames` passes them."""
    table, wide, some, exact = (CPointer(of) for of in (int64, stored, real, float64))
    where = (int64,) * 5
    return {
        "pack": (table, wide, wide, *(int64,) * 4),
        "scores": (table, wide, some, table, some, some, table, table, *where, *(int64,) * 4),
        "best": (table, wide, some, table, *where, *(int64,) * 2),
        "lattice": (table, table, table, table, table, table, exact, exact, *(int64,) * 4),
        "occupancies": (table, table, table, table, table, table, exact, some, *(int64,) * 3),
        "gradient": (
            table, wide, some, table, some, some, some, exact, some, some, some, *where, *(int64,) * 6,
        ),
        "unpack": (table, some, some, wide, *(int64,) * 3),
    }  # fmt: skip


def report(kind, name, function, types, capability):
    ptx, _ = cuda.compile_ptx(function, types, cc=capability)
    local = ptx.count("ld.local") + ptx.count("st.local")
    wide = ptx.count("ld.global.v4") + ptx.count("ld.v4") + ptx.count("ld.global.v2") + ptx.count("ld.v2")
    print(
        f"{kind} {name}: {ptx.count('.f64')} float64 instructions, {local} accesses of local memory, {wide} wide loads"
    )


if __name__ == "__main__":
    for kind, stored, real, wide, largest, capability in (
        ("float64", float64, float64, True, True, (8, 0)),
        ("float32", float32, float32, False, False, (9, 0)),
        ("float16", int16, float32, True, True, (7, 5)),
        ("bfloat16", int16, float32, True, False, (9, 0)),
        ("bfloat16", int16, float32, False, True, (7, 5)),
    ):
        native = capability >= (8, 0)
        built = vars(packing_kernels(kind, native)) | vars(lattice_kernels(kind))
        built |= vars(softmax_kernels(kind, wide, largest, native))
        types = signatures(stored, real)
        assert built.keys() == types.keys(), (built.keys(), types.keys())
        for name, function in built.items():
            report(kind, name, function, types[name], capability)
    numbers = CPointer(int64)
    report("any", "survey", survey_kernel.py_func, (*[numbers] * 7, *[int64] * 3), (7, 5))
