"""LibriSpeech, AISHELL-1 and CSJ in miniature: the file tree and transcript formats of each, a few spoken sentences.

Each has what real copies have: an audio file that is missing, one of zero length, audio without a transcript, a
transcript without audio, a line that does not parse; full-width letters in Mandarin and Japanese.
"""

from __future__ import annotations

import importlib.util
import itertools
import random
import sys
from functools import cache
from pathlib import Path

import numpy as np
import soundfile
from lhotse.recipes import csj as lhotse_csj

DEMO = Path(__file__).parents[2] / "examples/demo"
SAMPLE_RATE = 16000

ENGLISH = ("THE CAT'S ASLEEP", "SEVEN BIRDS SANG", "NOBODY HEARD THEM", "OPEN THE GREEN GATE", "A MAT AND A CAT")
MANDARIN = ("广州 市 房地产", "对 楼市 成交", "今天 Ａ 股 大 涨", "他 喜欢 ｋ 歌", "三 个 城市 房价")
JAPANESE = (  # surface, pronunciation
    (("えー", "エー"), ("今日", "キョー"), ("は", "ワ")),
    (("研究", "ケンキュー"), ("の", "ノ"), ("発表", "ハッピョー")),
    (("音声", "オンセー"), ("Ａ", "エー"), ("です", "デス")),
    (("(F_えーと)", "(F_エート)"), ("次", "ツギ"), ("に", "ニ")),
)


@cache
def _espeak():
    sys.path.insert(0, str(DEMO))
    spec = importlib.util.spec_from_file_location("speak", DEMO / "speak.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.path.remove(str(DEMO))
    return module.Espeak()


@cache
def spoken(text: str, language: str) -> np.ndarray:
    return _espeak()(text, language, 190, 50)


def write_audio(path: Path, samples: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, SAMPLE_RATE, subtype="PCM_16")


def make_librispeech(root: Path) -> Path:
    """Two chapters a part; in train-clean-100 five utterances cannot be used, and in dev-clean a chapter is missing."""
    sentences = itertools.cycle(ENGLISH)
    chapters = [";ID    |READER|MINUTES| SUBSET           | PROJ.|BOOK ID| CH. TITLE | PROJECT TITLE"]
    parts = ("train-clean-100", "train-clean-360", "train-other-500", "dev-clean", "dev-other", "test-clean")
    for number, part in enumerate((*parts, "test-other")):
        for chapter in (121000 + number, 122000 + number):
            reader = 19 + number
            folder = root / part / str(reader) / str(chapter)
            chapters.append(f"{chapter} | {reader:<4} | 2.05  | {part:<16} | 0    | 1342  | One | Birds")
            lines = []
            for utterance, text in enumerate(itertools.islice(sentences, 6)):
                name = f"{reader}-{chapter}-{utterance:04}"
                write_audio(folder / f"{name}.flac", spoken(text.lower(), "en-us"))
                lines.append(f"{name} {text}")
            (folder / f"{reader}-{chapter}.trans.txt").write_text("\n".join(lines) + "\n")
    chapters.append("123000 | 22   | 0.40  | dev-clean        | 0    | 1342  | Two | Birds")  # 24 s: two utterances
    (root / "CHAPTERS.TXT").write_text("\n".join(chapters) + "\n")

    folder = root / "train-clean-100/19/121000"
    (folder / "19-121000-0000.flac").unlink()
    (folder / "19-121000-0001.flac").write_bytes(b"")
    write_audio(folder / "19-121000-0002.flac", np.zeros(0, np.float32))
    transcript = folder / "19-121000.trans.txt"
    lines = transcript.read_text().splitlines()
    lines[3] = "19-121000-0003"
    transcript.write_text("\n".join(lines) + "\n")
    write_audio(folder / "19-121000-0099.flac", spoken("nothing", "en-us"))
    return root


def make_aishell(root: Path) -> Path:
    """Two speakers a part; in train five utterances cannot be used."""
    data = root / "data_aishell"
    lines, sentences = [], itertools.cycle(MANDARIN)
    for number, part in enumerate(("train", "dev", "test")):
        for speaker in (f"S{number + 2:04}", f"S{number + 700:04}"):
            for utterance, text in enumerate(itertools.islice(sentences, 5 + number), 122):
                name = f"BAC009{speaker}W{utterance:04}"
                write_audio(data / "wav" / part / speaker / f"{name}.wav", spoken(text, "cmn"))
                lines.append(f"{name} {text}")
    folder = data / "wav/train/S0002"
    (folder / "BAC009S0002W0122.wav").unlink()
    (folder / "BAC009S0002W0123.wav").write_bytes(b"")
    write_audio(folder / "BAC009S0002W0124.wav", np.zeros(0, np.float32))
    write_audio(folder / "BAC009S0002W0199.wav", spoken("三", "cmn"))
    lines += ["", "BAC009S0002W0200"]
    (data / "transcript").mkdir()
    (data / "transcript/aishell_transcript_v0.8.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return root


def make_csj(root: Path) -> Path:
    """Every talk that lhotse's recipe knows by name, and a few more, among them a dialogue, in two volumes.

    One talk lacks its audio, one has audio of zero length, and in one a line does not parse.
    """
    named = {*lhotse_csj._A01M0056, *lhotse_csj._VALID, *(talk for part in lhotse_csj._EVAL for talk in part)}
    for volume, talks in (
        ("noncore", [*sorted(named), "A01F0990", "A01F0991", "A02M0992"]),
        ("core", ["A01F0576", "A01F0577", "A01M0578", "S00F0990", "D03M0038"]),
    ):
        for talk in talks:
            _talk(root, volume, talk)
    (root / "WAV/noncore/A01F0990.wav").unlink()
    write_audio(root / "WAV/noncore/A01F0991.wav", np.zeros(0, np.float32))
    broken = root / "MORPH/SDB/core/A01F0577.sdb"
    lines = broken.read_text(encoding="shift_jis").split("\n")
    lines[1] = lines[1].split("\t")[3]
    broken.write_text("\n".join(lines), encoding="shift_jis")
    return root


def _talk(root: Path, volume: str, talk: str) -> None:
    """Segments of a second and 0.4 s between them: a tab-separated line a word, as in the SDB files."""
    sentences = random.Random(talk).sample(JAPANESE, 3)
    channels = ("L", "R") if talk.startswith("D") else ("L",)
    audio = {channel: [np.zeros(SAMPLE_RATE // 5, np.float32)] for channel in channels}
    at, lines = 0.2, []
    for segment, words in enumerate(sentences, 1):
        channel = channels[segment % len(channels)]
        samples = spoken("".join(pron.strip("(F_)") for _, pron in words), "ja")
        seconds = len(samples) / SAMPLE_RATE
        for place, (surface, pron) in enumerate(words, 1):
            time = f"{segment:04} {at:09.3f}-{at + seconds:09.3f} {channel}:-{segment:03}-{place:03}"
            fields = [talk, f"{len(lines):06}", talk, time, "", surface, "", "", "", surface, pron, "名詞"]
            lines.append("\t".join(fields))
        silence = np.zeros(len(samples), np.float32)
        gap = np.zeros(2 * SAMPLE_RATE // 5, np.float32)
        for other in channels:
            audio[other] += [samples if other == channel else silence, gap]
        at += seconds + 0.4
    sdb = root / "MORPH/SDB" / volume / f"{talk}.sdb"
    sdb.parent.mkdir(parents=True, exist_ok=True)
    sdb.write_text("\n".join(lines) + "\n", encoding="shift_jis")
    for channel, parts in audio.items():
        name = f"{talk}-{channel}" if len(channels) == 2 else talk
        write_audio(root / "WAV" / volume / f"{name}.wav", np.concatenate(parts))


MAKE = {"librispeech": make_librispeech, "aishell": make_aishell, "csj": make_csj}
