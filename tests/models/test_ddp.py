"""Two ranks over gloo, with batches of different sizes and lengths."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import make_speech

import nemo_sampled_rnnt

SECONDS = 180  # far more than it takes: a rank that waits for the other one waits for ever


@pytest.fixture(scope="module")
def reports(tokenizer, tmp_path_factory):
    """What each rank saw; the ranks have ended, neither waiting for the other."""
    folder = tmp_path_factory.mktemp("ddp")
    make_speech(folder, 15, "rank0")
    make_speech(folder, 6, "rank1")
    tests, package = Path(__file__).parents[1], Path(nemo_sampled_rnnt.__file__).parents[1]
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(map(str, (package, tests))),
        "MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "NODE_RANK": "0",
        "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    command = [sys.executable, str(Path(__file__).with_name("ddp_rank.py")), str(folder), str(tokenizer)]
    logs = [open(folder / f"rank{rank}.log", "w+") for rank in range(2)]
    ranks = [
        subprocess.Popen(
            command, env=environment | {"LOCAL_RANK": str(rank)}, stdout=logs[rank], stderr=subprocess.STDOUT
        )
        for rank in range(2)
    ]
    try:
        for rank in ranks:
            rank.wait(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        pass
    finally:
        for rank in ranks:
            rank.kill()
        for log in logs:
            log.seek(0)
        said = "\n".join(f"rank {rank}: {log.read()[-3000:]}" for rank, log in enumerate(logs))
    assert [rank.returncode for rank in ranks] == [0, 0], said
    return [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(2)]


def test_steps_of_different_sizes_do_not_hang(reports):
    for zero, one in zip(*(report["steps"] for report in reports), strict=True):
        assert (len(zero["lengths"]), len(one["lengths"])) == (5, 2)
        assert max(zero["labels"]) != max(one["labels"]) or max(zero["lengths"]) != max(one["lengths"])
    assert len(reports[0]["steps"]) == 3


def test_wer_is_logged_at_each_step(reports):
    for report in reports:
        for step in report["steps"]:
            assert {"training_batch_wer", "training_batch_wer_ctc", "train_loss"} <= set(step["logged"])
    assert reports[0]["metrics"]["val_wer"] == reports[1]["metrics"]["val_wer"], "validation is of all ranks together"
    assert {"val_loss", "val_wer_ctc"} <= set(reports[0]["metrics"])


def test_gradients_are_equal_on_ranks(reports):
    for zero, one in zip(*(report["steps"] for report in reports), strict=True):
        assert zero["logged"]["train_loss"] != one["logged"]["train_loss"]
        for name, gradient in zero["gradients"].items():
            assert torch.equal(gradient, one["gradients"][name]), name


def test_ranks_draw_different_negatives(reports):
    zero, one = (report["draw for one input"].ids for report in reports)
    assert zero.shape == one.shape == (1, 7)
    assert set(zero[0].tolist()) != set(one[0].tolist())
    steps = [step["negatives"].ids[:2].tolist() for step in reports[0]["steps"]]
    assert steps[0] != steps[1] != steps[2]


def test_ranks_measure_at_the_same_steps_and_each_for_itself(reports):
    measured = [[step["measured"] for step in report["steps"]] for report in reports]
    for steps in measured:
        assert [bool(step) for step in steps] == [False, True, False]
    assert measured[0][1].keys() == measured[1][1].keys() != set()
    assert measured[0][1]["meter_exact_loss"] != measured[1][1]["meter_exact_loss"]


def test_rank_without_a_finite_loss_stops_all_together(reports):
    for report in reports:
        assert "no utterance of a batch has a finite loss" in report["error"]
        assert report["steps before the error"] == 2, "the step after the first"
    assert "(on another rank)" in reports[0]["error"]
    assert "(on another rank)" not in reports[1]["error"]
