"""How good is the sample? What it covers, what it does to the gradient, and what to change. No NeMo here."""

from .advice import Adviser
from .batch import Meter
from .measure import Exact, Measurement
from .utterance import CandidateSet, Utterance, coverage

__all__ = ["Adviser", "CandidateSet", "Exact", "Measurement", "Meter", "Utterance", "coverage"]
