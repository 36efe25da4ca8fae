"""Do sampled runs start late? A small transducer on random labels, on a CPU, in a minute a run.

    python benchmarks/late_start.py --seeds 0,1,2,3,4,5 --out benchmarks/results/late_start_cpu.csv

Labels come with Zipf's frequencies and are heard as their random vector plus noise, for two to five frames each. A GRU
encoder with a CTC head, an LSTM predictor and a joint learn them from one seed in several settings of the sampler, 5 %
of the vocabulary an utterance. A run starts late that stays on its plateau, where it hears nothing, while the others
have left it: see docs/accuracy.md. Settings are those of ``sampled_softmax``.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple

import click
import results_file
import torch
from environment import environment
from kaldialign import edit_distance
from rich.progress import track
from torch import nn
from torch.nn import functional

from nemo_sampled_rnnt import sampled_rnnt_loss
from nemo_sampled_rnnt.sampling import NegativeSampler, SampledSoftmax, ctc_posteriors

VOCABULARY, BATCH, LABELS, BINS, NOISE = 2000, 24, 8, 32, 0.8
ENCODER, HIDDEN = 192, 64
LEARNING_RATE, WARM_UP, CTC_WEIGHT = 2e-3, 100, 0.3
EVALUATE_EVERY, HELD_OUT = 100, 6  # steps, batches
SETTINGS = {
    "exact": None,
    "uniform": {"sampler": "uniform", "correction": False},
    "uniform_corrected": {"sampler": "uniform", "correction": True},
    "unigram": {"sampler": "unigram", "correction": False},
    "unigram_corrected": {"sampler": "unigram", "correction": True},
    "ctc": {"sampler": "ctc", "correction": False},
    "ctc_corrected": {"sampler": "ctc", "correction": True},
    "ctc_corrected_floor_0.1": {"sampler": "ctc", "floor": 0.1, "correction": True},
    "ctc_floor_0.1": {"sampler": "ctc", "floor": 0.1, "correction": False},
    "ctc_floor_0.5": {"sampler": "ctc", "floor": 0.5, "correction": False},
}
COLUMNS = ["setting", "seed", "step", "error_rate", "machine", "cores", "torch", "nemo", "numba", "numba_cuda",
           "python", "commit", "command"]  # fmt: skip


class Batch(NamedTuple):
    """frames (B, T, D) float, targets (B, U) int64, and the lengths of both (B,)."""

    frames: torch.Tensor
    lengths: torch.Tensor
    targets: torch.Tensor
    target_lengths: torch.Tensor


class Speech:
    """Random labels, and how they sound."""

    def __init__(self):
        frequencies = 1 / torch.arange(1.0, VOCABULARY + 1)
        self.frequencies = frequencies / frequencies.sum()
        self.sounds = torch.randn(VOCABULARY, BINS, generator=torch.Generator().manual_seed(0))

    def batch(self, generator: torch.Generator) -> Batch:
        targets = torch.multinomial(self.frequencies, BATCH * LABELS, True, generator=generator).view(BATCH, LABELS)
        durations = torch.randint(2, 6, targets.shape, generator=generator)
        spoken = [
            self.sounds[labels].repeat_interleave(frames, 0) for labels, frames in zip(targets, durations, strict=True)
        ]
        frames = nn.utils.rnn.pad_sequence(spoken, batch_first=True)
        frames += NOISE * torch.randn(frames.shape, generator=generator)
        return Batch(frames, durations.sum(1), targets, torch.full((BATCH,), LABELS))


class Transducer(nn.Module):
    """Encoder with a CTC head, predictor, joint."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.GRU(BINS, ENCODER // 2, batch_first=True, bidirectional=True)
        self.ctc = nn.Linear(ENCODER, VOCABULARY + 1)
        self.embedding = nn.Embedding(VOCABULARY + 1, HIDDEN)
        self.predictor = nn.LSTM(HIDDEN, HIDDEN, batch_first=True)
        self.of_encoder, self.of_predictor = nn.Linear(ENCODER, HIDDEN), nn.Linear(HIDDEN, HIDDEN)
        self.output = nn.Linear(HIDDEN, VOCABULARY + 1)

    def loss(self, batch: Batch, sampler: NegativeSampler | None) -> torch.Tensor:
        encoded, _ = self.encoder(batch.frames)
        log_probs = self.ctc(encoded).log_softmax(-1)
        ctc = functional.ctc_loss(
            log_probs.transpose(0, 1), batch.targets, batch.lengths, batch.target_lengths, blank=VOCABULARY
        )
        negatives = log_prob = None
        if sampler is not None:
            posteriors = ctc_posteriors(log_probs.detach(), batch.lengths)
            negatives, log_prob = sampler(batch.targets, batch.target_lengths, posteriors)
        predicted, _ = self.predictor(self.embedding(functional.pad(batch.targets, (1, 0), value=VOCABULARY)))
        transducer = sampled_rnnt_loss(
            self.of_encoder(encoded), self.of_predictor(predicted), self.output.weight, self.output.bias, batch.targets,
            batch.lengths, batch.target_lengths, negatives=negatives, negative_log_prob=log_prob,
        )  # fmt: skip
        return (1 - CTC_WEIGHT) * transducer / LABELS + CTC_WEIGHT * ctc

    @torch.no_grad()
    def transcribe(self, batch: Batch) -> list[list[int]]:
        """Greedy, up to three labels a frame."""
        encoded = self.of_encoder(self.encoder(batch.frames)[0])
        heard = [[] for _ in range(BATCH)]
        last = torch.full((BATCH, 1), VOCABULARY)
        predicted, state = self.predictor(self.embedding(last))
        for t in range(encoded.shape[1]):
            for _ in range(3):
                best = self.output(torch.relu(encoded[:, t] + self.of_predictor(predicted[:, 0]))).argmax(1)
                labels = (best != VOCABULARY) & (t < batch.lengths)
                if not labels.any():
                    break
                for b in labels.nonzero()[:, 0].tolist():
                    heard[b].append(int(best[b]))
                after, moved = self.predictor(self.embedding(best[:, None]), state)
                predicted = torch.where(labels[:, None, None], after, predicted)
                state = tuple(torch.where(labels[None, :, None], x, y) for x, y in zip(moved, state, strict=True))
        return heard


def error_rate(model: Transducer, speech: Speech) -> float:
    """On the same batches always, which training does not see."""
    generator, wrong = torch.Generator().manual_seed(0), 0
    for _ in range(HELD_OUT):
        batch = speech.batch(generator)
        for said, heard in zip(batch.targets.tolist(), model.transcribe(batch), strict=True):
            wrong += edit_distance(said, heard)["total"]
    return wrong / (HELD_OUT * BATCH * LABELS)


def train(setting: str, seed: int, steps: int):
    """Yield (step, error rate)."""
    torch.manual_seed(seed)
    speech, model, sampler = Speech(), Transducer(), None
    if SETTINGS[setting] is not None:
        counts = (1e6 * speech.frequencies).long() + 1
        sampler = NegativeSampler(SampledSoftmax(0.05, seed=seed, **SETTINGS[setting]), VOCABULARY, counts=counts)
    optimizer = torch.optim.AdamW(model.parameters())
    generator = torch.Generator().manual_seed(1000 + seed)
    for step in track(range(1, steps + 1), f"{setting} {seed}", transient=True):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1, step / WARM_UP)
        optimizer.zero_grad()
        model.loss(speech.batch(generator), sampler).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % EVALUATE_EVERY == 0 or step == steps:
            yield step, error_rate(model, speech)


@click.command(help=__doc__.split("\n\n")[0])
@click.option("--settings", default=",".join(SETTINGS), show_default=True)
@click.option("--seeds", default="0,1,2", show_default=True)
@click.option("--steps", default=600, show_default=True)
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="CSV file that results are appended to.")
def main(settings: str, seeds: str, steps: int, out: Path | None):
    chosen = settings.split(",")
    if unknown := set(chosen) - SETTINGS.keys():
        raise click.UsageError(f"settings are {', '.join(SETTINGS)}; got {', '.join(sorted(unknown))}")
    if out is not None:
        try:
            results_file.check(out, COLUMNS)
        except ValueError as error:
            raise click.ClickException(str(error)) from error
    torch.set_num_threads(1)
    where = environment("cpu") | {"command": " ".join(["python", *sys.argv])}
    for seed in map(int, seeds.split(",")):
        for setting in chosen:
            rates = []
            for step, rate in train(setting, seed, steps):
                rates.append(f"{100 * rate:.0f}")
                if out is not None:
                    row = {"setting": setting, "seed": seed, "step": step, "error_rate": round(rate, 4)}
                    results_file.append(out, COLUMNS, row | where)
            click.echo(f"{setting} {seed}: {' '.join(rates)}")


if __name__ == "__main__":
    main()
