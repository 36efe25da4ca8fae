"""Launches the kernels for the tiles of one batch."""

from __future__ import annotations

import torch

from nemo_sampled_rnnt.ctc.batch import Batch
from nemo_sampled_rnnt.ctc.cuda.blocks import THREADS, WARP, WARPS, compiled
from nemo_sampled_rnnt.ctc.cuda.lattice import LATTICE_THREADS, lattice_kernels
from nemo_sampled_rnnt.ctc.cuda.packing import packing_kernels
from nemo_sampled_rnnt.ctc.cuda.softmax import GROUP, WIDE_THREADS, softmax_kernels, strip_of
from nemo_sampled_rnnt.gpu.launch import SIMULATED, BoundKernel
from nemo_sampled_rnnt.gpu.octets import OCTET
from nemo_sampled_rnnt.loss.candidates import aligned
from nemo_sampled_rnnt.loss.cuda.cells import wide_rows
from nemo_sampled_rnnt.loss.cuda.conclude import conclude
from nemo_sampled_rnnt.loss.problem import accumulation_dtype
from nemo_sampled_rnnt.loss.reduction import utterance_weight
from nemo_sampled_rnnt.loss.tiles import Tile, Visit

WIDE = 256 if SIMULATED else 8192  # columns of a vocabulary that is large to the kernels
WHERE = 5  # arguments that say which tile: first utterance, first frame, last frame, first cell, visit's first cell


class CudaFrames:
    """See :class:`nemo_sampled_rnnt.ctc.engine.Frames`; the constructor's arguments are those of every device."""

    def __init__(self, encoder, offsets, batch: Batch, visits: list[Visit], needs, scale: float):
        self.batch, options = batch, batch.options
        real = self._real = accumulation_dtype(encoder.dtype)
        count, frames, width = encoder.shape
        stride, positions, table = len(offsets), batch.positions, batch.table
        kept = max(sum(tile.cells for tile in visit) for visit in visits)

        def empty(*size, dtype=real):
            return torch.empty(size, dtype=dtype, device=encoder.device)

        wide = stride >= WIDE
        native = SIMULATED or torch.cuda.get_device_capability(encoder.device) >= (8, 0)
        kind, largest = str(encoder.dtype).removeprefix("torch."), options.frame_weights == "max"
        softmax, lattice = compiled(softmax_kernels, kind, wide, largest, native), compiled(lattice_kernels, kind)
        self._packing = packing = compiled(packing_kernels, kind, native)
        self._scoring_threads = WIDE_THREADS if wide else THREADS
        self._groups_of_a_block = 1 if wide else WARPS
        self._strips = -(-stride // strip_of(wide))

        units = aligned(width)
        self._unit_threads = min(THREADS, -(-units // OCTET // WARP) * WARP)
        rows = max(tile.first_cell + tile.rows for visit in visits for tile in visit)
        packed = empty(rows, units, dtype=encoder.dtype)
        if rows > batch.packed.cells:
            packed[batch.packed.cells :] = 0
        self.hidden = packed[:, :width]
        encoder = wide_rows(encoder.contiguous())
        pack = BoundKernel(packing.pack, [table, encoder, packed], 0, (frames, encoder.shape[2], width, units))
        pack((frames, count, 1), self._unit_threads)

        normaliser, frame_weight = empty(2, kept).unbind()
        by_blank, likelihood, self.costs = (
            empty(kept, dtype=torch.int64),
            *empty(2, count, dtype=torch.float64).unbind(),
        )
        by_label = empty(kept * max(1, positions), dtype=torch.int64)
        alpha = empty(kept * 2 * (positions + 1), dtype=torch.int64)
        beta = torch.empty_like(alpha) if needs.any else alpha  # not written without gradients
        later, targets = packed, batch.targets.contiguous()  # the first stands where each tile puts its logits
        weighted = int(options.frame_weights == "nonblank")
        self._scores = BoundKernel(
            softmax.scores,
            [table, later, offsets, targets, normaliser, frame_weight, by_blank, by_label],
            WHERE,
            (stride, positions, batch.vocabulary, weighted),
        )
        self._lattice = BoundKernel(
            lattice.lattice,
            [table, targets, by_blank, by_label, alpha, beta, likelihood, self.costs],
            2,
            (positions, int(options.zero_infinity)),
        )
        self.best = None
        if options.best:
            self.best = torch.full((count, frames), batch.vocabulary, device=encoder.device)
            self._best = BoundKernel(softmax.best, [table, later, offsets, self.best], WHERE, (stride, frames))

        def sums(wanted):
            return torch.zeros(count, stride, dtype=real, device=encoder.device) if wanted else None

        self.mass, self.column_sums = sums(options.frame_weights is not None), sums(needs.bias)
        occupancy = empty(kept, positions + 1) if needs.any else normaliser
        self._occupancies = BoundKernel(
            lattice.occupancies, [table, batch.order, by_blank, by_label, alpha, beta, likelihood, occupancy], 2,
            (positions,),
        )  # fmt: skip
        weights = utterance_weight(batch.target_lengths, options.reduction, real)
        nothing = normaliser
        self._gradient = BoundKernel(
            softmax.gradient,
            [table, later, offsets, batch.sorted_labels, normaliser, frame_weight, occupancy, likelihood,
             weights if scale == 1 else weights * scale, nothing if self.mass is None else self.mass,
             nothing if self.column_sums is None else self.column_sums],
            WHERE,
            (stride, positions, batch.vocabulary, int(needs.any), int(self.mass is not None), int(needs.bias)),
        )  # fmt: skip

    def scores(self, tile: Tile, logits: torch.Tensor) -> None:
        where, utterances = self._where(tile), len(tile.segments)
        blocks = -(-tile.frames // (GROUP * self._groups_of_a_block))
        self._scores.rebind(1, logits)
        self._scores((blocks, utterances, 1), self._scoring_threads, *where)
        if self.best is not None:
            self._best.rebind(1, logits)
            blocks = -(-tile.frames // self._groups_of_a_block)
            self._best((blocks, utterances, 1), self._scoring_threads, *where)

    def lattice(self, visit: Visit, backward: bool) -> None:
        tile = visit[0]
        first, last = tile.first_utterance, tile.last_utterance
        states = max(self.batch.labels[first:last]) + 1
        threads = min(LATTICE_THREADS, -(-states // WARP) * WARP)
        self._lattice((last - first, 2 if backward else 1, 1), threads, first, tile.first_cell)
        if backward:
            frames = -(-max(self.batch.frames[first:last]) // WARPS)
            self._occupancies((frames, last - first, 1), THREADS, first, tile.first_cell)

    def gradient(self, tile: Tile, logits: torch.Tensor) -> None:
        self._gradient.rebind(1, logits)
        self._gradient((self._strips, len(tile.segments), 1), THREADS, *self._where(tile))

    def leave(self, visit: Visit) -> None:
        """What a visit kept, the next one overwrites."""

    def conclude(self):
        return conclude(self.costs, self.batch.target_lengths, self.batch.options.reduction, 0.0, self._real)

    def unpacking(self):
        return Unpacking(self.batch.table, self._packing.unpack, self._unit_threads)

    def _where(self, tile: Tile) -> tuple[int, int, int, int, int]:
        """A tile of whole utterances begins with its first frame; of a cut one, the visit began that many before."""
        visit_cell = tile.first_cell - tile.first_frame
        return tile.first_utterance, tile.first_frame, tile.first_frame + tile.frames, tile.first_cell, visit_cell


class Unpacking:
    """See :meth:`nemo_sampled_rnnt.ctc.engine.Frames.unpacking`."""

    def __init__(self, table: torch.Tensor, kernel, threads: int):
        self._table, self._kernel, self._threads = table, kernel, threads

    def __call__(self, gradient: torch.Tensor, factor: torch.Tensor, shape, dtype: torch.dtype) -> torch.Tensor:
        count, frames, width = shape
        units = aligned(width)
        if width < units:
            gradient = torch.nn.functional.pad(gradient, (0, units - width))
        out = torch.empty(count, frames, units, dtype=dtype, device=gradient.device)
        factor = factor.to(gradient.dtype).reshape(1)
        kernel = BoundKernel(self._kernel, [self._table, gradient, factor, out], 0, (frames, units, units))
        kernel((frames, count, 1), self._threads)
        return out[..., :width]
