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
        "correction": False,
        "workspace_mib": 256,
        "floor": 0.01,
        "seed": None,
        "unigram_counts": None,
        "impl": "auto",
    }


def test_every_key_off_its_default(tmp_path):
    values = {
        "n_samples": 0.05,
        "sampler": "unigram",
        "scope": "batch",
        "correction": True,
        "workspace_mib": 64,
        "floor": 0.2,
        "seed": 7,
        "unigram_counts": str(tmp_path / "counts.txt"),
        "impl": "reference",
    }
    config = SampledSoftmax.from_config(values)
    assert dataclasses.asdict(config) == values
    for field in dataclasses.fields(config)[1:]:
        assert values[field.name] != field.default, f"{field.name} is at its default"


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
        ("correction", "yes", "true or false"),
        ("correction", 1, "true or false"),
        ("workspace_mib", 0, "an integer of at least 1, in MiB"),
        ("workspace_mib", 0.5, "an integer of at least 1, in MiB"),
        ("workspace_mib", True, "an integer of at least 1, in MiB"),
        ("floor", -0.01, "a number from 0 to 1"),
        ("floor", 1.01, "a number from 0 to 1"),
        ("floor", float("nan"), "a number from 0 to 1"),
        ("floor", "0.01", "a number from 0 to 1"),
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


@pytest.mark.parametrize("value", [None, 512, "ctc", [("n_samples", 5)]])
def test_no_mapping(value):
    with pytest.raises(ValueError, match="expected a mapping such as") as error:
        SampledSoftmax.from_config(value)
    assert repr(value) in str(error.value)
