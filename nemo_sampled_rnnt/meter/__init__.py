"""How good is the sample? What it covers, what it does to the gradient, and what to change. No NeMo here."""

from .advice import Adviser, needed_size
from .batch import Meter
from .lattice import Utterance, score
from .measure import Measurement, measure

__all__ = ["Adviser", "Measurement", "Meter", "Utterance", "measure", "needed_size", "score"]
