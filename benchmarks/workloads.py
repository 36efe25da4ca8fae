"""What is measured: vocabulary, batch and lengths; and the random batch that stands for it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch


@dataclass(frozen=True)
class Workload:
    """Sizes of a training batch at the joint.

    Attributes:
        batch, frames, labels: B, T and U of the tensors. Lengths run from half of T and U to the whole, each drawn
            uniformly; the longest is present.
        vocabulary: V.
        negatives: drawn for the sampled implementations.
        hidden: H, width of the joint.
        encoder_width, predictor_width: channels of what the joint projects (a large Conformer-Transducer's).
        durations: of a TDT model, which is named as its plain twin with ``_tdt`` behind; else none.
    """

    name: str
    batch: int
    frames: int
    labels: int
    vocabulary: int
    negatives: int
    hidden: int = 640
    encoder_width: int = 512
    predictor_width: int = 640
    durations: tuple[int, ...] = ()

    def tdt(self) -> Workload:
        """The twin with NeMo's durations."""
        return replace(self, name=f"{self.name}_tdt", durations=(0, 1, 2, 3, 4))

    @property
    def loss_options(self) -> dict:
        """What TDT adds to the loss; omega, which makes some batches plain RNN-T, is off."""
        return {"durations": list(self.durations), "sigma": 0.02, "omega": 0.0} if self.durations else {}

    def small(self) -> Workload:
        """The same layer with few cells: its loss is checked against float64."""
        return replace(self, batch=6, frames=max(8, self.frames // 20), labels=max(8, self.labels // 10))

    def lengths(self, padded: bool = True, number: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
        """(B,) frames and (B,) labels of each utterance of one of the workload's batches."""
        generator = torch.Generator().manual_seed(self.batch * self.frames + number)
        frames, labels = (
            torch.randint(-(-longest // 2), longest + 1, (self.batch,), generator=generator)
            for longest in (self.frames, self.labels)
        )
        frames[0], labels[-1] = self.frames, self.labels
        if not padded:
            frames[:], labels[:] = self.frames, self.labels
        return frames, labels

    @property
    def cells(self) -> int:
        """Cells of the packed lattice."""
        frames, labels = self.lengths()
        return int((frames * (labels + 1)).sum())


SAME_SIZE = [  # measured as plain RNN-T and as TDT
    Workload("v1k_b16_t200", batch=16, frames=200, labels=60, vocabulary=1024, negatives=256),
    Workload("v16k_b16_t200", batch=16, frames=200, labels=60, vocabulary=16384, negatives=1024),
    Workload("tiny", 6, 23, 7, 301, 40, hidden=24, encoder_width=16, predictor_width=20),  # does it run at all?
]
WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("v1k_b64", batch=64, frames=190, labels=60, vocabulary=1024, negatives=256),
        Workload("v1k_b16", batch=16, frames=300, labels=60, vocabulary=1024, negatives=256),
        Workload("v4k_b32", batch=32, frames=150, labels=20, vocabulary=4232, negatives=512),
        Workload("v16k_b16", batch=16, frames=200, labels=50, vocabulary=16384, negatives=1024),
        Workload("v131k_b16", batch=16, frames=200, labels=40, vocabulary=131072, negatives=2048),
        Workload("v1m_b16", batch=16, frames=200, labels=40, vocabulary=1048576, negatives=4096),
        Workload("cpu_v16k_b4", batch=4, frames=100, labels=30, vocabulary=16384, negatives=500),
        *SAME_SIZE,
        *(workload.tdt() for workload in SAME_SIZE),
    )
}
DEFAULT = {"cpu": ["cpu_v16k_b4"], "cuda": ["v1k_b64", "v1k_b16", "v4k_b32", "v16k_b16", "v131k_b16", "v1m_b16"]}


@dataclass
class Batch:
    """What reaches the joint in training.

    Attributes:
        encoder: (B, D, T) float leaf, encoder outputs in NeMo's layout.
        predictor: (B, P, U+1) float leaf.
        targets: (B, U) int64, padded with 0 as NeMo pads.
        encoder_lengths, target_lengths: (B,) int64.
    """

    encoder: torch.Tensor
    predictor: torch.Tensor
    targets: torch.Tensor
    encoder_lengths: torch.Tensor
    target_lengths: torch.Tensor

    @property
    def inputs(self) -> tuple[torch.Tensor, ...]:
        """Those that get a gradient."""
        return self.encoder, self.predictor

    def double(self) -> Batch:
        """A float64 copy with leaves of its own."""
        encoder, predictor = (x.detach().double().requires_grad_() for x in self.inputs)
        return replace(self, encoder=encoder, predictor=predictor)


def make_batch(
    workload: Workload, device: torch.device, dtype: torch.dtype, padded: bool = True, number: int = 0
) -> Batch:
    """A random batch, each number another one; not padded: every utterance is as long as the longest."""
    generator = torch.Generator().manual_seed(number)
    frames, labels = workload.lengths(padded, number)
    # Label 0 is SentencePiece's <unk>, which hardly occurs; NeMo's sampled joint takes it for padding.
    targets = torch.randint(1, workload.vocabulary, (workload.batch, workload.labels), generator=generator)
    targets[torch.arange(workload.labels) >= labels[:, None]] = 0

    def normal(*shape):
        return torch.randn(*shape, generator=generator).to(device, dtype).requires_grad_()

    return Batch(
        encoder=normal(workload.batch, workload.encoder_width, workload.frames),
        predictor=normal(workload.batch, workload.predictor_width, workload.labels + 1),
        targets=targets.to(device),
        encoder_lengths=frames.to(device),
        target_lengths=labels.to(device),
    )


class Joint(torch.nn.Module):
    """The parameters of a joint, named as NeMo names them: everyone in a benchmark starts from the same ones."""

    def __init__(self, workload: Workload):
        super().__init__()
        self.pred = torch.nn.Linear(workload.predictor_width, workload.hidden)
        self.enc = torch.nn.Linear(workload.encoder_width, workload.hidden)
        output = torch.nn.Linear(workload.hidden, workload.vocabulary + 1 + len(workload.durations))
        self.joint_net = torch.nn.Sequential(torch.nn.ReLU(), output)


def make_joint(workload: Workload, device: torch.device, dtype: torch.dtype) -> Joint:
    torch.manual_seed(0)
    with torch.device(device):
        return Joint(workload).to(dtype)
