"""How the kernels of the CTC head divide their work, and what they are compiled from.

Frames are packed, those of all utterances on one axis without padding. A tile is some utterances from
``first_utterance`` on, or the frames ``first_frame`` to ``last_frame`` of one; a visit is a tile, or all tiles of an
utterance that was cut. The table

    table (B, 4)   frames, labels, first packed frame, and whether all its frames are finite

says which utterance lies where. Logits begin with the tile's first packed frame, ``first_cell``; what is kept for the
lattice begins with the visit's, ``visit_cell``. Indices are 64-bit. Tensors arrive as pointers to their elements; rows
of logits, hidden and sums are read and written in octets (gpu/octets.py) and padded to multiples of eight.
"""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace

from numba import cuda, float32, float64

from nemo_sampled_rnnt.gpu.launch import SIMULATED, at_most

WARP = 4 if SIMULATED else 32
WARPS = 2 if SIMULATED else 8  # of a block
THREADS = WARP * WARPS
LARGEST = 512  # threads of the largest block of any kernel here


def real_of(kind: str):
    """What is computed in, for a storage type: "float64", "float32", "float16" or "bfloat16"."""
    return float64 if kind == "float64" else float32


def sums_kind(kind: str) -> str:
    """The storage type of sums, offsets and float gradients."""
    return "float64" if kind == "float64" else "float32"


@cache
def compiled(builder, *arguments) -> SimpleNamespace:
    """The kernels that a builder returns as Python functions, compiled at their first launch."""
    built = vars(builder(*arguments))
    return SimpleNamespace(**{name: cuda.jit(**at_most(LARGEST))(function) for name, function in built.items()})
