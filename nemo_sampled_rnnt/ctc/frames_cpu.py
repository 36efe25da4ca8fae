"""What is done with frames on the CPU: torch for softmax and posteriors, numba for the lattice."""

from __future__ import annotations

from functools import partial

import torch

from nemo_sampled_rnnt.ctc.batch import Batch
from nemo_sampled_rnnt.ctc.recursion import log_likelihood, occupancies
from nemo_sampled_rnnt.loss.problem import accumulation_dtype
from nemo_sampled_rnnt.loss.reduction import denominator, utterance_weight
from nemo_sampled_rnnt.loss.tiles import Tile, Visit

CHUNK = 2**19  # elements worked on between two passes over memory: 2 MiB of float32 stay in a core's cache


class CpuFrames:
    """See :class:`nemo_sampled_rnnt.ctc.engine.Frames`; the constructor's arguments are those of every device."""

    def __init__(self, encoder, offsets, batch: Batch, visits: list[Visit], needs, scale: float):
        self.batch, self.offsets, self.needs = batch, offsets, needs
        options, count, real = batch.options, len(batch.frames), accumulation_dtype(encoder.dtype)
        self.hidden = torch.cat([x[:frames] for x, frames in zip(encoder, batch.frames, strict=True)])
        finite = self.hidden.isfinite().all(dim=1)
        self.hidden[~finite] = 0
        self.usable = [part.all().item() for part in finite.split(batch.frames)]
        self.weights = (utterance_weight(batch.target_lengths, options.reduction, real) * scale).tolist()
        self.normaliser = encoder.new_empty(len(self.hidden), dtype=real)
        self.likelihood = encoder.new_empty(count, dtype=torch.float64)
        self.mass = encoder.new_zeros(count, len(offsets), dtype=real) if options.frame_weights else None
        self.column_sums = encoder.new_zeros(1, len(offsets), dtype=real) if needs.bias else None
        self.best = torch.full(encoder.shape[:2], batch.vocabulary) if options.best else None
        self._log_probs: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # of the utterances of a visit
        self._occupancies: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def scores(self, tile: Tile, logits: torch.Tensor) -> None:
        blank = self.batch.vocabulary
        for segment in tile.segments:
            b, labels = segment.utterance, self._labels(segment.utterance)
            if b not in self._log_probs:
                shape = (self.batch.frames[b], 1 + len(labels))
                self._log_probs[b] = self.normaliser.new_empty(shape, dtype=torch.float64).split([1, len(labels)], 1)
            log_blank, log_label = self._log_probs[b]
            for rows, frames, kept in self._chunks(tile, segment):
                z = logits[rows].to(self.offsets.dtype) + self.offsets
                lse = self.normaliser[kept] = z.logsumexp(dim=1)
                log_blank[frames, 0] = (z[:, blank] - lse).double()
                log_label[frames] = (z[:, labels] - lse[:, None]).double()
                if self.best is not None:
                    self.best[b, frames] = z.argmax(dim=1)

    def lattice(self, visit: Visit, backward: bool) -> None:
        for segment in visit[-1].segments:
            b = segment.utterance
            log_blank, log_label = self._log_probs[b]
            inputs = log_blank[:, 0].numpy(), log_label.numpy(), self._labels(b).numpy()
            if backward:
                self.likelihood[b], *gammas = occupancies(*inputs)
                self._occupancies[b] = tuple(torch.from_numpy(x) for x in gammas)
            else:
                self.likelihood[b] = log_likelihood(*inputs)
            if not self.usable[b]:
                self.likelihood[b] = torch.nan

    def gradient(self, tile: Tile, logits: torch.Tensor) -> None:
        blank, weighting = self.batch.vocabulary, self.batch.options.frame_weights
        for segment in tile.segments:
            b, labels, scale = segment.utterance, self._labels(segment.utterance), self.weights[segment.utterance]
            alive = self.needs.any and self.likelihood[b].isfinite().item()
            for rows, frames, kept in self._chunks(tile, segment):
                z = logits[rows]
                p = z.to(self.offsets.dtype).add_(self.offsets).sub_(self.normaliser[kept, None]).exp_()
                if weighting == "max":
                    torch.maximum(self.mass[b], p.amax(dim=0), out=self.mass[b])
                elif weighting is not None:
                    weights = torch.ones_like(p[:, 0])
                    if weighting == "nonblank":
                        weights = -torch.expm1(self._log_probs[b][0][frames, 0]).to(p.dtype)
                    self.mass[b].add_(weights @ p, alpha=1 / self.batch.frames[b])
                if alive:
                    of_blank, of_label = (x[frames].to(p.dtype) for x in self._occupancies[b])
                    p.index_add_(1, labels, of_label, alpha=-1)
                    p[:, blank] -= of_blank
                    z.copy_(p.mul_(scale))
                    if self.needs.bias:
                        self.column_sums += p.sum(dim=0)
                elif self.needs.any:
                    z.zero_()

    def leave(self, visit: Visit) -> None:
        self._log_probs.clear()
        self._occupancies.clear()

    def conclude(self):
        options, lengths = self.batch.options, self.batch.target_lengths
        costs = -self.likelihood
        if options.zero_infinity:
            costs = costs.masked_fill(costs == torch.inf, 0)
        costs = costs.to(self.offsets.dtype)
        finite = costs.isfinite()
        weights = utterance_weight(lengths, options.reduction, costs.dtype)
        divisor = denominator(finite, lengths, options.reduction, costs.dtype)
        return (torch.where(finite, costs, 0) * weights).sum() / divisor, costs, divisor

    def unpacking(self):
        return partial(_unpacked, self.batch.frames)

    def _labels(self, utterance: int) -> torch.Tensor:
        return self.batch.targets[utterance, : self.batch.labels[utterance]]

    def _chunks(self, tile: Tile, segment):
        """(rows of the logits, frames of the utterance, packed frames), a few at a time."""
        first = segment.cells.start
        at_once = max(1, CHUNK // len(self.offsets))
        for begin in range(0, segment.frames, at_once):
            end = min(begin + at_once, segment.frames)
            at = (first, segment.first_frame, tile.first_cell + first)
            yield tuple(slice(x + begin, x + end) for x in at)


def _unpacked(frames: list[int], packed: torch.Tensor, factor: torch.Tensor, shape, dtype: torch.dtype) -> torch.Tensor:
    gradient = torch.zeros(shape, dtype=dtype)
    for part, out in zip(packed.split(frames), gradient, strict=True):
        torch.mul(part, factor, out=out[: len(part)])
    return gradient
