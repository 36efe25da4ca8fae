"""The CUDA kernels in numba's simulator, which has to be switched on before numba is imported: a process of its own."""

import os
import subprocess
import sys
from pathlib import Path


def test_cases_in_the_simulator():
    here = Path(__file__).resolve().parent
    path = os.pathsep.join([str(here.parents[1]), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "NUMBA_ENABLE_CUDASIM": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(here / "simulator_cases.py")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr[-8000:]
    assert done.stdout.count("ok ") >= 30
