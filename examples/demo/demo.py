"""The demo: speak a corpus, train a Conformer-Transducer with sampled and with exact softmax, and compare them.

    python examples/demo/demo.py            about four minutes on two cores; everything goes to demo_out/
    python examples/demo/demo.py --model tdt    the same with a TDT model: tokens and durations

It speaks sentences composed here, trains a tokenizer of 512 pieces, warms a stock CTC model up, and trains two
transducers from it: one on 64 negatives an utterance, drawn by the CTC head, and one on the whole vocabulary. It
prints held-out word error rates, the joint's memory and three transcripts, and leaves `demo.nemo` and `losses.png`. It
fails if the sampled model's error rate is above 5 %, or more than 3 points above the exact one's.
"""

import argparse
import json
import logging
import os
import subprocess
import sys
import time
import warnings
from pathlib import Path

from rich.console import Console
from rich.table import Table
from speak import speak

EXAMPLES = Path(__file__).resolve().parents[1]
CONFIGS = EXAMPLES.parent / "configs"
PIECES = 512
UTTERANCES = 8  # in the memory measurement: NeMo's CPU loss is Python, and slow under a profiler

console = Console()


def train_tokenizer(manifest, out):
    """Call the project's tokenizer script, and return the tokenizer's folder."""
    options = {"manifest": manifest, "data_root": out, "vocab_size": PIECES, "tokenizer": "spe", "spe_type": "bpe"}
    script = EXAMPLES / "process_asr_text_tokenizer.py"
    subprocess.run([sys.executable, script, *(f"--{key}={value}" for key, value in options.items())], check=True)
    return out / f"tokenizer_spe_bpe_v{PIECES}"


def quiet():
    """Leave the screen to the demo: NeMo, Lightning and torch's profiler are chatty. Call it before torch comes."""
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    os.environ |= {"KINETO_LOG_LEVEL": "99", "TORCH_CPP_LOG_LEVEL": "ERROR"}


def read(manifest):
    """The entries of a manifest."""
    return [json.loads(line) for line in manifest.read_text().splitlines()]


def transcribe(model, entries):
    """What NeMo's decoding hears in the entries' audio files."""
    files = [entry["audio_filepath"] for entry in entries]
    return [hypothesis.text for hypothesis in model.transcribe(files, batch_size=32, num_workers=0, verbose=False)]


def main(out, tdt=False):
    """Run every step; all output goes to the folder `out`."""
    started = time.perf_counter()
    console.rule("1  speak the corpus, train the tokenizer")
    manifests = speak(out / "data")
    tokenizer = train_tokenizer(manifests["train"], out / "tokenizers")

    console.rule("2  warm up a stock NeMo CTC model")
    quiet()
    import plot  # here and not above, because NeMo takes seconds to import
    import torch
    import train
    from features import cached
    from joint_memory import step_memory, stock_model
    from nemo.collections.asr.metrics.wer import word_error_rate
    from omegaconf import OmegaConf

    from nemo_sampled_rnnt.models import EncDecSampledRNNTBPEModel

    torch.set_num_threads(1)  # a second one saves a quarter; on a busy machine its waiting costs five times the time
    device = "cuda" if torch.cuda.is_available() else "cpu"
    cfg = OmegaConf.load(CONFIGS / "demo.yaml")
    if tdt:
        cfg = OmegaConf.merge(cfg, OmegaConf.load(CONFIGS / "tdt.yaml"))
    cfg.model.train_ds.manifest_filepath = str(manifests["train"])
    cfg.model.validation_ds.manifest_filepath = str(manifests["validation"])
    cfg.model.tokenizer.dir = str(tokenizer)
    cfg.trainer.accelerator = device

    warm = train.ctc_model(cfg)
    loaders = cached(warm, warm.train_dataloader(), shuffle=True), cached(warm, warm.val_dataloader(), shuffle=False)
    train.fit(warm, train.warm_up_trainer(cfg), loaders, "CTC warm-up", "loss")

    console.rule("3  train both transducers")
    models, curves = {}, {}
    for name, sampled_softmax in {"sampled": cfg.model.joint.sampled_softmax, "exact": None}.items():
        models[name] = train.transducer(cfg, warm, sampled_softmax)
        curves[name] = train.fit(models[name], cfg.trainer, loaders, f"{name} softmax", "rnnt_loss")
        models[name].to(device)  # Lightning has put it back on the CPU
    plot.losses(curves, out / "losses.png")

    console.rule("4  held-out sentences")
    held_out = read(manifests["test"])
    references = [entry["text"] for entry in held_out]
    batch = max(loaders[0].dataset, key=lambda batch: batch[0].shape[-1]).first(UTTERANCES)
    memory = {name: step_memory(model, batch) for name, model in models.items()}
    if not tdt or device == "cuda":  # NeMo has no TDT loss on the CPU
        memory["NeMo's stock joint"] = step_memory(stock_model(models["exact"], UTTERANCES), batch)
    errors = {name: word_error_rate(transcribe(model, held_out), references) for name, model in models.items()}

    words = sum(len(reference.split()) for reference in references)
    table = Table("joint", f"WER on {words} words", "training", f"peak memory, one step of {UTTERANCES} utterances")
    for name, mib in memory.items():
        wer = f"{100 * errors[name]:.2f} %" if name in errors else "-"
        seconds = f"{curves[name].seconds:.0f} s" if name in curves else "-"
        table.add_row(name, wer, seconds, f"{mib:.1f} MiB")
    console.print(table)

    models["sampled"].save_to(str(out / "demo.nemo"))
    restored = EncDecSampledRNNTBPEModel.restore_from(str(out / "demo.nemo"), map_location=device)
    for entry, text in zip(held_out[:3], transcribe(restored, held_out[:3]), strict=True):
        console.print(f"{Path(entry['audio_filepath']).name}\n  said   {entry['text']}\n  heard  {text}")
    console.print(f"\nleft {out / 'demo.nemo'} and {out / 'losses.png'}; {time.perf_counter() - started:.0f} s")
    if errors["sampled"] > min(0.05, errors["exact"] + 0.03):
        sys.exit("expected at most 5 % WER of the sampled model, and at most 3 points more than of the exact one")


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--out", default="demo_out", type=Path)
    arguments.add_argument("--model", default="rnnt", choices=["rnnt", "tdt"])
    options = arguments.parse_args()
    main(options.out, options.model == "tdt")
