"""The packed lattice: the cells of all utterances on one axis, with no padding between them.

Cell (b, t, u), 0 <= t < T_b, 0 <= u <= U_b, lies at ``cell_offset[b] + t (U_b + 1) + u``. The cells of one
frame are a *row*; rows are numbered through all utterances, so that any stretch of work is a range of rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import torch


@dataclass(frozen=True)
class Lattice:
    """Sizes of every utterance, known to the host.

    Args:
        frames: T_b, encoder frames of utterance b.
        labels: U_b, labels of utterance b.
    """

    frames: list[int]
    labels: list[int]

    @cached_property
    def row_offset(self) -> list[int]:
        """First row of each utterance, and the number of rows at the end."""
        return [0, *accumulate(self.frames)]

    @cached_property
    def cell_offset(self) -> list[int]:
        """First cell of each utterance, and the number of cells at the end."""
        return [0, *accumulate(t * (u + 1) for t, u in zip(self.frames, self.labels, strict=True))]

    @property
    def utterances(self) -> int:
        return len(self.frames)

    @property
    def cells(self) -> int:
        return self.cell_offset[-1]

    def width(self, utterance: int) -> int:
        """Cells in a row of this utterance, U_b + 1."""
        return self.labels[utterance] + 1

    def row_table(self) -> torch.Tensor:
        """(rows, 3) int64 on the CPU: utterance, frame and first cell of each row."""
        frames = torch.tensor(self.frames)
        utterance = torch.repeat_interleave(torch.arange(self.utterances), frames)
        frame = torch.arange(self.row_offset[-1]) - torch.tensor(self.row_offset[:-1])[utterance]
        width = torch.tensor(self.labels)[utterance] + 1
        return torch.stack([utterance, frame, torch.tensor(self.cell_offset[:-1])[utterance] + frame * width], dim=1)

    def utterance_table(self) -> torch.Tensor:
        """(utterances, 3) int64 on the CPU: frames, labels and first cell of each utterance."""
        return torch.tensor([self.frames, self.labels, self.cell_offset[:-1]]).T.contiguous()
