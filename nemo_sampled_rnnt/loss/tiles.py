"""Which rows of the lattice are visited together, so that their hidden and logits fit the workspace.

Worked number: H = 640, S = 2048 candidates, bfloat16. A cell needs (2 H + S) 2 bytes = 6.7 kB (hidden, its
gradient, logits), so 256 MiB hold 40,000 cells: about five utterances of 200 frames and 40 labels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from nemo_sampled_rnnt.loss.lattice import Lattice


@dataclass(frozen=True)
class Segment:
    """Consecutive frames of one utterance."""

    utterance: int
    first_frame: int
    frames: int


@dataclass(frozen=True)
class Tile:
    """A range of rows visited together.

    Attributes:
        segments: its parts, one an utterance.
        whole: every segment is a whole utterance, so the lattice is known within the visit.
    """

    segments: tuple[Segment, ...]
    whole: bool

    def cells(self, lattice: Lattice) -> int:
        return sum(s.frames * lattice.width(s.utterance) for s in self.segments)

    def first_row(self, lattice: Lattice) -> int:
        return lattice.row_offset[self.segments[0].utterance] + self.segments[0].first_frame

    def rows(self) -> int:
        return sum(s.frames for s in self.segments)

    def first_cell(self, lattice: Lattice) -> int:
        first = self.segments[0]
        return lattice.cell_offset[first.utterance] + first.first_frame * lattice.width(first.utterance)


def plan_tiles(lattice: Lattice, cell_bytes: int, workspace_bytes: int) -> list[Tile]:
    """Group whole utterances into tiles under the workspace; cut by rows only those that do not fit alone.

    Args:
        lattice: sizes of the utterances.
        cell_bytes: workspace of one cell, bytes.
        workspace_bytes: the budget, bytes.

    Returns:
        The tiles in the order of the packed cells. A tile is never smaller than one row: a row that does not
        fit the budget gets a tile of its own.
    """
    tiles: list[Tile] = []
    group: list[Segment] = []
    used = 0
    for utterance in range(lattice.utterances):
        need = lattice.frames[utterance] * lattice.width(utterance) * cell_bytes
        if group and used + need > workspace_bytes:
            tiles.append(Tile(tuple(group), whole=True))
            group, used = [], 0
        if need > workspace_bytes and lattice.frames[utterance] > 1:
            tiles.extend(_cut_rows(lattice, utterance, cell_bytes, workspace_bytes))
        else:
            group.append(Segment(utterance, 0, lattice.frames[utterance]))
            used += need
    if group:
        tiles.append(Tile(tuple(group), whole=True))
    return tiles


def _cut_rows(lattice: Lattice, utterance: int, cell_bytes: int, workspace_bytes: int) -> Iterator[Tile]:
    frames = lattice.frames[utterance]
    at_most = max(1, workspace_bytes // (lattice.width(utterance) * cell_bytes))
    parts = -(-frames // at_most)
    for part in range(parts):  # parts of even size: a short last tile would waste its launches
        first, last = frames * part // parts, frames * (part + 1) // parts
        yield Tile((Segment(utterance, first, last - first),), whole=False)
