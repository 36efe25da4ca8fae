"""The check of the joint's memory in miniature, which on a CPU measures nothing."""

import csv

from scripts import ROOT, SHRINK, run

TINY = [override for override in SHRINK if override.startswith(("model.encoder.", "model.model_defaults."))]
TINY += ["trainer.accelerator=cpu", "trainer.precision=32", "model.train_ds.num_workers=0"]
TINY += ["model.train_ds.batch_duration=20"]


def test_miniature(tmp_path):
    output = run(
        ROOT / "benchmarks/aishell_memory.py", "--work", tmp_path / "work", "--out", tmp_path, "--steps=3",
        "--utterances=200", *(f"--set={override}" for override in TINY),
    )  # fmt: skip
    assert "3 steps, large, 80gb; the page's table: 342 MiB" in output
    with open(tmp_path / "aishell_memory.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["1", "2", "3"]
    for row in rows:
        assert row["joint_mib"] == row["step_gib"] == "" and float(row["computed_mib"]) > 0
        assert int(row["labels"]) < int(row["frames"]) <= 15 * 25 + 1
