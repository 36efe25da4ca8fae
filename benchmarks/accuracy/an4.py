"""CMU AN4: 948 and 130 utterances of real speech, as FLAC files with manifests of NeMo's format."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import soundfile
from spoken import HELD_OUT, TRAIN, Spoken

TOKENIZER = {"model_type": "bpe", "vocab_size": 256, "hard_vocab_limit": False}
BLOCK = 64  # utterances
SAMPLE_RATE = 16000
MANIFESTS = {TRAIN: "manifest_train.json", HELD_OUT: "manifest_test.json"}


def recorded(folder: Path) -> Iterator[Spoken]:
    """Read the corpus; the manifests' paths are relative to the folder.

    Raises:
        ValueError: a file of another sample rate.
    """
    for name, manifest in MANIFESTS.items():
        entries = [json.loads(line) for line in (folder / manifest).read_text().splitlines()]
        for first in range(0, len(entries), BLOCK):
            block = entries[first : first + BLOCK]
            speech = [_read(folder / entry["audio_filepath"]) for entry in block]
            yield Spoken(name, [entry["text"] for entry in block], [entry["speaker"] for entry in block], speech)


def _read(path: Path):
    samples, rate = soundfile.read(path, dtype="int16")
    if rate != SAMPLE_RATE:
        raise ValueError(f"{path}: expected {SAMPLE_RATE} samples a second, got {rate}: resample the corpus first")
    return samples
