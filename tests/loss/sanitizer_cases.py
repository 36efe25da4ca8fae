"""Small batches through every kernel, for NVIDIA's checker of memory accesses and of races:

export PYTORCH_NO_CUDA_MEMORY_CACHING=1  # each tensor an allocation of its own, whose ends are known
compute-sanitizer --tool memcheck --report-api-errors no --error-exitcode 1 python tests/loss/sanitizer_cases.py
compute-sanitizer --tool racecheck --error-exitcode 1 python tests/loss/sanitizer_cases.py
"""

import torch
from tdt_truth import DOUBLING, make_tdt_problem
from truth import assert_same, gradients_of, make_problem

from nemo_sampled_rnnt import sampled_rnnt_loss
from nemo_sampled_rnnt.loss.cuda import kernels, tdt_kernels

CASES = {
    "bfloat16, exact": (torch.bfloat16, {}, {}),
    "bfloat16, batch scope, dropout": (torch.bfloat16, {"scope": "batch", "correction": True}, {"dropout": 0.2}),
    "bfloat16, utterance scope, grouped products": (torch.bfloat16, {"scope": "utterance", "H": 24}, {}),
    "float16, utterance scope, odd width": (torch.float16, {"scope": "utterance", "H": 13}, {"activation": "tanh"}),
    "float32, cut by rows": (torch.float32, {"B": 1, "T": 67, "V": 8200}, {"workspace_mib": 1}),  # and a block a group
    "float64, vector of losses": (torch.float64, {"scope": "batch"}, {"reduction": None}),
    "wider than a block": (torch.float32, {"B": 2, "T": 3, "U": kernels.LATTICE_THREADS + 5}, {}),
    "TDT, bfloat16": (torch.bfloat16, {"durations": DOUBLING}, {}),
    "TDT, bfloat16, utterance scope, grouped products": (
        torch.bfloat16,
        {"durations": DOUBLING, "scope": "utterance", "H": 24},
        {},
    ),
    "TDT, float32, cut by rows": (
        torch.float32,
        {"durations": DOUBLING, "B": 1, "T": 67, "V": 8200},
        {"workspace_mib": 1},
    ),
    "TDT, float64, wider than a block": (
        torch.float64,
        {"durations": (0, 2, 3), "B": 2, "T": 3, "U": tdt_kernels.TDT_LATTICE_THREADS + 5},
        {},
    ),
}

for name, (dtype, sizes, options) in CASES.items():
    sizes = {"B": 3, "T": 9, "U": 5, "H": 16, "V": 37, "N": 11, "scale": 0.5, **sizes}
    problem = (make_tdt_problem if "durations" in sizes else make_problem)(0, **sizes).to(dtype)
    upstream = torch.linspace(0.5, 1, len(problem.targets)) if "reduction" in options else None
    got = gradients_of(problem.to("cuda"), sampled_rnnt_loss, impl="cuda", upstream=upstream, **options)
    if "dropout" not in options:
        want = gradients_of(
            problem.to(torch.float64), sampled_rnnt_loss, impl="reference", upstream=upstream, **options
        )
        assert_same(got, want, 6e-2 if dtype.itemsize == 2 else 1e-3)
    torch.cuda.synchronize()
    print("ok", name, flush=True)
