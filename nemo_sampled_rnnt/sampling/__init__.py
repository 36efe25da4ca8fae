"""Who is in the candidate set beside blank and the labels: negatives, drawn without replacement. No NeMo here."""

from .config import SampledSoftmax
from .distributions import ctc_posteriors, load_unigram_counts
from .gumbel import draw_without_replacement
from .sampler import Frames, Negatives, NegativeSampler

__all__ = [
    "Frames",
    "NegativeSampler",
    "Negatives",
    "SampledSoftmax",
    "ctc_posteriors",
    "draw_without_replacement",
    "load_unigram_counts",
]
