"""Speak sentences with espeak-ng and write 16 kHz FLAC files and NeMo manifests.

    python examples/demo/speak.py --out demo_out/data

espeak-ng comes as a shared library from the PyPI wheel `espeakng-loader` and is called through ctypes. It keeps hidden
state from one call to the next, so each block of sentences is spoken by a fresh process: the same sentence at the same
index sounds the same on every run, however many processes there are.
"""

import argparse
import ctypes
import json
import multiprocessing
import random
from pathlib import Path

import espeakng_loader
import numpy as np
import soundfile
from rich.progress import track
from scipy.signal import resample_poly
from sentences import sentence_sets

SAMPLE_RATE = 16000
SETS = {"train": 4000, "validation": 64, "test": 200}  # sentences
VOICES = ("en-us", "en-us+f2", "en-us+m3", "en+f3")
BLOCK = 200  # sentences a process

SYNCHRONOUS = 2  # espeak_AUDIO_OUTPUT: samples go to the callback, and espeak_Synth returns when all are there
RATE, PITCH = 1, 3  # espeak_PARAMETER
POS_CHARACTER, CHARS_UTF8 = 1, 1
CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


class Espeak:
    """espeak-ng, once for a process."""

    def __init__(self):
        self.library = ctypes.CDLL(espeakng_loader.get_library_path())
        self.rate = self.library.espeak_Initialize(SYNCHRONOUS, 0, espeakng_loader.get_data_path().encode(), 0)
        if self.rate <= 0:
            raise RuntimeError("espeak-ng did not start: pip install --force-reinstall espeakng-loader")
        self.samples = []
        self.callback = CALLBACK(self._receive)  # kept, or ctypes would free it under espeak-ng's feet
        self.library.espeak_SetSynthCallback(self.callback)

    def _receive(self, samples, count, events):
        if samples and count:
            self.samples.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    def __call__(self, text, voice, words_a_minute, pitch):
        """Speak `text`: float32 samples in [-1, 1] at 16 kHz. Raises ValueError for an unknown voice."""
        if self.library.espeak_SetVoiceByName(voice.encode()):
            raise ValueError(f"expected a voice of espeak-ng, got {voice!r}")
        self.library.espeak_ng_SetRandSeed(ctypes.c_long(0))  # some voices breathe at random
        self.library.espeak_SetParameter(RATE, words_a_minute, 0)
        self.library.espeak_SetParameter(PITCH, pitch, 0)
        self.samples.clear()
        spoken = text.encode()
        self.library.espeak_Synth(spoken, ctypes.c_size_t(len(spoken) + 1), 0, POS_CHARACTER, 0, CHARS_UTF8, None, None)
        speech = np.concatenate(self.samples).astype(np.float32) / 2**15
        return resample_poly(speech, SAMPLE_RATE, self.rate).astype(np.float32)


def speak_block(job):
    """Speak one block of sentences into `folder`; return its manifest entries."""
    folder, first, sentences = job
    espeak = Espeak()
    entries = []
    for index, text in enumerate(sentences, first):
        rng = random.Random(index)
        speech = espeak(text, VOICES[index % len(VOICES)], rng.randint(150, 190), rng.randint(40, 60))
        path = folder / f"{index:05}.flac"
        soundfile.write(path, speech, SAMPLE_RATE)
        entries.append({"audio_filepath": str(path.resolve()), "duration": len(speech) / SAMPLE_RATE, "text": text})
    return entries


def speak(out):
    """Speak all sets; write `out/{train,validation,test}.json` and return their paths by set name."""
    out = Path(out)
    jobs = []
    sets = dict(zip(SETS, sentence_sets(*SETS.values()), strict=True))
    for name, sentences in sets.items():
        (out / name).mkdir(parents=True, exist_ok=True)
        jobs += [(out / name, first, sentences[first : first + BLOCK]) for first in range(0, len(sentences), BLOCK)]
    # a fork server: its children start at once, and are forked from a process without torch's threads
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["speak"])
    with context.Pool(maxtasksperchild=1) as pool:
        blocks = list(track(pool.imap(speak_block, jobs), "speaking", total=len(jobs)))
    manifests = {name: out / f"{name}.json" for name in sets}
    for name, manifest in manifests.items():
        entries = [entry for job, block in zip(jobs, blocks, strict=True) if job[0].name == name for entry in block]
        manifest.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return manifests


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--out", default="demo_out/data", type=Path)
    print(*speak(arguments.parse_args().out).values(), sep="\n")
