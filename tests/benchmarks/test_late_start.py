"""The small transducer of benchmarks/late_start.py learns, and every setting of it runs."""

import csv

from scripts import ROOT, run, start


def test_settings_run(tmp_path):
    out = tmp_path / "late.csv"
    said = run(ROOT / "benchmarks/late_start.py", "--seeds=3", "--steps=2", "--out", out)
    with open(out, newline="") as file:
        rows = list(csv.DictReader(file))
    samplers = [name + corrected for name in ("uniform", "unigram", "ctc") for corrected in ("", "_corrected")]
    settings = ["exact", *samplers, "ctc_corrected_floor_0.1", "ctc_floor_0.1", "ctc_floor_0.5"]
    assert [(row["setting"], row["seed"], row["step"]) for row in rows] == [(name, "3", "2") for name in settings]
    assert "ctc_corrected 3:" in said


def test_learns(tmp_path):
    out = tmp_path / "late.csv"
    run(ROOT / "benchmarks/late_start.py", "--settings=ctc_floor_0.5", "--seeds=0", "--steps=200", "--out", out)
    with open(out, newline="") as file:
        rates = [float(row["error_rate"]) for row in csv.DictReader(file)]
    assert len(rates) == 2 and rates[1] < 0.9 < rates[0]


def test_unknown_setting():
    result = start(ROOT / "benchmarks/late_start.py", "--settings=exact,ctc_floor_0.7")
    assert result.returncode == 2 and "got ctc_floor_0.7" in result.stderr
