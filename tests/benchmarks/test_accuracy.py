"""The accuracy harness in miniature: speech, features, training, resumption, results, tables, pictures."""

import csv
import multiprocessing
import os
import queue
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import t as student
from scripts import ROOT, run, start

ACCURACY = ROOT / "benchmarks" / "accuracy"
sys.path += [str(ACCURACY), str(ROOT / "examples" / "demo"), str(ROOT / "benchmarks")]

import an4  # noqa: E402
import curves  # noqa: E402
import evaluation  # noqa: E402
import mandarin  # noqa: E402
import mistakes  # noqa: E402
import results  # noqa: E402
import tables  # noqa: E402
import training  # noqa: E402
import travel  # noqa: E402
import workers  # noqa: E402
from corpus import COUNTS, STEP, build  # noqa: E402
from model import build as build_model  # noqa: E402
from model import load_recipe  # noqa: E402
from nemo.collections.asr.metrics.wer import word_error_rate  # noqa: E402
from order import Order  # noqa: E402
from results import Evaluation, Results  # noqa: E402
from settings import SETTINGS, Run  # noqa: E402
from spoken import HELD_OUT, OTHER_SPEAKERS, OTHER_TEXT, SETS, TRAIN  # noqa: E402
from training import train  # noqa: E402

MAIN = "benchmarks/accuracy/main.py"
CHARACTERS = "天地人山水火木金土上下左右大小多少东南西北"
TINY = [
    "batch_size=7", "evaluate_every=2", "steps=5", "trainer.precision=32", "trainer.accelerator=cpu",
    "sizes.base.d_model=16", "sizes.base.n_heads=2", "sizes.base.n_layers=1", "sizes.base.hidden=20",
    "model.encoder.subsampling_conv_channels=8", "model.optim.sched.warmup_steps=2",
]  # fmt: skip
FAR = float("inf")


def sentences(count: int) -> list[str]:
    random = np.random.default_rng(3)
    made = {}
    while len(made) < count:
        made["".join(random.choice(list(CHARACTERS), random.integers(2, 6)))] = None
    return list(made)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A corpus that the command has spoken: 31 sentences twice, and 5 held-out ones."""
    root = tmp_path_factory.mktemp("corpus")
    (root / "sentences.txt").write_text("\n".join(sentences(60)), encoding="utf-8")
    out = root / "mandarin"
    run(MAIN, "mandarin", root / "sentences.txt", "--out", out, "--train", 31, "--copies", 2, "--held-out", 5)
    return out


@pytest.fixture(scope="module")
def recipe():
    return load_recipe("mandarin", TINY)


@pytest.fixture(scope="module")
def corpus(folder, recipe):
    return training.Corpus(folder, "cpu", recipe.model.preprocessor.features)


def test_sentences_of_rare_and_unspeakable_characters_are_left_out(tmp_path):
    path = tmp_path / "sentences.txt"
    path.write_text("\n".join([*sentences(50), "天地熊", "山水鑫", sentences(1)[0]]), encoding="utf-8")
    train_set, held_out = mandarin.sentence_sets(path, 40, 6)
    assert len(train_set) == 40 and len(held_out) == 6 and len({*train_set, *held_out}) == 46
    assert set("".join(held_out)) <= set("".join(train_set)) <= set(CHARACTERS)
    with pytest.raises(ValueError, match="usable sentences"):
        mandarin.sentence_sets(path, 45, 6)


def test_speech_is_the_same_in_every_process():
    job = (TRAIN, 11, sentences(3), mandarin.VOICES)
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        first, again, held_out = pool.map(mandarin.speak_block, [job, job, (HELD_OUT, *job[1:])], chunksize=1)
    for one, other, third in zip(first.speech, again.speech, held_out.speech, strict=True):
        assert one.dtype == np.int16 and np.abs(one).max() > 2000
        assert np.array_equal(one, other) and not np.array_equal(one, third)
    assert not set(mandarin.VOICES) & set(mandarin.HELD_OUT_VOICES)


def test_corpus(corpus, folder):
    assert len(corpus.train) == 62 and len(corpus.held_out) == 5
    assert sorted(corpus.train.texts) == sorted(2 * corpus.train.texts[:31])
    assert set(corpus.train.speakers) <= set(mandarin.VOICES)
    assert set(corpus.held_out.speakers) <= set(mandarin.HELD_OUT_VOICES)
    assert not set(corpus.held_out.texts) & set(corpus.train.texts)
    speakers, text = (training.Utterances(folder, name, "cpu", 80) for name in (OTHER_SPEAKERS, OTHER_TEXT))
    assert set(speakers.texts) < set(corpus.train.texts) and set(speakers.speakers) <= set(mandarin.HELD_OUT_VOICES)
    assert text.texts == corpus.held_out.texts and set(text.speakers) <= set(mandarin.VOICES)
    counts = [int(line) for line in (folder / COUNTS).read_text().split()]
    assert sum(counts) == len("".join(corpus.train.texts)) and counts[0] == 0  # the unknown one

    rows = np.fromfile(folder / "train.f16", np.float16).reshape(-1, 80)
    starts = np.cumsum(corpus.train.lengths) - corpus.train.lengths
    indices = np.array([40, 3, 17])
    features, lengths, transcripts, transcript_lengths = corpus.train.batch(indices)
    assert features.shape == (3, 80, -(-max(lengths) // STEP) * STEP)
    for i, index in enumerate(indices):
        end = starts[index] + lengths[i]
        assert np.array_equal(features[i, :, : lengths[i]].T.numpy(), rows[starts[index] : end].astype(np.float32))
        assert not features[i, :, lengths[i] :].any()
        assert transcript_lengths[i] == len(corpus.train.texts[index])
        assert transcripts[i, : transcript_lengths[i]].tolist() == corpus.train.labels[index].tolist()


def test_real_speech(tmp_path):
    random = np.random.default_rng(0)
    for rate, name in ((16000, "right"), (8000, "wrong")):
        an4.soundfile.write(tmp_path / f"{name}.flac", 0.1 * random.standard_normal(9000), rate)
    line = '{{"audio_filepath": "{}.flac", "text": "yes no", "speaker": "x"}}\n'
    for manifest in an4.MANIFESTS.values():
        (tmp_path / manifest).write_text(line.format("right"))
    train_set, held_out = an4.recorded(tmp_path)
    assert (train_set.set_name, held_out.set_name) == (TRAIN, HELD_OUT) and len(train_set.speech[0]) == 9000
    options = an4.TOKENIZER | {"vocab_size": 9}
    build(tmp_path / "an4", [train_set, held_out], options, dict(load_recipe("an4").model.preprocessor), "cpu")
    assert training.Corpus(tmp_path / "an4", "cpu", 80).held_out.texts == ["yes no"]
    (tmp_path / an4.MANIFESTS[TRAIN]).write_text(line.format("wrong"))
    with pytest.raises(ValueError, match="16000 samples a second, got 8000"):
        list(an4.recorded(tmp_path))


def test_order_is_a_function_of_seed_and_step():
    lengths = np.random.default_rng(1).integers(50, 500, 103)
    order = Order(lengths, 10, seed=5)
    batches = [order(step) for step in range(25)]
    again = Order(lengths, 10, seed=5)
    assert all(np.array_equal(again(step), batches[step]) for step in (24, 3, 11))
    assert not np.array_equal(Order(lengths, 10, seed=6)(3), batches[3])
    for one_pass in (batches[:10], batches[10:20]):
        assert len(np.unique(np.concatenate(one_pass))) == 100
    assert {tuple(sorted(x)) for x in batches[:10]} != {tuple(sorted(x)) for x in batches[10:20]}
    spread = np.mean([lengths[batch].max() / lengths[batch].min() for batch in batches])
    assert spread < 1.6, "utterances of about one length share a batch"
    with pytest.raises(ValueError, match="at least 104"):
        Order(lengths, 104, seed=0)


def test_the_first_pass_goes_from_short_to_long_where_asked():
    lengths = np.random.default_rng(1).integers(50, 500, 103)
    shuffled, order = Order(lengths, 10, seed=5), Order(lengths, 10, seed=5, short_first=True)
    means = [lengths[order(step)].mean() for step in range(10)]
    assert means == sorted(means) != [lengths[shuffled(step)].mean() for step in range(10)]
    assert all(np.array_equal(order(step), shuffled(step)) for step in range(10, 30)), "later passes are as without"


def test_stages():
    setting = SETTINGS["ctc_5_then_exact"]
    assert [setting.stage(step, 10) is None for step in (0, 7, 8, 9)] == [False, False, True, True]
    with pytest.raises(ValueError, match="SETTING:SEED"):
        Run.parse("ctc_11:0")


def test_settings_differ_in_the_loss_alone(corpus, recipe, folder, tmp_path):
    """The same parameters at the start, and after the same steps still: exact and NeMo's own loss are one loss."""
    states = [build_model(recipe, SETTINGS[name], folder, 4).state_dict() for name in ("stock", "exact", "ctc_10")]
    for state in states[1:]:
        assert state.keys() == states[0].keys()
        assert all(torch.equal(state[name], states[0][name]) for name in state)
    trained = []
    for name in ("stock", "exact"):
        assert train(Run(name, 4), recipe, corpus, tmp_path, FAR, lambda evaluations: None)
        trained.append(torch.load(tmp_path / f"{name}_4.ckpt", weights_only=False)["state_dict"])
    moved = max((trained[0][name] - states[0][name]).abs().max() for name in ("joint.enc.weight", "joint.pred.weight"))
    assert moved > 1e-3
    for name, value in trained[0].items():
        if name.startswith("encoder."):  # AdamW makes steps of rounding errors where no gradient is (biases of norms)
            continue
        assert torch.allclose(value, trained[1][name], atol=0.05 * float(moved)), name


@pytest.mark.parametrize("setting", ["stock_dropout", "ctc_10_corrected_larger_dropout"])
def test_dropout_of_a_setting(setting, recipe, folder):
    plain, model = (build_model(recipe, SETTINGS[name], folder, 0) for name in ("exact", setting))
    for part in ("encoder.layers", "encoder.pos_enc", "decoder", "joint"):
        assert {x.p for x in plain.get_submodule(part).modules() if hasattr(x, "p")} <= {0.0}, part
        assert 0.1 in {x.p for x in model.get_submodule(part).modules() if hasattr(x, "p")}, part


@pytest.mark.parametrize("setting", ["ctc_5_then_exact", "unigram_10"])
def test_resumed_run_is_the_same_run(setting, corpus, recipe, tmp_path):
    whole, parts = [], []
    assert train(Run(setting, 3), recipe, corpus, tmp_path / "whole", FAR, whole.extend)
    for step in (1, 2):  # a deadline in the past: one step, and a checkpoint
        assert not train(Run(setting, 3), recipe, corpus, tmp_path / "parts", 0, parts.extend)
        saved = torch.load(tmp_path / "parts" / f"{setting}_3.ckpt", weights_only=False)
        assert saved["global_step"] == step
    assert train(Run(setting, 3), recipe, corpus, tmp_path / "parts", FAR, parts.extend)

    one, other = (torch.load(tmp_path / x / f"{setting}_3.ckpt", weights_only=False) for x in ("whole", "parts"))
    assert all(torch.equal(value, other["state_dict"][name]) for name, value in one["state_dict"].items())
    for parameter, moments in one["optimizer_states"][0]["state"].items():
        again = other["optimizer_states"][0]["state"][parameter]
        assert all(torch.equal(torch.as_tensor(moments[name]), torch.as_tensor(again[name])) for name in moments)
    assert one["lr_schedulers"] == other["lr_schedulers"]
    assert one["sampled_softmax_draws"] == other["sampled_softmax_draws"] > 0
    rows = {row.step: row for row in parts}
    assert [row.step for row in whole] == [2, 4, 5] == list(rows)
    for row in whole:
        assert np.array_equal(row.errors, rows[row.step].errors) and row.coverage == rows[row.step].coverage
    assert (whole[-1].coverage is None) == (setting == "ctc_5_then_exact") and 0 < whole[0].coverage < 1


def test_checkpoint_of_another_length_or_recipe_is_refused(corpus, recipe, tmp_path):
    train(Run("ctc_5", 0), recipe, corpus, tmp_path, 0, lambda evaluations: None)
    longer = load_recipe("mandarin", [*TINY, "steps=9"])
    with pytest.raises(ValueError, match="a run of 5 steps, not 9"):
        train(Run("ctc_5", 0), longer, corpus, tmp_path, 0, pytest.fail)
    other = load_recipe("mandarin", [*TINY, "model.optim.lr=0.1"])
    with pytest.raises(ValueError, match="another recipe: .* recipe.model.optim.lr=0.001, recipe.model.optim.lr=0.1"):
        train(Run("ctc_5", 0), other, corpus, tmp_path, 0, pytest.fail)  # which reports no row of it


def test_a_run_ends_when_nobody_takes_its_results(corpus, recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(training.multiprocessing, "parent_process", lambda: SimpleNamespace(is_alive=lambda: False))
    assert not train(Run("exact", 0), recipe, corpus, tmp_path, FAR, pytest.fail)
    assert torch.load(tmp_path / "exact_0.ckpt", weights_only=False)["global_step"] == 1


def test_errors_are_nemos(corpus, recipe, folder):
    from tiny import talkative

    model = talkative(build_model(recipe, SETTINGS["exact"], folder, 0))
    wrong = evaluation.errors(model, corpus.held_out, 3, "character")
    features, lengths, _, _ = corpus.held_out.batch(np.arange(5))
    with torch.no_grad():
        encoded, encoded_lengths = model(processed_signal=features, processed_signal_length=lengths)
        heard = model.decoding.rnnt_decoder_predictions_tensor(encoded, encoded_lengths)
    heard = [hypothesis.text.replace(" ", "") for hypothesis in heard]
    assert any(heard)
    rate = word_error_rate(heard, corpus.held_out.texts, use_cer=True)
    assert wrong.sum() / sum(map(len, corpus.held_out.texts)) == pytest.approx(rate)
    assert evaluation.units("a bc", "word") == ["a", "bc"] and evaluation.units("a bc", "character") == ["a", "b", "c"]


def test_mistakes():
    texts, heard = ["他在天上", "左右", "大小", "土地"], ["她在地", "左右", "大多小", "土的"]
    found = mistakes.mistakes(texts, heard, "character")
    assert found == mistakes.Mistakes(10, 5, 3, 1)  # 她 is 他; 地 is not 天, and here not 的
    assert mistakes.mistakes(["yes no", "no"], ["no", "know"], "word") == mistakes.Mistakes(3, 2, 1, None)


def test_mistakes_of_a_run(corpus, recipe, folder, tmp_path):
    """The held-out errors are those of the evaluation, and of the larger set as many utterances are taken."""
    rows = []
    train(Run("ctc_10", 2), recipe, corpus, tmp_path / "checkpoints" / "mandarin", FAR, rows.extend)
    sets = [corpus.train, corpus.held_out]
    checkpoints = tmp_path / "checkpoints"
    step, (seen, new) = mistakes.of_run(Run("ctc_10", 2), recipe, folder, sets, checkpoints / "mandarin")
    assert (step, new.said, new.wrong) == (5, rows[-1].units.sum(), rows[-1].errors.sum())
    some = [corpus.train.texts[i] for i in (0, 15, 30, 45, 61)]
    assert seen.said == len("".join(some)) and seen.homophones <= seen.substituted <= seen.wrong
    overrides = [x for override in TINY for x in ("--set", override)]
    command = ["mistakes", "ctc_10:2", "--corpus", folder, "--checkpoints", checkpoints, *overrides]
    header, _, row = [line for line in run(MAIN, *command).splitlines() if line.startswith("|")]
    assert [name.split(",")[0] for name in header.split(" | ")[2:6]] == list(SETS)
    row = row.split(" | ")
    assert row[1:3] + row[5:6] == ["5", f"{100 * seen.wrong / seen.said:.2f}", f"{100 * new.wrong / new.said:.2f}"]


@pytest.mark.parametrize("scope", ["utterance", "batch"])
def test_coverage(scope, corpus, recipe, folder, monkeypatch):
    monkeypatch.setattr(evaluation, "COVERED", 2)  # of more, the labels alone would be the whole vocabulary
    model = build_model(recipe, SETTINGS["ctc_5"], folder, 0).eval()
    sizes, covered = (1, 5, len(model.joint.vocabulary)), []
    for size in sizes:
        model.joint.sampled_softmax = training.SampledSoftmax(n_samples=size, scope=scope, seed=1)
        model.joint.continue_draws(6)
        covered.append(evaluation.coverage(model, corpus.held_out))
        assert model.joint.draws == 6
    assert covered[0] < covered[1] < covered[2] == pytest.approx(1)


@pytest.mark.parametrize(("setting", "measured"), [("ctc_10_batch", False), ("ctc_10", True), ("exact", False)])
def test_coverage_is_of_utterances_own_sets(setting, measured, corpus, tmp_path):
    """Another number of utterances brings other labels into a shared set."""
    rows = []
    short = load_recipe("mandarin", [*TINY, "steps=2"])
    train(Run(setting, 0), short, corpus, tmp_path, FAR, rows.extend)
    assert [row.coverage is not None for row in rows] == [measured]


def test_commands(folder, tmp_path):
    """Two processes, a run that fails beside them, the same command again, and what is made of the results."""
    overrides = [x for override in TINY for x in ("--set", override)]
    checkpoints = tmp_path / "checkpoints" / "mandarin"
    checkpoints.mkdir(parents=True)
    torch.save({"global_step": 1, "run": {"steps": 99, "evaluations": []}}, checkpoints / "ctc_5_1.ckpt")
    command = [
        MAIN,
        "train",
        "ctc_5:1",
        "exact:0",
        "ctc_10:0",
        "--corpus",
        folder,
        "--checkpoints",
        tmp_path / "checkpoints",
    ]
    output = run(*command, "--out", tmp_path / "first", "--processes", 2, *overrides)
    assert "ctc_5:1 failed" in output and "a run of 99 steps, not 5" in output and "left: ctc_5:1\n" in output
    before = (tmp_path / "first" / "accuracy.csv").read_text()
    rows = list(csv.DictReader(before.splitlines()))
    assert list(rows[0]) == results.COLUMNS
    assert [(row["setting"], row["step"]) for row in rows] == [(x, y) for x in ("ctc_10", "exact") for y in "245"]
    assert all(row["corpus"] == "mandarin" and row["peak_gib"] == "" for row in rows)
    assert [bool(row["coverage"]) for row in rows] == [True] * 3 + [False] * 3

    output = run(*command[:2], *command[3:], "--out", tmp_path / "second", "--processes", 1, *overrides)
    assert "left: nothing" in output
    assert (tmp_path / "second" / "accuracy.csv").read_text() == before, "reported again, not trained again"

    merged = tmp_path / "merged.csv"
    run(MAIN, "merge", tmp_path / "first" / "accuracy.csv", tmp_path / "second" / "accuracy.csv", "--into", merged)
    assert merged.read_text() == before
    table = run(MAIN, "table", "mandarin", "--results", merged).splitlines()
    assert [line.split(" | ")[0] for line in table[2:]] == ["| ctc_10", "| exact"]
    run(MAIN, "plot", "--results", merged)
    assert (tmp_path / "accuracy_mandarin.png").stat().st_size > 10_000
    failed = start(MAIN, "table", "an4", "--results", merged)
    assert failed.returncode and "no row of exact on an4" in failed.stderr and "Traceback" not in failed.stderr


@pytest.mark.parametrize("allowed, expected", [(None, "010"), ("3", "333"), ("3,1", "313")])
def test_processes_take_the_gpus_in_turn(allowed, expected, tmp_path, monkeypatch):
    """torch counts the GPUs that CUDA_VISIBLE_DEVICES leaves, which is set for one process after another."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", allowed or "")  # put back after the test
    if allowed is None:
        del os.environ["CUDA_VISIBLE_DEVICES"]

    def count():
        return len(os.environ["CUDA_VISIBLE_DEVICES"].split(",")) if "CUDA_VISIBLE_DEVICES" in os.environ else 2

    monkeypatch.setattr("torch.cuda.device_count", count)
    seen = []
    process = SimpleNamespace(
        start=lambda: seen.append(os.environ["CUDA_VISIBLE_DEVICES"]),
        is_alive=lambda: False, join=lambda: None, exitcode=7,
    )  # fmt: skip
    context = SimpleNamespace(Queue=queue.SimpleQueue, Process=lambda **arguments: process)
    monkeypatch.setattr(workers.multiprocessing, "get_context", lambda kind: context)
    left = workers.run_all(
        ["exact:1", "exact:0", "exact:1"], tmp_path, (), tmp_path / "checkpoints", FAR, 3, 1.0, print
    )
    assert seen == list(expected) and left == ["exact:1", "exact:0"]


def made_up(setting: str, seed: int, step: int, minutes: float, errors, corpus="c", units=(4, 6, 10)) -> Evaluation:
    speakers = np.array([f"voice{i}" for i in range(len(units))])
    return Evaluation(corpus, setting, seed, step, minutes, 1.5, np.array(errors), np.array(units), speakers, None)


def cells(lines) -> dict[str, list[str]]:
    """Setting -> the cells of its row, that of the header included."""
    rows = [line.strip("| ").split(" | ") for line in lines if "---" not in line]
    return {row[0]: row for row in rows}


def test_table(tmp_path):
    found = Results(tmp_path / "accuracy.csv")
    found.add([made_up("exact", 0, 10, 1.0, [4, 6, 9]), made_up("exact", 0, 20, 2.0, [2, 2, 2])])
    found.add([made_up("exact", 1, 20, 2.0, [2, 2, 2])])
    found.add([made_up("double", seed, 20, 1.2, errors) for seed, errors in enumerate(([4, 4, 4], [4, 4, 4]))])
    found.add([made_up("stock", 1, 10, 0.5, [1, 2, 4]), made_up("stock", 1, 20, 0.9, [1, 1, 1])])
    found.write()
    rows = cells(tables.table(Results(found.path), "c"))
    assert rows["exact"][1:4] == ["2", "20", "30.00"] and rows["double"][3] == "60.00"
    assert rows["double"][5:8] == ["+100.0", "+100.0 to +100.0", "+100.0 to +100.0"], "the same draws on both sides"
    assert rows["stock"][5] == "-50.0" and rows["stock"][7] == "-", "one run says nothing of others"
    low, high = map(float, rows["exact"][4].split(" to "))
    assert 0 < low < 30 < high
    rows = cells(tables.table(found, "c", "stock", "double"))
    assert list(rows)[1:] == ["double", "stock"] and rows["stock"][2] == "20", "exact is not for equal time"
    rows = cells(tables.table(found, "c", step=10))
    assert list(rows)[1:] == ["exact", "stock"] and rows["exact"][1:4] == ["1", "10", "95.00"]
    rows = cells(tables.table(found, "c", without=["voice0", "voice2"]))
    assert rows["exact"][3] == "33.33" and rows["stock"][3] == "16.67"
    for arguments, message in [
        ({"baseline": "double", "step": 10}, "no row of double on c after 10 steps: run it first"),
        ({"minutes_of": "uniform_5"}, "no row of uniform_5 on c: run it first"),
        ({"minutes_of": "double", "step": 10}, "a step or a setting's minutes, not both"),
        ({"without": ["voice0", "voice7"]}, "expected speakers of c, voice0, voice1, voice2; got voice7"),
    ]:
        with pytest.raises(ValueError, match=message):
            list(tables.table(found, "c", **arguments))
    found.add([made_up("brief", 0, 10, 0.4, [1, 1, 1])])
    with pytest.raises(ValueError, match="no row of exact on c in the first 0.4 GPU minutes"):
        list(tables.table(found, "c", minutes_of="brief"))
    assert cells(tables.speakers_table(found, "c"))["stock"] == ["stock", "25.0", "16.7", "10.0"]
    with pytest.raises(ValueError, match="no row of c after 7 steps"):
        list(tables.speakers_table(found, "c", 7))


def test_interval_of_runs_is_welchs():
    """By its formula, for rates whose logarithms are 0, 1, 2 and 1, 3."""
    mine, theirs = np.exp([0.0, 1.0, 2.0]), np.exp([1.0, 3.0])
    a, b = 1 / 3, 2 / 2  # variances of the means
    freedom = (a + b) ** 2 / (a**2 / 2 + b**2 / 1)
    half = student.ppf(0.975, freedom) * np.sqrt(a + b)
    low, high = (100 * (np.exp(-1 + sign * half) - 1) for sign in (-1, 1))
    assert tables._of_runs(mine, theirs) == f"{low:+.1f} to {high:+.1f}"


@pytest.mark.parametrize(
    ("ends", "steps", "seeds"), [((30,), [10, 20, 30], 1), ((30, 10), [10], 2), ((20, 10, 30), [10, 20], 2)]
)
def test_a_curve_is_of_the_same_seeds_all_along(ends, steps, seeds, tmp_path):
    found = Results(tmp_path / "accuracy.csv")
    for seed, end in enumerate(ends):
        found.add([made_up("exact", seed, step, 0.1 * step, [1, 1, 1]) for step in (10, 20, 30) if step <= end])
    points = curves._curves(found)["c", "exact"]
    assert points.steps == steps and [len(rates) for rates in points.rates] == [seeds] * len(steps)


def test_a_process_keeps_to_its_share_of_a_gpus_memory(corpus, folder, monkeypatch):
    shares = []
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.set_per_process_memory_fraction", shares.append)
    monkeypatch.setattr("training.Corpus", lambda *arguments: corpus)
    runs = queue.SimpleQueue()
    runs.put(None)
    monkeypatch.setattr("torch.cuda.empty_cache", lambda: None)
    logging = workers.logging.root.manager.disable
    workers._work(runs, queue.SimpleQueue(), folder, TINY, folder, FAR, 0.3)
    workers.logging.disable(logging)
    assert shares == [0.3]


def test_curves_can_be_told_apart():
    styles = [tuple(sorted(curves._style(setting).items())) for setting in SETTINGS.values()]
    assert len(set(styles)) == len(SETTINGS)


@pytest.mark.parametrize(("settings", "timed"), [
    (("exact", "stock", "ctc_10_corrected_larger"), {"stock", "ctc_10_corrected_larger"}),
    (("exact", "stock"), {"exact", "stock"}),
])  # fmt: skip
def test_minutes_are_shown_where_they_compare(settings, timed, tmp_path, monkeypatch):
    found, shown = Results(tmp_path / "accuracy.csv"), {}
    for setting in settings:
        found.add([made_up(setting, 0, step, 0.1 * step, [1, 1, 1]) for step in (10, 20)])
    monkeypatch.setattr(curves, "_lines", lambda axes, points, x: shown.update({x: set(points)}))
    curves.draw(found, tmp_path)
    assert shown == {"steps": set(settings), "minutes": timed}


def test_interval_is_of_the_stated_width(tmp_path):
    """Of 400 utterances with independent errors: the normal approximation, within a tenth."""
    random = np.random.default_rng(2)
    errors = random.binomial(10, 0.2, 400)
    found = Results(tmp_path / "accuracy.csv")
    found.add([made_up("exact", 0, 10, 1.0, errors, units=[10] * 400)])
    low, high = np.percentile(tables._Draws(found, "c", ()).resampled(found.rows), [2.5, 97.5])
    assert (high - low) / (2 * 1.96 * errors.std() / 10 / np.sqrt(400)) == pytest.approx(1, abs=0.1)


def test_a_run_is_merged_whole_from_where_it_came_furthest(tmp_path):
    one, other = Results(tmp_path / "one.csv"), Results(tmp_path / "other.csv")
    one.add([made_up("exact", 0, step, 1.0, [1, 1, 1]) for step in (10, 20, 30)])
    one.add([made_up("exact", 1, step, 1.0, [1, 1, 1]) for step in (10, 15)])
    other.add([made_up("exact", seed, step, 2.0, [2, 2, 2]) for seed in (0, 1, 2) for step in (10, 20)])
    one.merge(other)
    runs = {seed: {key[3]: one.errors[key].sum() for key in one.rows if key[2] == str(seed)} for seed in range(3)}
    assert runs == {0: {"10": 3, "20": 3, "30": 3}, 1: {"10": 6, "20": 6}, 2: {"10": 6, "20": 6}}


def test_results_of_two_held_out_sets_do_not_mix(tmp_path):
    one, other = Results(tmp_path / "one.csv"), Results(tmp_path / "other.csv")
    one.add([made_up("exact", 0, 10, 1.0, [1, 1, 1])])
    other.add([made_up("exact", 1, 10, 1.0, [1, 1, 300])])
    one.merge(other)
    one.write()
    assert len(Results(one.path).rows) == 2 and Results(one.path).errors["c", "exact", "1", "10"][2] == 300
    other.add([made_up("exact", 2, 10, 1.0, [1, 1], corpus="d", units=(3, 3))])
    one.merge(other)
    with pytest.raises(ValueError, match="another held-out set"):
        one.add([made_up("exact", 3, 10, 1.0, [1, 1, 1], units=(4, 6, 11))])


def test_checkpoints_travel_in_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(travel, "PART", 1000)
    checkpoint = tmp_path / "ctc_5_1.ckpt"
    checkpoint.write_bytes(np.random.default_rng(0).bytes(6543))
    assert [travel.send(checkpoint, call, tmp_path / "parts") for call in (0, 2)] == [3, 3]
    assert len(list((tmp_path / "parts").iterdir())) == 4
    assert travel.receive(tmp_path / "parts", tmp_path / "there") == [], "not all parts are here"
    travel.send(checkpoint, 1, tmp_path / "parts")
    (received,) = travel.receive(tmp_path / "parts", tmp_path / "there")
    assert received.name == checkpoint.name and received.read_bytes() == checkpoint.read_bytes()
    with pytest.raises(ValueError, match="0 to 2"):
        travel.send(checkpoint, 3, tmp_path / "parts")
    next((tmp_path / "parts").iterdir()).write_bytes(bytes(1000))
    with pytest.raises(ValueError, match="send it again"):
        travel.receive(tmp_path / "parts", tmp_path / "there")
