"""Other people's NeMo: the processes, without this package, in which exported files are opened."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
OTHER = os.environ.get("OTHER_PYTHON")  # of an environment with another NeMo and without this package
PYTHONS = [
    pytest.param(sys.executable, id="this_nemo"),
    pytest.param(OTHER, id="other_nemo", marks=pytest.mark.skipif(not OTHER, reason="OTHER_PYTHON is not set")),
]


def examine(python: str, folder: Path, out: Path, wav_files: list[str] = ()) -> dict:
    """What stock NeMo finds in each ``.nemo`` of a folder; without ``wav_files`` it only counts its tensors."""
    environment = os.environ | {"PYTHONPATH": str(TESTS)}
    command = [python, TESTS / "stock_process.py", folder, out, *wav_files]
    done = subprocess.run(command, env=environment, cwd=out, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    found = json.loads((out / "found.json").read_text())
    print(f"opened by NeMo {found['nemo']}, {python}")
    return found["models"]
