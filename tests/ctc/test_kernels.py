"""The CUDA kernels on a machine without a GPU: run in numba's simulator, and compiled to PTX; each in a process of its
own, since the simulator has to be switched on before numba is imported."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent


def run(script, **environment):
    path = os.pathsep.join([str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")])
    kept = {name: value for name, value in os.environ.items() if name != "NUMBA_ENABLE_CUDASIM"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(HERE / script)],
        env=kept | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path} | environment,
        capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr[-8000:]
    return done.stdout.splitlines()


def test_cases_in_the_simulator():
    lines = run("ctc_simulator_cases.py", NUMBA_ENABLE_CUDASIM="1")
    assert sum(line.startswith("ok ") for line in lines) == 23


@pytest.mark.skipif(importlib.util.find_spec("numba_cuda") is None, reason="numba-cuda with NVRTC is not installed")
def test_kernels_compile_to_ptx():
    lines = run("ctc_ptx_cases.py")
    assert len(lines) == 5 * 7 + 1  # storage types x kernels, and the survey
    for line in lines:
        # Octets are local arrays in the source; where one lies in memory, its kernel is several times slower.
        if not line.startswith("float64 lattice"):
            assert ", 0 accesses of local memory" in line, line
        # A constant of Python's would widen the inner loop.
        if " scores: " in line and not line.startswith("float64"):
            assert ": 0 float64 instructions" in line, line
        if line.startswith("bfloat16 scores") or line.startswith("bfloat16 gradient"):
            assert int(line.split(", ")[-1].split()[0]) >= 6, line  # four frames' logits, and the offsets in two
