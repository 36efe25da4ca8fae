"""Where the time of our step goes on a GPU: kernels by name, launches, and the host's share.

    python benchmarks/profile_step.py v16k_b16:exact v16k_b16:sampled v131k_b16:exact:4096

A row is WORKLOAD:IMPLEMENTATION[:WORKSPACE_MIB]. All rows run in one process, so times are not those of loss.py, which
measures each in a process of its own. ``step``: median between events; ``host``: until the last launch has been made,
with an idle GPU before; ``kernels``: their sum by torch's profiler, which also counts them. ``host a tile``: what the
host takes beyond a step in one tile, for each tile more, where there are some and one fits the GPU.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from dataclasses import replace

import torch
from floor import make_floor
from implementations import OURS, Row, make_implementation
from measure import Step, median_ms
from workloads import WORKLOADS, make_batch, make_joint

TILE = "::projection_gradients"  # the kernel that every tile has once
UNLIMITED = 2**20  # MiB


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="+", metavar="WORKLOAD:IMPLEMENTATION[:MIB]")
    parser.add_argument("--kernels", type=int, default=14, help="lines of the table of kernels")
    options = parser.parse_args()
    print(torch.cuda.get_device_name())
    for text in options.rows:
        workload, implementation, *mib = text.split(":")
        if implementation not in OURS:
            parser.error(f"{implementation} is not one of ours: {', '.join(OURS)}")
        profile(Row(workload, implementation, workspace_mib=int(mib[0]) if mib else 256), options.kernels)
        gc.collect()
        torch.cuda.empty_cache()


def profile(row: Row, lines: int) -> None:
    device = torch.device("cuda")
    workload = WORKLOADS[row.workload]
    batch = make_batch(workload, device, torch.bfloat16)
    floor = median_ms(make_floor(row, workload, batch), device)
    joint = make_joint(workload, device, torch.bfloat16)
    step = Step(make_implementation(row, joint, workload), batch)
    took = median_ms(step, device)
    host = host_ms(step)
    whole = host_in_one_tile(row, joint, workload, batch)
    steps = 3
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as record:
        for _ in range(steps):
            step()
        torch.cuda.synchronize()
    events = [event for event in record.key_averages() if event.self_device_time_total > 0]
    total = sum(event.self_device_time_total for event in events) / 1e3 / steps
    launches = sum(event.count for event in events) / steps
    tiles = sum(event.count for event in events if TILE in event.key) / steps
    a_tile = f"; host a tile {(host - whole) / (tiles - 1):.2f} of {tiles:.0f}" if whole and tiles > 1 else ""
    print(
        f"\n{row.workload} {row.implementation} {row.workspace_mib} MiB: step {took:.2f} ms = {took / floor:.2f} "
        f"floors of {floor:.2f}; host {host:.2f}; kernels {total:.2f} in {launches:.0f} launches{a_tile}"
    )
    for event in sorted(events, key=lambda event: -event.self_device_time_total)[:lines]:
        each = event.self_device_time_total / 1e3
        print(f"  {each / steps:8.3f} ms {event.count / steps:6.1f} x  {event.key[:90]}")


def host_ms(step: Step) -> float:
    """Median of the host's time, its last launch made."""
    times = []
    for _ in range(9):
        torch.cuda.synchronize()
        start = time.perf_counter()
        step()
        times.append(1e3 * (time.perf_counter() - start))
    torch.cuda.synchronize()
    return statistics.median(times)


def host_in_one_tile(row: Row, joint, workload, batch) -> float | None:
    """The same of a step whose workspace has no limit; None where the GPU is too small for it."""
    step = Step(make_implementation(replace(row, workspace_mib=UNLIMITED), joint, workload), batch)
    try:
        step()
        return host_ms(step)
    except torch.OutOfMemoryError:
        return None
    finally:
        del step
        gc.collect()
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
