"""The TDT kernels without a GPU: in numba's simulator, and compiled to PTX; each in a process of its own."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent


def run(script, simulated):
    path = os.pathsep.join([str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")])
    environment = {k: v for k, v in os.environ.items() if k != "NUMBA_ENABLE_CUDASIM"}
    environment |= {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"} | ({"NUMBA_ENABLE_CUDASIM": "1"} if simulated else {})
    command = [sys.executable, "-W", "ignore", str(HERE / script)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr[-8000:]
    return done.stdout.splitlines()


def test_cases_in_the_simulator():
    lines = run("tdt_simulator_cases.py", simulated=True)
    assert len([line for line in lines if line.startswith("ok ")]) == 19, lines


@pytest.mark.skipif(importlib.util.find_spec("numba_cuda") is None, reason="numba-cuda with NVRTC is not installed")
def test_kernels_compile_to_ptx():
    lines = run("tdt_ptx_cases.py", simulated=False)
    assert len(lines) == 4 * 4, lines  # storage types x kernels
    for line in lines:
        if not line.startswith("float64"):
            # What waits for the frames to come lies in registers only if every loop over durations is unrolled.
            assert ", 0 accesses of local memory" in line, line
