"""Who imports whom: numerics and samplers know no NeMo, and importing the package is cheap."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import nemo_sampled_rnnt

PACKAGE = Path(nemo_sampled_rnnt.__file__).parent
LAYERS = {
    "gpu": {"gpu"},
    "loss": {"loss", "gpu"},
    "ctc": {"ctc", "loss", "gpu"},
    "sampling": {"sampling", "gpu"},
    "meter": {"meter", "loss", "sampling", "gpu"},
    "modules": {"modules", "loss", "sampling", "meter", "gpu", "joint_memory"},
}


def imports(path: Path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module


@pytest.mark.parametrize("layer", LAYERS)
def test_imports_run_one_way(layer):
    for path in (PACKAGE / layer).rglob("*.py"):
        for name in imports(path):
            if name.startswith("nemo_sampled_rnnt."):
                assert name.split(".")[1] in LAYERS[layer], f"{path} imports {name}"
            if layer != "modules":
                assert name.split(".")[0] not in ("nemo", "lightning", "omegaconf"), f"{path} imports {name}"


def test_importing_the_package_imports_no_nemo():
    code = (
        "import sys, nemo_sampled_rnnt, nemo_sampled_rnnt.loss, nemo_sampled_rnnt.ctc, nemo_sampled_rnnt.sampling;"
        "import nemo_sampled_rnnt.meter;"
        "found = [m for m in sys.modules if m.split('.')[0] in ('nemo', 'lightning', 'omegaconf')];"
        "assert not found, found"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_importing_the_package_is_quick():
    """It loads not even torch; and the loss adds little to what torch takes."""
    code = (
        "import sys, time; start = time.perf_counter(); import nemo_sampled_rnnt;"
        "package = time.perf_counter() - start;"
        "assert 'torch' not in sys.modules; import torch; start = time.perf_counter();"
        "nemo_sampled_rnnt.sampled_rnnt_loss; print(package, time.perf_counter() - start)"
    )
    runs = [subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True) for _ in range(2)]
    package, loss = (min(seconds) for seconds in zip(*(map(float, run.stdout.split()) for run in runs), strict=True))
    print(f"import of the package: {package:.3f} s; of the loss, after torch: {loss:.3f} s")
    assert package < 0.5 and package + loss < 1.0
