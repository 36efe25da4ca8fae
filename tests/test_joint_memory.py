"""The arithmetic of the joint's memory agrees with what was measured."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import pytest
import torch

from nemo_sampled_rnnt import sampled_rnnt_loss
from nemo_sampled_rnnt.joint_memory import full_softmax_memory, joint_memory
from nemo_sampled_rnnt.loss.candidates import recurring
from nemo_sampled_rnnt.loss.lattice import Lattice
from nemo_sampled_rnnt.memory import peak_memory

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def lattice(batch, frames, labels):
    return Lattice([frames] * batch, [labels] * batch)


@pytest.mark.parametrize(
    "results, workload, implementation, scope",
    [
        ("loss_h200", "v131k_b16", "sampled", "batch"),
        ("loss_h200", "v131k_b16", "sampled_utterance", "utterance"),
        ("tdt_h200", "v16k_b16_t200_tdt", "sampled", "batch"),
        ("tdt_h200", "v16k_b16_t200_tdt", "exact", None),
        ("tdt_h200", "v1k_b16_t200_tdt", "sampled_utterance", "utterance"),
    ],
)
def test_recorded_on_an_h200(results, workload, implementation, scope, monkeypatch):
    """256 MiB of tiles: what benchmarks/loss.py measured, within 10 %."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from workloads import WORKLOADS

    workload = WORKLOADS[workload]
    with (BENCHMARKS / f"results/{results}.csv").open() as lines:
        rows = [row for row in csv.DictReader(lines) if row["status"] == "ok"]
    (measured,) = (
        float(row["peak_mib"])
        for row in rows
        if (row["workload"], row["implementation"]) == (workload.name, implementation)
    )
    frames, labels = (lengths.tolist() for lengths in workload.lengths())
    computed = joint_memory(
        Lattice(frames, labels), workload.vocabulary, workload.hidden, workload.encoder_width,
        workload.negatives if scope else None, scope or "utterance", durations=len(workload.durations),
    )  # fmt: skip
    assert computed.total / 2**20 == pytest.approx(measured, rel=0.1)
    sys.modules.pop("workloads", None)


@pytest.mark.gpu
@pytest.mark.parametrize("durations", [(), (0, 1, 2, 3, 4)], ids=["rnnt", "tdt"])
@pytest.mark.parametrize("scope", ["utterance", "batch", None])
def test_measured_now(scope, durations):
    """The loss from its projections on, in bfloat16 with a float32 weight; the projections are counted apart."""
    batch, frames, labels, hidden, vocabulary, negatives = 23, 301, 37, 320, 4231, 411
    device, generator = "cuda", torch.Generator("cuda").manual_seed(0)
    random = {"device": device, "generator": generator}
    encoder = torch.randn(batch, frames, hidden, dtype=torch.bfloat16, **random).requires_grad_()
    predictor = torch.randn(batch, labels + 1, hidden, dtype=torch.bfloat16, **random).requires_grad_()
    weight = torch.randn(vocabulary + 1 + len(durations), hidden, **random).requires_grad_()
    bias = torch.zeros(len(weight), device=device, requires_grad=True)
    targets = torch.randint(vocabulary, (batch, labels), **random)
    lengths = torch.full((batch,), frames, device=device), torch.full((batch,), labels, device=device)
    drawn = None
    if scope is not None:
        drawn = torch.rand(batch if scope == "utterance" else 1, vocabulary, **random).topk(negatives).indices
        drawn = drawn if scope == "utterance" else drawn[0]

    def forward():
        return sampled_rnnt_loss(
            encoder, predictor, weight, bias, targets, *lengths, negatives=drawn, workspace_mib=64,
            durations=durations or None,
        )  # fmt: skip

    forward()
    with peak_memory(device) as peak:
        forward()
    options = {"workspace_mib": 64, "durations": len(durations)}
    options |= {"n_samples": negatives, "scope": scope} if scope else {}
    computed = joint_memory(lattice(batch, frames, labels), vocabulary, hidden, 0, **options)
    projected = batch * frames * hidden * 2
    assert computed.total - projected == pytest.approx(peak.bytes, rel=0.1)


def test_parts():
    """The worked number of the module."""
    mib = 2**20
    memory = joint_memory(lattice(85, 375, 44), 4231, 640, 512, n_samples=423)
    parts = memory.tiles, memory.beside, memory.projections, memory.rows, memory.total
    assert [round(part / mib) for part in parts] == [116, 142, 70, 12, 340]
    assert full_softmax_memory(lattice(85, 375, 44), 4231) / 2**30 == pytest.approx(45, abs=0.5)


@pytest.mark.parametrize("scope", ["utterance", "batch", None])
def test_durations(scope):
    """Columns of every cell, and a word a place: beside the plain model with as many labels more."""
    sampled = {"n_samples": 423, "scope": scope, "workspace_mib": 2**14} if scope else {"workspace_mib": 2**14}
    batch = lattice(5, 375, 44)
    plain = joint_memory(batch, 4231, 640, 512, **sampled)
    more = joint_memory(batch, 4231 + 24, 640, 512, **sampled | ({"n_samples": 423 + 24} if scope else {}))
    tdt = joint_memory(batch, 4231, 640, 512, **sampled, durations=24)
    assert (tdt.tiles, tdt.rows, tdt.projections) == (more.tiles, more.rows, plain.projections)
    assert tdt.tiles > plain.tiles and tdt.rows > plain.rows
    assert tdt.beside - plain.beside == batch.places * 24 * 8


def test_workspace_bounds_the_tiles():
    """An utterance larger than the workspace is cut; a batch smaller than it takes what it needs."""
    long = lattice(3, 901, 113)
    totals = [joint_memory(long, 4231, 640, 512, workspace_mib=mib).tiles / 2**20 for mib in (16, 64, 8192)]
    assert totals[0] <= 16 and 32 < totals[1] <= 64
    cells = 3 * 901 * 114
    assert totals[2] == pytest.approx(recurring(cells) * (2 * 640 + 8 + 4232) * 2 / 2**20, rel=1e-6)
