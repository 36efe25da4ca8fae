"""NeMo's log lines left out, and the corpus of noise as a list of files."""

import pytest


@pytest.fixture(autouse=True, scope="session")
def quiet():
    import logging as python_logging
    import warnings

    from nemo.utils import logging

    logging.setLevel(logging.ERROR)
    python_logging.getLogger("lightning.pytorch").setLevel(python_logging.ERROR)
    warnings.filterwarnings("ignore")


@pytest.fixture(scope="session")
def wav_files(speech):
    return [str(path) for path in sorted(speech.parent.glob("*.wav"))]
