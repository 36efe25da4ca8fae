"""What TDT's durations cost on a GPU: a plain RNN-T step and its TDT twin in turn, in one process.

    python benchmarks/durations_cost.py --out benchmarks/results/durations_cost_h200.csv

In loss.py each row has a process of its own, and where the host sets the pace processes differ by more than durations
cost. Here both run on the same device in the same process, round by round: ``plain_ms`` and ``tdt_ms`` are medians of
the rounds' medians, ``cost`` the median of the rounds' ratios less 1, ``low`` and ``high`` their quartiles.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
from pathlib import Path

import results_file
import torch
from environment import environment
from implementations import OURS, Row, make_implementation
from measure import Step, times_ms
from workloads import WORKLOADS, Workload, make_batch, make_joint

NAMES = ["v1k_b16_t200", "v16k_b16_t200"]
PLAIN = [name for name, workload in WORKLOADS.items() if not workload.durations]
STEPS = 5  # of each in a round
COLUMNS = ["workload", "implementation", "plain_ms", "tdt_ms", "cost", "low", "high", "rounds", "machine", "cores",
           "torch", "nemo", "numba", "numba_cuda", "python", "commit", "command"]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", nargs="+", choices=PLAIN, default=NAMES, metavar="NAME")
    parser.add_argument("--implementations", nargs="+", choices=list(OURS), default=list(OURS), metavar="NAME")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--workspace-mib", type=int, default=256)
    parser.add_argument("--device", default="cuda", help="cpu: float32, and to see that it runs")
    parser.add_argument("--out", type=Path, help="CSV file that results are appended to")
    options = parser.parse_args()
    if options.rounds < 2:
        parser.error(f"--rounds must be 2 or more, for quartiles, got {options.rounds}")
    if options.out:
        try:
            results_file.check(options.out, COLUMNS)
        except ValueError as error:
            parser.error(str(error))
    where = environment(options.device) | {"command": " ".join(["python", *sys.argv])}
    for name in options.workloads:
        for implementation in options.implementations:
            row = {"workload": name, "implementation": implementation} | measure(name, implementation, options) | where
            print(
                f"{name} {implementation}: plain {row['plain_ms']} ms, TDT {row['tdt_ms']} ms, "
                f"{row['cost']:+.1%} ({row['low']:+.1%} to {row['high']:+.1%})", flush=True,
            )  # fmt: skip
            if options.out:
                results_file.append(options.out, COLUMNS, row)


def measure(name: str, implementation: str, options: argparse.Namespace) -> dict:
    plain, tdt = (make_step(workload, implementation, options) for workload in twins(name))
    device = torch.device(options.device)
    for step in (plain, tdt):
        times_ms(step, device, 3)
    rounds = [
        [statistics.median(times_ms(step, device, STEPS)) for step in (plain, tdt)] for _ in range(options.rounds)
    ]
    del plain, tdt
    gc.collect()
    ratios = [with_durations / without - 1 for without, with_durations in rounds]
    low, cost, high = statistics.quantiles(ratios, n=4)
    plain_ms, tdt_ms = (round(statistics.median(times), 3) for times in zip(*rounds, strict=True))
    costs = {"cost": round(cost, 4), "low": round(low, 4), "high": round(high, 4)}
    return {"plain_ms": plain_ms, "tdt_ms": tdt_ms, **costs, "rounds": options.rounds}


def twins(name: str) -> tuple[Workload, Workload]:
    return WORKLOADS[name], WORKLOADS[name].tdt()


def make_step(workload: Workload, implementation: str, options: argparse.Namespace) -> Step:
    device = torch.device(options.device)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    row = Row(workload.name, implementation, workspace_mib=options.workspace_mib)
    joint = make_joint(workload, device, dtype)
    return Step(make_implementation(row, joint, workload), make_batch(workload, device, dtype))


if __name__ == "__main__":
    main()
