"""The packed lattice: the cells of all utterances on one axis, with no padding between them.

Cell (b, t, u), 0 <= t < T_b, 0 <= u <= U_b, lies at ``cell_offset[b] + t (U_b + 1) + u``. The cells of one
frame are a *row*.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate


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

    @cached_property
    def places(self) -> int:
        """What the cells take when they lie by anti-diagonals, as the kernels keep them."""
        return sum((t + u) * (u + 1) for t, u in zip(self.frames, self.labels, strict=True))
