"""Compile the TDT kernels to PTX and print a line for each; run by test_tdt_kernels.py."""

from numba import cuda, float32, float64, int16, int64
from numba.core.types import CPointer

from nemo_sampled_rnnt.loss.cuda.tdt_kernels import tdt_kernels


def signatures(stored, real):
    """Argument types as :class:`nemo_sampled_rnnt.loss.cuda.tdt_cells.TdtCudaCells` passes them."""
    table, wide, some, exact = (CPointer(of) for of in (int64, stored, real, float64))
    where, columns = (int64,) * 4, (int64,) * 3
    lattice = (table, table, table, table, table, table, exact, int64)
    return {
        "duration_scores": (table, wide, some, table, *where, *columns, float64),
        "alpha_beta": (*lattice, int64),
        "posteriors": (*lattice, int64, float64),
        "duration_gradient": (table, wide, table, exact, some, *where, *columns),
    }


CASES = [
    ("float64", float64, float64, (0, 1, 2), (8, 0)),
    ("float32", float32, float32, (0, 1, 2, 4, 8), (9, 0)),
    ("float16", int16, float32, (1, 3), (7, 5)),
    ("bfloat16", int16, float32, (0, 1, 2, 3, 4), (9, 0)),
]
for kind, stored, real, durations, capability in CASES:
    built = vars(tdt_kernels(kind, durations, native=capability >= (8, 0)))
    types = signatures(stored, real)
    assert built.keys() == types.keys(), (built.keys(), types.keys())
    for name, function in built.items():
        ptx, _ = cuda.compile_ptx(function, types[name], cc=capability)
        local = ptx.count("ld.local") + ptx.count("st.local")
        print(f"{kind} {name}: {ptx.count('.f64')} float64 instructions, {local} accesses of local memory", flush=True)
