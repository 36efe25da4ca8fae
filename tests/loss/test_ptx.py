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
    result = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True, env=environment, timeout=600)
    assert result.returncode == 0, result.stdout + result.stderr
    lines = result.stdout.splitlines()
    assert len(lines) == 4 * 6, result.stdout  # storage types x kernels
    single = [line for line in lines if line.startswith(("bfloat16 scores", "float32 scores", "float16 scores"))]
    assert len(single) == 3
    assert all(line.endswith("float64 instructions 0") for line in single), single  # no constant widens the inner loop
