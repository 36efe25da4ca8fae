"""Memory of joint and loss in a training step on a GPU, by arithmetic.

Training logs it for its batches as `train_joint_memory_mib`. What is counted is everything that the joint allocates,
from the encoder's outputs to the gradients of all inputs. Worked number: 85 utterances of 375 frames and 44 labels,
H = 640, V + 1 = 4,232, 424 negatives an utterance, bfloat16: lattice and sums of the projections' gradients 142 MiB,
which leaves 116 for tiles, projections 70, weight gradient 12, together 340 MiB. The logits of a full softmax and their
gradient alone are 45 GiB.
"""

from __future__ import annotations

from dataclasses import dataclass

from nemo_sampled_rnnt.loss.candidates import ALIGNMENT, aligned, recurring
from nemo_sampled_rnnt.loss.lattice import Lattice
from nemo_sampled_rnnt.loss.own_rows import set_bytes
from nemo_sampled_rnnt.loss.tiled import Workspace, bytes_beside, left_for_tiles
from nemo_sampled_rnnt.loss.tiles import plan_tiles

FLOAT = 4  # bytes of what is summed up


@dataclass(frozen=True)
class JointMemory:
    """Bytes.

    Attributes:
        tiles: hidden, its gradient and logits of the cells worked on together, and the rows of their candidates.
        rows: sums of the weight's gradient, and the rows of the output layer in the compute dtype.
        beside: the lattice (log-probs, forward and backward variables), and sums of the projections' gradients.
        projections: of the encoder, with what its backward keeps.
    """

    tiles: int
    rows: int
    beside: int
    projections: int

    @property
    def total(self) -> int:
        return self.tiles + self.rows + self.beside + self.projections


def joint_memory(
    lattice: Lattice,
    vocabulary: int,
    hidden: int,
    encoder_width: int,
    n_samples: int | None = None,
    scope: str = "utterance",
    workspace_mib: int = 256,
    itemsize: int = 2,
    durations: int = 0,
    candidates: int | None = None,
) -> JointMemory:
    """Peak memory of one training step of :class:`SampledRNNTJoint` on a GPU.

    Args:
        lattice: frames and labels of each utterance.
        vocabulary: V, without blank.
        hidden, encoder_width: H, and the channels of the encoder's outputs.
        n_samples: negatives; None is the exact loss, unless candidates are given.
        scope, workspace_mib: as in ``sampled_softmax``.
        itemsize: bytes of the compute dtype; the weight is float32.
        durations: D of a TDT model, whose columns every cell has, and weights in the lattice.
        candidates: of the largest set, where they are known; else blank, all labels and n_samples.

    Approximate: kernels and small tables are left out; a batch with other padding differs.
    """
    batch, frames, labels = lattice.utterances, max(lattice.frames), max(lattice.labels)
    if n_samples is not None and candidates is None:
        candidates = 1 + labels * (1 if scope == "utterance" else batch) + n_samples
    sampled, outputs = candidates is not None, vocabulary + 1 + durations
    own = sampled and scope == "utterance" and batch > 1
    columns = recurring(candidates + durations) if sampled else outputs
    sum_bytes = (aligned(hidden) + ALIGNMENT) * FLOAT  # of a row of the weight's gradient, and of the bias'
    if own:
        utterance_bytes = set_bytes(columns, hidden, itemsize)
        rows = (min(outputs, batch * columns) + columns) * sum_bytes
    else:
        utterance_bytes = 0
        rows = columns * (sum_bytes + (hidden * itemsize if itemsize < FLOAT or sampled else 0))

    cell_bytes = Workspace.bytes_per_cell(hidden, aligned(columns), itemsize, backward=True)
    beside = bytes_beside(lattice, frames, labels + 1, hidden, FLOAT, durations, encoder=True, predictor=True)
    budget = left_for_tiles(int(workspace_mib * 2**20), beside)
    visits = plan_tiles(lattice, cell_bytes, budget, utterance_bytes, recur=True)
    tiles = [tile for visit in visits for tile in visit]
    return JointMemory(
        tiles=max(tile.rows for tile in tiles) * cell_bytes + max(tile.utterances for tile in tiles) * utterance_bytes,
        rows=rows,
        beside=beside,
        projections=batch * frames * (hidden + encoder_width) * itemsize,
    )


def full_softmax_memory(lattice: Lattice, vocabulary: int) -> int:
    """Bytes of the logits [B, T, U+1, V+1] and of their gradient in float32: the least that a full joint needs."""
    cells = lattice.utterances * max(lattice.frames) * (max(lattice.labels) + 1)
    return 2 * cells * (vocabulary + 1) * FLOAT
