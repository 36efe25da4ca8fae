"""The fine-tuning experiment in miniature: a stock model trained, fine-tuned, exported, and opened by stock NeMo."""

import csv

from scripts import ROOT, run
from tiny import make_speech

STOCK = [
    "sizes.base.d_model=16", "sizes.base.n_heads=2", "sizes.base.n_layers=1", "sizes.base.hidden=20",
    "model.encoder.subsampling_conv_channels=8", "model.preprocessor.features=16", "model.train_ds.batch_size=3",
    "model.joint.fused_batch_size=3", "trainer.accelerator=cpu", "trainer.precision=32", "trainer.max_steps=4",
    "trainer.val_check_interval=2", "seed=3",
]  # fmt: skip
TUNE = [
    "trainer.accelerator=cpu", "trainer.precision=32", "trainer.max_epochs=2", "trainer.check_val_every_n_epoch=1",
    "model.train_ds.batch_size=3", "model.train_ds.num_workers=0", "model.optim.sched.warmup_steps=1",
    "model.joint.sampled_softmax.n_samples=7", "trainer.log_every_n_steps=1",
]  # fmt: skip


def test_miniature(tmp_path):
    corpus = tmp_path / "corpus"
    for name in ("train", "test"):
        make_speech(corpus, 6, name).rename(corpus / f"manifest_{name}.json")
    output = run(
        ROOT / "benchmarks/finetune/main.py", corpus, "--work", tmp_path / "work", "--out", tmp_path, "--vocabulary=41",
        *(f"--stock={override}" for override in STOCK), *(f"--tune={override}" for override in TUNE),
    )  # fmt: skip
    assert "step 4:" in output and "than before:" in output and "expected a trained stock model" in output
    assert "nemo.collections.asr.models.rnnt_bpe_models.EncDecRNNTBPEModel" in output, "what stock NeMo opened"
    with open(tmp_path / "finetune_an4.csv", newline="") as file:
        stock, tuned = csv.DictReader(file)
    assert stock["model"] == "stock" and tuned["model"] == "tuned"
    assert stock["length"] == tuned["length"] and stock["utterances"] == "6"
    assert float(stock["low"]) <= float(stock["wer"]) <= float(stock["high"])
    assert stock["better"] == "" and 0 <= float(tuned["better"]) <= 1
