"""Bad input is refused here, before any kernel runs, with one read of the device.

What the host can see (shapes, dtypes, devices, scalars) is checked at once. What lies in tensors (lengths,
targets, negatives) is condensed on the device and read together with the lengths the host needs anyway.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import replace
from numbers import Real

import torch

from nemo_sampled_rnnt.loss.candidates import aligned, every_label, gather_candidates, recurring, with_durations
from nemo_sampled_rnnt.loss.dropout import draw_seed
from nemo_sampled_rnnt.loss.lattice import Lattice
from nemo_sampled_rnnt.loss.problem import ACTIVATIONS, IMPLEMENTATIONS, REDUCTIONS, Options, Problem

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.uint8, torch.int8)
NUMBERS = ("dropout", "fastemit_lambda", "clamp", "workspace_mib", "sigma", "omega")


def check_options(options: Options) -> None:
    """Raise ValueError for a scalar argument out of its range."""
    _one_of("activation", options.activation, ACTIVATIONS)
    _one_of("reduction", options.reduction, REDUCTIONS)
    _one_of("impl", options.impl, IMPLEMENTATIONS)
    for name in NUMBERS:
        value = getattr(options, name)
        if not isinstance(value, Real):
            raise ValueError(f"{name} must be a number, got {value!r}, a {type(value).__name__}")
    if not 0.0 <= options.dropout < 1.0:
        raise ValueError(f"dropout must lie in [0, 1), got {options.dropout}")
    if not (math.isfinite(options.fastemit_lambda) and options.fastemit_lambda >= 0.0):
        raise ValueError(f"fastemit_lambda must be a finite number >= 0, got {options.fastemit_lambda}")
    if math.isnan(options.clamp):
        raise ValueError("clamp must be a number (0 or less switches it off), got nan")
    if not options.workspace_mib >= 1:
        raise ValueError(f"workspace_mib must be at least 1 MiB, got {options.workspace_mib}")
    if not math.isfinite(options.sigma):
        raise ValueError(f"sigma must be a finite number, got {options.sigma}")
    if not 0.0 <= options.omega <= 1.0:
        raise ValueError(f"omega must lie in [0, 1], got {options.omega}")
    if options.durations is not None:
        check_durations(options.durations)
    elif options.sigma or options.omega:
        raise ValueError(
            f"sigma ({options.sigma}) and omega ({options.omega}) belong to TDT: pass durations too, or leave them at 0"
        )


def check_durations(durations: tuple[int, ...]) -> None:
    """Raise ValueError for what cannot be the durations of a TDT model."""
    hint = "pass them as the model was built, for instance (0, 1, 2, 3, 4)"
    if not isinstance(durations, Iterable):
        raise ValueError(f"durations must be whole numbers of frames, got {durations!r}: {hint}")
    for duration in durations:
        if isinstance(duration, bool) or not isinstance(duration, int) or duration < 0:
            raise ValueError(f"durations must be whole numbers of frames >= 0, got {duration!r} in {durations}: {hint}")
    for one, after in itertools.pairwise(durations):
        if one >= after:
            raise ValueError(
                f"durations must ascend without repetition, got {after} behind {one} in {durations}: {hint}"
            )
    if not any(durations):
        raise ValueError(f"durations must have one above 0, else blank gets nowhere, got {durations}: {hint}")


def check_tensors(
    encoder, predictor, weight, bias, targets, encoder_lengths, target_lengths, negatives, log_prob, durations: int = 0
):
    """Raise ValueError where shapes, dtypes or devices disagree; with TDT's durations the weight has their rows too."""
    tensors = {
        "encoder": (encoder, 3, "(B, T, H)"),
        "predictor": (predictor, 3, "(B, U + 1, H)"),
        "weight": (weight, 2, "(V + 1, H)"),
        "bias": (bias, 1, "(V + 1,)"),
        "targets": (targets, 2, "(B, U)"),
        "encoder_lengths": (encoder_lengths, 1, "(B,)"),
        "target_lengths": (target_lengths, 1, "(B,)"),
    }
    for name, (tensor, dims, shape) in tensors.items():
        _tensor(name, tensor, shape)
        if tensor.dim() != dims:
            raise ValueError(f"{name} must have shape {shape}, got {tuple(tensor.shape)}")
        _same_device(name, tensor, encoder)
        _dtype(name, tensor, FLOATS if name in ("encoder", "predictor", "weight", "bias") else INTEGERS)

    batch, frames, hidden = encoder.shape
    vocabulary = weight.shape[0] - 1 - durations
    expected = {
        "encoder": (encoder, (batch, encoder.shape[1], hidden)),
        "predictor": (predictor, (batch, targets.shape[1] + 1, hidden)),
        "weight": (weight, (weight.shape[0], hidden)),
        "bias": (bias, (weight.shape[0],)),
        "targets": (targets, (batch, targets.shape[1])),
        "encoder_lengths": (encoder_lengths, (batch,)),
        "target_lengths": (target_lengths, (batch,)),
    }
    for name, (tensor, shape) in expected.items():
        if tuple(tensor.shape) != shape:
            raise ValueError(
                f"{name} must have shape {shape} to fit encoder {tuple(encoder.shape)}, targets "
                f"{tuple(targets.shape)} and weight {tuple(weight.shape)}, got {tuple(tensor.shape)}"
            )
    if batch < 1:
        raise ValueError("encoder holds no utterance (B = 0): leave such a batch out")
    if frames < 1:
        raise ValueError(f"encoder holds no frame (T = 0), got {tuple(encoder.shape)}: leave such a batch out")
    if vocabulary < 1:
        tdt = f" and one for each of {durations} durations" if durations else ""
        raise ValueError(
            f"weight must have a row for each of V >= 1 labels, one for blank{tdt}, got {weight.shape[0]} rows"
        )
    if negatives is None:
        if log_prob is not None:
            raise ValueError("negative_log_prob corrects the scores of negatives, but negatives is None: pass both")
        return
    _tensor("negatives", negatives, "(N,) or (B, N)")
    _same_device("negatives", negatives, encoder)
    _dtype("negatives", negatives, INTEGERS)
    if negatives.dim() not in (1, 2) or (negatives.dim() == 2 and negatives.shape[0] != batch):
        raise ValueError(f"negatives must have shape (N,) or (B, N) with B = {batch}, got {tuple(negatives.shape)}")
    if log_prob is not None:
        _tensor("negative_log_prob", log_prob, "of the shape of negatives")
        _same_device("negative_log_prob", log_prob, encoder)
        if log_prob.shape != negatives.shape:
            raise ValueError(
                f"negative_log_prob must have the shape of negatives {tuple(negatives.shape)}, "
                f"got {tuple(log_prob.shape)}"
            )
        _dtype("negative_log_prob", log_prob, FLOATS)


def survey(encoder_lengths, target_lengths, targets, negatives, negative_log_prob, vocabulary: int, durations: int):
    """Gather the candidates of a batch, and what must be checked, with one read of the device.

    Args:
        encoder_lengths, target_lengths: (B,) int64.
        targets: (B, U) int64.
        negatives, negative_log_prob: see :func:`sampled_rnnt_loss`, int64 and float, or None.
        vocabulary: V.
        durations: D, of a TDT model; else 0.

    Returns:
        A list of integers: for each utterance frames, then for each labels, then position and value of the first bad
        target (position -1: none); with negatives, for each set count (durations with it), position and value of the
        first bad negative, and whether a log-prob is improper.
        The candidates.
        (B, 4) table of the utterances on the device, where kernels want it, or None.
    """
    labelled = torch.arange(targets.shape[1], device=targets.device) < target_lengths[:, None]
    bad_target = labelled & ((targets < 0) | (targets >= vocabulary))
    columns = [encoder_lengths, target_lengths, *_first_bad(bad_target, targets)]
    if negatives is None:
        return torch.cat(columns).tolist(), every_label(targets, vocabulary, durations), None
    candidates = gather_candidates(targets, labelled, negatives, negative_log_prob, vocabulary)
    if durations:
        candidates = with_durations(candidates, vocabulary, durations)
    rows = negatives.reshape(candidates.ids.shape[0], -1)
    improper = torch.zeros_like(candidates.count)
    if negative_log_prob is not None:
        given = negative_log_prob.reshape(rows.shape)
        improper = ((rows >= 0) & ~((given <= 1e-4) & (given > -torch.inf))).any(dim=1).long()
    columns += [candidates.count, *_first_bad((rows < -1) | (rows >= vocabulary), rows), improper]
    return torch.cat(columns).tolist(), candidates, None


def make_problem(
    encoder, weight, targets, encoder_lengths, target_lengths, negatives, negative_log_prob, options: Options,
    survey=survey,
) -> Problem:  # fmt: skip
    """Gather the candidates, read the device once, and raise ValueError for lengths and ids out of range.

    Args:
        survey: :func:`survey`, or what does its work on this device.
    """
    durations = len(options.durations or ())
    vocabulary = weight.shape[0] - 1 - durations
    batch, longest = targets.shape
    target_lengths = target_lengths.long()
    numbers, candidates, table = survey(
        encoder_lengths.long(),
        target_lengths,
        targets.long(),
        None if negatives is None else negatives.long(),
        None if negative_log_prob is None else negative_log_prob.detach(),
        vocabulary,
        durations,
    )
    frames, labels, bad_at, bad_value = (numbers[i * batch : (i + 1) * batch] for i in range(4))
    _check_lengths("encoder_lengths", frames, 1, encoder.shape[1], "the frames of encoder")
    _check_lengths("target_lengths", labels, 0, longest, "the columns of targets")
    for utterance, position in enumerate(bad_at):
        if position >= 0:
            value = bad_value[utterance]
            blank = " (that is blank)" if value == vocabulary else ""
            rows = f" (weight has {len(weight)} rows, the last {durations} are of durations)" if durations else ""
            raise ValueError(
                f"targets[{utterance}, {position}] is {value}{blank}, but labels must lie in [0, {vocabulary}){rows}: "
                f"utterance {utterance} has target_lengths {labels[utterance]}"
            )

    rounded = aligned if table is None else recurring  # kernels know padding
    count = [vocabulary + 1]
    if negatives is not None:
        groups = len(candidates.ids)
        sets = [numbers[4 * batch + i * groups : 4 * batch + (i + 1) * groups] for i in range(4)]
        _check_negatives(sets, per_utterance=negatives.dim() == 2, vocabulary=vocabulary)
        largest = min(rounded(max(sets[0])), candidates.ids.shape[1])
        count = [rows - durations for rows in sets[0]]
        ids, log_q = candidates.ids[:, :largest], candidates.log_q[:, :largest]
        candidates = replace(candidates, ids=ids, log_q=log_q)
    lattice = Lattice(frames, labels)
    if options.max_logits is not None:
        _check_logits(lattice, count, options.max_logits)
    return Problem(
        lattice=lattice,
        candidates=candidates,
        candidate_count=count,
        target_lengths=target_lengths,
        options=options,
        seed=draw_seed(options.dropout),
        table=table,
    )


def _check_logits(lattice: Lattice, count: list[int], max_logits: int) -> None:
    """A sampler that keeps a budget exceeds it only where the sets are as small as they can be."""
    cells = [t * (u + 1) for t, u in zip(lattice.frames, lattice.labels, strict=True)]
    logits = [n * count[b if len(count) > 1 else 0] for b, n in enumerate(cells)]
    if sum(logits) > max_logits:
        b = max(range(len(cells)), key=logits.__getitem__)
        raise ValueError(
            f"max_logits is {max_logits:,}, but blank, the labels and the fewest negatives of the batch make "
            f"{sum(logits):,} logits (lattice cells times candidates); most of them, {logits[b]:,}, are of "
            f"utterance {b} with {lattice.frames[b]} frames and {lattice.labels[b]} labels: raise max_logits to at "
            f"least {sum(logits):,}, or make the batch smaller"
        )


def _one_of(name: str, value, allowed: tuple) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")


def _tensor(name: str, tensor, shape: str) -> None:
    if not isinstance(tensor, torch.Tensor):
        raise ValueError(f"{name} must be a tensor {shape}, got {type(tensor).__name__}")


def _dtype(name: str, tensor: torch.Tensor, allowed: tuple[torch.dtype, ...]) -> None:
    if tensor.dtype not in allowed:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in allowed)
        raise ValueError(f"{name} must be one of {names}, got {tensor.dtype}: convert it")


def _same_device(name: str, tensor: torch.Tensor, encoder: torch.Tensor) -> None:
    if tensor.device != encoder.device:
        raise ValueError(f"{name} is on {tensor.device} but encoder is on {encoder.device}: move them together")


def _first_bad(bad: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Position (-1: none) and value of the first bad entry of each row."""
    if bad.shape[1] == 0:
        none = values.new_full((values.shape[0],), -1)
        return none, none
    position = bad.long().argmax(dim=1, keepdim=True)
    value = values.gather(1, position)[:, 0]
    return torch.where(bad.any(dim=1), position[:, 0], -1), value


def _check_lengths(name: str, lengths: list[int], least: int, most: int, what: str) -> None:
    for utterance, length in enumerate(lengths):
        if not least <= length <= most:
            raise ValueError(
                f"{name}[{utterance}] is {length}, but must lie in [{least}, {most}] ({what}); utterance {utterance}"
            )


def _check_negatives(table: list[list[int]], per_utterance: bool, vocabulary: int) -> None:
    for group in range(len(table[0])):
        where = f"{group}, " if per_utterance else ""
        if table[1][group] >= 0:
            raise ValueError(
                f"negatives[{where}{table[1][group]}] is {table[2][group]}, but negatives must lie in "
                f"[0, {vocabulary}), or be -1 for padding{f'; utterance {group}' if per_utterance else ''}"
            )
        if table[3][group]:
            raise ValueError(
                f"negative_log_prob[{where}...] must hold log probabilities (finite, at most 0)"
                f"{f'; utterance {group}' if per_utterance else ''}"
            )
