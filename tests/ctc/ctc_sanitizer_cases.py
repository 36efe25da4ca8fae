"""Small batches through every kernel of the CTC head, for NVIDIA's checker of memory accesses and of races:

export PYTORCH_NO_CUDA_MEMORY_CACHING=1  # each tensor an allocation of its own, whose ends are known
compute-sanitizer --tool memcheck --report-api-errors no --error-exitcode 1 python tests/ctc/ctc_sanitizer_cases.py
compute-sanitizer --tool racecheck --error-exitcode 1 python tests/ctc/ctc_sanitizer_cases.py
"""

import torch
from ctc_truth import assert_same, make_problem, results, truth

from nemo_sampled_rnnt.ctc import ctc_loss
from nemo_sampled_rnnt.ctc.cuda.lattice import LATTICE_THREADS

WIDER = LATTICE_THREADS + 5
CASES = {
    "bfloat16": (torch.bfloat16, {}, {}),
    "bfloat16, a block a group of frames": (torch.bfloat16, {"V": 8200}, {"frame_weights": "nonblank"}),
    "float16, odd width": (torch.float16, {"D": 13}, {"frame_weights": "max"}),
    "float32, cut by frames": (torch.float32, {"B": 2, "T": 67, "V": 8200}, {"workspace_mib": 1}),
    "float64, best labels": (torch.float64, {}, {"best": True, "reduction": "mean_volume"}),
    "more labels than a block has threads": (
        torch.float32,
        {"B": 1, "T": 2 * WIDER, "U": WIDER, "lengths": [2 * WIDER], "labels": [WIDER]},
        {},
    ),
}

for name, (dtype, sizes, options) in CASES.items():
    problem = make_problem(0, **{"B": 3, "T": 19, "U": 5, "D": 16, "V": 37, "scale": 0.3, **sizes}).to(dtype)
    got = results(problem.to("cuda"), ctc_loss, impl="cuda", **options)
    kept = {name: value for name, value in options.items() if name in ("frame_weights", "reduction")}
    assert_same(got, truth(problem.to(torch.float64), **kept), 6e-2 if dtype.itemsize == 2 else 2e-3)
    torch.cuda.synchronize()
    print("ok", name, flush=True)
