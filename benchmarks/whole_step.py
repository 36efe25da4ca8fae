"""A whole training step as the vocabulary grows: encoder, predictor, CTC head, sampled joint, backward, optimiser.

    python benchmarks/whole_step.py --out benchmarks/results/sampling_h200.csv

Lightning trains the model of configs/fastconformer_transducer_bpe_sampled.yaml, with characters for its pieces, in
bf16-mixed with fused AdamW, on one batch that is on the GPU already. Loss and head are the same for every vocabulary:
negatives drawn from the CTC posteriors, no tensor [B, T, V]. median_ms: from one step's end to the next's, CUDA events;
peak_mib: all that torch holds in a step, model and optimiser with it. Every row is measured in a process of its own.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import click
import lightning.pytorch as pl
import torch
from environment import environment
from omegaconf import OmegaConf
from sampling_results import append
from torch.utils.data import DataLoader

from nemo_sampled_rnnt.models import EncDecSampledRNNTModel

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "fastconformer_transducer_bpe_sampled.yaml"
RATE = 16000  # samples a second
ASKED = 1.4  # the largest vocabulary's step, in steps of the smallest


def build(vocabulary: int, negatives: int, size: str) -> EncDecSampledRNNTModel:
    """The config's model with characters for pieces."""
    config = OmegaConf.load(CONFIG)
    config.size = size
    for name in ("tokenizer", "train_ds", "validation_ds", "test_ds", "optim"):
        config.model.pop(name, None)
    OmegaConf.resolve(config)
    config.model.labels = [f"c{label}" for label in range(vocabulary)]
    config.model.joint.sampled_softmax.n_samples = negatives
    config.model.aux_ctc.memory_efficient = True
    return EncDecSampledRNNTModel(cfg=config.model)


class Clock(pl.Callback):
    """The time at the end of each step after `warm_up` of them."""

    def __init__(self, warm_up: int, device: torch.device):
        self.warm_up, self.device, self.marks, self.peak_mib = warm_up, device, [], 0.0

    def on_train_batch_end(self, trainer, model, outputs, batch, batch_idx):
        if trainer.global_step < self.warm_up:
            return
        if self.device.type == "cpu":
            self.marks.append(time.perf_counter())
            return
        if not self.marks:
            torch.cuda.reset_peak_memory_stats()
        self.marks.append(torch.cuda.Event(enable_timing=True))
        self.marks[-1].record()

    def on_train_end(self, trainer, model):
        if self.device.type == "cuda":
            torch.cuda.synchronize()
            self.peak_mib = torch.cuda.max_memory_allocated() / 2**20

    def median_ms(self) -> float:
        pairs = zip(self.marks, self.marks[1:], strict=False)
        on_cpu = self.device.type == "cpu"
        return statistics.median(1e3 * (end - start) if on_cpu else start.elapsed_time(end) for start, end in pairs)


def measure(vocabulary, negatives, size, batch, seconds, labels, steps, device) -> dict:
    """Median milliseconds of a step after as many to warm up, peak memory in MiB, parameters in millions."""
    device = torch.device(device)
    pl.seed_everything(0, verbose=False)
    model = build(vocabulary, negatives, size)
    samples = int(seconds * RATE)
    one = (
        0.1 * torch.randn(batch, samples, device=device),
        torch.full((batch,), samples, device=device),
        torch.randint(vocabulary, (batch, labels), device=device),
        torch.full((batch,), labels, device=device),
    )
    clock = Clock(steps, device)
    on_gpu = device.type == "cuda"
    trainer = pl.Trainer(
        accelerator="gpu" if on_gpu else "cpu", devices=1, max_steps=2 * steps,
        precision="bf16-mixed" if on_gpu else "32-true",  # torch's LSTM knows no bfloat16 on every CPU
        callbacks=[clock], logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, log_every_n_steps=10**6, limit_val_batches=0, num_sanity_val_steps=0,
    )  # fmt: skip
    model.set_trainer(trainer)
    model.configure_optimizers = lambda: model._optimizer
    model._optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    trainer.fit(model, DataLoader([one] * (2 * steps), batch_size=None))
    return {
        "median_ms": round(clock.median_ms(), 2),
        "peak_mib": round(clock.peak_mib, 1),
        "parameters": sum(parameter.numel() for parameter in model.parameters()) // 10**6,
    }


@click.command(help=__doc__.split("\n\n")[0])
@click.option("--vocabularies", default="1024,131072", show_default=True)
@click.option("--negatives", default=512, show_default=True)
@click.option("--size", default="medium", show_default=True)
@click.option("--batch", default=16, show_default=True)
@click.option("--seconds", default=16.0, show_default=True, help="Of audio, each utterance.")
@click.option("--labels", default=40, show_default=True)
@click.option("--steps", default=30, show_default=True, help="That are timed; as many go before.")
@click.option("--device", default="cuda" if torch.cuda.is_available() else "cpu", show_default=True)
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="CSV file that results are appended to.")
@click.option("--row", is_flag=True, help="Measure the first vocabulary in this process.")
def main(vocabularies: str, out: Path | None, row: bool, **sizes):
    sizes_of = [int(vocabulary) for vocabulary in vocabularies.split(",")]
    if row:
        print(json.dumps(measure(sizes_of[0], **sizes)))
        return
    where = environment(sizes["device"]) | {"command": " ".join(["python", *sys.argv])}
    rows = []
    for vocabulary in sizes_of:
        words = [sys.executable, __file__, "--row", f"--vocabularies={vocabulary}"]
        words += [f"--{name}={value}" for name, value in sizes.items()]
        run = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
        measured = json.loads(run.stdout.splitlines()[-1])
        setting = (
            f"V={vocabulary} FastConformer {sizes['size']} ({measured.pop('parameters')} M) B={sizes['batch']} "
            f"{sizes['seconds']:g} s U={sizes['labels']} ctc utterance k={sizes['negatives']} corrected"
        )
        rows.append({"what": "step", "implementation": "ours", "setting": setting} | measured | where)
        print(f"{setting}: {measured['median_ms']} ms, {measured['peak_mib']} MiB", flush=True)
        if out:
            append(out, rows[-1])
    print(f"{rows[-1]['median_ms'] / rows[0]['median_ms']:.2f} times the first; asked: at most {ASKED}")


if __name__ == "__main__":
    main()
