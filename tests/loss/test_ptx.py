"""Every kernel compiles to PTX for the GPUs we support, on a machine without one."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("ptx_cases.py")


@pytest.mark.skipif(importlib.util.find_spec("numba_cuda") is None, reason="numba-cuda with NVRTC is not installed")
def test_kernels_compile_to_ptx():
    """In a process of its own: the simulator, if some test switched it on, would replace the compiler."""
    environment = {k: v for k, v in os.environ.items() if k != "NUMBA_ENABLE_CUDASIM"}
    environment["PYTHONPATH"] = os.pathsep.join([str(SCRIPT.parents[2]), os.environ.get("PYTHONPATH", "")])
    result = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True, env=environment, timeout=600)
    assert result.returncode == 0, result.stdout + result.stderr
    lines = result.stdout.splitlines()
    assert len(lines) == 5 * 5 + 6, result.stdout  # storage types x kernels, and six others
    for line in lines:
        # Octets are local arrays in the source; where one lies in memory, its kernel is several times slower.
        if not line.startswith("float64 gradient"):
            assert ", 0 accesses of local memory" in line, line
        # A constant of Python's would widen the inner loop.
        if " scores: " in line and not line.startswith("float64"):
            assert ": 0 float64 instructions" in line, line
