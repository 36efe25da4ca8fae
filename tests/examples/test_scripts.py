"""The example scripts as a user starts them: tokenizer, then training, each config shrunk by overrides only."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import make_speech

ROOT = Path(__file__).parents[2]
SHRINK = [
    "size=small", "model.encoder.n_layers=1", "model.encoder.d_model=16", "model.encoder.n_heads=2",
    "model.encoder.subsampling_conv_channels=8", "model.model_defaults.pred_hidden=12",
    "model.model_defaults.joint_hidden=20", "model.joint.sampled_softmax.n_samples=7",
    "model.train_ds.batch_size=3", "model.train_ds.num_workers=0", "model.validation_ds.batch_size=3",
    "model.validation_ds.num_workers=0", "model.train_ds.max_duration=20",
    "trainer.accelerator=cpu", "trainer.devices=1", "trainer.strategy=auto", "trainer.sync_batchnorm=false",
    "trainer.max_steps=2", "trainer.max_epochs=1",
]  # fmt: skip


def run(*arguments):
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    result = subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, env=environment, timeout=400
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-6000:]
    return result.stdout + result.stderr


@pytest.fixture(scope="module")
def speech(tmp_path_factory):
    return make_speech(tmp_path_factory.mktemp("speech"))


@pytest.fixture(scope="module")
def tokenizer(speech, tmp_path_factory):
    root = tmp_path_factory.mktemp("tokenizers")
    run("examples/process_asr_text_tokenizer.py", f"--manifest={speech}", f"--data_root={root}", "--vocab_size=40",
        "--tokenizer=spe", "--spe_type=bpe", "--spe_character_coverage=1.0")  # fmt: skip
    (folder,) = root.glob("tokenizer_*")
    return folder


def test_tokenizer(tokenizer):
    pieces = (tokenizer / "tokenizer.vocab").read_text().splitlines()
    assert len(pieces) == 40
    assert {"tokenizer.model", "vocab.txt"} <= {path.name for path in tokenizer.iterdir()}


@pytest.mark.parametrize("config", ["conformer_transducer_bpe_sampled", "fastconformer_transducer_bpe_sampled"])
def test_training(config, speech, tokenizer, tmp_path):
    output = run(
        "examples/speech_to_text_rnnt_bpe.py", f"--config-name={config}", *SHRINK,
        f"model.train_ds.manifest_filepath={speech}", f"model.validation_ds.manifest_filepath={speech}",
        f"model.tokenizer.dir={tokenizer}", "model.tokenizer.type=bpe", f"exp_manager.exp_dir={tmp_path}",
    )  # fmt: skip
    assert list(tmp_path.rglob("*.nemo")), output[-3000:]
    assert list(tmp_path.rglob("events.out.tfevents*")), "no TensorBoard log"
