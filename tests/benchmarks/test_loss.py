"""Every implementation that the loss's benchmark compares is built, measured and checked, on a tiny batch."""

import csv

import pytest
from scripts import ROOT, run, start


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


def test_a_file_of_other_columns_is_refused_before_anything_is_measured(tmp_path):
    out = tmp_path / "loss.csv"
    out.write_text("workload,median_ms\n")
    for script, more in (("loss.py", ["--workloads", "tiny"]), ("durations_cost.py", ["--workloads", "tiny"])):
        result = start(ROOT / "benchmarks" / script, "--device=cpu", *more, "--out", out)
        assert result.returncode == 2 and "has other columns" in result.stderr, result.stderr
    assert out.read_text() == "workload,median_ms\n"


def test_what_durations_cost(tmp_path):
    out = tmp_path / "cost.csv"
    said = run(
        ROOT / "benchmarks/durations_cost.py", "--device=cpu", "--workloads", "tiny", "--implementations", "sampled",
        "--rounds=3", "--out", out,
    )  # fmt: skip
    with open(out, newline="") as file:
        (row,) = csv.DictReader(file)
    assert float(row["low"]) <= float(row["cost"]) <= float(row["high"]) and "tiny sampled: plain" in said
    assert abs(float(row["tdt_ms"]) / float(row["plain_ms"]) - 1 - float(row["cost"])) < 0.3
