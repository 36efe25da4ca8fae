"""Compile the kernels that draw to PTX and print a line for each; run by test_cuda.py."""

from numba import cuda, float32, float64, int32, int64
from numba.core.types import Array, CPointer

from nemo_sampled_rnnt.sampling.cuda.kernels import LIMITS, draw_kernel, totals_kernel

real, tickets = CPointer(float32), Array(int32, 1, "C")


def draw_types(label):
    """As draw.py passes them, for targets, lengths and sizes of one integer type."""
    return tickets, CPointer(int64), *[real] * 4, *[CPointer(label)] * 3, int64, float64, float64, *[int64] * 10


for kernel, types in (
    (totals_kernel, (Array(int64, 1, "C"), real, real, int64)),
    (draw_kernel, draw_types(int64)),
    (draw_kernel, draw_types(int32)),
):
    for capability in ((7, 5), (9, 0)):
        ptx, _ = cuda.compile_ptx(kernel.py_func, types, cc=capability, **LIMITS)
        local = ptx.count("ld.local") + ptx.count("st.local")
        double = sum(ptx.count(f"{operation}.f64") for operation in ("add", "mul", "fma.rn", "div.rn"))
        shared = ptx.count("atom.shared.add")
        print(f"{kernel.py_func.__name__}: {local} local, {double} double, {shared} atomics in shared memory")
