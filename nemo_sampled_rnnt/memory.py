"""Measured peak memory of a block of code, on CPU and GPU alike."""

from __future__ import annotations

import gc
from dataclasses import dataclass

import torch


@dataclass
class Peak:
    """The result, valid after the block.

    Attributes:
        bytes: largest sum of tensor memory allocated within the block and not yet freed.
    """

    bytes: int = 0

    @property
    def mib(self) -> float:
        return self.bytes / 2**20


class peak_memory:  # noqa: N801 - reads as a statement: with peak_memory("cpu") as peak
    """Measure what torch allocates within the block, over what it held before.

    On CUDA: the caching allocator's peak. On the CPU: the running sum of the allocations and frees that torch's
    profiler records; memory that NumPy or numba take for themselves is not seen.

    Args:
        device: "cpu", "cuda" or a torch.device.
    """

    def __init__(self, device: torch.device | str = "cpu"):
        self.device = torch.device(device)

    def __enter__(self) -> Peak:
        self.peak = Peak()
        gc.collect()  # what is garbage already would be freed within the block, and make room there
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
            self._before = torch.cuda.memory_allocated(self.device)
        else:
            self._profiler = torch.profiler.profile(
                activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
            )
            self._profiler.__enter__()
        return self.peak

    def __exit__(self, *failure) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            self.peak.bytes = torch.cuda.max_memory_allocated(self.device) - self._before
            return
        self._profiler.__exit__(*failure)
        events = [event for event in self._profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
        held = 0
        for event in sorted(events, key=lambda event: event.start_ns()):
            held += event.nbytes()
            self.peak.bytes = max(self.peak.bytes, held)
