"""The `sampled_softmax` section of a config: how many negatives, from which distribution, for whom."""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from numbers import Integral, Real

CHOICES = {
    "sampler": ("ctc", "uniform", "unigram"),
    "scope": ("utterance", "batch"),
    "impl": ("auto", "reference", "cpu", "cuda"),
}


@dataclass(frozen=True)
class SampledSoftmax:
    """Which negatives join blank and the labels in the sampled softmax.

    candidates = {blank} + labels + negatives,  negatives drawn without replacement from (1 - floor) p + floor / V

    Args:
        n_samples: int >= 1, labels to draw; or a float in (0, 1), that fraction of the vocabulary, rounded up.
            V or more means every label, which is the exact loss.
        sampler: p is "ctc" (posteriors of the auxiliary CTC head), "uniform" or "unigram" (counts in training text).
        scope: "utterance", a set for each utterance; "batch", one set shared by all.
        correction: subtract each negative's log inclusion probability from its score.
        workspace_mib: int >= 1, MiB the loss may hold at a time.
        floor: in [0, 1], share of the uniform distribution mixed into "ctc" and "unigram".
        seed: int, or None for `torch.initial_seed()`.
        unigram_counts: path of a text file, "piece<TAB>count" or one integer count a line; None: counted from the
            training manifests.
        impl: "auto", "reference", "cpu" or "cuda", which engine computes the loss.
    Raises:
        ValueError: a value outside the above, naming the key, the value and what is allowed.
    Source: negatives by CTC posteriors: paper (abstract). Uniform, unigram, correction: standard. The floor: ours.
    """

    n_samples: int | float
    sampler: str = "ctc"
    scope: str = "utterance"
    correction: bool = False
    workspace_mib: int = 256
    floor: float = 0.01
    seed: int | None = None
    unigram_counts: str | None = None
    impl: str = "auto"

    def __post_init__(self):
        self._set("n_samples", _sample_size(self.n_samples))
        for key, allowed in CHOICES.items():
            if getattr(self, key) not in allowed:
                raise _wrong(key, getattr(self, key), "one of " + ", ".join(map(repr, allowed)))
        if not isinstance(self.correction, bool):
            raise _wrong("correction", self.correction, "true or false")
        if not _is(Integral, self.workspace_mib) or self.workspace_mib < 1:
            raise _wrong("workspace_mib", self.workspace_mib, "an integer of at least 1, in MiB")
        if not _is(Real, self.floor) or not 0 <= self.floor <= 1:
            raise _wrong("floor", self.floor, "a number from 0 to 1")
        if self.seed is not None and not _is(Integral, self.seed):
            raise _wrong("seed", self.seed, "an integer, or null for torch's own seed")
        if self.unigram_counts is not None:
            if not isinstance(self.unigram_counts, (str, os.PathLike)):
                raise _wrong("unigram_counts", self.unigram_counts, "the path of a text file, or null")
            self._set("unigram_counts", os.fspath(self.unigram_counts))

    @classmethod
    def from_config(cls, mapping) -> "SampledSoftmax":
        """Read a mapping (a dict, an OmegaConf DictConfig); a SampledSoftmax comes back as it is.

        Raises:
            ValueError: no mapping, an unknown key, no `n_samples`, or a wrong value.
        """
        if isinstance(mapping, cls):
            return mapping
        if not isinstance(mapping, Mapping):
            raise ValueError(
                f"sampled_softmax: expected a mapping such as {{n_samples: 512, sampler: ctc}}, got {mapping!r}"
            )
        values, allowed = dict(mapping.items()), [field.name for field in fields(cls)]
        for key, value in values.items():
            if key not in allowed:
                raise ValueError(
                    f"sampled_softmax: unknown key {key!r} (value {value!r}); allowed keys: {', '.join(allowed)}"
                )
        if "n_samples" not in values:
            raise ValueError("sampled_softmax: n_samples is missing; add the number of negatives, e.g. n_samples: 512")
        return cls(**values)

    def size(self, vocab_size: int) -> int:
        """Labels to draw from a vocabulary of `vocab_size`: from 1 to `vocab_size`."""
        if isinstance(self.n_samples, float):
            # 0.07 * 100 is 7.000000000000001 in floating point, and is meant to be 7
            return max(1, math.ceil(self.n_samples * vocab_size - 1e-6))
        return min(self.n_samples, vocab_size)

    def _set(self, key, value):
        object.__setattr__(self, key, value)  # frozen for everyone else


def _sample_size(value) -> int | float:
    """An int >= 1 (512.0 from YAML counts as 512) or a float in (0, 1)."""
    if _is(Integral, value) and value >= 1:
        return int(value)
    if _is(Real, value) and 0 < value < 1:
        return float(value)
    if _is(Real, value) and not isinstance(value, Integral):
        if value == 1:
            raise ValueError(
                f"sampled_softmax.n_samples: {value!r} could mean one label or the whole vocabulary; write "
                "n_samples: 1 for one label, a fraction below 1, or the vocabulary size for every label"
            )
        if value > 1 and float(value).is_integer():
            return int(value)
    raise _wrong("n_samples", value, "an integer of at least 1, or a fraction of the vocabulary between 0 and 1")


def _is(kind, value) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)  # True is an int to Python, not to a config


def _wrong(key, value, expected) -> ValueError:
    return ValueError(f"sampled_softmax.{key}: expected {expected}, got {value!r} ({type(value).__name__})")
