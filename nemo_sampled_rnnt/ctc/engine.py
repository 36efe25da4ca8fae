"""The tiled engine: output layer, loss, posteriors and all gradients in one visit to each tile.

For a tile of whole utterances: logits = hidden x weight', log-sum-exp over all of V with the log-probs of blank and of
the utterance's labels, the lattice, the logits turned into their gradient in place,

    dz_k[t] = w_b (p_k[t] - occupancy of k at t),    p_k = exp(z_k - log-sum-exp)

with the posterior mass sum_t p_k[t] from the same pass, and from it the gradients of weight, bias and hidden. Nothing
of size frames x V outlives the visit. An utterance larger than the workspace is cut: all its frames are scored for the
lattice, and those that are no longer in the workspace again for the gradient.

Worked number: V = 131,072 in bfloat16. A frame's logits take 262 kB, so 256 MiB hold 1,000 frames: five utterances of
200. Whole utterances fit, and nothing is computed twice.

Design: ours (after :mod:`nemo_sampled_rnnt.loss.tiled`).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import torch

from nemo_sampled_rnnt.ctc.batch import Batch
from nemo_sampled_rnnt.ctc.output_layer import OutputLayer
from nemo_sampled_rnnt.loss.candidates import recurring
from nemo_sampled_rnnt.loss.problem import accumulation_dtype
from nemo_sampled_rnnt.loss.tiles import Tile, Visit, plan_tiles

logger = logging.getLogger("nemo_sampled_rnnt")
SMALL = 32 * 2**20  # bytes of a tile on the CPU


@dataclass
class Needs:
    """Which inputs ask for a gradient."""

    encoder: bool
    weight: bool
    bias: bool

    @property
    def any(self) -> bool:
        return self.encoder or self.weight or self.bias


class Frames(Protocol):
    """What a device does with frames; logits begin with the tile's first frame, and have ``stride`` columns.

    A tile's rows beyond its frames are not looked at.
    """

    hidden: torch.Tensor  # (N or more, D) valid frames of all utterances, packed; 0 where not finite, and behind them
    mass: torch.Tensor | None  # (B, stride) posterior mass
    column_sums: torch.Tensor | None  # (any, stride) that add up to the bias's gradient
    best: torch.Tensor | None  # (B, T) int64, the best label or blank of each frame

    def scores(self, tile: Tile, logits: torch.Tensor) -> None:
        """Keep log-sum-exp and the log-probs of blank and labels."""

    def lattice(self, visit: Visit, backward: bool) -> None:
        """Likelihoods, and with ``backward`` occupancies, of the utterances of a visit."""

    def gradient(self, tile: Tile, logits: torch.Tensor) -> None:
        """Add to the mass; turn logits into their gradient in place, 0 for an utterance without a likelihood."""

    def leave(self, visit: Visit) -> None:
        """The visit is over."""

    def conclude(self):
        """() the reduced loss, (B,) the losses before reduction, () the common divisor."""

    def unpacking(self):
        """What makes the encoder's gradient of the packed one, and of these frames keeps nothing else: a function of
        the (N or more, D) gradient, a factor, the shape (B, T, D) and the dtype; 0 beyond the lengths."""


class Engine:
    """One pass over a batch.

    Args:
        encoder, weight, bias: detached inputs, see :func:`nemo_sampled_rnnt.ctc.ctc_loss`.
        batch: checked.
        make_frames: the device's :class:`Frames`.
        needs: gradients to compute.
        workspace_bytes: for the logits of a tile and what the lattice keeps of them.
    """

    def __init__(self, encoder, weight, bias, batch: Batch, make_frames, needs: Needs, workspace_bytes: int):
        self.needs = needs
        # In half precision gradients of the logits at unit scale underflow: 2^8 shifts them to where float16 is dense.
        self.scale = 256.0 if encoder.dtype == torch.float16 else 1.0
        self.layer = OutputLayer(weight, bias, encoder.dtype, workspace_bytes // 8)
        self.visits = plan(batch, frame_bytes(encoder, weight, batch), workspace_bytes)
        largest = max(tile.rows for tiles in self.visits for tile in tiles)
        self.logits = encoder.new_empty(largest, self.layer.stride)
        if self.layer.columns < self.layer.stride:
            self.logits[:, self.layer.columns :] = 0  # the padding that no product writes
        self.frames: Frames = make_frames(encoder, self.layer.offsets, batch, self.visits, needs, self.scale)
        self.hidden_gradient = None
        if needs.encoder:
            shape, real = self.frames.hidden.shape, accumulation_dtype(encoder.dtype)
            self.hidden_gradient = encoder.new_empty(shape, dtype=real)

    def run(self) -> None:
        """Visit every tile; afterwards losses, masses and gradients lie in ``frames``, ``layer`` and here."""
        for visit in self.visits:
            for tile in visit:
                logits = self._logits(tile)
                self.frames.scores(tile, logits)
            self.frames.lattice(visit, self.needs.any)
            if self.needs.any or self.frames.mass is not None:
                *earlier, last = visit
                self._backward(last, logits)
                for tile in earlier:  # these are no longer in the workspace
                    self._backward(tile, self._logits(tile))
            self.frames.leave(visit)
        del self.logits

    def _logits(self, tile: Tile) -> torch.Tensor:
        logits = self.logits[: tile.rows]
        self.layer.logits(self._hidden(tile), logits)
        return logits

    def _backward(self, tile: Tile, logits: torch.Tensor) -> None:
        self.frames.gradient(tile, logits)
        if self.needs.any and tile.rows > tile.cells:
            logits[tile.cells :] = 0
        if self.needs.weight:
            self.layer.accumulate(logits, self._hidden(tile))
        if self.needs.encoder:
            out = self.hidden_gradient[tile.first_cell : tile.first_cell + tile.rows]  # beyond its own, the next writes
            self.layer.hidden_gradient(logits, out)

    def _hidden(self, tile: Tile) -> torch.Tensor:
        return self.frames.hidden[tile.first_cell : tile.first_cell + tile.rows]


def frame_bytes(encoder: torch.Tensor, weight: torch.Tensor, batch: Batch) -> int:
    """Logits of a frame, and its places in the lattice: the label's log-prob, alpha and beta of two states, gamma."""
    stride = OutputLayer.stride_of(weight)
    return stride * encoder.element_size() + 48 * (batch.positions + 1)


def plan(batch: Batch, frame_bytes: int, workspace_bytes: int) -> list[Visit]:
    """Tiles under the workspace, as few as fit and of even size: an even tile needs less than a full one.

    On a GPU a tile of whole utterances has more rows than frames, so that sizes of products recur from batch to batch
    (:func:`recurring` says why).
    """
    recur = batch.table is not None
    visits = plan_tiles(batch.packed, frame_bytes, workspace_bytes, recur=recur)
    even = max(recurring(-(-batch.packed.cells // len(visits))), *batch.frames, 0) * frame_bytes
    for budget in (even, even * 5 // 4):
        if budget < workspace_bytes:
            evenly = plan_tiles(batch.packed, frame_bytes, budget, recur=recur)
            if len(evenly) == len(visits):
                visits = evenly
                break
    # Of a cut utterance the last tile is visited first, and may not write into others.
    return [tiles if len(tiles) == 1 else tuple(tile._replace(rows=tile.cells) for tile in tiles) for tiles in visits]


def visited(encoder, weight, bias, batch: Batch, make_frames, needs: Needs) -> Engine:
    """An engine that has run; where the device is out of memory, with half the workspace, and half of that.

    Raises:
        torch.OutOfMemoryError: not even a frame at a time fits.
    """
    asked, real = int(batch.options.workspace_mib * 2**20), accumulation_dtype(encoder.dtype)
    # Beside the tile: mass and column sums of each utterance, the packed hidden and its gradient.
    rows = len(batch.frames) * OutputLayer.stride_of(weight) * real.itemsize * 2
    rows += batch.packed.cells * encoder.shape[2] * (encoder.element_size() + real.itemsize)
    least = frame_bytes(encoder, weight, batch)
    asked = max(asked // 4, asked - rows, least)
    if encoder.device.type == "cpu":  # caches are small: past some size a larger tile is only more memory
        asked = min(asked, max(SMALL, max(batch.frames) * least))
    enough = recurring(batch.packed.cells) * least
    budget = min(asked, enough)
    while True:
        engine = None
        try:
            engine = Engine(encoder, weight, bias, batch, make_frames, needs, budget)
            engine.run()
            if budget < min(asked, enough):
                _warn_once(
                    f"the CTC head ran out of memory with workspace_mib={batch.options.workspace_mib} and went on with "
                    f"{budget / 2**20:.1f} MiB, slower: set workspace_mib to less, or make the batch smaller."
                )
            return engine
        except torch.OutOfMemoryError as error:
            reason = str(error)
        del engine  # and what it holds; an except clause would hold it still
        if budget <= least:
            raise torch.OutOfMemoryError(
                f"the CTC head is out of memory with one frame at a time, of {len(weight)} logits: free memory on "
                f"{encoder.device}, or make the batch smaller. ({reason})"
            )
        budget = max(least, budget // 2)


@cache
def _warn_once(message: str) -> None:
    logger.warning(message)
