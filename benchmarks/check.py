"""Is what is measured right? Loss and gradient of a small batch against float64, padded and not."""

from __future__ import annotations

import copy

import torch
from implementations import Implementation
from workloads import Batch, Joint, Workload, make_batch

from nemo_sampled_rnnt import sampled_rnnt_loss

# Largest relative errors of (loss, gradient) that rounding explains. In half precision rounding the projections flips
# some ReLUs, which alone moves gradients by 0.025; a label that is taken for another moves them by 0.15.
TOLERANCE = {torch.float32: (1e-5, 1e-4), torch.bfloat16: (2e-3, 5e-2), torch.float16: (2e-3, 5e-2)}


def check(implementation: Implementation, joint: Joint, workload: Workload) -> dict:
    """Errors of an implementation on small batches of the workload's layer.

        loss error = |l - l64| / |l64|        gradient error = max over tensors of ||g - g64|| / ||g64||

    The truth is the float64 reference over the same candidates: an implementation that draws them says which.

    Returns:
        ``check``: "ok", or "off" and where; ``loss_error`` and ``gradient_error``: the larger of both batches.
    """
    weight = joint.joint_net[-1].weight
    allowed = TOLERANCE[weight.dtype]
    truth = copy.deepcopy(joint).double()
    errors, off = [], []
    for name, padded in (("padded", True), ("unpadded", False)):
        batch = make_batch(workload.small(), weight.device, weight.dtype, padded)
        torch.manual_seed(1)
        sets = implementation.candidate_sets(batch)
        torch.manual_seed(1)
        got = _run(implementation, implementation.joint, batch)
        want = _run(lambda double, sets=sets: true_loss(truth, double, sets, workload), truth, batch.double())
        errors.append([_relative(got[0], want[0]), max(map(_relative, got[1], want[1]))])
        if not all(error <= most for error, most in zip(errors[-1], allowed, strict=True)):  # NaN is off too
            off.append("{}: loss by {:.0e}, gradient by {:.0e}".format(name, *errors[-1]))
    loss_error, gradient_error = (max(column) for column in zip(*errors, strict=True))
    return {
        "check": f"off ({'; '.join(off)})" if off else "ok",
        "loss_error": f"{loss_error:.2g}",
        "gradient_error": f"{gradient_error:.2g}",
    }


def true_loss(
    joint: Joint, batch: Batch, sets: list[tuple[slice, torch.Tensor | None]], workload: Workload
) -> torch.Tensor:
    """() mean loss of the batch by the reference, each part over its own candidates."""
    encoder, predictor = joint.enc(batch.encoder.transpose(1, 2)), joint.pred(batch.predictor.transpose(1, 2))
    output = joint.joint_net[-1]
    parts = [
        sampled_rnnt_loss(
            encoder[part],
            predictor[part],
            output.weight,
            output.bias,
            batch.targets[part],
            batch.encoder_lengths[part],
            batch.target_lengths[part],
            negatives=negatives,
            reduction="sum",
            impl="reference",
            **workload.loss_options,
        )
        for part, negatives in sets
    ]
    return torch.stack(parts).sum() / len(batch.targets)


def _run(loss_of, joint: torch.nn.Module, batch: Batch):
    """(loss, gradients of inputs and parameters)."""
    leaves = [*batch.inputs, *joint.parameters()]
    loss = loss_of(batch)
    return loss.detach(), torch.autograd.grad(loss, leaves)


def _relative(got: torch.Tensor, want: torch.Tensor) -> float:
    return float((got.double() - want).norm() / want.norm())
