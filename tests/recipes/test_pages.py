"""Every command of each recipe's page on its miniature: prepare, convert, tokenize, train, evaluate, export."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from miniature import MAKE
from scripts import ROOT, SHRINK

RECIPES = ROOT / "examples/recipes"
CORPUS = {"librispeech": "/data/LibriSpeech", "aishell": "/data/aishell", "csj": "/data/csj"}
ALLOWED = ("check_corpus.py",)  # in so small a corpus more than 1 % is unusable
TRAINING = ("speech_to_text_rnnt",)
FEW_STEPS = [
    *(override for override in SHRINK if not re.match(r"size=|trainer.max_|model.train_ds.batch_size", override)),
    "trainer.precision=32", "model.train_ds.batch_duration=9",
    "model.optim.sched.warmup_steps=10",
]  # fmt: skip
PREAMBLE = """
nemo-sampled-rnnt() { python -c 'from nemo_sampled_rnnt.cli import main; main()' "$@"; }
set -e
"""  # the tests find the package in this folder, not installed
EPOCHS = {"librispeech": 6, "aishell": 8, "csj": 8}
KEPT = {"librispeech": (80, 7), "aishell": (33, 5), "csj": (242, 7)}  # usable utterances, and those that are skipped


def commands(corpus: str) -> list[str]:
    """The bash blocks of a page, with its continued lines joined."""
    blocks = re.findall(r"```bash\n(.*?)```", (RECIPES / corpus / "README.md").read_text(encoding="utf-8"), re.S)
    return [block.replace("\\\n", " ") for block in blocks]


def on_miniature(block: str, corpus: str, source: Path, work: Path) -> str:
    """The same commands for the miniature, few steps and a small model."""
    lines = []
    for line in block.replace(CORPUS[corpus], str(source)).replace(f"work/{corpus}/", f"{work}/").splitlines():
        if any(script in line for script in ALLOWED):
            line += " --allow-skipped"
        if any(script in line for script in TRAINING):
            # ended by epochs, so that the length the page configures stands
            line += " " + " ".join([*FEW_STEPS, f"trainer.max_epochs={EPOCHS[corpus]}"])
        lines.append(line)
    return PREAMBLE + "\n".join(lines)


def bash(script: str) -> str:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PATH": path}
    result = subprocess.run(
        ["bash", "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-6000:]
    return result.stdout + result.stderr


@pytest.mark.parametrize("corpus", list(CORPUS))
def test_page(corpus, tmp_path):
    source, work = MAKE[corpus](tmp_path / "corpus"), tmp_path / "work"
    checking, vocabulary, training, scoring = commands(corpus)

    output = bash(on_miniature(checking, corpus, source, work))
    kept, skipped = KEPT[corpus]
    assert f"{kept} utterances, {skipped} skipped" in output
    entries = [json.loads(line) for line in (work / "train.json").read_text(encoding="utf-8").splitlines()]
    assert {"audio_filepath", "offset", "duration", "text", "speaker"} == set(entries[0])

    bash(on_miniature(vocabulary, corpus, source, work))
    output = bash(on_miniature(training, corpus, source, work))
    assert f"`max_epochs={EPOCHS[corpus]}` reached" in output
    checkpoints = list(work.glob("large/checkpoints/*val_wer*.ckpt"))
    assert len(checkpoints) > 1, "no validation chose a checkpoint"
    (last,) = work.glob("large/checkpoints/*-last.ckpt")
    assert torch.load(last, map_location="cpu", weights_only=False)["global_step"] >= 20
    assert [path.name for path in work.glob("large/checkpoints/*.nemo")] == [f"{corpus}.nemo"]
    output = bash(on_miniature(scoring, corpus, source, work))
    assert "CER %" in output if corpus != "librispeech" else "WER %" in output
    assert (work / f"{corpus}.nemo").is_file()


@pytest.mark.parametrize("corpus", list(CORPUS))
def test_memory_table(corpus):
    """The page says what the project's arithmetic says of its configs."""
    table = bash(f"python examples/recipes/memory_table.py {corpus}")
    table = [line for line in table.splitlines() if line.startswith("|")]
    page = (RECIPES / corpus / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(table) == 11
    assert [line for line in page if line in table] == table, "print the table again with memory_table.py"
