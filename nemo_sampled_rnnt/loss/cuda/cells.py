"""Launches the kernels for the tiles of one batch."""

from __future__ import annotations

import torch

from nemo_sampled_rnnt.loss.cuda.kernels import LATTICE_THREADS, MOST_THREADS, compiled
from nemo_sampled_rnnt.loss.cuda.launch import SIMULATED, as_array, as_words, current_stream
from nemo_sampled_rnnt.loss.dropout import threshold
from nemo_sampled_rnnt.loss.problem import Problem, accumulation_dtype
from nemo_sampled_rnnt.loss.tiles import Tile

# Blocks that share the label positions of a row: a tile of 100 rows then fills 132 multiprocessors.
LABEL_BLOCKS = 2 if SIMULATED else 8


class CudaCells:
    """See :class:`nemo_sampled_rnnt.loss.tiled.Cells`; the constructor's arguments are those of every device.

    Arrays are wrapped for numba once a batch, since wrapping costs 12 us each; launches differ by scalars only.
    """

    def __init__(self, encoder, predictor, offsets, workspace, problem: Problem, needs, weights):
        self.problem, self.needs, self.lattice_sizes = problem, needs, problem.lattice
        options, device = problem.options, encoder.device
        kind = str(encoder.dtype).removeprefix("torch.")
        self.kernels = compiled(kind, options.activation, options.dropout > 0)
        self.stream = current_stream()
        dtype = accumulation_dtype(encoder.dtype)
        cells = problem.lattice.cells

        def empty(size, dtype=accumulation_dtype(encoder.dtype)):
            return torch.empty(size, dtype=dtype, device=device)

        self.costs = empty(problem.lattice.utterances, torch.float64)
        self.encoder_gradient = torch.zeros_like(encoder, dtype=dtype) if needs.encoder else None
        self.predictor_gradient = torch.zeros_like(predictor, dtype=dtype) if needs.predictor else None
        targets = problem.candidates.target
        if targets.shape[1] == 0:  # a batch of empty transcripts; numba wants an axis
            targets = targets.new_zeros(len(targets), 1)
        first_row = torch.tensor(problem.lattice.row_offset[:-1])
        tables = (
            problem.lattice.row_table(),
            torch.cat([problem.lattice.utterance_table(), first_row[:, None]], dim=1),
        )
        if device.type == "cuda":
            tables = [table.pin_memory().to(device, non_blocking=True) for table in tables]
        tensors = {
            "rows": tables[0],
            "utterances": tables[1],
            "encoder": encoder,
            "predictor": predictor,
            "offsets": offsets.contiguous(),
            "targets": targets.contiguous(),
            "normaliser": empty(cells),
            "log_blank": empty(cells),
            "log_label": empty(cells),
            "alpha": empty(cells, torch.float64),
            "beta": empty(cells if needs.any else 1, torch.float64),
            "costs": self.costs,
            "weights": weights.contiguous(),
            "encoder_gradient": self.encoder_gradient,
            "predictor_gradient": self.predictor_gradient,
        }
        self._tensors = tensors  # keeps the memory behind the arrays
        self._arrays = {name: as_array(x.detach()) for name, x in tensors.items() if x is not None}
        wide = (workspace.hidden_and_one, workspace.logits_padded, workspace.hidden_gradient_padded)
        for name, buffer in zip(("hidden", "logits", "hidden_gradient"), wide, strict=True):
            if buffer is not None:
                self._arrays[name] = as_words(buffer)
        self._hidden_words = -(-encoder.shape[2] // 4)
        self._threads = {  # of a block: one for every word of four values, as far as they go
            "hidden": power_of_two(self._hidden_words),
            "scores": power_of_two(offsets.shape[1] // 4),
            "gradient": power_of_two(offsets.shape[1] // 4),
            "encoder_gradient": power_of_two(self._hidden_words),
            "predictor_gradient": power_of_two(self._hidden_words),
        }
        self._dropout = (problem.seed, threshold(options.dropout), 1.0 / (1.0 - options.dropout))

    def hidden(self, tile: Tile) -> None:
        self._launch(
            "hidden", (tile.rows(),), ("rows", "utterances", "encoder", "predictor", "hidden"),
            *self._where(tile), *self._dropout,
        )  # fmt: skip

    def scores(self, tile: Tile) -> None:
        self._launch(
            "scores", (tile.rows(), self._label_blocks(tile)),
            ("rows", "utterances", "logits", "offsets", "targets", "normaliser", "log_blank", "log_label"),
            self.problem.candidates.blank, *self._where(tile),
        )  # fmt: skip

    def lattice(self, first: int, last: int, backward: bool) -> None:
        threads = min(LATTICE_THREADS, -(-self._widest(first, last) // 32) * 32)
        self._launch(
            "alpha_beta", (last - first, 2 if backward else 1),
            ("utterances", "log_blank", "log_label", "alpha", "beta", "costs"), first, threads=threads,
        )  # fmt: skip

    def gradient(self, tile: Tile) -> None:
        options = self.problem.options
        self._launch(
            "gradient", (tile.rows(), self._label_blocks(tile)),
            ("rows", "utterances", "hidden", "logits", "offsets", "targets", "normaliser", "log_blank", "log_label",
             "alpha", "beta", "costs", "weights"),
            self.problem.candidates.blank, float(options.fastemit_lambda), float(options.clamp), *self._where(tile),
            self._hidden_words,
        )  # fmt: skip

    def reduce(self, tile: Tile) -> None:
        first_row, first_cell = self._where(tile)
        if self.needs.encoder:
            self._launch(
                "encoder_gradient", (tile.rows(),),
                ("rows", "utterances", "hidden", "hidden_gradient", "encoder_gradient"),
                first_row, first_cell, *self._dropout,
            )  # fmt: skip
        if self.needs.predictor:
            first, last = tile.segments[0].utterance, tile.segments[-1].utterance + 1
            self._launch(
                "predictor_gradient", (self._widest(first, last), last - first),
                ("utterances", "hidden", "hidden_gradient", "predictor_gradient"),
                first, first_row, first_row + tile.rows(), first_cell, *self._dropout,
            )  # fmt: skip

    def _launch(self, name: str, grid, arrays, *scalars, threads: int | None = None) -> None:
        kernel = getattr(self.kernels, name)
        kernel[grid, threads or self._threads[name], self.stream](*(self._arrays[array] for array in arrays), *scalars)

    def _widest(self, first: int, last: int) -> int:
        return max(self.lattice_sizes.width(b) for b in range(first, last))

    def _where(self, tile: Tile) -> tuple[int, int]:
        return tile.first_row(self.lattice_sizes), tile.first_cell(self.lattice_sizes)

    def _label_blocks(self, tile: Tile) -> int:
        return min(LABEL_BLOCKS, self._widest(tile.segments[0].utterance, tile.segments[-1].utterance + 1))


def power_of_two(words: int) -> int:
    """Threads for so many words: the power of two at or above, from a warp to MOST_THREADS."""
    return min(MOST_THREADS, max(32, 1 << (words - 1).bit_length()))
