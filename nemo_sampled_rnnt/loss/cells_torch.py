"""The cell operations of the tiled engine on the CPU: torch for the hidden, numba for softmax and lattice."""

from __future__ import annotations

import torch

from nemo_sampled_rnnt.loss.dropout import keep_mask
from nemo_sampled_rnnt.loss.problem import Options, Problem, accumulation_dtype
from nemo_sampled_rnnt.loss.recursion import arc_posteriors, forward_log_likelihood
from nemo_sampled_rnnt.loss.reduction import conclude
from nemo_sampled_rnnt.loss.softmax_rows import differentiate, normalise
from nemo_sampled_rnnt.loss.tiles import Segment, Tile

CHUNK = 2**19  # elements worked on between two passes over memory: 2 MiB of float32 stay in a core's cache


class TorchCells:
    """See :class:`nemo_sampled_rnnt.loss.tiled.Cells`; the constructor's arguments are those of every device."""

    def __init__(self, encoder, predictor, offsets, workspace, problem: Problem, needs, weights):
        self.encoder, self.predictor, self.offsets, self.workspace = encoder, predictor, offsets, workspace
        self.problem, self.needs, self.weights = problem, needs, weights
        dtype = accumulation_dtype(encoder.dtype)
        cells = problem.lattice.cells
        self.normaliser, self.log_blank, self.log_label = (encoder.new_empty(cells, dtype=dtype) for _ in range(3))
        self.by_blank, self.by_label = (encoder.new_empty(cells if needs.any else 0, dtype=dtype) for _ in range(2))
        self.costs = encoder.new_empty(problem.lattice.utterances, dtype=torch.float64)
        self.encoder_gradient = torch.zeros_like(encoder, dtype=dtype) if needs.encoder else None
        self.predictor_gradient = torch.zeros_like(predictor, dtype=dtype) if needs.predictor else None

    def hidden(self, tile: Tile) -> None:
        for segment, part, _ in self._segments(tile):
            frames, width = self._inputs(segment)
            block = self.workspace.hidden_and_one[part, : width.shape[1]].view(segment.frames, width.shape[0], -1)
            torch.add(frames[:, None], width[None], out=block)
            _activate_(block, self.problem.options.activation)
            self._dropout_(segment, block)

    def scores(self, tile: Tile, logits: torch.Tensor) -> None:
        for segment, part, cells in self._segments(tile):
            target = self._target(segment)
            for block, inner in self._wide_blocks(logits[part]):
                place = slice(cells.start + inner.start, cells.start + inner.stop)
                normalise(
                    block, self._offsets(segment), target[inner], self.problem.candidates.blank,
                    self.normaliser[place], self.log_blank[place], self.log_label[place],
                )  # fmt: skip

    def conclude(self, target_lengths: torch.Tensor, options: Options):
        return conclude(self.costs, target_lengths, options, self.normaliser.dtype)

    def lattice(self, first: int, last: int, backward: bool) -> None:
        for utterance in range(first, last):
            cells = slice(*self.problem.lattice.cell_offset[utterance : utterance + 2])
            width = self.problem.lattice.width(utterance)
            log_blank, log_label = (x[cells].view(-1, width).numpy() for x in (self.log_blank, self.log_label))
            if backward:
                by_blank, by_label = (x[cells].view(-1, width).numpy() for x in (self.by_blank, self.by_label))
                self.costs[utterance] = -arc_posteriors(log_blank, log_label, by_blank, by_label)
            else:
                self.costs[utterance] = -forward_log_likelihood(log_blank, log_label)

    def gradient(self, tile: Tile, logits: torch.Tensor) -> None:
        hidden, options = self.workspace.hidden_and_one[:, : self.encoder.shape[2]], self.problem.options
        for segment, part, cells in self._segments(tile):
            utterance = segment.utterance
            if not self.costs[utterance].isfinite():
                logits[part], hidden[part] = 0, 0
                continue
            target = self._target(segment)
            by_blank, by_label = self.by_blank[cells], self.by_label[cells] * (1 + options.fastemit_lambda)
            for block, inner in self._wide_blocks(logits[part]):
                differentiate(
                    block, self._offsets(segment), target[inner], self.problem.candidates.blank,
                    self.normaliser[cells][inner], by_blank[inner], by_label[inner], options.clamp,
                    self.weights[utterance].item(),
                )  # fmt: skip
                if block.dtype != logits.dtype:
                    logits[part][inner] = block.to(logits.dtype)

    def reduce(self, tile: Tile, hidden_gradient: torch.Tensor) -> None:
        hidden = self.workspace.hidden_and_one[:, : self.encoder.shape[2]]
        for segment, part, _ in self._segments(tile):
            frames, width = self._inputs(segment)
            shape = (segment.frames, len(width), -1)
            gradient = hidden_gradient[part, : hidden.shape[1]].view(shape)
            self._through_activation_(segment, hidden[part].view(shape), gradient)
            b, t = segment.utterance, slice(segment.first_frame, segment.first_frame + segment.frames)
            if self.needs.encoder:
                self.encoder_gradient[b, t] = gradient.sum(dim=1, dtype=self.encoder_gradient.dtype)
            if self.needs.predictor:
                self.predictor_gradient[b, : len(width)] += gradient.sum(dim=0, dtype=self.predictor_gradient.dtype)

    def _segments(self, tile: Tile):
        """(segment, slice of the tile's cells, slice of the lattice's cells)."""
        for segment in tile.segments:
            part = segment.cells
            yield segment, part, slice(tile.first_cell + part.start, tile.first_cell + part.stop)

    def _inputs(self, segment: Segment):
        b, first = segment.utterance, segment.first_frame
        width = self.problem.lattice.width(b)
        return self.encoder[b, first : first + segment.frames], self.predictor[b, :width]

    def _wide_blocks(self, logits: torch.Tensor):
        """(scores, slice of the cells): the logits themselves, or in half precision float32 copies of some."""
        wide = logits.dtype == self.offsets.dtype
        at_once = len(logits) if wide else max(1, CHUNK // logits.shape[1])
        for first in range(0, len(logits), at_once):
            inner = slice(first, min(first + at_once, len(logits)))
            yield logits[inner] if wide else logits[inner].to(self.offsets.dtype), inner

    def _offsets(self, segment: Segment) -> torch.Tensor:
        return self.offsets[self.problem.group(segment.utterance)]

    def _target(self, segment: Segment) -> torch.Tensor:
        """(cells,) position of the next label; in the last column, which has none, blank's (with posterior 0)."""
        b, labels = segment.utterance, self.problem.lattice.labels[segment.utterance]
        target = torch.nn.functional.pad(
            self.problem.candidates.target[b, :labels], (0, 1), value=self.problem.candidates.blank
        )
        return target.repeat(segment.frames)

    def _mask(self, segment: Segment) -> torch.Tensor:
        b, options = segment.utterance, self.problem.options
        t = torch.arange(segment.first_frame, segment.first_frame + segment.frames)
        u = torch.arange(self.problem.lattice.width(b))
        return keep_mask(self.problem.seed, b, t, u, self.encoder.shape[2], options.dropout)

    def _dropout_(self, segment: Segment, block: torch.Tensor) -> None:
        """Masks are made for a few frames at a time: one takes 8 bytes a unit."""
        dropout = self.problem.options.dropout
        if dropout > 0:
            for part, frames in self._frames_of_a_chunk(segment, block):
                block[frames] = torch.where(self._mask(part), block[frames] / (1 - dropout), 0)

    def _through_activation_(self, segment: Segment, hidden: torch.Tensor, gradient: torch.Tensor) -> None:
        """gradient *= d hidden / d (f + g), from the hidden itself."""
        activation, kept = self.problem.options.activation, 1 - self.problem.options.dropout
        for part, frames in self._frames_of_a_chunk(segment, hidden):
            h, g = hidden[frames], gradient[frames]
            if activation == "relu":
                g.mul_(h > 0)
            else:
                a = h * kept
                g.mul_(1 - a * a if activation == "tanh" else a * (1 - a))
            if kept < 1:
                g.copy_(torch.where(self._mask(part), g / kept, 0))

    def _frames_of_a_chunk(self, segment: Segment, block: torch.Tensor):
        at_once = max(1, CHUNK // (block.shape[1] * block.shape[2]))
        for first in range(0, segment.frames, at_once):
            frames = min(at_once, segment.frames - first)
            part = segment._replace(first_frame=segment.first_frame + first, frames=frames)
            yield part, slice(first, first + frames)


def _activate_(block: torch.Tensor, activation: str) -> None:
    {"relu": torch.relu_, "tanh": torch.tanh_, "sigmoid": torch.sigmoid_}[activation](block)
