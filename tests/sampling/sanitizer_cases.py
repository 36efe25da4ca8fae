"""Small draws through the kernels, for NVIDIA's checker of memory accesses and of races:

export PYTORCH_NO_CUDA_MEMORY_CACHING=1  # each tensor an allocation of its own, whose ends are known
compute-sanitizer --tool memcheck --report-api-errors no --error-exitcode 1 python tests/sampling/sanitizer_cases.py
compute-sanitizer --tool racecheck --error-exitcode 1 python tests/sampling/sanitizer_cases.py
"""

import race
from test_cuda import drawn

from nemo_sampled_rnnt.sampling.cuda.kernels import THREADS

for k, vocab_size, options in (
    (7, 23, {}),
    (23, 23, {"together": True}),
    (100, 9001, {"source": "unigram"}),
    (100, 9001, {"source": "ctc", "together": True}),
    (3000, 20001, {"source": "ctc", "sizes": [0, 1, 2000, 2999, 3000]}),
):
    ids, _, times, _, _ = drawn(k, vocab_size, **options)
    for g, row in enumerate(ids.tolist()):
        size = options["sizes"][g] if "sizes" in options else k
        winners, _ = race.winners(times[g, :vocab_size].numpy(), size, THREADS)
        assert row == winners + [-1] * (k - len(winners))
    print("ok", k, vocab_size, options, flush=True)
