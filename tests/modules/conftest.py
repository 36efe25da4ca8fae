"""NeMo's log lines say nothing that a test of ours needs."""

import pytest


@pytest.fixture(autouse=True, scope="session")
def quiet():
    from nemo.utils import logging

    logging.setLevel(logging.ERROR)
