"""The converter: what it writes, that it goes on where it stopped, and what it refuses."""

from __future__ import annotations

import json
import os

import lhotse_to_nemo
import pytest
from click.testing import CliRunner
from lhotse import AudioSource, Recording, RecordingSet, SupervisionSegment, SupervisionSet
from lhotse_to_nemo import NORMALISE, main


def convert(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def write_part(folder, corpus, part, segments, seconds=30.0):
    """Manifests of a part; every recording is a file of its name."""
    folder.mkdir(exist_ok=True)
    recordings = []
    for name in sorted({segment.recording_id for segment in segments}):
        path = folder / f"{name}.wav"
        path.touch()
        source = AudioSource(type="file", channels=[0], source=str(path))
        samples = int(16000 * seconds)
        recordings.append(Recording(name, [source], sampling_rate=16000, num_samples=samples, duration=seconds))
    RecordingSet.from_recordings(recordings).to_file(folder / f"{corpus}_recordings_{part}.jsonl.gz")
    SupervisionSet.from_segments(segments).to_file(folder / f"{corpus}_supervisions_{part}.jsonl.gz")


def segment(number, text, start=0.0, duration=1.25, recording=None, **more):
    recording = recording or f"r{number:03}"
    return SupervisionSegment(f"s{number:03}", recording, start, duration, text=text, speaker="anna", **more)


def entries(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def manifests(tmp_path):
    """53 utterances; the 11th has no text."""
    folder = tmp_path / "lhotse"
    texts = ["A  TALE" if number != 11 else " " for number in range(53)]
    write_part(folder, "librispeech", "x", [segment(n, text, 0.1 * n) for n, text in enumerate(texts)])
    return folder


def test_fields(manifests, tmp_path):
    out = tmp_path / "x.json"
    assert convert("librispeech", manifests, out, "x", "--allow-skipped").exit_code == 0
    found = entries(out)
    assert len(found) == 52
    assert found[7] == {
        "audio_filepath": str(manifests / "r007.wav"),
        "offset": 0.7,
        "duration": 1.25,
        "text": "a tale",
        "speaker": "anna",
    }
    assert (tmp_path / "x.json.skipped.tsv").read_text() == "s011\tno text\t1\n"


@pytest.mark.parametrize(
    "corpus, text, expected",
    [
        ("librispeech", " MISTER  QUILTER'S ", "mister quilter's"),
        ("aishell", "今天 Ａ股 ｋ 歌 １２", "今天A股K歌12"),
        ("csj", "えーと Ａ１ 研究　の", "えーとA1研究の"),
    ],
)
def test_text(corpus, text, expected):
    assert NORMALISE[corpus](text) == expected


@pytest.mark.parametrize("stop, done", [(4, 0), (9, 7), (30, 27)])  # audio files looked for, and at the last checkpoint
def test_goes_on_where_it_stopped(stop, done, manifests, tmp_path, monkeypatch):
    whole, out = tmp_path / "whole.json", tmp_path / "x.json"
    convert("librispeech", manifests, whole, "x", "--allow-skipped")
    monkeypatch.setattr(lhotse_to_nemo, "CHECKPOINT", 7)
    seen, is_file = [], lhotse_to_nemo.os.path.isfile

    def interrupted(path):
        seen.append(path)
        if len(seen) == stop:
            raise KeyboardInterrupt
        return is_file(path)

    monkeypatch.setattr(lhotse_to_nemo.os.path, "isfile", interrupted)
    assert convert("librispeech", manifests, out, "x", "--allow-skipped").exit_code != 0
    assert not out.exists()
    assert convert("librispeech", manifests, out, "x", "--allow-skipped").exit_code == 0
    assert out.read_bytes() == whole.read_bytes()
    assert (tmp_path / "x.json.skipped.tsv").read_bytes() == (tmp_path / "whole.json.skipped.tsv").read_bytes()
    assert len(seen) - stop == 52 - done, "it did not go on at the checkpoint"
    assert sorted(path.name for path in tmp_path.glob("x.json*")) == ["x.json", "x.json.skipped.tsv"]


def test_other_input_starts_over(manifests, tmp_path):
    out = tmp_path / "x.json"
    assert convert("librispeech", manifests, out, "x").exit_code == 1, "1 of 53 is more than 1 %"
    write_part(manifests, "librispeech", "x", [segment(n, "OTHER") for n in range(5)])
    assert convert("librispeech", manifests, out, "x").exit_code == 0
    assert [entry["text"] for entry in entries(out)] == 5 * ["other"]


def test_missing_audio(manifests, tmp_path):
    (manifests / "r003.wav").unlink()
    result = convert("librispeech", manifests, tmp_path / "x.json", "x")
    assert result.exit_code == 1 and not (tmp_path / "x.json").exists()
    assert "2 skipped (3.77%; no such audio file: 1, no text: 1)" in result.output
    assert str(tmp_path / "x.json.skipped.tsv") in result.output
    assert convert("librispeech", manifests, tmp_path / "x.json", "x", "--allow-skipped").exit_code == 0
    assert len(entries(tmp_path / "x.json")) == 51


def test_what_was_missing_is_looked_for_again(manifests, tmp_path):
    """The same command, after it was refused and the audio has come."""
    audio, out = (manifests / "r003.wav").read_bytes(), tmp_path / "x.json"
    (manifests / "r003.wav").unlink()
    assert convert("librispeech", manifests, out, "x").exit_code == 1
    (manifests / "r003.wav").write_bytes(audio)
    assert "no such audio file" not in convert("librispeech", manifests, out, "x", "--allow-skipped").output
    assert len(entries(out)) == 52


@pytest.mark.parametrize("gone", ["x.json.partial", "x.json.skipped.tsv"])
def test_starts_over_where_what_was_written_is_gone(gone, manifests, tmp_path, monkeypatch):
    out = tmp_path / "x.json"
    monkeypatch.setattr(lhotse_to_nemo, "CHECKPOINT", 7)
    is_file, seen = os.path.isfile, []

    def interrupted(path):
        seen.append(path)
        if len(seen) > 30:
            raise KeyboardInterrupt
        return is_file(path)

    with monkeypatch.context() as patch:
        patch.setattr(lhotse_to_nemo.os.path, "isfile", interrupted)
        assert convert("librispeech", manifests, out, "x", "--allow-skipped").exit_code != 0
    (tmp_path / gone).unlink()
    assert convert("librispeech", manifests, out, "x", "--allow-skipped").exit_code == 0
    assert len(entries(out)) == 52
    assert (tmp_path / "x.json.skipped.tsv").read_text() == "s011\tno text\t1\n"


def test_missing_part(manifests, tmp_path):
    result = convert("librispeech", manifests, tmp_path / "y.json", "y")
    assert "expected librispeech_recordings_y.jsonl.gz" in result.output and "found the parts x of" in result.output
    result = convert("aishell", manifests, tmp_path / "y.json", "train")
    assert "found the parts none at all of aishell" in result.output


def test_csj_utterances(tmp_path):
    """Segments are joined over short pauses; not over long ones, nor over one that is withheld."""

    def talk(number, start, duration, text, recording="A01F0001"):
        custom = {"raw": text, "disfluent": text, "disfluent_tag": "," * (len(text) - 1)}
        return segment(number, text, start, duration, recording, custom=custom)

    segments = [
        talk(0, 0.5, 1.0, "今日は"), talk(1, 2.0, 1.5, "研究の"), talk(2, 5.0, 1.0, "発表"), talk(3, 6.5, 1.0, "×さん"),
        talk(4, 8.0, 1.0, "です"), talk(5, 0.1, 1.0, "雑談", "S00F0001"),
    ]  # fmt: skip
    write_part(tmp_path / "lhotse", "csj", "core", segments)
    out = tmp_path / "train.json"
    assert convert("csj", tmp_path / "lhotse", out, "core", "--recordings", "A*").exit_code == 0
    found = [(entry["offset"], entry["duration"], entry["text"]) for entry in entries(out)]
    assert found == [(0.5, 3.0, "今日は研究の"), (5.0, 1.0, "発表"), (8.0, 1.0, "です")]
