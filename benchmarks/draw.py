"""Time and memory of drawing a batch's negatives on a GPU: by the kernels, and by torch's operations.

    python benchmarks/draw.py --out benchmarks/results/sampling_h200.csv

median_ms: a call of NegativeSampler between CUDA events, so with the host's time where the GPU waits for it. floor_ms:
one launch that reads what a draw must read, the posteriors, or that writes the ids. Printed beside them: host_ms, what
the host alone takes, and the launches of a draw and the time of its kernels as torch's profiler counts them.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from environment import environment
from measure import median_ms
from sampling_results import append
from workloads import WORKLOADS, Workload

from nemo_sampled_rnnt.memory import peak_memory
from nemo_sampled_rnnt.sampling import NegativeSampler, SampledSoftmax, sampler

NAMES = ["v1k_b64", "v16k_b16", "v131k_b16", "v1m_b16"]
SHOWN = ["setting", "implementation", "median_ms", "host_ms", "launches", "kernels_ms", "peak_mib", "floor_ms"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", nargs="+", choices=list(WORKLOADS), default=NAMES, metavar="NAME")
    parser.add_argument("--samplers", nargs="+", default=["uniform", "unigram", "ctc"], metavar="NAME")
    parser.add_argument("--implementations", nargs="+", default=["kernels", "torch"], metavar="NAME")
    parser.add_argument("--correction", action="store_true", help="with inclusion probabilities")
    parser.add_argument("--out", type=Path, help="CSV file that results are appended to")
    options = parser.parse_args()
    where = environment("cuda") | {"command": " ".join(["python", *sys.argv])}
    print(*SHOWN, sep="\t")
    for name in options.workloads:
        for source in options.samplers:
            for scope in ("batch", "utterance"):
                for implementation in options.implementations:
                    row = measure(WORKLOADS[name], source, scope, implementation, options.correction)
                    print(*(row[column] for column in SHOWN), sep="\t", flush=True)
                    if options.out:
                        append(options.out, row | where)


def measure(workload: Workload, source: str, scope: str, implementation: str, correction: bool) -> dict:
    device, vocabulary = torch.device("cuda"), workload.vocabulary
    sampler.draws_by_kernels = lambda device_type: implementation == "kernels"
    config = SampledSoftmax(workload.negatives, sampler=source, scope=scope, correction=correction, seed=0)
    draw = NegativeSampler(config, vocabulary, counts=torch.arange(vocabulary) if source == "unigram" else None)
    torch.manual_seed(0)
    arguments = [
        torch.randint(vocabulary, (workload.batch, workload.labels), device=device),
        workload.lengths()[1].to(device),
        torch.rand(workload.batch, vocabulary, device=device).pow_(8) if source == "ctc" else None,
    ]

    def step():
        return draw(*arguments)

    ids = step().ids
    floor = arguments[2].amax if source == "ctc" else ids.clone
    with peak_memory(device) as peak:
        step()
    launches, kernels_ms = profiled(step)
    words = [workload.name, source, scope, f"k={workload.negatives}", *["corrected"] * correction]
    return {
        "what": "draw",
        "implementation": implementation,
        "setting": " ".join(words),
        "median_ms": round(median_ms(step, device), 4),
        "host_ms": round(host_ms(step), 4),
        "launches": launches,
        "kernels_ms": round(kernels_ms, 4),
        "peak_mib": round(peak.mib, 2),
        "floor_ms": round(median_ms(floor, device), 4),
    }


def host_ms(step: Callable[[], object], repeats: int = 50) -> float:
    """Median time until a call returns, the GPU having nothing else to do."""
    times = []
    for _ in range(repeats):
        torch.cuda.synchronize()
        start = time.perf_counter()
        step()
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


def profiled(step: Callable[[], object]) -> tuple[int, float]:
    """Launches of a step, copies and fills among them, and the milliseconds in which they run."""
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        step()
        torch.cuda.synchronize()
    events = [event for event in profile.key_averages() if event.self_device_time_total > 0]
    return sum(event.count for event in events), sum(event.self_device_time_total for event in events) / 1e3


if __name__ == "__main__":
    main()
