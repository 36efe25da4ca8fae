"""The results as a table, and what they say about ours against the others.

    python benchmarks/table.py benchmarks/results/loss_cpu.csv

prints those of a file.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterable

# Whom each of ours is compared with: those that do the same work, and what NeMo does without sampling.
RIVALS = {
    "exact": ["nemo_full", "flash_rnnt"],
    "sampled": ["nemo_sampled", "nemo_full"],
    "sampled_utterance": ["nemo_sampled", "nemo_full"],
}
COLUMNS = ["workload", "implementation", "negatives", "setting", "median_ms", "fresh_ms", "draw_ms", "peak_mib",
           "peak_with_gradients_mib", "floor_ms", "x floor", "loss", "check"]  # fmt: skip


def print_results(rows: list[dict]) -> None:
    """The table, then a line for each ratio; none for an implementation whose loss or gradient is off."""
    lines = [COLUMNS] + [[_cell(row, column) for column in COLUMNS] for row in rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    print()
    for line in ratios(rows):
        print(line)


def ratios(rows: list[dict]) -> Iterable[str]:
    for row in rows:
        for rival_name in RIVALS.get(row["implementation"], ()):
            rivals = [r for r in rows if (r["workload"], r["implementation"]) == (row["workload"], rival_name)]
            if rivals:
                ours = f"{row['workload']} {row['implementation']} ({setting(row)}) against"
                yield f"{ours} {_compared(row, min(rivals, key=_speed))}"
        yield from _against_itself(row, rows)
        yield from _against_plain(row, rows)


def _against_itself(row: dict, rows: list[dict]) -> Iterable[str]:
    """What a small workspace costs."""
    same = [r for r in rows if all(r[key] == row[key] for key in ("workload", "implementation"))]
    largest = max(same, key=lambda r: int(r.get("workspace_mib") or 0))
    if largest is not row and row.get("workspace_mib") and measured(row) and measured(largest):
        slower = f"{_speed(row) / _speed(largest):.2f} times the time of {setting(largest)}"
        yield f"{row['workload']} {row['implementation']} ({setting(row)}): {slower}"


def _against_plain(row: dict, rows: list[dict]) -> Iterable[str]:
    """What durations cost over plain RNN-T of the same size."""
    plain = row["workload"].removesuffix("_tdt")
    for other in rows:
        if row["workload"] != plain == other["workload"] and row["implementation"] != "floor":
            same = (row["implementation"], setting(row)) == (other["implementation"], setting(other))
            if same and measured(row) and measured(other):
                slower = f"{_speed(row) / _speed(other):.3f} times the time of {plain}"
                yield f"{row['workload']} {row['implementation']} ({setting(row)}): {slower}"


def setting(row: dict) -> str:
    if row.get("workspace_mib"):
        return f"{row['workspace_mib']} MiB"
    return f"sub-batches of {row['fused_batch_size']}" if row.get("fused_batch_size") else ""


def measured(row: dict) -> bool:
    return row["status"] == "ok"


def _speed(row: dict) -> float:
    return float(row["median_ms"]) if measured(row) else float("inf")


def _compared(row: dict, rival: dict) -> str:
    name = f"{rival['implementation']} ({setting(rival)})"
    for one, called in ((row, "ours"), (rival, name)):
        if not measured(one):
            return f"{name}: no ratio, {called}: {one['status']}"
        if one["check"] != "ok":
            return f"{name}: no ratio, {called} is {one['check']}"
    faster = _speed(rival) / _speed(row)
    memory = float(row["peak_mib"]) / float(rival["peak_mib"])
    return f"{name}: {faster:.2f} times faster, {memory:.3f} of its peak"


def _cell(row: dict, column: str) -> str:
    if column == "setting":
        return setting(row)
    if column == "x floor":
        if not measured(row):
            return ""
        return "off" if row["check"] != "ok" else f"{_speed(row) / float(row['floor_ms']):.2f}"
    if column == "median_ms" and not measured(row):
        return row["status"]
    if column == "check":
        return row["check"].split(" (")[0]
    if column == "loss" and row.get("loss"):
        return f"{float(row['loss']):.4f}"
    return str(row.get(column, ""))


if __name__ == "__main__":
    with open(sys.argv[1], newline="") as file:
        print_results(list(csv.DictReader(file)))
