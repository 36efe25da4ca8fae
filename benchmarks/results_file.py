"""CSV files of results, which grow line by line."""

from __future__ import annotations

import csv
from pathlib import Path


def append(path: Path, columns: list[str], row: dict) -> None:
    """Add a row, and before the first one the header; what the row does not have stays empty.

    Raises:
        ValueError: as :func:`check`.
    """
    check(path, columns)
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    with open(path, "a", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="", extrasaction="ignore")
        if new:
            writer.writeheader()
        writer.writerow(row)


def check(path: Path, columns: list[str]) -> None:
    """Before hours of measuring: can the rows go into this file?

    Raises:
        ValueError: it holds other columns.
    """
    if not path.exists():
        return
    with open(path, newline="") as file:
        there = next(csv.reader(file), [])
    if there != columns:
        differing = sorted(set(there) ^ set(columns)) or "the same in another order"
        raise ValueError(f"{path} has other columns ({differing}): give another file, or delete this one")
