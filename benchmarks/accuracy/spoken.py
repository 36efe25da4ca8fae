"""What a corpus is built from; imports nothing, for the processes that speak."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np

TRAIN, HELD_OUT = "train", "held_out"


class Spoken(NamedTuple):
    """Some utterances of one set: its name, and for each its transcript, its speaker, and int16 samples at 16 kHz."""

    set_name: str
    texts: list[str]
    speakers: list[str]
    speech: list[np.ndarray]
