"""How long the recipes' converter takes, and how much memory: a thousand hours of made-up manifests.

    python benchmarks/convert.py --work /tmp/convert

Lhotse's manifests are written first, a recording an utterance as in LibriSpeech and AISHELL-1, or talks of many
segments as in CSJ; the audio files exist, and are empty. Then the converter runs as a process of its own. Writes
convert.csv; seconds: the process's, peak_mib: its largest resident memory.
"""

from __future__ import annotations

import csv
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import click
from environment import environment
from lhotse import AudioSource, Recording, RecordingSet, SupervisionSegment, SupervisionSet
from tqdm import tqdm

HERE = Path(__file__).resolve().parent
CONVERTER = HERE.parent / "examples" / "recipes" / "lhotse_to_nemo.py"
SECONDS = 12.9  # of an utterance: 280,000 are a thousand hours
PARTS = 4  # segments of CSJ that make an utterance
TALK = 1200  # segments
RATE = 16000
WORDS = {
    "librispeech": "THE QUICK BROWN FOX JUMPS OVER A LAZY DOG".split(),
    "aishell": list("今天的会议很重要"),
    "csj": list("それではえっと始めます"),
}


def write_manifests(corpus: str, utterances: int, folder: Path) -> None:
    """As `lhotse prepare` leaves them."""
    dice = random.Random(0)
    each, parts = (TALK, PARTS) if corpus == "csj" else (1, 1)
    seconds = SECONDS / parts
    with (
        RecordingSet.open_writer(folder / f"{corpus}_recordings_train.jsonl.gz") as recordings,
        SupervisionSet.open_writer(folder / f"{corpus}_supervisions_train.jsonl.gz") as supervisions,
    ):
        for number in tqdm(range(-(-utterances * parts // each)), desc=corpus, unit=" recordings", mininterval=1):
            name = f"A{number:07}"
            path = folder / "audio" / f"{number // 1000:04}" / f"{name}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
            source = AudioSource("file", [0], str(path))
            recordings.write(Recording(name, [source], RATE, int(each * seconds * RATE), each * seconds))
            for segment in range(each):
                text = " ".join(dice.choices(WORDS[corpus], k=32 // parts))
                custom = {"raw": text, "disfluent": text} if corpus == "csj" else None
                one = SupervisionSegment(
                    f"{name}-{segment:04}", name, segment * seconds, seconds - 0.3, text=text, speaker=name[:5],
                    custom=custom,
                )  # fmt: skip
                supervisions.write(one)


@click.command(help=__doc__.split("\n\n")[0])
@click.option("--work", type=click.Path(file_okay=False, path_type=Path), required=True, help="A new folder.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default=HERE / "results", show_default=True)
@click.option("--utterances", default=280_000, show_default=True)
@click.option("--corpora", default="librispeech,aishell,csj", show_default=True)
def main(work: Path, out: Path, utterances: int, corpora: str):
    where, rows = environment("cpu"), []
    for corpus in corpora.split(","):
        folder = work / corpus
        folder.mkdir(parents=True)
        write_manifests(corpus, utterances, folder)
        manifest = folder / "train.json"
        start = time.perf_counter()
        process = subprocess.Popen([sys.executable, CONVERTER, corpus, folder, manifest, "train"])
        _, status, used = os.wait4(process.pid, 0)
        seconds, peak = time.perf_counter() - start, used.ru_maxrss / 1024
        if status:
            raise click.ClickException(f"the converter ended with status {status}; what it said stands above")
        with open(manifest, encoding="utf-8") as file:
            lines = sum(1 for _ in file)
        sizes = {"corpus": corpus, "hours": round(utterances * SECONDS / 3600), "lines": lines}
        rows.append(sizes | {"seconds": f"{seconds:.1f}", "peak_mib": f"{peak:.0f}"} | where)
        click.echo(f"{corpus}: {lines:,} lines in {seconds:.1f} s, {peak:.0f} MiB")
    out.mkdir(parents=True, exist_ok=True)
    with open(out / "convert.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
