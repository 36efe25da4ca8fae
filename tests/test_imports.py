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
