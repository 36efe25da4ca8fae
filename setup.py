"""Install: pip install nemo_sampled_rnnt[cu13] (or [cu12], or without an extra for the CPU)."""

from pathlib import Path

from setuptools import find_packages, setup

NUMBA_CUDA = "numba-cuda[{}]>=0.30.4"  # numba's built-in CUDA target is frozen at CUDA 11.7
DEMO = ["espeakng-loader==0.2.4", "matplotlib", "rich", "soundfile"]

setup(
    name="nemo_sampled_rnnt",
    version="0.1.0",
    description="Memory-efficient training of RNN-Transducers with sampled softmax, for NVIDIA NeMo",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["nemo_sampled_rnnt", "nemo_sampled_rnnt.*"]),
    python_requires=">=3.10",
    entry_points={"console_scripts": ["nemo-sampled-rnnt = nemo_sampled_rnnt.cli:main"]},
    install_requires=[
        "click",
        "lightning",
        "nemo_toolkit[asr]>=2.7.3,<3.1",
        "numba",
        "numpy<2.5",  # numba-cuda 0.30 uses np.row_stack, which 2.5 removed
        "omegaconf",
        "sentencepiece",
        "torch>=2.6",
        "tqdm",
        "wrapt",
    ],
    extras_require={
        "cu12": [NUMBA_CUDA.format("cu12")],
        "cu13": [NUMBA_CUDA.format("cu13")],
        "demo": DEMO,
        "dev": [
            *DEMO,
            NUMBA_CUDA.format("cu13"),  # compiles the kernels to PTX on a machine without a GPU
            "onnx",
            "onnxscript",
            "pytest",
            "pytest-timeout",
            "pytest-xdist",
            "ruff",
        ],
    },
)
