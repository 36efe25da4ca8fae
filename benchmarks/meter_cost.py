"""What the meter costs beside joint and loss, forward and backward, which are only a part of a training step.

    python benchmarks/meter_cost.py --device cuda --workloads v1k_b16,v16k_b16,v131k_b16

prints for each workload the milliseconds and the peak memory of both, and the meter's share of the time at its default
interval. Negatives are uniform, one set an utterance, corrected.
"""

from __future__ import annotations

import click
import torch
from environment import environment
from measure import median_ms
from workloads import WORKLOADS, make_batch, make_joint

from nemo_sampled_rnnt import sampled_rnnt_loss
from nemo_sampled_rnnt.memory import peak_memory
from nemo_sampled_rnnt.meter import Meter
from nemo_sampled_rnnt.sampling import NegativeSampler, SampledSoftmax


def cost(name: str, device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """Milliseconds, MiB, and the share of time that the meter takes, of a workload."""
    workload = WORKLOADS[name]
    batch, joint = make_batch(workload, device, dtype), make_joint(workload, device, torch.float32)
    config = SampledSoftmax(workload.negatives, sampler="uniform", correction=True, seed=0)
    sampler = NegativeSampler(config, workload.vocabulary)
    meter, output = Meter(sampler), joint.joint_net[1]
    with torch.no_grad(), torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        encoder, predictor = joint.enc(batch.encoder.transpose(1, 2)), joint.pred(batch.predictor.transpose(1, 2))
    encoder.requires_grad_(), predictor.requires_grad_()
    inputs = encoder, predictor, output.weight, output.bias, batch.targets, batch.encoder_lengths, batch.target_lengths
    drawn = sampler(batch.targets, batch.target_lengths)

    def step():
        negatives = sampler(batch.targets, batch.target_lengths)
        loss = sampled_rnnt_loss(*inputs, negatives=negatives.ids, negative_log_prob=negatives.log_prob)
        loss.backward()
        for leaf in inputs[:4]:
            leaf.grad = None

    def measured(turn=0):
        assert meter(*inputs, drawn, None, "relu", turn), "nothing was measured"

    times, peaks = {}, {}
    for what, function in (("step", step), ("meter", measured)):
        times[what] = median_ms(function, device)
        with peak_memory(device) as peak:
            function()
        peaks[what] = peak.mib
    return {
        "step_ms": times["step"],
        "meter_ms": times["meter"],
        "share": times["meter"] / times["step"] / config.meter_every,
        "step_mib": peaks["step"],
        "meter_mib": peaks["meter"],
    }


@click.command(help=__doc__.split("\n\n")[0])
@click.option("--device", default="cuda" if torch.cuda.is_available() else "cpu", show_default=True)
@click.option("--workloads", default="cpu_v16k_b4", show_default=True)
def main(device, workloads):
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    where = environment(device)
    click.echo(f"{where['machine']}, {dtype}, torch {where['torch']}, commit {where['commit']}")
    for name in workloads.split(","):
        row = cost(name, torch.device(device), dtype)
        click.echo(
            "{}: joint and loss {step_ms:.1f} ms, {step_mib:.0f} MiB; meter {meter_ms:.1f} ms, {meter_mib:.0f} MiB; "
            "at the default interval {share:.3%} of the time".format(name, **row)
        )


if __name__ == "__main__":
    main()
