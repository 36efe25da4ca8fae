"""SampledSoftmax: what a config may say, and what it is told when it says something else."""

import dataclasses
import re
from collections.abc import Mapping

import numpy as np
import pytest

from nemo_sampled_rnnt.sampling import SampledSoftmax


def test_defaults():
    config = SampledSoftmax.from_config({"n_samples": 512})
    assert dataclasses.asdict(config) == {
        "n_samples": 512,
        "sampler": "ctc",
        "scope": "utterance",
        "correction": "auto",
        "workspace_mib": 256,
        "floor": 0.01,
        "seed": None,
        "unigram_counts": None,
        "impl": "auto",
        "frame_weights": "mean",
        "ctc_layer": None,
        "max_logits": None,
        "full_after": None,
        "meter_every": 500,
    }


@pytest.mark.parametrize("sampler", ["ctc", "unigram", "uniform"])
def test_correction(sampler):
    assert SampledSoftmax(5, sampler=sampler).corrects == (sampler != "uniform")
    for asked in (True, False):
        assert SampledSoftmax(5, sampler=sampler, correction=asked).corrects is asked
    with pytest.raises(ValueError, match="correction.*true, false or 'auto'"):
        SampledSoftmax(5, sampler=sampler, correction="yes")


def test_every_key_off_its_default(tmp_path):
    values = {
        "n_samples": {0: 0.05, 100: 0.1},
        "sampler": "unigram",
        "scope": "batch",
        "correction": False,
        "workspace_mib": 64,
        "floor": 0.2,
        "seed": 7,
        "unigram_counts": str(tmp_path / "counts.txt"),
        "impl": "reference",
        "frame_weights": "max",
        "full_after": 200,
        "meter_every": 50,
    }
    auto = {"n_samples": "auto", "max_logits": 5_000_000, "ctc_layer": 3}
    configs = [(SampledSoftmax.from_config(given), given) for given in (values, auto)]
    for field in dataclasses.fields(SampledSoftmax):
        assert any(getattr(config, field.name) != field.default for config, _ in configs), f"{field.name}: the default"
    for config, given in configs:
        assert given.items() <= dataclasses.asdict(config).items()


def test_reads_any_mapping_and_itself():
    class Config(Mapping):
        def __init__(self, values):
            self.values_ = values

        def __getitem__(self, key):
            return self.values_[key]

        def __iter__(self):
            return iter(self.values_)

        def __len__(self):
            return len(self.values_)

    config = SampledSoftmax.from_config(Config({"n_samples": 3, "scope": "batch"}))
    assert (config.n_samples, config.scope) == (3, "batch")
    assert SampledSoftmax.from_config(config) is config


def test_reads_omegaconf():
    omegaconf = pytest.importorskip("omegaconf")
    section = omegaconf.OmegaConf.create("{n_samples: 0.05, sampler: uniform, correction: true, seed: null, floor: 0}")
    config = SampledSoftmax.from_config(section)
    assert config == SampledSoftmax(0.05, sampler="uniform", correction=True, floor=0)


def test_path_of_counts_may_be_a_path(tmp_path):
    assert SampledSoftmax(3, unigram_counts=tmp_path / "c").unigram_counts == str(tmp_path / "c")


def test_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        SampledSoftmax(5).n_samples = 6


@pytest.mark.parametrize(
    ("n_samples", "vocab_size", "size"),
    [
        (5, 37, 5),
        (1, 37, 1),
        (37, 37, 37),
        (512.0, 1031, 512),
        (512, 37, 37),
        (np.int64(7), 37, 7),
        (0.05, 1000, 50),
        (0.05, 1001, 51),
        (0.07, 100, 7),  # 7.000000000000001 in floating point
        (np.float32(0.25), 41, 11),
        (1e-9, 37, 1),
        (0.999, 37, 37),
    ],
)
def test_size(n_samples, vocab_size, size):
    got = SampledSoftmax(n_samples).size(vocab_size)
    assert got == size and type(got) is int


def test_integral_float_becomes_an_int():
    assert type(SampledSoftmax(512.0).n_samples) is int


@pytest.mark.parametrize("value", [0, -3, 0.0, -0.5, 1.5, 512.5, True, False, "512", None, float("nan"), float("inf")])
def test_wrong_n_samples(value):
    with pytest.raises(ValueError, match="n_samples: expected an integer of at least 1, or a fraction") as error:
        SampledSoftmax.from_config({"n_samples": value})
    assert repr(value) in str(error.value)


def test_one_point_zero_is_ambiguous():
    with pytest.raises(ValueError, match=r"n_samples: 1\.0 could mean .*write n_samples: 1 .*fraction below 1"):
        SampledSoftmax(1.0)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("sampler", "gumbel", "one of 'ctc', 'uniform', 'unigram'"),
        ("sampler", ["ctc"], "one of 'ctc'"),
        ("sampler", None, "one of 'ctc'"),
        ("scope", "batches", "one of 'utterance', 'batch'"),
        ("impl", "triton", "one of 'auto', 'reference', 'cpu', 'cuda'"),
        ("correction", "yes", "true, false or 'auto'"),
        ("correction", 1, "true, false or 'auto'"),
        ("workspace_mib", 0, "an integer of at least 1, in MiB"),
        ("workspace_mib", 0.5, "an integer of at least 1, in MiB"),
        ("workspace_mib", True, "an integer of at least 1, in MiB"),
        ("floor", -0.01, "a number from 0 to 1"),
        ("floor", 1.01, "a number from 0 to 1"),
        ("floor", float("nan"), "a number from 0 to 1"),
        ("floor", "0.01", "a number from 0 to 1"),
        ("frame_weights", "median", "one of 'mean', 'nonblank', 'max'"),
        ("ctc_layer", -1, "an integer of at least 0, or null for the last layer"),
        ("ctc_layer", 1.0, "an integer of at least 0, or null for the last layer"),
        ("full_after", -1, "an integer of at least 0, or null"),
        ("full_after", True, "an integer of at least 0, or null"),
        ("meter_every", -1, "a number of steps, or 0 for no measurement"),
        ("meter_every", 0.5, "a number of steps, or 0 for no measurement"),
        ("seed", 1.5, "an integer, or null"),
        ("seed", True, "an integer, or null"),
        ("unigram_counts", 3, "the path of a text file, or null"),
    ],
)
def test_wrong_value_names_key_value_and_what_is_allowed(key, value, expected):
    with pytest.raises(ValueError) as error:
        SampledSoftmax.from_config({"n_samples": 5, key: value})
    assert str(error.value).startswith(f"sampled_softmax.{key}: expected {expected}")
    assert f"got {value!r}" in str(error.value)


def test_unknown_key():
    message = "unknown key 'n_sample' (value 5); allowed keys: n_samples, sampler, scope"
    with pytest.raises(ValueError, match=re.escape(message)):
        SampledSoftmax.from_config({"n_sample": 5})


def test_missing_n_samples():
    with pytest.raises(ValueError, match="n_samples is missing; add"):
        SampledSoftmax.from_config({"sampler": "uniform"})


# ------------------------------------------------------------------------------------------------ schedule and budget


def test_schedule_from_omegaconf():
    omegaconf = pytest.importorskip("omegaconf")
    section = omegaconf.OmegaConf.create("{n_samples: {0: 5, 10: 9, 20: 30}, full_after: 25}")
    config = SampledSoftmax.from_config(section)
    assert [config.size(23, step) for step in (0, 9, 10, 19, 20, 10**6)] == [5, 5, 9, 9, 23, 23]
    assert [config.exact_at(step) for step in (0, 24, 25, 26)] == [False, False, True, True]
    assert config.scheduled and not config.auto


def test_schedule_of_fractions():
    assert [SampledSoftmax({0: 0.1, 7: 0.5}).size(37, step) for step in (6, 7)] == [4, 19]


def test_a_plain_size_is_no_schedule():
    config = SampledSoftmax(5)
    assert not config.scheduled and not config.exact_at(10**9) and config.size(37, 10**9) == 5


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ({0: 5, 20: 9, 10: 12}, "goes backwards from 20: 9 to 10: 12; steps must ascend"),
        ({0: 5, 10: 9, 20: 8}, "goes backwards from 10: 9 to 20: 8; steps must ascend, and sizes may stay or grow"),
        ({5: 5, 10: 9}, "a schedule {step: size} that begins at step 0"),
        ({}, "a schedule {step: size} that begins at step 0"),
        ({0: 5, 10: 0.5}, "a schedule of counts, or of fractions of the vocabulary, not of both"),
        ({0: 5, 10: 0}, "n_samples[10]: expected an integer of at least 1, or a fraction"),
        ({0: 5, 1.5: 7}, "whose steps are integers of at least 0, got 1.5"),
        ({0: 5, "10": 7}, "whose steps are integers of at least 0, got '10'"),
        ({-1: 5}, "whose steps are integers of at least 0, got -1"),
    ],
)
def test_schedule_that_is_none(schedule, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        SampledSoftmax(schedule)


def test_exact_training_before_the_last_size():
    with pytest.raises(ValueError, match="full_after: the schedule goes backwards: training is exact from step 10 on"):
        SampledSoftmax({0: 5, 10: 9}, full_after=10)


def test_budget():
    config = SampledSoftmax("auto", max_logits=5e7)
    assert config.auto and config.max_logits == 50_000_000 and type(config.max_logits) is int


@pytest.mark.parametrize("values", [{"n_samples": "auto"}, {"n_samples": 5, "max_logits": 100}])
def test_budget_and_auto_belong_together(values):
    with pytest.raises(ValueError, match="n_samples is .* and max_logits .*belong together: write n_samples: auto and"):
        SampledSoftmax.from_config(values)


@pytest.mark.parametrize("value", [0, -1, 1.5, "5", True, float("inf"), float("nan")])
def test_wrong_budget(value):
    with pytest.raises(ValueError, match="max_logits: expected an integer of at least 1, lattice cells times"):
        SampledSoftmax("auto", max_logits=value)


@pytest.mark.parametrize("value", [None, 512, "ctc", [("n_samples", 5)]])
def test_no_mapping(value):
    with pytest.raises(ValueError, match="expected a mapping such as") as error:
        SampledSoftmax.from_config(value)
    assert repr(value) in str(error.value)


def test_layer_of_a_head_that_is_not_read():
    with pytest.raises(ValueError, match="ctc_layer: expected null, since sampler is 'uniform' and reads no CTC head"):
        SampledSoftmax(5, sampler="uniform", ctc_layer=3)
