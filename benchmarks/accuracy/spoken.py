"""What a corpus is built from; imports nothing, for the processes that speak.

Sets: training, and held out: other sentences by other speakers. Where a corpus has them, two more say which of both is
hard: sentences of the training set by the held-out speakers, and the held-out sentences by those of the training set.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np

TRAIN, HELD_OUT = "train", "held_out"
OTHER_SPEAKERS, OTHER_TEXT = "other_speakers", "other_text"
SETS = (TRAIN, OTHER_SPEAKERS, OTHER_TEXT, HELD_OUT)


class Spoken(NamedTuple):
    """Some utterances of one set: its name, and for each its transcript, its speaker, and int16 samples at 16 kHz."""

    set_name: str
    texts: list[str]
    speakers: list[str]
    speech: list[np.ndarray]
