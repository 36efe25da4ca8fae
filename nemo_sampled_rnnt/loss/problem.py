"""What every implementation is given: checked inputs, sizes known to the host, and the candidate sets."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from nemo_sampled_rnnt.loss.candidates import Candidates
from nemo_sampled_rnnt.loss.lattice import Lattice

ACTIVATIONS = ("relu", "tanh", "sigmoid")
REDUCTIONS = (None, "mean", "sum", "mean_batch", "mean_volume")
IMPLEMENTATIONS = ("auto", "reference", "cpu", "cuda")


@dataclass(frozen=True)
class Options:
    """The scalar arguments of :func:`sampled_rnnt_loss`."""

    activation: str = "relu"
    dropout: float = 0.0
    fastemit_lambda: float = 0.0
    clamp: float = -1.0
    reduction: str | None = "mean_batch"
    workspace_mib: int = 256
    impl: str = "auto"
    durations: tuple[int, ...] | None = None
    sigma: float = 0.0
    omega: float = 0.0
    max_logits: int | None = None  # more lattice cells times candidates in a batch are refused


@dataclass(frozen=True)
class Problem:
    """A checked batch.

    Attributes:
        lattice: frames and labels of each utterance.
        candidates: who is in the softmax.
        candidate_count: size of each set, on the host (one entry in the batch scope and without sampling), without
            TDT's durations.
        target_lengths: (B,) int64 on the device.
        options: the scalar arguments.
        seed: of the dropout mask.
        table: (B, 4) int64 on the device, sizes and places of each utterance, for kernels; else None.
    """

    lattice: Lattice
    candidates: Candidates
    candidate_count: list[int]
    target_lengths: torch.Tensor
    options: Options
    seed: int
    table: torch.Tensor | None = None

    @property
    def per_utterance(self) -> bool:
        """Each utterance has a set of its own."""
        ids = self.candidates.ids
        return ids is not None and ids.shape[0] > 1

    def group(self, utterance: int) -> int:
        """Row of the candidate tables that holds this utterance's set."""
        return utterance if self.per_utterance else 0

    def rows(self, group: int) -> int:
        """Rows of the weight in a set: its candidates, and TDT's durations."""
        return self.candidate_count[group] + len(self.options.durations or ())

    def kept(self) -> Problem:
        """The same, for backward: the caller's targets may be another batch's by then."""
        return replace(self, candidates=replace(self.candidates, target=self.candidates.target.clone()))


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """Dtype of log-sum-exp, lattice, loss and sums of gradients."""
    return torch.float64 if dtype == torch.float64 else torch.float32
