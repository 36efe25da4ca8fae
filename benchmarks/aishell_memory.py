"""Does the joint take the memory that AISHELL's page says? Its own script and config on noise of the corpus's lengths.

    python benchmarks/aishell_memory.py --work /tmp/aishell

Each step's batch comes with what the joint took (`joint_watch.py`) and what the project's arithmetic says of that
batch, as training logs it; at the end the largest of the steps against the page's table. The default is
the page's last row: large, 80 GB. Needs a GPU; on a CPU nothing is measured. Run from anywhere.
"""

from __future__ import annotations

import csv
import json
import os
import runpy
import sys
from pathlib import Path

import click
import numpy as np
import soundfile
import torch

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
RECIPES = ROOT / "examples" / "recipes"
sys.path += [str(HERE), str(RECIPES)]

from environment import environment  # noqa: E402
from hydra import compose, initialize_config_dir  # noqa: E402
from memory_table import CARDS, CORPORA, SIZES, longest_batch, memory  # noqa: E402

from nemo_sampled_rnnt.loss.lattice import Lattice  # noqa: E402

VOCABULARY, LABELS_PER_SECOND = CORPORA["aishell"]
# Durations of AISHELL-1's training set, seconds: lhotse's statistics as icefall gives them (egs/aishell/ASR/local/
# display_manifest_statistics.py, three speeds together); the ends are the corpus's own.
SHARES = [0, 0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.995, 0.999, 1]
SECONDS = [1.2, 1.8, 2.2, 2.3, 2.7, 3.0, 3.5, 4.3, 5.4, 6.5, 7.2, 8.8, 9.4, 10.9, 14.5]
LONGEST = 0.01  # share of utterances added for the last bucket, which AISHELL itself fills once an epoch
NOISE = 60  # seconds, of which every utterance is a part
COLUMNS = ["step", "utterances", "frames", "labels", "joint_mib", "computed_mib", "step_gib"]


def write_manifest(folder: Path, utterances: int, longest: tuple[float, float]) -> Path:
    """Noise of AISHELL's lengths and as many random characters as it has a second; some more for the last bucket."""
    random = np.random.default_rng(0)
    noise = folder / "noise.wav"
    soundfile.write(noise, 0.1 * random.standard_normal(NOISE * 16000), 16000)
    seconds = np.interp(random.random(utterances), SHARES, SECONDS)
    seconds = random.permutation([*seconds, *random.uniform(*longest, round(LONGEST * utterances))]).round(2)
    manifest = folder / "train.json"
    with open(manifest, "w", encoding="utf-8") as file:
        for duration in seconds.tolist():
            text = "".join(map(character, random.integers(VOCABULARY, size=int(LABELS_PER_SECOND * duration))))
            offset = round(random.uniform(0, NOISE - duration), 2)
            entry = {"audio_filepath": str(noise), "offset": offset, "duration": duration, "text": text}
            file.write(json.dumps(entry) + "\n")
    return manifest


def character(label: int) -> str:
    """Any will do."""
    return chr(0x4E00 + label)


def train(config_name: str, card: str, work: Path, manifest: Path, steps: int, overrides: tuple[str, ...]) -> Path:
    """As the page's command does; returns the file of the steps."""
    characters, watched = work / "characters.txt", work / "steps.csv"
    characters.write_text("".join(f"{character(label)}\n" for label in range(VOCABULARY)), encoding="utf-8")
    script = RECIPES / "speech_to_text_rnnt.py"
    sys.argv = [
        str(script), "--config-path=aishell", f"--config-name={config_name}", f"card={card}",
        f"model.train_ds.manifest_filepath={manifest}", f"model.validation_ds.manifest_filepath={manifest}",
        f"labels_filepath={characters}", f"trainer.max_steps={steps}", "trainer.devices=1", "trainer.strategy=auto",
        "trainer.sync_batchnorm=false", "+trainer.limit_val_batches=0", "trainer.enable_progress_bar=false",
        "exp_manager.create_checkpoint_callback=false", "exp_manager.create_tensorboard_logger=false",
        f"exp_manager.exp_dir={work}", "exp_manager.resume_if_exists=false",
        # random weights say nothing worth decoding
        "model.log_prediction=false", "model.decoding.greedy.max_symbols=1",
        "+model.decoding.greedy.use_cuda_graph_decoder=false",
        f"+trainer.callbacks=[{{_target_: joint_watch.JointWatch, path: {watched}}}]",
        *overrides,
    ]  # fmt: skip
    import joint_watch  # noqa: F401 - NeMo may then build it

    runpy.run_path(str(script), run_name="__main__")
    return watched


def compared(watched: Path, config) -> list[dict]:
    """A row for each step, with what the arithmetic says of its batch."""
    rows = []
    with open(watched, newline="") as file:
        for step in csv.DictReader(file):
            frames, labels = ([int(length) for length in step[name].split()] for name in ("frames", "labels"))
            computed = memory(config, Lattice(frames, labels), VOCABULARY, sampled=True).total / 2**20
            values = [step["step"], len(frames), max(frames), max(labels), _rounded(step["joint_mib"], 1)]
            values += [f"{computed:.1f}", _rounded(step["step_gib"], 2)]
            rows.append(dict(zip(COLUMNS, values, strict=True)))
    return rows


def _rounded(number: str, digits: int) -> str:
    return f"{float(number):.{digits}f}" if number else ""


@click.command()
@click.option("--work", type=click.Path(file_okay=False, path_type=Path), required=True, help="For what is made up.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default=HERE / "results", show_default=True)
@click.option("--size", type=click.Choice(SIZES), default="large", show_default=True)
@click.option("--card", type=click.Choice(CARDS), default="80gb", show_default=True)
@click.option("--steps", default=50, show_default=True)
@click.option("--utterances", default=40000, show_default=True, help="Half of them fill the dataloader's buckets.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="For the script; may be repeated.")
def main(work: Path, out: Path, size: str, card: str, steps: int, utterances: int, overrides: tuple[str, ...]):
    """Train on noise and compare memories; writes aishell_memory.csv."""
    work, out = work.resolve(), out.resolve()
    work.mkdir(parents=True, exist_ok=True)
    os.chdir(ROOT)  # the configs name each other from there
    with initialize_config_dir(str(RECIPES / "aishell"), version_base=None):
        config = compose(size, [f"card={card}"])
    data = config.model.train_ds
    manifest = write_manifest(work, utterances, (data.bucket_duration_bins[-1], data.max_duration))
    click.echo(f"{manifest}: written")
    rows = compared(train(size, card, work, manifest, steps, overrides), config)

    where = environment("cuda" if torch.cuda.is_available() else "cpu")
    out.mkdir(parents=True, exist_ok=True)
    with open(out / "aishell_memory.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*COLUMNS, "size", "card", *where])
        writer.writeheader()
        writer.writerows(row | {"size": size, "card": card} | where for row in rows)

    table = memory(config, longest_batch(config, LABELS_PER_SECOND), VOCABULARY, sampled=True).total / 2**20
    click.echo(f"{len(rows)} steps, {size}, {card}; the page's table: {table:.0f} MiB")
    measured = [row for row in rows if row["joint_mib"]]
    if not measured:
        click.echo("nothing was measured: expected a GPU, found none")
        return
    peak = max(measured, key=lambda row: float(row["joint_mib"]))
    ratios = [float(row["joint_mib"]) / float(row["computed_mib"]) for row in measured]
    click.echo(
        f"peak {peak['joint_mib']} MiB, {float(peak['joint_mib']) / table:.3f} of the table's, in step {peak['step']}: "
        f"{peak['utterances']} utterances up to {peak['frames']} frames, {peak['labels']} labels\n"
        f"measured / computed of the same batch: {min(ratios):.3f} to {max(ratios):.3f}\n"
        f"the whole step: up to {max(float(row['step_gib']) for row in measured):.1f} GiB"
    )


if __name__ == "__main__":
    main()
