"""Shared fixtures and the `gpu` marker."""

import logging
import os

import pytest
import torch

if "PYTEST_XDIST_WORKER" in os.environ:  # each worker with threads for all cores is slower than one thread each
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the processes that a test starts
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


def pytest_configure(config):
    config.addinivalue_line("markers", "gpu: needs a CUDA device (skipped where torch.cuda.is_available() is false)")


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def heard(caplog):
    """Our warnings reach ``caplog`` also after a test whose NeMo let the root's handlers take only errors."""
    caplog.set_level(logging.WARNING, "nemo_sampled_rnnt")


@pytest.fixture
def fresh_seed():
    """Another seed at every run, printed (so shown where the test fails); TEST_SEED=... repeats one."""
    seed = int(os.environ.get("TEST_SEED", int.from_bytes(os.urandom(3), "big")))
    print(f"TEST_SEED={seed}")
    return seed


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    """One tokenizer for all tests of models."""
    from tiny import make_tokenizer

    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="session")
def speech(tmp_path_factory):
    """One corpus of noise for all tests of models."""
    from tiny import make_speech

    return make_speech(tmp_path_factory.mktemp("speech"))
