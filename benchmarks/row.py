"""One row of the results, measured in the process that calls it."""

from __future__ import annotations

import gc

import torch
from check import check
from floor import make_floor
from implementations import OURS, Row, make_implementation
from measure import Step, median_ms, step_memory
from workloads import WORKLOADS, Workload, make_batch, make_joint

OUT_OF_MEMORY = "out of memory"


def measure_row(row: Row, device: torch.device, dtype: torch.dtype) -> dict:
    """Time, memory and errors of a row; what could not be measured is missing, and ``check`` or ``status`` say why."""
    workload = WORKLOADS[row.workload]
    batch = make_batch(workload, device, dtype)
    result = {"floor_ms": _rounded(median_ms(make_floor(row, workload, batch), device)), "status": "ok"}
    _free(device)
    if row.implementation == "floor":
        return {**result, "median_ms": result["floor_ms"], "check": "ok"}
    joint = make_joint(workload, device, dtype)
    try:
        implementation = make_implementation(row, joint, workload)
        result |= _measure_step(row, Step(implementation, batch), device)
    except torch.OutOfMemoryError:
        return {**result, "status": OUT_OF_MEMORY}
    _free(device)
    return result | _checked(implementation, joint, workload)


def _measure_step(row: Row, step: Step, device: torch.device) -> dict:
    times = {"median_ms": _rounded(median_ms(step, device))}
    if row.implementation in OURS and row.scope is not None:
        times["draw_ms"] = _rounded(median_ms(lambda: step.implementation.negatives(step.batch), device))
    peak, peak_with_gradients = step_memory(step)
    loss = float(step())
    step.forget_gradients()
    return {**times, "peak_mib": round(peak, 1), "peak_with_gradients_mib": round(peak_with_gradients, 1), "loss": loss}


def _checked(implementation, joint, workload: Workload) -> dict:
    try:
        return check(implementation, joint, workload)
    except torch.OutOfMemoryError:
        return {"check": "not done (the float64 truth is out of memory)"}


def _free(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _rounded(milliseconds: float) -> float:
    return float(f"{milliseconds:.4g}")
