"""The sampler: from the labels of a batch, and its CTC posteriors, to its negatives."""

from typing import NamedTuple

import torch

from . import budget, distributions
from .config import SampledSoftmax
from .cuda import draws_by_kernels
from .gumbel import draw_without_replacement


class Negatives(NamedTuple):
    """Labels drawn beside the positives, as `sampled_rnnt_loss` takes them.

    ids: (N,) for the batch or (B, N) for each utterance, int64, -1 is padding.
    log_prob: the same shape, float32, log inclusion probabilities (0 at padding); None when there is no correction.
    """

    ids: torch.Tensor
    log_prob: torch.Tensor | None


class Frames(NamedTuple):
    """What a budget must know of the encoder's side.

    lengths: (B,) int, valid frames; longest: frames of the padded batch.
    """

    lengths: torch.Tensor
    longest: int


class NegativeSampler:
    """Draws the negatives of one training batch.

        p = (1 - floor) p_sampler + floor / V;   k negatives without replacement from p, labels excluded

    Args:
        config: SampledSoftmax.
        vocab_size: V, labels without blank.
        rank: of this process; ranks draw differently.
        counts: (V,) how often each label comes in the training text; needed by the sampler "unigram".
    Raises:
        ValueError: `unigram` without counts, or counts that do not fit.
    Attributes:
        draws: number of draws so far. A draw is a function of (seed, rank, draws) on a given kind of device, so a
            resumed run that sets it continues the same sequence.
    Exact limit: with n_samples >= V every label that is not excluded comes, with inclusion probability 1.
    Source: sampling by CTC posteriors: paper (abstract); uniform and unigram: standard; scopes as sets: ours.
    """

    def __init__(self, config: SampledSoftmax, vocab_size: int, rank: int = 0, counts=None):
        self.config = config
        self.vocab_size = vocab_size
        self.rank = rank
        self.draws = 0
        self._unusable = None  # (1,) int64, on the device of the last draw
        self._fixed = None  # log-weights (V,) that no batch changes, on the device of the last draw
        if config.sampler == "uniform":
            self._fixed = distributions.uniform(vocab_size)
        elif config.sampler == "unigram":
            if counts is None:
                raise ValueError(
                    "sampler 'unigram' needs counts, a number for each label, got None; in NeMo train a model class of "
                    "nemo_sampled_rnnt.models, which counts; else load a file with load_unigram_counts; or choose "
                    "sampler: uniform"
                )
            self._fixed = distributions.unigram(counts, vocab_size, config.floor)

    @torch.no_grad()
    def __call__(
        self,
        targets: torch.Tensor,
        target_lengths: torch.Tensor,
        posteriors: torch.Tensor | None = None,
        frames: Frames | None = None,
        step: int = 0,
        inclusion: bool | None = None,
    ) -> Negatives:
        """Draw the negatives of a batch, and count the draw.

        Args:
            targets: (B, U) int, labels; beyond target_lengths any value.
            target_lengths: (B,) int, in labels.
            posteriors: (B, V) float, CTC posteriors; read by the sampler "ctc" alone. An utterance whose posteriors are
                not finite is drawn for uniformly.
            frames: needed by n_samples "auto".
            step: optimizer step, of a schedule.
            inclusion: whether log_prob is wanted; None: where the config asks for the correction. The draw is the same.
        Returns:
            Negatives: scope "utterance": ids (B, k), without the utterance's own labels; "batch": ids (k,), without any
            label of the batch, from the mean of the utterances' distributions. k = min(n_samples, V); with "auto" the
            most that any set may have, and -1 behind those that a set has.
        Raises:
            ValueError: `ctc` without posteriors, `auto` without frames, or shapes that do not fit.
        Never waits for a GPU, but for moving the unigram weights there at the first draw.
        """
        self._check(targets, target_lengths, posteriors, frames)
        targets, target_lengths = targets.long(), target_lengths.long()  # V may lie beyond a narrower type
        together = self.config.scope == "batch"
        seed = torch.initial_seed() if self.config.seed is None else self.config.seed
        seed = mixed_seed(seed, self.rank, self.draws)
        width, sizes = self._sizes(targets, target_lengths, frames, step)
        if self.config.sampler == "ctc" and (self._unusable is None or self._unusable.device != targets.device):
            with torch.inference_mode(False):  # the next batch may be one of training
                self._unusable = torch.zeros(1, dtype=torch.int64, device=targets.device)
        draw = self._draw_by_kernels if draws_by_kernels(targets.device.type) else self._draw_by_torch
        inclusion = self.config.corrects if inclusion is None else inclusion
        ids, log_prob = draw(targets, target_lengths, posteriors, width, sizes, seed, inclusion)
        self.draws += 1
        if together:
            ids, log_prob = ids[0], None if log_prob is None else log_prob[0]
        return Negatives(ids, log_prob)

    @property
    def uniform_instead(self) -> torch.Tensor | None:
        """() int64 on the device: utterances so far that were drawn for uniformly, since their CTC posteriors were not
        finite, or empty. None where none was drawn for by CTC."""
        return None if self._unusable is None else self._unusable[0]

    def _draw_by_kernels(self, targets, target_lengths, posteriors, width: int, sizes, seed: int, inclusion: bool):
        from .cuda.draw import draw_negatives  # imports numba

        if self._fixed is not None:
            self._fixed = self._fixed.to(targets.device)
        return draw_negatives(
            targets,
            target_lengths,
            width,
            self.vocab_size,
            seed,
            self.config.scope == "batch",
            log_weights=self._fixed if self.config.sampler == "unigram" else None,
            posteriors=posteriors if self.config.sampler == "ctc" else None,
            floor=self.config.floor,
            inclusion=inclusion,
            sizes=sizes,
            unusable=self._unusable,
        )

    def _draw_by_torch(self, targets, target_lengths, posteriors, width: int, sizes, seed: int, inclusion: bool):
        log_weights = self._log_weights(targets, posteriors, width)
        if self.config.sampler == "ctc":
            self._unusable += (~distributions.usable(posteriors)).sum()
        if sizes is not None:  # where everything comes, also what the distribution gives no mass
            log_weights = log_weights.masked_fill((sizes >= self.vocab_size).unsqueeze(1), 0)
            sizes = sizes.clamp_max(width)
        excluded = self._labels(targets, target_lengths, self.config.scope == "batch")
        generator = torch.Generator(device=targets.device).manual_seed(seed)
        return draw_without_replacement(log_weights, width, excluded, generator, inclusion, sizes)

    def _sizes(self, targets, target_lengths, frames: Frames | None, step: int):
        """Negatives that a set has at most; under a budget also (G,) those that each has, V where it has all."""
        if not self.config.auto:
            return self.config.size(self.vocab_size, step), None
        batch, columns = targets.shape
        together, limit = self.config.scope == "batch", self.config.max_logits
        width = budget.widest(limit, batch * frames.longest * (columns + 1), self.vocab_size)
        # wrong lengths are the loss's to name: here they would stop the GPU
        lengths, label_lengths = frames.lengths.long().clamp(1, frames.longest), target_lengths.clamp(0, columns)
        cells, merit = lengths * (label_lengths + 1), budget.merit(lengths, label_lengths)
        if together:
            cells, merit = cells.sum(dim=0, keepdim=True), merit[:1]
        positives = 1 + self._labels(targets, target_lengths, together).sum(dim=1)  # blank is one
        least, most = ((positives + n).clamp_max(self.vocab_size + 1) for n in (budget.LEAST_NEGATIVES, width))
        candidates = budget.allot(limit, cells, merit, least, most)
        return width, torch.where(candidates > self.vocab_size, self.vocab_size, candidates - positives)

    @torch.no_grad()
    def distribution(self, targets, target_lengths, posteriors, utterance: int) -> tuple[torch.Tensor, torch.Tensor]:
        """What the set of an utterance is drawn from: (V,) log-weights; and (V,) bool, labels that are in it anyhow.

        The other arguments are those of :meth:`__call__`.
        """
        group = 0 if self.config.scope == "batch" else utterance
        excluded = self._labels(targets, target_lengths, self.config.scope == "batch")
        return self._log_weights(targets, posteriors, width=0)[group], excluded[group]

    def _log_weights(self, targets, posteriors, width: int) -> torch.Tensor:
        """(G, V) log-weights of each set, with the floor in them."""
        batch = 1 if self.config.scope == "batch" else len(targets)
        if width == self.vocab_size and not self.config.auto:  # everything comes, also what has no mass
            return distributions.uniform(self.vocab_size, targets.device).expand(batch, -1)
        if self.config.sampler == "ctc":
            log_weights = distributions.ctc(posteriors, self.config.floor)
            # logarithm of the mean, less a constant, which weights of any scale may lack
            return log_weights.logsumexp(dim=0, keepdim=True) if batch == 1 else log_weights
        self._fixed = self._fixed.to(targets.device)
        return self._fixed.expand(batch, -1)

    def _labels(self, targets, target_lengths, together: bool) -> torch.Tensor:
        """(B, V) bool, True at the labels of each utterance; together (1, V), at those of any.

        Anything else goes to column V, dropped after: padding, and wrong labels, which are the loss's to name (here
        they would stop the GPU).
        """
        valid = torch.arange(targets.shape[1], device=targets.device) < target_lengths.unsqueeze(1)
        valid &= (targets >= 0) & (targets < self.vocab_size)
        columns = torch.where(valid, targets, self.vocab_size)
        if together:
            columns = columns.reshape(1, -1)
        labels = torch.zeros((len(columns), self.vocab_size + 1), dtype=torch.bool, device=targets.device)
        return labels.scatter_(1, columns, True)[:, :-1]

    def _check(self, targets, target_lengths, posteriors, frames):
        if targets.dim() != 2 or target_lengths.shape != targets.shape[:1]:
            raise ValueError(
                "NegativeSampler: expected targets (B, U) and target_lengths (B,), got shapes "
                f"{tuple(targets.shape)} and {tuple(target_lengths.shape)}"
            )
        if self.config.auto and frames is None:
            raise ValueError("NegativeSampler: n_samples auto needs the frames of the batch, got None; pass Frames")
        devices = [x.device for x in (targets, target_lengths, posteriors) if x is not None]
        if len(set(devices)) > 1:
            raise ValueError(
                "NegativeSampler: expected targets, target_lengths and posteriors on one device, got "
                + ", ".join(map(str, devices))
            )
        if self.config.sampler != "ctc":
            return
        if posteriors is None:
            raise ValueError(
                "sampler 'ctc' needs the posteriors of a CTC head, got None; in NeMo train a model class of "
                "nemo_sampled_rnnt.models with an aux_ctc section, or choose sampler: uniform"
            )
        expected = (len(targets), self.vocab_size)
        if posteriors.shape != expected:
            raise ValueError(
                f"NegativeSampler: expected posteriors (B, V) = {expected}, labels without blank, got shape "
                f"{tuple(posteriors.shape)}"
            )


def mixed_seed(*words: int) -> int:
    """A 63-bit hash of integers, in which order counts.

    Every bit depends on every word, also the low 32, which are all that torch's CPU generator reads.
    Source: standard (the finaliser of splitmix64).
    """
    mask, state = (1 << 64) - 1, 0
    for word in words:
        state = ((state ^ word) + 0x9E3779B97F4A7C15) & mask
        state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 & mask
        state = (state ^ (state >> 27)) * 0x94D049BB133111EB & mask
        state ^= state >> 31
    return state >> 1
