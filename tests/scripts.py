"""Start a script as a user does, with a config shrunk by overrides only."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
ON_CPU = [
    "trainer.accelerator=cpu", "trainer.devices=1", "trainer.strategy=auto", "trainer.sync_batchnorm=false",
    "trainer.max_steps=2", "trainer.max_epochs=1", "model.train_ds.max_duration=20",
    "model.train_ds.batch_size=3", "model.train_ds.num_workers=0", "model.validation_ds.batch_size=3",
    "model.validation_ds.num_workers=0",
]  # fmt: skip
SHRINK = [
    "size=small", "model.encoder.n_layers=1", "model.encoder.d_model=16", "model.encoder.n_heads=2",
    "model.encoder.subsampling_conv_channels=8", "model.model_defaults.pred_hidden=12",
    "model.model_defaults.joint_hidden=20", "model.joint.sampled_softmax.n_samples=7", *ON_CPU,
]  # fmt: skip


def start(*arguments) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment, timeout=400)


def run(*arguments) -> str:
    """What it printed; it has to succeed."""
    result = start(*arguments)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-6000:]
    return result.stdout + result.stderr
