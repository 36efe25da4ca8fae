"""A checked batch: bad input is refused here, before anything is computed, with one read of the device."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch

from nemo_sampled_rnnt.loss.lattice import Lattice

REDUCTIONS = ("mean", "sum", "mean_batch", "mean_volume")
FRAME_WEIGHTS = (None, "mean", "nonblank", "max")
IMPLEMENTATIONS = ("auto", "reference", "cpu", "cuda")


@dataclass(frozen=True)
class Options:
    """The scalar arguments of :func:`nemo_sampled_rnnt.ctc.ctc_loss`."""

    frame_weights: str | None = None
    best: bool = False
    reduction: str = "mean_batch"
    zero_infinity: bool = True
    workspace_mib: int = 256
    impl: str = "auto"

    def __post_init__(self):
        for name, allowed in (
            ("reduction", REDUCTIONS), ("frame_weights", FRAME_WEIGHTS), ("impl", IMPLEMENTATIONS)
        ):  # fmt: skip
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {getattr(self, name)!r}")
        if self.workspace_mib < 1:
            raise ValueError(f"workspace_mib must be at least 1 MiB, got {self.workspace_mib}")


@dataclass(frozen=True)
class Batch:
    """What every implementation is given beside encoder, weight and bias.

    Attributes:
        frames, labels: T_b and U_b of each utterance, known to the host.
        targets: (B, U) int64 label ids; anything beyond the lengths.
        target_lengths: (B,) int64.
        sorted_labels, order: (B, U) int64, the labels of an utterance in ascending order, and the positions where they
            stand in it; V + 1 beyond its length.
        vocabulary: V; blank is id V.
        options: the scalar arguments.
        table: (B, 4) int64 on the device: frames, labels, first packed frame, and a 0; for kernels, else None.
    """

    frames: list[int]
    labels: list[int]
    targets: torch.Tensor
    target_lengths: torch.Tensor
    sorted_labels: torch.Tensor
    order: torch.Tensor
    vocabulary: int
    options: Options
    table: torch.Tensor | None = None

    @cached_property
    def packed(self) -> Lattice:
        """The frames of all utterances on one axis, with no padding between them: a cell is a frame."""
        return Lattice(self.frames, [0] * len(self.frames))

    @property
    def positions(self) -> int:
        """U, columns of the targets."""
        return self.targets.shape[1]


def check_tensors(encoder, weight, bias, targets, encoder_lengths, target_lengths) -> None:
    """Raise ValueError where shapes, dtypes or devices disagree."""
    batch = len(encoder)
    shapes = {
        "encoder": (encoder, "(B, T, D)", (batch, *encoder.shape[1:2], weight.shape[-1]), torch.is_floating_point),
        "weight": (weight, "(V + 1, D)", (len(weight), weight.shape[-1]), torch.is_floating_point),
        "bias": (bias, "(V + 1,)", weight.shape[:1], torch.is_floating_point),
        "targets": (targets, "(B, U)", (batch, *targets.shape[1:2]), _is_integer),
        "encoder_lengths": (encoder_lengths, "(B,)", encoder.shape[:1], _is_integer),
        "target_lengths": (target_lengths, "(B,)", encoder.shape[:1], _is_integer),
    }
    for name, (tensor, letters, shape, is_right) in shapes.items():
        if tensor.device != encoder.device:
            raise ValueError(f"{name} is on {tensor.device} but encoder is on {encoder.device}: move them together")
        if tuple(tensor.shape) != tuple(shape):
            raise ValueError(
                f"{name} must have shape {letters}, got {tuple(tensor.shape)} beside encoder {tuple(encoder.shape)} "
                f"and weight {tuple(weight.shape)}"
            )
        if not is_right(tensor):
            kind = "floating point" if is_right is torch.is_floating_point else "integers"
            raise ValueError(f"{name} must be {kind}, got {tensor.dtype}")
    if batch == 0 or len(weight) < 2:
        raise ValueError(f"expected an utterance and a label, got {batch} utterances and {len(weight)} rows of weight")


def _is_integer(tensor: torch.Tensor) -> bool:
    return not tensor.is_floating_point() and tensor.dtype not in (torch.bool, torch.complex64, torch.complex128)


def survey(encoder_lengths, target_lengths, targets, vocabulary: int):
    """What must be checked, with one read of the device, and the labels in ascending order.

    Args:
        encoder_lengths, target_lengths: (B,) int64.
        targets: (B, U) int64.
        vocabulary: V.

    Returns:
        A list of 4 B integers: frames, labels, and the position (-1: none) and value of the first bad target, each for
        all utterances; sorted_labels and order, see :class:`Batch`; None.
    """
    labelled = torch.arange(targets.shape[1], device=targets.device) < target_lengths[:, None]
    bad = labelled & ((targets < 0) | (targets >= vocabulary))
    numbers = [encoder_lengths, target_lengths]
    if targets.shape[1] == 0:
        numbers += [torch.full_like(target_lengths, -1)] * 2
    else:
        position = bad.long().argmax(dim=1)
        value = targets.gather(1, position[:, None])[:, 0]
        numbers += [torch.where(bad.any(dim=1), position, -1), value]
    ordered = torch.where(labelled, targets, vocabulary + 1).sort(dim=1, stable=True)
    return torch.cat(numbers).tolist(), ordered.values, ordered.indices, None


def make_batch(encoder, weight, targets, encoder_lengths, target_lengths, options: Options, survey=survey) -> Batch:
    """Read the device once, and raise ValueError for lengths and ids out of range.

    Args:
        survey: :func:`survey`, or what does its work on this device.
    """
    batch, vocabulary = len(encoder), len(weight) - 1
    targets, target_lengths = targets.long(), target_lengths.long()
    numbers, sorted_labels, order, table = survey(encoder_lengths.long(), target_lengths, targets, vocabulary)
    frames, labels, bad_at, bad_value = (numbers[i * batch : (i + 1) * batch] for i in range(4))
    for name, lengths, least, most, what in (
        ("encoder_lengths", frames, 1, encoder.shape[1], "the frames of encoder"),
        ("target_lengths", labels, 0, targets.shape[1], "the columns of targets"),
    ):
        for utterance, length in enumerate(lengths):
            if not least <= length <= most:
                raise ValueError(f"{name}[{utterance}] is {length}, but must lie in [{least}, {most}] ({what})")
    for utterance, position in enumerate(bad_at):
        if position >= 0:
            value = bad_value[utterance]
            raise ValueError(
                f"targets[{utterance}, {position}] is {value}{' (that is blank)' if value == vocabulary else ''}, but "
                f"labels must lie in [0, {vocabulary}): utterance {utterance} has target_lengths {labels[utterance]}"
            )
    return Batch(frames, labels, targets, target_lengths, sorted_labels, order, vocabulary, options, table)
