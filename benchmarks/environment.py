"""Where a number comes from: machine and versions, for every line of the results."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = {"torch": "torch", "nemo": "nemo_toolkit", "numba": "numba", "numba_cuda": "numba-cuda"}


def environment(device: str) -> dict[str, str | int]:
    """Columns ``machine``, ``cores``, one for each package, ``python``, ``commit``; touches no GPU."""
    return {
        "machine": _gpu_name() if device == "cuda" else _cpu_name(),
        "cores": os.cpu_count(),
        **{column: _version(package) for column, package in PACKAGES.items()},
        "python": platform.python_version(),
        "commit": _commit(),
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _gpu_name() -> str:
    command = ["nvidia-smi", "--id=0", "--query-gpu=name", "--format=csv,noheader"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def _cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else ():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def _commit() -> str:
    """Of the package; "+" if its files differ. Where there is no git, what BENCHMARK_COMMIT says."""
    root = Path(__file__).parents[1]
    try:
        commit = _git(root, "rev-parse", "--short", "HEAD")
        return commit + ("+" if _git(root, "status", "--porcelain", "nemo_sampled_rnnt") else "")
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("BENCHMARK_COMMIT", "")


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
