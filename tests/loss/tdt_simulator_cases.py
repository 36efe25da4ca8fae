"""The TDT kernels in numba's CUDA simulator against the reference in float64; run with NUMBA_ENABLE_CUDASIM=1.

As simulator_cases.py: tiny lattices, a line for each case, exits with the number of failures.
"""

import sys
import time
import traceback
from dataclasses import replace

import torch
from tdt_truth import DOUBLING, make_tdt_problem
from truth import LEAVES, assert_same, gradients_of

from nemo_sampled_rnnt import sampled_rnnt_loss

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 6e-2}
F64, F32, F16, BF16 = TOLERANCE

#        name: (dtype, problem, options); a simulated block of the lattice has 4 threads
CASES = {
    "float64": (F64, {}, {}),
    "float32": (F32, {}, {}),
    "float16": (F16, {"H": 6}, {}),
    "bfloat16, odd width": (BF16, {}, {"activation": "tanh"}),
    "batch scope, corrected, vector": (F64, {"scope": "batch", "correction": True}, {"reduction": None}),
    "utterance scope, corrected": (F32, {"scope": "utterance", "correction": True}, {}),
    "doubling, fastemit and clamp": (
        F64,
        {"durations": DOUBLING, "T": 9},
        {"fastemit_lambda": 0.3, "clamp": 0.05, "reduction": "mean"},
    ),
    "dropout, sigmoid": (F32, {"scope": "utterance"}, {"dropout": 0.4, "activation": "sigmoid"}),
    "a label takes a frame": (F64, {"durations": (1, 2), "T": 6}, {}),
    "a duration beyond the last frame": (F32, {"durations": (0, 1, 7), "T": 4}, {}),
    "wider than a block, float64": (F64, {"B": 1, "U": 6, "T": 4}, {}),
    "wider than a block, float32": (F32, {"B": 2, "U": 9, "T": 5, "durations": (0, 2, 3)}, {}),
    "one frame": (F64, {"B": 1, "T": 1, "padded": False}, {}),
    "empty transcripts": (F32, {"U": 0, "padded": False}, {"reduction": "mean_volume"}),
    "scores of hundreds": (F32, {"scale": 8.0, "T": 6}, {}),
    # 24 cells of 2 x 3 + 6,006 float64 are 1.1 MiB: the one utterance is cut by rows.
    "cut by rows": (F64, {"B": 1, "T": 12, "U": 1, "V": 6000, "H": 3, "padded": False}, {"workspace_mib": 1}),
}


def run(dtype, sizes, options):
    sizes = {"B": 2, "T": 5, "U": 2, "H": 5, "V": 9, "N": 5, "sigma": 0.05, **sizes}
    problem = make_tdt_problem(3, **sizes).to(dtype)
    upstream = torch.linspace(0.5, 1.5, len(problem.targets)) if options.get("reduction", "") is None else None
    results = {}
    for impl, where in (("reference", problem.to(torch.float64)), ("cuda", problem)):
        torch.manual_seed(7)
        results[impl] = gradients_of(where, sampled_rnnt_loss, impl=impl, upstream=upstream, **options)
    for name in LEAVES:
        assert results["cuda"][1][name].dtype == dtype, name
    assert_same(results["cuda"], results["reference"], TOLERANCE[dtype])


def run_without_gradients():
    problem = make_tdt_problem(4, B=2, T=5, U=2, H=5, V=7)
    want = problem.call(sampled_rnnt_loss, impl="reference")
    assert_same((problem.call(sampled_rnnt_loss, impl="cuda"), {}), (want, {}), 1e-10)


def run_no_path():
    """The middle utterance has none, and its neighbours' gradients are as without it."""
    for dtype in (F64, F32):
        problem = make_tdt_problem(5, (0, 2, 4), B=3, T=6, U=2, H=5, V=7).to(dtype)
        problem = replace(problem, encoder_lengths=torch.tensor([6, 3, 4]))
        loss, gradients = gradients_of(problem, sampled_rnnt_loss, impl="cuda")
        want = gradients_of(problem.keep([0, 2]).to(F64), sampled_rnnt_loss, impl="reference")
        for name in ("encoder", "predictor"):
            assert (gradients[name][1] == 0).all()
            gradients[name] = gradients[name][[0, 2]]
        assert_same((loss, gradients), want, TOLERANCE[dtype])


def run_omega():
    problem = make_tdt_problem(6, sigma=0.05, B=2, T=4, U=2, H=5, V=7, N=4, scope="utterance")
    loss, gradients = gradients_of(problem, sampled_rnnt_loss, impl="cuda", omega=1.0)
    want = gradients_of(problem.plain(), sampled_rnnt_loss, impl="reference")
    for name in ("weight", "bias"):
        assert (gradients[name][8:] == 0).all()
        gradients[name] = gradients[name][:8]
    assert_same((loss, gradients), want, 1e-10)


def main():
    jobs = {name: (run, case) for name, case in CASES.items()}
    jobs |= {name: (job, ()) for name, job in (
        ("no gradients", run_without_gradients), ("no path", run_no_path), ("omega", run_omega),
    )}  # fmt: skip
    failures = 0
    for name, (job, case) in jobs.items():
        try:
            start = time.perf_counter()
            job(*case)
            print("ok", name, f"({time.perf_counter() - start:.1f} s)", flush=True)
        except Exception:
            failures += 1
            print("FAILED", name, flush=True)
            traceback.print_exc()
    return failures


if __name__ == "__main__":
    sys.exit(main())
