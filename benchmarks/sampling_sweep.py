"""Sampler x scope x size x correction x frame weights, on a trained model: coverage, gaps, and the gradient's cosine.

    python benchmarks/sampling_sweep.py --nemo demo_out/demo.nemo --manifest demo_out/data/test.json \
        --train-manifest demo_out/data/train.json
    python benchmarks/sampling_sweep.py --corpus /tmp/mandarin --run ctc_10:0 --steps 6000

measures a model that is given, or one of a run of benchmarks/accuracy on a corpus that its main.py has made: what is
not trained yet is trained first. All settings see the same utterances, which are one batch; a line of the CSV is a
mean over them and over draws. docs/sampling.md says what the columns mean, and sampling_plot.py draws them.
"""

from __future__ import annotations

import csv
import itertools
import json
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import click
import numpy as np
import torch
from environment import environment
from spread import spread

from nemo_sampled_rnnt.meter import CandidateSet, Exact, Utterance
from nemo_sampled_rnnt.sampling import NegativeSampler, SampledSoftmax, ctc_posteriors
from nemo_sampled_rnnt.sampling.distributions import FRAME_WEIGHTS

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "sampling_sweep.csv"
FLOOR = SampledSoftmax(1).floor
SIZES = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4)  # of the vocabulary
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
MEASURED = (
    "coverage", "negative_coverage", "gap", "corrected_gap", "cosine", "cell_cosine", "candidates", "exact_loss",
    "sampled_loss",
)  # fmt: skip


@dataclass(frozen=True)
class Batch:
    """What the model makes of some utterances.

    Attributes:
        loss: arguments of the loss, in its order: encoder (B, T, H) to target_lengths (B,).
        posteriors: (B, V) for each way of joining frames; empty without a CTC head.
        activation: of the joint.
    """

    loss: tuple[torch.Tensor, ...]
    posteriors: dict[str, torch.Tensor]
    activation: str

    @cached_property
    def exact(self) -> list[Exact]:
        """Of each utterance."""
        utterances = range(len(self.targets[0]))
        return [Exact(Utterance.of_batch(b, *self.loss, self.activation), seed=b) for b in utterances]

    @property
    def vocabulary(self) -> int:
        return len(self.loss[2]) - 1

    @property
    def targets(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.loss[4], self.loss[6]


@torch.no_grad()
def encode(model, batch) -> Batch:
    """Of a batch of NeMo's: signal or features, lengths, transcripts, lengths; model in eval mode, in float32."""
    signal, lengths, transcripts, transcript_lengths = batch
    kind = "processed_signal" if signal.dim() == 3 else "input_signal"
    encoded, encoded_lengths = model(**{kind: signal, f"{kind}_length": lengths})
    decoded, _, _ = model.decoder(targets=transcripts, target_length=transcript_lengths)
    joint, log_probs = model.joint, model.ctc_log_probs(encoded)
    output = joint.joint_net[-1]
    return Batch(
        (
            joint.project_encoder(encoded.transpose(1, 2)), joint.project_prednet(decoded.transpose(1, 2)),
            output.weight, output.bias, transcripts, encoded_lengths, transcript_lengths,
        ),
        {} if log_probs is None else {w: ctc_posteriors(log_probs, encoded_lengths, w) for w in FRAME_WEIGHTS},
        joint.activation.lower(),
    )  # fmt: skip


def settings(sizes, with_ctc: bool, with_unigram: bool, floors=(FLOOR,)):
    """Mappings with the keys of ``sampled_softmax``; frame weights only where they count, floors for the default."""
    samplers = [("uniform", "mean")] + [("unigram", "mean")] * with_unigram
    samplers += [("ctc", weights) for weights in FRAME_WEIGHTS] * with_ctc
    for (sampler, weights), scope, size, correction in itertools.product(
        samplers, ("utterance", "batch"), sizes, (False, True)
    ):
        for floor in floors if (sampler, weights, scope) == ("ctc", "mean", "utterance") else (FLOOR,):
            yield dict(
                sampler=sampler, frame_weights=weights, scope=scope, n_samples=size, correction=correction, floor=floor
            )


def measure_setting(batch: Batch, setting: dict, counts, draws: int) -> dict[str, float]:
    """Means over the utterances and draws; the loss gap is that of the sums."""
    sampler = NegativeSampler(SampledSoftmax(seed=0, **setting), batch.vocabulary, counts=counts)
    posteriors = batch.posteriors.get(setting["frame_weights"])
    measurements = []
    for _ in range(draws):
        drawn = sampler(*batch.targets, posteriors, inclusion=True)
        for b, exact in enumerate(batch.exact):
            candidates = CandidateSet.of_batch(b, batch.vocabulary, *batch.targets, *drawn)
            measurements.append(exact.compare(candidates, setting["correction"]))
    means = {name: float(np.mean([getattr(x, name) for x in measurements])) for name in MEASURED}
    return means | {"loss_gap": means["sampled_loss"] / means["exact_loss"] - 1, "measurements": len(measurements)}


def sweep(batch: Batch, counts, sizes=SIZES, draws: int = 3, floors=(FLOOR,)):
    """A row for each setting."""
    for setting in settings(sizes, bool(batch.posteriors), counts is not None, floors):
        row = setting | {"n_samples": SampledSoftmax(**setting).size(batch.vocabulary), "share": setting["n_samples"]}
        yield row | measure_setting(batch, setting, counts, draws)


def of_file(nemo: Path, manifest: Path, train_manifest: Path | None, utterances: int, device: str):
    """Model, batch and counts of a model file and utterances of a manifest, of all lengths."""
    from nemo.collections.asr.models import ASRModel

    from nemo_sampled_rnnt import models  # noqa: F401 - lets NeMo find ours
    from nemo_sampled_rnnt.models.unigram import unigram_counts

    model = ASRModel.restore_from(str(nemo), map_location=device).eval()
    entries = sorted(map(json.loads, manifest.read_text().splitlines()), key=lambda entry: entry["duration"])
    chosen = [entries[i] for i in spread(len(entries), utterances)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "chosen_manifest.json"
        path.write_text("".join(json.dumps(entry) + "\n" for entry in chosen))
        data = {"sample_rate": model.cfg.sample_rate, "batch_size": utterances, "shuffle": False, "num_workers": 0}
        model.setup_test_data({"manifest_filepath": str(path), **data})
        (batch,) = model._test_dl
    counts = None
    if train_manifest is not None:
        train_ds = {"manifest_filepath": str(train_manifest)}
        counts = unigram_counts(None, train_ds, model._text_to_ids(), model.joint.vocabulary)
    return nemo.stem, encode(model, [x.to(device) for x in batch]), counts


def of_corpus(folder: Path, run: str, steps: int, checkpoints: Path, overrides, utterances: int, device: str):
    """The same of a corpus and a run on it, after training what is left of that."""
    sys.path[:0] = [str(HERE / "accuracy"), str(HERE.parent / "examples" / "demo")]
    from corpus import COUNTS
    from model import load_recipe, restore
    from settings import Run
    from training import Corpus, train

    recipe = load_recipe(folder.name, (*overrides, f"steps={steps}"))
    corpus = Corpus(folder, device, recipe.model.preprocessor.features)
    name, run = run, Run.parse(run)
    checkpoints = checkpoints / folder.name
    checkpoints.mkdir(parents=True, exist_ok=True)
    train(run, recipe, corpus, checkpoints, time.monotonic() + 3600, lambda evaluations: [
        click.echo("  ".join(evaluation.row().values())) for evaluation in evaluations
    ])  # fmt: skip
    model, _ = restore(run, recipe, folder, checkpoints, device)
    order = np.argsort(corpus.held_out.lengths, kind="stable")
    batch = corpus.held_out.batch(order[spread(len(order), utterances)])
    counts = torch.tensor([int(line) for line in (folder / COUNTS).read_text().split()])
    return f"{folder.name}, {name}, {steps} steps", encode(model, list(batch)), counts


def numbers(text: str) -> list[float]:
    return [float(word) for word in text.split(",")]


def write(rows: list[dict], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


@click.command(help=__doc__.split("\n\n")[0])
@click.option("--nemo", type=FILE, help="A trained model of ours or a stock hybrid; with --manifest.")
@click.option("--manifest", type=FILE, help="Held-out utterances.")
@click.option("--train-manifest", type=FILE, help="Texts that the sampler unigram counts; else it is left out.")
@click.option("--corpus", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Of --run.")
@click.option("--run", default="ctc_10:0", show_default=True, help="SETTING:SEED of benchmarks/accuracy.")
@click.option("--steps", default=1500, show_default=True, help="Of that run.")
@click.option(
    "--checkpoints",
    type=click.Path(file_okay=False, path_type=Path),
    default="/tmp/checkpoints",
    show_default=True,
    help="Of its training.",
)
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Of the recipe.")
@click.option("--utterances", default=16, show_default=True, help="In the batch that is measured.")
@click.option("--draws", default=3, show_default=True, help="Of negatives, for each setting.")
@click.option("--sizes", default=",".join(map(str, SIZES)), show_default=True, help="Shares of the vocabulary.")
@click.option("--floors", default=str(FLOOR), show_default=True, help="Of ctc in the scope utterance.")
@click.option("--device", default="cuda" if torch.cuda.is_available() else "cpu", show_default=True)
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), default=RESULTS, show_default=True)
def main(
    nemo,
    manifest,
    train_manifest,
    corpus,
    run,
    steps,
    checkpoints,
    overrides,
    utterances,
    draws,
    sizes,
    floors,
    device,
    out,
):
    if (nemo is None) == (corpus is None) or (nemo is not None and manifest is None):
        raise click.UsageError("give --nemo with --manifest, or --corpus")
    started = time.perf_counter()
    if nemo is not None:
        name, batch, counts = of_file(nemo, manifest, train_manifest, utterances, device)
    else:
        name, batch, counts = of_corpus(corpus, run, steps, checkpoints, overrides, utterances, device)
    click.echo(
        f"{name}: V = {batch.vocabulary}, {len(batch.targets[0])} utterances, {time.perf_counter() - started:.0f} s"
    )
    origin = {"model": name, "vocabulary": batch.vocabulary, "utterances": len(batch.targets[0]), "draws": draws}
    rows, where = [], environment(device)
    for row in sweep(batch, counts, numbers(sizes), draws, numbers(floors)):
        rows.append(origin | row | where)
        click.echo(
            "{sampler:8} {frame_weights:9} {scope:9} {n_samples:6} {correction!s:5} {floor:4}  "
            "coverage {coverage:.3f}, of negatives {negative_coverage:.3f}  "
            "loss gap {loss_gap:+.3f}  cosine {cosine:.3f}  of cells {cell_cosine:.3f}".format(**row)
        )
    write(rows, out)
    click.echo(f"{out}: {len(rows)} rows, {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
