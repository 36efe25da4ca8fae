"""Every implementation that the loss's benchmark compares is built, measured and checked, on a tiny batch."""

import csv

import pytest
from scripts import ROOT, run


@pytest.mark.parametrize(
    "workload, implementations",
    [
        ("tiny", ["floor", "exact", "sampled", "sampled_utterance", "nemo_full", "nemo_sampled"]),
        ("tiny_tdt", ["floor", "exact", "sampled", "sampled_utterance"]),  # NeMo has no TDT loss on a CPU
    ],
)
def test_rows(workload, implementations, tmp_path):
    out = tmp_path / "loss.csv"
    run(
        ROOT / "benchmarks/loss.py", "--device=cpu", "--workloads", workload, "--implementations", *implementations,
        "--ready=3", "--out", out,
    )  # fmt: skip
    with open(out, newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["implementation"] for row in rows} == set(implementations)
    for row in rows:
        name = row["implementation"]
        assert row["status"] == "ok" and float(row["median_ms"]) > 0, row
        # that NeMo's sampled loss is off for unpadded batches is what the check is there to find
        assert row["check"] == "ok" or name == "nemo_sampled" and "unpadded" in row["check"], row
