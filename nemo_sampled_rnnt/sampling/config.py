"""The `sampled_softmax` section of a config: how many negatives, from which distribution, for whom, until when."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from numbers import Integral, Real

from .distributions import FRAME_WEIGHTS
from .sizes import check_schedule, is_a, sample_size, size_at, size_of, wrong

AUTO = "auto"
CHOICES = {
    "sampler": ("ctc", "uniform", "unigram"),
    "frame_weights": FRAME_WEIGHTS,
    "scope": ("utterance", "batch"),
    "impl": ("auto", "reference", "cpu", "cuda"),
}


@dataclass(frozen=True)
class SampledSoftmax:
    """Which negatives join blank and the labels in the sampled softmax.

    candidates = {blank} + labels + negatives,  negatives drawn without replacement from (1 - floor) p + floor / V

    Args:
        n_samples: int >= 1, labels to draw; or a float in (0, 1), that fraction of the vocabulary, rounded up.
            V or more means every label, which is the exact loss. Or a schedule {step: size}, from such an optimizer
            step on so many: it begins at 0, and sizes grow. Or "auto": as many as `max_logits` allows.
        max_logits: with "auto", logits that a batch may have: lattice cells times candidates, over its utterances.
        full_after: optimizer step from which on training is exact; None: never.
        sampler: p is "ctc" (posteriors of the auxiliary CTC head), "uniform" or "unigram" (counts in training text).
        scope: "utterance", a set for each utterance; "batch", one set shared by all.
        correction: whether to subtract each negative's log inclusion probability from its score; "auto": for the
            samplers "ctc" and "unigram", not for "uniform".
        workspace_mib: int >= 1, MiB the loss may hold at a time.
        frame_weights: how the sampler "ctc" joins the posteriors of frames: "mean"; "nonblank", a frame weighs
            1 - p(blank); "max" over frames.
        ctc_layer: encoder layer whose posteriors the sampler "ctc" takes, one of `interctc.apply_at_layers`; None: the
            last.
        floor: in [0, 1], share of the uniform distribution mixed into "ctc" and "unigram".
        seed: int, or None for `torch.initial_seed()`.
        unigram_counts: path of a text file, "piece<TAB>count" or one integer count a line; None: counted from the
            training manifests.
        impl: "auto", "reference", "cpu" or "cuda", which engine computes the loss.
        meter_every: optimizer steps between two measurements of what the sample covers; 0: none.
    Raises:
        ValueError: a value outside the above, naming the key, the value and what is allowed.
    Source: negatives by CTC posteriors: paper (abstract). Uniform, unigram, correction: standard. The rest: ours.
    """

    n_samples: int | float | str | dict[int, int | float]
    sampler: str = "ctc"
    scope: str = "utterance"
    correction: bool | str = AUTO
    workspace_mib: int = 256
    floor: float = 0.01
    seed: int | None = None
    unigram_counts: str | None = None
    impl: str = "auto"
    frame_weights: str = "mean"
    ctc_layer: int | None = None
    max_logits: int | None = None
    full_after: int | None = None
    meter_every: int = 500

    def __post_init__(self):
        self._check_size()
        for key, allowed in CHOICES.items():
            if getattr(self, key) not in allowed:
                raise wrong(key, getattr(self, key), "one of " + ", ".join(map(repr, allowed)))
        if self.correction != AUTO and not isinstance(self.correction, bool):
            raise wrong("correction", self.correction, "true, false or 'auto'")
        if not is_a(Integral, self.workspace_mib) or self.workspace_mib < 1:
            raise wrong("workspace_mib", self.workspace_mib, "an integer of at least 1, in MiB")
        if not is_a(Real, self.floor) or not 0 <= self.floor <= 1:
            raise wrong("floor", self.floor, "a number from 0 to 1")
        if self.ctc_layer is not None and not (is_a(Integral, self.ctc_layer) and self.ctc_layer >= 0):
            raise wrong("ctc_layer", self.ctc_layer, "an integer of at least 0, or null for the last layer")
        if not is_a(Integral, self.meter_every) or self.meter_every < 0:
            raise wrong("meter_every", self.meter_every, "a number of steps, or 0 for no measurement")
        if self.ctc_layer is not None and self.sampler != "ctc":
            raise wrong("ctc_layer", self.ctc_layer, f"null, since sampler is {self.sampler!r} and reads no CTC head")
        if self.seed is not None and not is_a(Integral, self.seed):
            raise wrong("seed", self.seed, "an integer, or null for torch's own seed")
        if self.unigram_counts is not None:
            if not isinstance(self.unigram_counts, (str, os.PathLike)):
                raise wrong("unigram_counts", self.unigram_counts, "the path of a text file, or null")
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

    @property
    def auto(self) -> bool:
        """A budget decides, batch by batch."""
        return self.n_samples == AUTO

    @property
    def corrects(self) -> bool:
        """Scores of negatives are corrected. See docs/accuracy.md for why "auto" leaves uniform ones alone."""
        return self.sampler != "uniform" if self.correction == AUTO else self.correction

    @property
    def scheduled(self) -> bool:
        """Training changes with the step."""
        return isinstance(self.n_samples, dict) or self.full_after is not None

    def size(self, vocab_size: int, step: int = 0) -> int:
        """Labels to draw from a vocabulary of `vocab_size` at an optimizer step: 1 to `vocab_size`; not for auto."""
        if isinstance(self.n_samples, dict):
            return size_at(self.n_samples, step, vocab_size)
        return size_of(self.n_samples, vocab_size)

    def exact_at(self, step: int) -> bool:
        """The schedule has come to exact training."""
        return self.full_after is not None and step >= self.full_after

    def _check_size(self):
        value = self.n_samples
        if self.full_after is not None and not (is_a(Integral, self.full_after) and self.full_after >= 0):
            raise wrong("full_after", self.full_after, "an integer of at least 0, or null")
        if isinstance(value, Mapping):
            self._set("n_samples", check_schedule(value, self.full_after))
        elif value != AUTO:
            self._set("n_samples", sample_size(value))
        if (limit := self.max_logits) is not None:
            if not is_a(Real, limit) or limit < 1 or not float(limit).is_integer():
                raise wrong("max_logits", limit, "an integer of at least 1, lattice cells times candidates")
            self._set("max_logits", int(limit))  # 5e7 is a float to YAML
        if self.auto != (limit is not None):
            raise ValueError(
                f"sampled_softmax: n_samples is {value!r} and max_logits {self.max_logits!r}, but the two belong "
                "together: write n_samples: auto and max_logits: 50_000_000 (lattice cells times candidates, over a "
                "batch), or a number of samples and no max_logits"
            )

    def _set(self, key, value):
        object.__setattr__(self, key, value)  # frozen for everyone else
