"""The order of the utterances: which are in the batch of a step, as a function of seed and step alone."""

from __future__ import annotations

import numpy as np

JITTER = 0.1  # of the length, so that an utterance's neighbours change from pass to pass


class Order:
    """Batches of about one length.

        each pass: lengths x uniform(0.9, 1.1), sorted, cut into batches, the batches shuffled, all by (seed, pass)

    Args:
        lengths: (N,) frames of the utterances.
        batch_size: utterances a batch; the last few of a pass, too few for a batch, are left out of it.
        seed: another one is another order.
        short_first: the first pass takes its batches by length, from the shortest. An alignment of few frames is found
            sooner (SortaGrad, arXiv 1512.02595: standard).
    Raises:
        ValueError: fewer utterances than a batch takes.
    """

    def __init__(self, lengths: np.ndarray, batch_size: int, seed: int, short_first: bool = False):
        if len(lengths) < batch_size:
            raise ValueError(f"expected at least {batch_size} utterances, the size of a batch, got {len(lengths)}")
        self.lengths, self.batch_size, self.seed, self.short_first = lengths, batch_size, seed, short_first
        self._pass, self._batches = None, None

    def __call__(self, step: int) -> np.ndarray:
        """(batch_size,) indices of the utterances of a step; step 0 is the first."""
        number, place = divmod(step, len(self.lengths) // self.batch_size)
        if number != self._pass:
            self._pass, self._batches = number, self._shuffled(number)
        return self._batches[place]

    def _shuffled(self, number: int) -> np.ndarray:
        random = np.random.default_rng((self.seed, number))
        left_out = random.permutation(len(self.lengths))[: len(self.lengths) % self.batch_size]
        keys = self.lengths * random.uniform(1 - JITTER, 1 + JITTER, len(self.lengths))
        keys[left_out] = np.inf
        indices = np.argsort(keys, kind="stable")[: len(keys) - len(left_out)]
        batches = indices.reshape(-1, self.batch_size)
        return batches if self.short_first and number == 0 else random.permutation(batches)
