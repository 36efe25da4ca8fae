"""The sweep over samplers in miniature: of a model file, and of one that it trains."""

import csv
import sys

import numpy as np
import pytest
import torch
from families import BPE
from scripts import ROOT, run, start
from tiny import make_speech, make_tokenizer, talkative

sys.path.append(str(ROOT / "benchmarks"))

import sampling_plot  # noqa: E402
import sampling_sweep  # noqa: E402

SWEEP = "benchmarks/sampling_sweep.py"
SETTINGS = 5 * 2 * 2 * 2  # samplers with their frame weights, scopes, sizes, corrections
TINY = [
    "batch_size=7", "trainer.precision=32", "trainer.accelerator=cpu", "sizes.base.d_model=16", "sizes.base.n_heads=2",
    "sizes.base.n_layers=1", "sizes.base.hidden=20", "model.encoder.subsampling_conv_channels=8",
    "model.optim.sched.warmup_steps=2",
]  # fmt: skip


def read(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Of a model that was not trained, but scores as if it were sure of something."""
    folder = tmp_path_factory.mktemp("sweep")
    manifest = make_speech(folder / "speech")
    model = talkative(BPE.build(make_tokenizer(folder / "tokenizer"), manifest))
    model.save_to(str(folder / "tiny.nemo"))
    run(
        SWEEP, "--nemo", folder / "tiny.nemo", "--manifest", manifest, "--train-manifest", manifest, "--device", "cpu",
        "--utterances", 4, "--draws", 2, "--sizes", "0.1,0.999", "--out", folder / "sweep.csv",
    )  # fmt: skip
    return read(folder / "sweep.csv")


def test_a_row_for_each_setting(rows):
    keys = ("sampler", "frame_weights", "scope", "n_samples", "correction")
    assert len(rows) == len({tuple(row[key] for key in keys) for row in rows}) == SETTINGS
    assert {row["n_samples"] for row in rows} == {"7", "61"}
    assert {(row["vocabulary"], row["utterances"], row["measurements"]) for row in rows} == {("61", "4", "8")}
    assert all(row["commit"] and row["torch"] for row in rows)


def test_every_label_is_exact(rows):
    for row in rows:
        if row["n_samples"] == "61":
            assert float(row["coverage"]) == pytest.approx(1, abs=1e-4)
            assert float(row["cosine"]) == pytest.approx(1, abs=1e-4)
            assert float(row["loss_gap"]) == pytest.approx(0, abs=1e-4)


def test_few_labels_are_not(rows):
    for row in rows:
        if row["n_samples"] == "7":
            assert 0 < float(row["coverage"]) < 0.99 and -1 < float(row["cosine"]) < 0.9999
            if row["correction"] == "False":
                assert float(row["loss_gap"]) < 0 and float(row["gap"]) < 0


def test_picture(rows, tmp_path):
    sampling_plot.plot(rows, str(tmp_path / "sweep.png"))
    assert (tmp_path / "sweep.png").stat().st_size > 20_000


def test_trains_a_model_of_a_corpus(tmp_path):
    characters = list("天地人山水火木金土上下左右大小多少东南西北")
    random = np.random.default_rng(3)
    sentences = {"".join(random.choice(characters, random.integers(2, 6))) for _ in range(60)}
    (tmp_path / "sentences.txt").write_text("\n".join(sorted(sentences)), encoding="utf-8")
    corpus = tmp_path / "mandarin"
    run(
        "benchmarks/accuracy/main.py", "mandarin", tmp_path / "sentences.txt", "--out", corpus, "--train", 31,
        "--copies", 1, "--held-out", 5,
    )  # fmt: skip
    overrides = [word for override in TINY for word in ("--set", override)]
    run(
        SWEEP, "--corpus", corpus, "--steps", 3, *overrides, "--device", "cpu", "--draws", 1, "--sizes", "0.2",
        "--floors", "0.01,0.5", "--checkpoints", tmp_path / "checkpoints", "--run", "uniform_10:2",
        "--out", tmp_path / "sweep.csv",
    )  # fmt: skip
    assert (tmp_path / "checkpoints" / "mandarin" / "uniform_10_2.ckpt").exists()
    rows = read(tmp_path / "sweep.csv")
    assert len(rows) == SETTINGS // 2 + 2 and {row["model"] for row in rows} == {"mandarin, uniform_10:2, 3 steps"}
    assert {row["utterances"] for row in rows} == {"5"}
    mixed = [row for row in rows if row["floor"] == "0.5"]
    assert [(row["sampler"], row["scope"], row["correction"]) for row in mixed] == [
        ("ctc", "utterance", "False"), ("ctc", "utterance", "True"),
    ]  # fmt: skip


def test_what_to_measure_must_be_said():
    result = start(SWEEP)
    assert result.returncode != 0 and "give --nemo with --manifest, or --corpus" in result.stderr


def test_settings_of_a_model_without_a_head():
    kinds = {(s["sampler"], s["frame_weights"]) for s in sampling_sweep.settings((0.1,), False, False)}
    assert kinds == {("uniform", "mean")}


@pytest.mark.gpu
def test_on_cuda(tmp_path):
    """The numbers of the CPU, but for the draws: with every label nothing is drawn."""
    manifest = make_speech(tmp_path / "speech")
    model = talkative(BPE.build(make_tokenizer(tmp_path / "tokenizer"), manifest))
    model.save_to(str(tmp_path / "tiny.nemo"))
    found = []
    for device in ("cpu", "cuda"):
        _, batch, _ = sampling_sweep.of_file(tmp_path / "tiny.nemo", manifest, None, 4, device)
        setting = dict(sampler="ctc", frame_weights="max", scope="utterance", n_samples=61, correction=True)
        found.append(sampling_sweep.measure_setting(batch, setting, None, 1))
    assert torch.tensor(found[0]["exact_loss"]).isfinite()
    for name, value in found[0].items():
        assert found[1][name] == pytest.approx(value, rel=1e-3, abs=1e-3), name


def test_picture_of_the_sets(tmp_path):
    """It asserts that what it shows is the draw."""
    run("docs/draw_sets.py", tmp_path / "sets.png")
    assert (tmp_path / "sets.png").stat().st_size > 20_000


def test_what_the_meter_costs():
    said = run("benchmarks/meter_cost.py", "--device", "cpu", "--workloads", "tiny")
    assert "tiny: joint and loss" in said and "at the default interval" in said
