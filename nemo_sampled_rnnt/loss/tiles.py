"""Which rows of the lattice are visited together, so that their hidden and logits fit the workspace.

Worked number: H = 640, S = 2048 candidates, bfloat16. A cell needs (2 H + S) 2 bytes = 6.7 kB (hidden, its
gradient, logits), so 256 MiB hold 40,000 cells: about five utterances of 200 frames and 40 labels.
"""

from __future__ import annotations

from typing import NamedTuple

from nemo_sampled_rnnt.loss.candidates import recurring, recurring_below
from nemo_sampled_rnnt.loss.lattice import Lattice


class Segment(NamedTuple):
    """Consecutive frames of one utterance, and the place of their cells in the tile."""

    utterance: int
    first_frame: int
    frames: int
    cells: slice


class Tile(NamedTuple):
    """Cells worked on together: those of some utterances, or of some frames of one.

    Attributes:
        segments: its parts, one an utterance.
        first_cell: number of its first cell in the batch; the others follow.
        cells: how many.
        rows: of hidden and logits that its matrix products take: its cells, and perhaps some more.
        frames, width: of its longest, and of its widest segment.
    """

    segments: tuple[Segment, ...]
    first_cell: int
    cells: int
    rows: int
    frames: int
    width: int

    @property
    def first_utterance(self) -> int:
        return self.segments[0].utterance

    @property
    def last_utterance(self) -> int:
        """The one after its last."""
        return self.segments[-1].utterance + 1

    @property
    def utterances(self) -> int:
        return len(self.segments)

    @property
    def first_frame(self) -> int:
        return self.segments[0].first_frame


RECURRING_FROM = 512  # cells of a workspace: the steps between recurring sizes are much of a small tile
MOST_UTTERANCES = 65_535  # of a tile: kernels count them on an axis of their grid that ends there

Visit = tuple[Tile, ...]  # a tile of whole utterances, or the tiles of a cut one


def plan_tiles(
    lattice: Lattice, cell_bytes: int, workspace_bytes: int, utterance_bytes: int = 0, recur: bool = False
) -> list[Visit]:
    """Group whole utterances into tiles under the workspace; cut by rows only those that do not fit alone.

    Args:
        lattice: sizes of the utterances.
        cell_bytes: workspace of one cell, bytes.
        workspace_bytes: the budget, bytes.
        utterance_bytes: workspace of one utterance beside that of its cells, bytes.
        recur: give tiles more rows than cells, under the budget, so that batches share the sizes of their products;
            not where the budget is for few cells.

    Returns:
        The visits, in the order of the packed cells. Of the tiles of a cut utterance the last is as large as fits: it
        is the one that need not be scored twice. A tile is never smaller than one row: a row that does not fit the
        budget gets a tile of its own.
    """
    most, alone = 0, workspace_bytes
    if recur and workspace_bytes // cell_bytes >= RECURRING_FROM:
        most = recurring_below(workspace_bytes // cell_bytes)
        workspace_bytes = most * cell_bytes
    visits: list[Visit] = []
    group: list[tuple[int, int, int]] = []
    used = 0
    for utterance, (frames, labels) in enumerate(zip(lattice.frames, lattice.labels, strict=True)):
        row_bytes = (labels + 1) * cell_bytes
        need = frames * row_bytes + utterance_bytes
        if group and (used + need > workspace_bytes or len(group) == MOST_UTTERANCES):
            visits.append((_tile(lattice, group, most),))
            group, used = [], 0
        if need > alone and frames > 1:
            at_most = max(1, max(workspace_bytes - utterance_bytes, workspace_bytes // 2) // row_bytes)
            first, ends = 0, range(frames, 0, -at_most)
            parts = []
            for end in reversed(ends):
                parts.append(_tile(lattice, [(utterance, first, end - first)], most))
                first = end
            visits.append(tuple(parts))
        else:
            group.append((utterance, 0, frames))
            used += need
    if group:
        visits.append((_tile(lattice, group, most),))
    return visits


def _tile(lattice: Lattice, parts: list[tuple[int, int, int]], most: int) -> Tile:
    """Of (utterance, first frame, frames); with more rows than cells if they are not more than ``most``."""
    segments, cells, longest, widest = [], 0, 0, 0
    for utterance, first_frame, frames in parts:
        width = lattice.labels[utterance] + 1
        after = cells + frames * width
        segments.append(Segment(utterance, first_frame, frames, slice(cells, after)))
        cells, longest, widest = after, max(longest, frames), max(widest, width)
    utterance, first_frame, _ = parts[0]
    return Tile(
        segments=tuple(segments),
        first_cell=lattice.cell_offset[utterance] + first_frame * (lattice.labels[utterance] + 1),
        cells=cells,
        rows=max(cells, min(recurring(cells), most)),
        frames=longest,
        width=widest,
    )
