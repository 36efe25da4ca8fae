"""A Conformer-Transducer as large as the published ones: in, three sampled steps, out, and opened by stock NeMo."""

import re
import tempfile
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import stock_nemo
from listening import fingerprints
from nemo.collections.asr.models import EncDecRNNTBPEModel
from omegaconf import OmegaConf
from scripts import ON_CPU, ROOT, run
from tiny import make_speech

from nemo_sampled_rnnt.stock import stock_config

PIECES = 1024
HEAD = {"ctc_decoder.decoder_layers.0.weight", "ctc_decoder.decoder_layers.0.bias"}
EXPORT = """
import sys
from nemo_sampled_rnnt.cli import main

def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))

before = peak()
main(sys.argv[1:], standalone_mode=False)
print("KiB", peak() - before)
"""


@pytest.fixture(scope="module")
def folder():
    """Emptied at the end: pytest would keep these gigabytes."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def tokenizer(folder):
    random = np.random.default_rng(0)
    words = ["".join(random.choice(list("abcdefghijklmnopqrstuvwxyz"), 7)) for _ in range(2000)]
    (folder / "text.txt").write_text("\n".join(words))
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text.txt"), model_prefix=str(folder / "tokenizer"), vocab_size=PIECES, model_type="bpe",
        minloglevel=2,
    )  # fmt: skip
    pieces = [line.split("\t")[0] for line in (folder / "tokenizer.vocab").read_text().splitlines()]
    (folder / "vocab.txt").write_text("\n".join(pieces[1:]))
    return folder


@pytest.fixture(scope="module")
def original(folder, tokenizer):
    """Fingerprints of a stock model with random weights, saved as published.nemo."""
    config = OmegaConf.load(ROOT / "configs" / "conformer_transducer_bpe_sampled.yaml")
    config.model.tokenizer.dir = str(tokenizer)
    OmegaConf.resolve(config)
    config = stock_config(config.model)
    for data in ("train_ds", "validation_ds", "test_ds"):
        config.pop(data)
    model = EncDecRNNTBPEModel(config)
    assert 115e6 < model.num_weights < 125e6
    model.save_to(str(folder / "published.nemo"))
    return fingerprints(model)


@pytest.fixture(scope="module")
def exported(folder, original):
    """A folder with hybrid.nemo, from the end of a fine-tuning, and rnnt.nemo, from that by the command line.

    Returns the folder, and what the command said.
    """
    speech = make_speech(folder / "speech")
    out = folder / "out"
    callback = f"{{_target_:nemo_sampled_rnnt.callbacks.ExportStock,path:{out / 'hybrid.nemo'},hybrid:true}}"
    output = run(
        ROOT / "examples" / "speech_to_text_finetune.py", f"init_from_nemo_model={folder / 'published.nemo'}", *ON_CPU,
        f"model.train_ds.manifest_filepath={speech}", f"model.validation_ds.manifest_filepath={speech}",
        "trainer.max_steps=3", "trainer.max_epochs=2", "model.optim.sched.warmup_steps=1",
        "exp_manager.create_checkpoint_callback=false", f"exp_manager.exp_dir={folder}",
        f"+trainer.callbacks=[{callback}]",
    )  # fmt: skip
    assert "`max_steps=3` reached" in output and "2 new" in output
    return out, run("-c", EXPORT, "export", out / "hybrid.nemo", out / "rnnt.nemo")


def test_export_holds_one_copy_of_the_weights(exported):
    folder, said = exported
    assert "left out, 2 tensors of the CTC head" in said
    peak = 1024 * int(re.search(r"KiB (\d+)", said).group(1))
    assert peak < 1.1 * (folder / "rnnt.nemo").stat().st_size, f"{peak / 2**20:.0f} MiB"


@pytest.mark.parametrize("python", stock_nemo.PYTHONS)
def test_opens_in_stock_nemo(python, exported, original, folder):
    found = stock_nemo.examine(python, exported[0], folder)
    rnnt, hybrid = found["rnnt"]["tensors"], found["hybrid"]["tensors"]
    assert list(rnnt) == list(original)
    assert hybrid.keys() - rnnt.keys() == HEAD
    assert all(hybrid[name] == tensor for name, tensor in rnnt.items())
    untrained = [name for name, tensor in rnnt.items() if tensor == original[name]]
    assert all("featurizer" in name or "num_batches" in name for name in untrained), untrained
