"""Launches the kernels for the tiles of one batch."""

from __future__ import annotations

import torch

from nemo_sampled_rnnt.loss.cuda.kernels import LATTICE_THREADS, THREADS, compiled
from nemo_sampled_rnnt.loss.cuda.launch import BoundKernel, words
from nemo_sampled_rnnt.loss.dropout import threshold
from nemo_sampled_rnnt.loss.problem import Problem, accumulation_dtype
from nemo_sampled_rnnt.loss.tiles import Tile


class CudaCells:
    """See :class:`nemo_sampled_rnnt.loss.tiled.Cells`; the constructor's arguments are those of every device."""

    def __init__(self, encoder, predictor, offsets, workspace, problem: Problem, needs, weights):
        self.problem, self.needs, self.sizes = problem, needs, problem.lattice
        options, device = problem.options, encoder.device
        accumulate = accumulation_dtype(encoder.dtype)

        def empty(size, dtype=accumulate):
            return torch.empty(size, dtype=dtype, device=device)

        cells = problem.lattice.cells
        self.costs = empty(problem.lattice.utterances, torch.float64)
        self.encoder_gradient = torch.zeros_like(encoder, dtype=accumulate) if needs.encoder else None
        self.predictor_gradient = torch.zeros_like(predictor, dtype=accumulate) if needs.predictor else None
        targets = problem.candidates.target
        if targets.shape[1] == 0:  # a batch of empty transcripts; an array wants an axis
            targets = targets.new_zeros(len(targets), 1)
        targets, offsets = targets.contiguous(), offsets.contiguous()
        rows, utterances = self._tables(device)
        hidden, logits = words(workspace.hidden_and_one), words(workspace.logits_padded)
        normaliser, log_blank, log_label = empty(cells), empty(cells), empty(cells)
        alpha = empty(cells, torch.float64)
        beta = empty(cells if needs.any else 1, torch.float64)

        kind = str(encoder.dtype).removeprefix("torch.")
        kernels = compiled(kind, options.activation, options.dropout > 0)
        where, dropout = "ii", "iif"
        self._hidden = BoundKernel(
            kernels.hidden,
            [rows, utterances, wide_rows(encoder), wide_rows(predictor), hidden],
            where + "iii" + dropout,
        )
        self._shape = encoder.shape[1], predictor.shape[1] - 1, encoder.shape[2]
        self._scores = BoundKernel(
            kernels.scores,
            [rows, utterances, logits, offsets, targets, normaliser, log_blank, log_label],
            "i" + where,
        )
        self._alpha_beta = BoundKernel(
            kernels.alpha_beta, [utterances, log_blank, log_label, alpha, beta, self.costs], "i"
        )
        if needs.any:
            self._gradient = BoundKernel(
                kernels.gradient,
                [rows, utterances, hidden, logits, offsets, targets, normaliser, log_blank, log_label, alpha, beta,
                 self.costs, weights.contiguous()],
                "iff" + where + "i",
            )  # fmt: skip
        if needs.hidden:
            hidden_gradient = words(workspace.hidden_gradient_padded)
        if needs.encoder:
            self._encoder_gradient = BoundKernel(
                kernels.encoder_gradient,
                [rows, utterances, hidden, hidden_gradient, self.encoder_gradient],
                where + dropout,
            )
        if needs.predictor:
            self._predictor_gradient = BoundKernel(
                kernels.predictor_gradient,
                [utterances, hidden, hidden_gradient, self.predictor_gradient],
                "iiii" + dropout,
            )
        self._words = -(-encoder.shape[2] // 4)  # of a row of hidden
        self._hidden_threads = min(THREADS, -(-self._words // 32) * 32)
        self._dropout = (problem.seed, threshold(options.dropout), 1.0 / (1.0 - options.dropout))

    def _tables(self, device) -> tuple[torch.Tensor, torch.Tensor]:
        """The rows' and the utterances' table on the device, by one copy."""
        rows = self.sizes.row_table()
        first_row = torch.tensor(self.sizes.row_offset[:-1])
        utterances = torch.cat([self.sizes.utterance_table(), first_row[:, None]], dim=1)
        tables = torch.cat([rows.flatten(), utterances.flatten()])
        if device.type == "cuda":
            tables = tables.pin_memory().to(device, non_blocking=True)
        return tables[: rows.numel()].view_as(rows), tables[rows.numel() :].view_as(utterances)

    def hidden(self, tile: Tile) -> None:
        self._hidden((tile.rows(), 1), self._hidden_threads, *self._where(tile), *self._shape, *self._dropout)

    def scores(self, tile: Tile) -> None:
        self._scores((tile.rows(), 1), THREADS, self.problem.candidates.blank, *self._where(tile))

    def lattice(self, first: int, last: int, backward: bool) -> None:
        threads = min(LATTICE_THREADS, -(-self._widest(first, last) // 32) * 32)
        self._alpha_beta((last - first, 2 if backward else 1), threads, first)

    def gradient(self, tile: Tile) -> None:
        options = self.problem.options
        self._gradient(
            (tile.rows(), 1), THREADS, self.problem.candidates.blank, options.fastemit_lambda, options.clamp,
            *self._where(tile), self._words,
        )  # fmt: skip

    def reduce(self, tile: Tile) -> None:
        first_row, first_cell = self._where(tile)
        rows = tile.rows()
        if self.needs.encoder:
            self._encoder_gradient((rows, 1), self._hidden_threads, first_row, first_cell, *self._dropout)
        if self.needs.predictor:
            first, last = tile.segments[0].utterance, tile.segments[-1].utterance + 1
            self._predictor_gradient(
                (self._widest(first, last), last - first), self._hidden_threads,
                first, first_row, first_row + rows, first_cell, *self._dropout,
            )  # fmt: skip

    def _widest(self, first: int, last: int) -> int:
        return max(self.sizes.labels[first:last]) + 1

    def _where(self, tile: Tile) -> tuple[int, int]:
        return tile.first_row(self.sizes), tile.first_cell(self.sizes)


def wide_rows(x: torch.Tensor) -> torch.Tensor:
    """(B, N, H) as rows (B N, H), H padded to a multiple of four, for wide loads that start where they may."""
    padded = torch.nn.functional.pad(x, (0, -x.shape[2] % 4)).flatten(0, 1)
    return words(padded.clone() if padded.data_ptr() % 16 else padded)
