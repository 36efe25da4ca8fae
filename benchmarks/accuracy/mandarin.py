"""Mandarin sentences, spoken by espeak-ng in many voices with mild noise: synthetic speech of about 3,700 characters.

Held-out utterances are other sentences in other voices. A block of sentences is spoken by a fresh process, so that a
corpus sounds the same on every machine (examples/demo/speak.py says why).
"""

from __future__ import annotations

import lzma
import multiprocessing
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from speak import Espeak
from spoken import HELD_OUT, OTHER_SPEAKERS, OTHER_TEXT, TRAIN, Spoken

TOKENIZER = {"model_type": "char", "vocab_size": 8000, "hard_vocab_limit": False, "add_dummy_prefix": False}
BLOCK = 64  # sentences a process
SEED = 7
FEWEST = 3  # times that a character comes; sentences with rarer ones are left out
# xiong, qiong and jiong: espeak-ng cannot say them.
UNSPEAKABLE = set("兄凶兇匈芎洶汹胸胷雄熊夐诇詗哅穷窮穹琼瓊邛茕煢蛩跫銎筇赹窘炯迥扃冏坰泂煚駉熲颎炅囧")
# Variants of espeak-ng that leave the tones alone and speak at the common rate.
VOICES = (
    "Alicia Andy Denis Diogo Gene Gene2 Henrique Hugo Jacky Lee Michael Mike Nguyen Reed RicishayMax adam announcer "
    "belinda benjamin boris ed edward fast f1 f2 f3 f4 grandma grandpa ian iven iven2 iven3 iven4 john kaukovalta "
    "linda m1 m2 m3 m4 m5 m7 max miguel mike2 norbert pablo sandro shelby steph steph2 travis victor"
).split()
HELD_OUT_VOICES = "Annie edward2 f5 m6 michel paul steph3 zac".split()
STREAMS = {HELD_OUT: 0, TRAIN: 1, OTHER_SPEAKERS: 2, OTHER_TEXT: 3}  # of random numbers
RATE, PITCH, NOISE_DB = (145, 185), (35, 65), (20, 35)  # words a minute, espeak-ng's pitch, signal to noise


def sentence_sets(path: Path, train: int, held_out: int) -> tuple[list[str], list[str]]:
    """Two lists of sentences from a text file (or .xz) with one a line; held-out ones hold no new character.

    Raises:
        ValueError: too few sentences.
    """
    with (lzma.open if path.suffix == ".xz" else open)(path, "rt", encoding="utf-8") as file:
        sentences = [line.strip() for line in file]
    sentences = [sentence for sentence in dict.fromkeys(sentences) if sentence and not UNSPEAKABLE & set(sentence)]
    while True:  # leaving out a sentence makes its other characters rarer
        counts = Counter("".join(sentences))
        kept = [sentence for sentence in sentences if all(counts[x] >= FEWEST for x in sentence)]
        if len(kept) == len(sentences):
            break
        sentences = kept
    random.Random(SEED).shuffle(sentences)
    known = set("".join(sentences[:train]))
    others = [sentence for sentence in sentences[train:] if set(sentence) <= known][:held_out]
    if len(others) < held_out:
        raise ValueError(
            f"{path}: expected {train} + {held_out} usable sentences, got {len(sentences)}, {len(others)} of them for "
            "the held-out set: ask for fewer"
        )
    return sentences[:train], others


def speak_block(job: tuple[str, int, list[str], list[str]]) -> Spoken:
    """Speak (set name, index of the first utterance, sentences, voices)."""
    set_name, first, sentences, voices = job
    espeak = Espeak()
    speech, speakers = [], []
    for index, text in enumerate(sentences, first):
        rng = np.random.default_rng((SEED, STREAMS[set_name], index))
        voice = str(rng.choice(voices))
        clean = espeak(text, f"cmn+{voice}", int(rng.integers(*RATE)), int(rng.integers(*PITCH)))
        noise = rng.standard_normal(len(clean), dtype=np.float32) * clean.std() * 10 ** (-rng.uniform(*NOISE_DB) / 20)
        speech.append(((clean + noise) * 2**14).clip(-(2**15), 2**15 - 1).astype(np.int16))
        speakers.append(voice)
    return Spoken(set_name, sentences, speakers, speech)


def spoken(path: Path, train: int, held_out: int, copies: int) -> Iterator[Spoken]:
    """Speak the corpus on all cores: `train` sentences `copies` times in different voices; `held_out` in other sets."""
    known, new = sentence_sets(path, train, held_out)
    sets = {TRAIN: known * copies, HELD_OUT: new, OTHER_SPEAKERS: known[:held_out], OTHER_TEXT: new}
    voices = {TRAIN: VOICES, HELD_OUT: HELD_OUT_VOICES, OTHER_SPEAKERS: HELD_OUT_VOICES, OTHER_TEXT: VOICES}
    jobs = [
        (name, first, sentences[first : first + BLOCK], voices[name])
        for name, sentences in sets.items()
        for first in range(0, len(sentences), BLOCK)
    ]
    context = multiprocessing.get_context("forkserver")  # forked from a process without torch's threads
    context.set_forkserver_preload(["click", "espeakng_loader", "rich.progress", "scipy.signal", "soundfile"])
    with context.Pool(maxtasksperchild=1) as pool:
        yield from pool.imap(speak_block, jobs)
