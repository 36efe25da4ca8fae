"""Time and memory of one training step."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from implementations import Implementation
from workloads import Batch

from nemo_sampled_rnnt.memory import peak_memory

SECONDS = {"cpu": 10.0, "cuda": 0.8}  # spent on the repeats of one measurement
REPEATS = {"cpu": (3, 5), "cuda": (5, 50)}  # at least, at most


@dataclass
class Step:
    """Forward and backward of projections, joint and loss, from encoder and predictor outputs."""

    implementation: Implementation
    batch: Batch

    def __call__(self) -> torch.Tensor:
        self.forget_gradients()
        loss = self.implementation(self.batch)
        loss.backward()
        return loss.detach()

    @property
    def leaves(self) -> list[torch.Tensor]:
        return [*self.batch.inputs, *self.implementation.joint.parameters()]

    def forget_gradients(self) -> None:
        for leaf in self.leaves:
            leaf.grad = None

    def gradient_bytes(self) -> int:
        return sum(leaf.grad.nbytes for leaf in self.leaves if leaf.grad is not None)


def step_memory(step: Step) -> tuple[float, float]:
    """Peak memory in MiB, (beside the gradients, with them); call after a warm-up step.

    Counted is what torch has allocated since the start of forward and not yet freed: projections, hidden, logits,
    workspace, lattice, gradients. Not counted is what was there before: inputs, weights, and on CUDA the cuBLAS
    workspace; nor, on the CPU, what NumPy takes for itself. With gradients: the peak of the whole step. Beside them:
    the larger of that less the gradients of inputs and parameters left at its end, and of the peak of forward alone,
    when none of those is there yet.
    """
    device = step.batch.encoder.device
    step.forget_gradients()
    with peak_memory(device) as forward:
        step.implementation(step.batch)
    with peak_memory(device) as whole:
        step()
    return max(forward.mib, whole.mib - step.gradient_bytes() / 2**20), whole.mib


def median_ms(step: Callable[[], object], device: torch.device) -> float:
    """Median of several runs after one to warm up: CUDA events on a GPU, the wall clock on a CPU."""
    step()
    first = times_ms(step, device, 1)
    least, most = REPEATS[device.type]
    repeats = max(least, min(most, int(1e3 * SECONDS[device.type] / max(first[0], 1e-3))))
    return statistics.median(first + times_ms(step, device, repeats - 1))


def times_ms(step, device: torch.device, repeats: int) -> list[float]:
    """Milliseconds of each run."""
    if device.type == "cuda":
        events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
        torch.cuda.synchronize(device)
        for start, end in events:
            start.record()
            step()
            end.record()
        torch.cuda.synchronize(device)
        return [start.elapsed_time(end) for start, end in events]
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        step()
        times.append(1e3 * (time.perf_counter() - start))
    return times
