"""Whose joint and loss is measured: ours, NeMo's, and flash_rnnt where it can be imported.

An implementation is called with a batch and returns its loss, so that one ``backward`` makes all gradients. NeMo is
imported only for what needs it: it takes seconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

import torch
from workloads import Batch, Joint, Workload

from nemo_sampled_rnnt import sampled_rnnt_loss
from nemo_sampled_rnnt.sampling import NegativeSampler, SampledSoftmax

OURS = {"exact": None, "sampled": "batch", "sampled_utterance": "utterance"}  # and the scope of their negatives
NEMO = {"nemo_full": None, "nemo_sampled": "batch", "flash_rnnt": None}
IMPLEMENTATIONS = ["floor", *OURS, *NEMO]


@dataclass(frozen=True)
class Row:
    """One line of the results; a fresh process measures it.

    Attributes:
        workload, implementation: names.
        workspace_mib: of ours.
        fused_batch_size: of NeMo's.
    """

    workload: str
    implementation: str
    workspace_mib: int | None = None
    fused_batch_size: int | None = None

    @property
    def scope(self) -> str | None:
        """Of the negatives; None: the whole vocabulary."""
        return {**OURS, **NEMO}.get(self.implementation)


def rows_of(implementation: str, workload: Workload, workspaces: list[int]) -> list[Row]:
    """The settings in which an implementation is measured on a workload."""
    name = workload.name
    if implementation in OURS:
        return [Row(name, implementation, workspace_mib=mib) for mib in workspaces]
    if workload.durations and implementation in NEMO and implementation != "nemo_full":
        return []  # they have no TDT loss
    if implementation == "nemo_sampled" or workload.durations and implementation == "nemo_full":
        return [Row(name, implementation, fused_batch_size=size) for size in sorted({4, workload.batch})]
    if implementation in NEMO:
        return [Row(name, implementation, fused_batch_size=workload.batch)]
    return [Row(name, implementation)]


def importable(implementation: str, flash_rnnt: Path | None = None) -> bool:
    """Looks for the files only: importing NeMo takes seconds.

    Args:
        implementation: its name.
        flash_rnnt: folder with a nemo/ that holds it, if that is not the one that is installed.
    """
    if implementation not in NEMO:
        return True
    nemo = find_spec("nemo")
    folders = [Path(folder) for folder in nemo.submodule_search_locations] if nemo else []
    needed = "rnnt.py"
    if implementation == "flash_rnnt":
        needed = "flash_rnnt.py"
        folders += [flash_rnnt / "nemo"] if flash_rnnt else []
    return any((folder / "collections/asr/losses" / needed).exists() for folder in folders)


def preload(implementation: str) -> None:
    """Import what it needs, before it is built."""
    if implementation in NEMO:
        import nemo_implementations  # noqa: F401


class Implementation(Protocol):
    """Joint and loss.

    Attributes:
        joint: module that holds the parameters.
    """

    joint: torch.nn.Module

    def __call__(self, batch: Batch) -> torch.Tensor:
        """() the loss, mean over the batch."""

    def candidate_sets(self, batch: Batch) -> list[tuple[slice, torch.Tensor | None]]:
        """(utterances, negatives) of each part of the batch that the next call shares a softmax in.

        Holds if torch's generators are in the same state at that call as here.
        """


class Ours:
    """``sampled_rnnt_loss`` between two projections, as in our joint; uniform negatives, drawn in the call."""

    def __init__(self, joint: Joint, row: Row, workload: Workload):
        self.joint, self.workspace_mib, self.loss_options = joint, row.workspace_mib, workload.loss_options
        self.sampler = None
        if row.scope is not None:
            config = SampledSoftmax(workload.negatives, sampler="uniform", scope=row.scope, seed=0)
            self.sampler = NegativeSampler(config, workload.vocabulary)

    def negatives(self, batch: Batch) -> torch.Tensor | None:
        return None if self.sampler is None else self.sampler(batch.targets, batch.target_lengths).ids

    def __call__(self, batch: Batch) -> torch.Tensor:
        output = self.joint.joint_net[-1]
        return sampled_rnnt_loss(
            self.joint.enc(batch.encoder.transpose(1, 2)),
            self.joint.pred(batch.predictor.transpose(1, 2)),
            output.weight,
            output.bias,
            batch.targets,
            batch.encoder_lengths,
            batch.target_lengths,
            negatives=self.negatives(batch),
            workspace_mib=self.workspace_mib,
            **self.loss_options,
        )

    def candidate_sets(self, batch: Batch):
        negatives = self.negatives(batch)
        if self.sampler is not None:
            self.sampler.draws -= 1
        return [(slice(None), negatives)]


def make_implementation(row: Row, joint: Joint, workload: Workload) -> Implementation:
    if row.implementation in OURS:
        return Ours(joint, row, workload)
    from nemo_implementations import Nemo

    return Nemo(joint, row, workload)
