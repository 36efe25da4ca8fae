"""One row of the results, measured in the process that calls it."""

from __future__ import annotations

import gc
import statistics

import torch
from check import check
from floor import make_floor
from implementations import OURS, Row, make_implementation
from measure import Step, median_ms, step_memory, times_ms
from workloads import WORKLOADS, make_batch, make_joint

KNOWN, FRESH = 8, 9  # batches that are no longer, and that are still unknown when they are timed
OUT_OF_MEMORY = "out of memory"


class Prepared:
    """A row whose implementation is built, compiled and checked; what is left is to measure it.

    Args:
        row: the row.
        device, dtype: of inputs and weights.
    """

    def __init__(self, row: Row, device: torch.device, dtype: torch.dtype):
        self.row, self.device, self.workload = row, device, WORKLOADS[row.workload]
        self.batch = make_batch(self.workload, device, dtype)
        self.implementation, self.checked = None, {"check": "ok"}
        if row.implementation == "floor":
            return
        try:
            self.implementation = make_implementation(row, make_joint(self.workload, device, dtype), self.workload)
            self.checked = check(self.implementation, self.implementation.joint, self.workload)
        except torch.OutOfMemoryError:
            self.checked = {"check": "not done (the float64 truth is out of memory)"}
        _free(device)

    def measure(self) -> dict:
        """Time, memory and errors; what could not be measured is missing, and ``check`` or ``status`` say why."""
        floor = _rounded(median_ms(make_floor(self.row, self.workload, self.batch), self.device))
        _free(self.device)
        result = {"floor_ms": floor, "status": "ok", **self.checked}
        if self.row.implementation == "floor":
            return result | {"median_ms": floor}
        try:
            if self.implementation is not None:
                return result | self._measure_step()
        except torch.OutOfMemoryError:
            pass
        return {"floor_ms": floor, "status": OUT_OF_MEMORY}

    def _measure_step(self) -> dict:
        step = Step(self.implementation, self.batch)
        times = {"median_ms": _rounded(median_ms(step, self.device))}
        if self.device.type == "cuda":
            times["fresh_ms"] = self._fresh_ms()
        if self.row.implementation in OURS and self.row.scope is not None:
            draw = median_ms(lambda: self.implementation.negatives(self.batch), self.device)
            times["draw_ms"] = _rounded(draw)
        peak, whole = step_memory(step)
        loss = float(step())
        step.forget_gradients()
        return {**times, "peak_mib": round(peak, 1), "peak_with_gradients_mib": round(whole, 1), "loss": loss}

    def _fresh_ms(self) -> float | None:
        """Median of the first steps on some batches of other lengths, after others to warm up; None: no memory left."""
        dtype = self.batch.encoder.dtype
        try:
            batches = [make_batch(self.workload, self.device, dtype, number=1 + i) for i in range(KNOWN + FRESH)]
            steps = iter([Step(self.implementation, batch) for batch in batches])
            times_ms(lambda: next(steps)(), self.device, KNOWN)
            return _rounded(statistics.median(times_ms(lambda: next(steps)(), self.device, FRESH)))
        except torch.OutOfMemoryError:
            return None


def _free(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _rounded(milliseconds: float) -> float:
    return float(f"{milliseconds:.4g}")
