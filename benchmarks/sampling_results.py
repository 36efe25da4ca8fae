"""The lines of results/sampling_*.csv: what drawing, the CTC head and a whole step cost."""

from __future__ import annotations

from pathlib import Path

import results_file

COLUMNS = ["what", "implementation", "setting", "median_ms", "peak_mib", "floor_ms", "machine", "cores", "torch",
           "nemo", "numba", "numba_cuda", "python", "commit", "command"]  # fmt: skip


def append(path: Path, row: dict) -> None:
    results_file.append(path, COLUMNS, row)
