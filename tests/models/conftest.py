"""One tokenizer and one corpus of noise for all tests, and NeMo's log lines left out."""

import pytest
from tiny import make_speech, make_tokenizer


@pytest.fixture(autouse=True, scope="session")
def quiet():
    import logging as python_logging
    import warnings

    from nemo.utils import logging

    logging.setLevel(logging.ERROR)
    python_logging.getLogger("lightning.pytorch").setLevel(python_logging.ERROR)
    warnings.filterwarnings("ignore")


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="session")
def speech(tmp_path_factory):
    return make_speech(tmp_path_factory.mktemp("speech"))


@pytest.fixture(scope="session")
def wav_files(speech):
    return [str(path) for path in sorted(speech.parent.glob("*.wav"))]
