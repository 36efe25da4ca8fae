"""examples/evaluate.py: the counts, the interval, and what is transcribed."""

from __future__ import annotations

import json
import math

import pytest
import soundfile
import torch
from click.testing import CliRunner
from evaluate import UNITS, Errors, main, read_manifest, restore, row, transcribe
from tiny import CHARACTERS, characters, make_config, make_speech, make_tokenizer, talkative

from nemo_sampled_rnnt.models import EncDecSampledRNNTModel


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Two `.nemo` files of character models that say something, and not the same."""
    folder = tmp_path_factory.mktemp("models")
    config = characters(make_config(make_tokenizer(folder / "tokenizer")), CHARACTERS)
    paths = []
    for name in ("one", "other"):
        model = talkative(EncDecSampledRNNTModel(cfg=config))
        if name == "other":
            model.joint.joint_net[-1].bias.data[3] += 20.0
        paths.append(folder / f"{name}.nemo")
        model.save_to(str(paths[-1]))
    return paths


@pytest.fixture(scope="module")
def speech(tmp_path_factory):
    return make_speech(tmp_path_factory.mktemp("speech"), 5)


def test_counts():
    """a b c d e / a x c d; one two / one two three four: one substitution, one deletion, two insertions."""
    references, hypotheses = ["a b c d e", "one two"], ["a x c d", "one two three four"]
    words = Errors(*(list(map(UNITS["wer"], texts)) for texts in (references, hypotheses)))
    assert words.counts() == {"sub": 1, "del": 1, "ins": 2, "length": 7}
    characters_ = Errors(*(list(map(UNITS["cer"], texts)) for texts in (["今天 好", "a"], ["今夫好好", ""])))
    assert characters_.counts() == {"sub": 1, "del": 1, "ins": 1, "length": 4}


def test_interval():
    """Utterances of 10 words with 0 or 2 errors, half and half: the rate's standard error is 10 % / sqrt(100)."""
    references = [[*range(10)]] * 100
    hypotheses = [[*range(10)], [*range(8)]] * 50
    low, high = Errors(references, hypotheses).interval()
    assert low < 10 < high
    assert high - low == pytest.approx(2 * 1.96 * 1.0, rel=0.05)
    worse, better = Errors(references, hypotheses), Errors(references, [[*range(10)], [*range(9)]] * 50)
    assert better.better_than(worse) > 0.99 and worse.better_than(better) < 0.01


def test_interval_with_empty_references():
    """Samples without a word are left out; with no word at all there is no rate."""
    low, high = Errors([["a"], [], []], [["b"], [], []]).interval()
    assert low == high == 100
    low, high = Errors([["a"], ["b"], [], []], [["a"], ["c"], [], []]).interval()
    assert low < 50 < high and math.isfinite(high - low)
    empty = Errors([[], []], [["a"], []])
    assert all(map(math.isnan, empty.interval()))
    found = row("m", "wer", empty, empty)
    assert (found["WER %"], found["95 %"], found["ins"]) == ("-", "-", "1")


def test_offset_and_duration(models, speech, tmp_path):
    """Of a longer recording the model hears what it hears of that part in a file of its own."""
    audio = json.loads(speech.read_text().splitlines()[-1])["audio_filepath"]
    samples, rate = soundfile.read(audio)
    soundfile.write(tmp_path / "part.wav", samples[3200:14400], rate)
    part, whole = tmp_path / "part.json", tmp_path / "offset.json"
    part.write_text(json.dumps({"audio_filepath": str(tmp_path / "part.wav"), "duration": 0.7, "text": "a"}) + "\n")
    whole.write_text(json.dumps({"audio_filepath": audio, "offset": 0.2, "duration": 0.7, "text": "a"}) + "\n")
    model, heard = restore(models[0], None, 4), []
    model.preprocessor.register_forward_pre_hook(lambda _, __, given: heard.append(given), with_kwargs=True)
    for manifest in (part, whole):
        assert transcribe(model, read_manifest(manifest), 2)[0]
    assert heard[0]["length"].tolist() == heard[1]["length"].tolist()
    torch.testing.assert_close(heard[0]["input_signal"], heard[1]["input_signal"])


def test_side_by_side(models, speech, tmp_path):
    arguments = [*map(str, models), "--manifest", str(speech), "--metric", "cer", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    assert "5 utterances" in result.output and "CER %" in result.output
    found = {}
    for name in ("1-one", "2-other"):
        lines = (tmp_path / f"out/{name}-{speech.stem}.json").read_text().splitlines()
        found[name] = [json.loads(line) for line in lines]
    references = [json.loads(line)["text"] for line in speech.read_text().splitlines()]
    assert [entry["text"] for entry in found["1-one"]] == references
    assert found["1-one"] != found["2-other"]
    split = UNITS["cer"]
    for entries in found.values():
        errors = Errors([split(x["text"]) for x in entries], [split(x["pred_text"]) for x in entries])
        for kind, count in errors.counts().items():
            assert f" {count} " in result.output, kind


def test_paths_beside_the_manifest(models, speech, tmp_path):
    """As NeMo's datasets find them; a duration that is not given is the file's; any name will do."""
    manifest, lines = tmp_path / "dev.manifest", []
    for line in speech.read_text().splitlines():
        entry = json.loads(line)
        name = entry["audio_filepath"].rsplit("/", 1)[1]
        (tmp_path / name).write_bytes(open(entry["audio_filepath"], "rb").read())
        lines.append(json.dumps({"audio_filepath": name, "text": entry["text"]}))
    manifest.write_text("\n".join(lines) + "\n")
    model = restore(models[0], None, 4)
    assert transcribe(model, read_manifest(manifest), 2) == transcribe(model, read_manifest(speech), 2)


def test_decoder(models, speech):
    greedy, beam = restore(models[0], None, 4), restore(models[0], "maes", 3)
    assert beam.cfg.decoding.strategy == "maes" and beam.cfg.decoding.beam.beam_size == 3
    entries = read_manifest(speech)
    assert len(transcribe(beam, entries, 5)) == len(transcribe(greedy, entries, 5)) == 5


@pytest.mark.parametrize(
    "content, message",
    [
        ("", "found none"), ("not json\n", "line 1"), ('{"words": 1}\n', "line 1"),
        ('{"audio_filepath": "a.wav", "text": null}\n', "line 1"), ('{"text": "a"}\n', "line 1"),
    ],
)  # fmt: skip
def test_bad_manifest(content, message, models, tmp_path):
    (tmp_path / "bad.json").write_text(content)
    result = CliRunner().invoke(main, [str(models[0]), "--manifest", str(tmp_path / "bad.json")])
    assert result.exit_code == 1 and message in result.output


def test_no_model_file(speech, tmp_path):
    (tmp_path / "broken.nemo").write_text("not a tar")
    result = CliRunner().invoke(main, [str(tmp_path / "broken.nemo"), "--manifest", str(speech)])
    assert result.exit_code == 1 and "broken.nemo is no .nemo file" in result.output


@pytest.mark.parametrize("option", ["--batch-size", "--beam-size"])
def test_no_size(option, models, speech):
    result = CliRunner().invoke(main, [str(models[0]), "--manifest", str(speech), option, "0"])
    assert result.exit_code == 2 and f"Invalid value for '{option}': 0" in result.output
