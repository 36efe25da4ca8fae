"""The lines of results/sampling_h200.csv: what sampling costs, drawing and the CTC head."""

from __future__ import annotations

import csv
from pathlib import Path

COLUMNS = ["what", "implementation", "setting", "median_ms", "peak_mib", "floor_ms", "machine", "cores", "torch",
           "nemo", "numba", "numba_cuda", "python", "commit", "command"]  # fmt: skip


def append(path: Path, row: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    with open(path, "a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="", extrasaction="ignore")
        if new:
            writer.writeheader()
        writer.writerow(row)
