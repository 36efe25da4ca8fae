"""A stock model is fine-tuned with sampled softmax, exported, and opened by NeMo without this package: what it loses.

    python benchmarks/finetune/main.py /data/an4 --work /tmp/finetune

FOLDER holds the audio of AN4 and its two manifests, whose paths are relative to it. Each step is a process of its own,
as a user would start it; the recognition of both models runs where this package cannot be imported.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import click

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path += [str(ROOT / "examples"), str(HERE.parent)]

from environment import environment  # noqa: E402
from errors import Errors  # noqa: E402

FOLDER = click.Path(file_okay=False, path_type=Path)
STOCK, TUNED = "stock", "tuned"
NAME = "Speech_To_Text_Finetuning"
TRAINED = 15.0  # % WER that the stock model has to reach before a comparison says anything
FINE_TUNING = [  # short, and at a low learning rate
    "model.train_ds.batch_size=32", "model.train_ds.num_workers=4", "model.validation_ds.num_workers=0",
    "model.optim.lr=3e-4", "model.optim.sched.warmup_steps=50", "model.optim.sched.min_lr=1e-6",
    "trainer.devices=1", "trainer.strategy=auto", "trainer.sync_batchnorm=false", "trainer.precision=bf16-mixed",
    "trainer.max_epochs=20", "trainer.check_val_every_n_epoch=10", "trainer.gradient_clip_val=1.0",
    "trainer.log_every_n_steps=30", "trainer.enable_progress_bar=false", "exp_manager.create_tensorboard_logger=false",
]  # fmt: skip


def absolute_manifest(source: Path, destination: Path) -> Path:
    """The same utterances with paths that hold from any folder."""
    entries = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]
    for entry in entries:
        entry["audio_filepath"] = str((source.parent / entry["audio_filepath"]).resolve())
    destination.write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")
    return destination


class Steps:
    """Runs scripts from the repository's root, and tells how long each took.

    Attributes:
        seconds: name of the step -> of the clock.
    """

    def __init__(self):
        self.seconds: dict[str, float] = {}
        self._environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}

    def __call__(self, name: str, *arguments) -> None:
        command = [sys.executable, *map(str, arguments)]
        click.echo(f"--- {name}: {' '.join(command)}")
        started = time.perf_counter()
        code = subprocess.run(command, cwd=ROOT, env=self._environment).returncode
        if code:
            raise click.ClickException(f"{name}: expected exit status 0, got {code}; its output stands above")
        self.seconds[name] = time.perf_counter() - started
        click.echo(f"--- {name}: {self.seconds[name]:.0f} s")


def scores(found: dict[str, list[str]], references: list[str]) -> list[dict]:
    """A row for each model: word errors with their interval; for the tuned one how often it beats the stock one."""
    errors = {
        name: Errors([text.split() for text in references], [text.split() for text in texts])
        for name, texts in found.items()
    }
    rows = []
    for name, its in errors.items():
        counts = its.counts()
        wrong = counts["sub"] + counts["del"] + counts["ins"]
        low, high = its.interval()
        rows.append(
            {
                "model": name,
                "wer": f"{100 * wrong / counts['length']:.2f}",
                "low": f"{low:.2f}",
                "high": f"{high:.2f}",
                **counts,
                "better": "" if name == STOCK else f"{its.better_than(errors[STOCK]):.3f}",
            }
        )
    return rows


@click.command()
@click.argument("corpus", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--work", type=FOLDER, required=True, help="For models and manifests; emptied first.")
@click.option("--out", type=FOLDER, default=HERE.parent / "results", show_default=True, help="For finetune_an4.csv.")
@click.option("--vocabulary", default=64, show_default=True, help="Pieces of the tokenizer.")
@click.option("--stock", "stock", multiple=True, metavar="KEY=VALUE", help="Over stock.yaml; may be repeated.")
@click.option("--tune", "tune", multiple=True, metavar="KEY=VALUE", help="For the fine-tuning script; likewise.")
def main(corpus: Path, work: Path, out: Path, vocabulary: int, stock: tuple[str, ...], tune: tuple[str, ...]):
    """Train a stock model on CORPUS, fine-tune it sampled, export it, and compare the word error rates."""
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    work, out = work.resolve(), out.resolve()
    train = absolute_manifest(corpus / "manifest_train.json", work / "train.json")
    test = absolute_manifest(corpus / "manifest_test.json", work / "test.json")
    files = {name: work / f"{name}.nemo" for name in (STOCK, TUNED)}
    step = Steps()

    step(
        "tokenizer", ROOT / "examples/process_asr_text_tokenizer.py", f"--manifest={train}", f"--data_root={work}",
        f"--vocab_size={vocabulary}", "--tokenizer=spe", "--spe_type=bpe",
    )  # fmt: skip
    tokenizer = work / f"tokenizer_spe_bpe_v{vocabulary}"
    step("stock training", HERE / "train_stock.py", train, test, tokenizer, files[STOCK], *stock)
    step(
        "fine-tuning", ROOT / "examples/speech_to_text_finetune.py", f"init_from_nemo_model={files[STOCK]}",
        f"model.train_ds.manifest_filepath={train}", f"model.validation_ds.manifest_filepath={test}",
        f"exp_manager.exp_dir={work / 'tuning'}", *FINE_TUNING, *tune,
    )  # fmt: skip
    (ours,) = (work / "tuning").rglob(f"{NAME}.nemo")
    step("export", "-m", "nemo_sampled_rnnt.cli", "export", ours, files[TUNED], "--as", "rnnt")
    step("recognition", HERE / "transcribe_stock.py", test, work / "found.json", *files.values())

    references = [json.loads(line)["text"] for line in test.read_text(encoding="utf-8").splitlines()]
    rows = scores(json.loads((work / "found.json").read_text(encoding="utf-8")), references)
    seconds = {STOCK: step.seconds["stock training"], TUNED: step.seconds["fine-tuning"]}
    overrides = {STOCK: stock, TUNED: tune}
    device = "cuda" if shutil.which("nvidia-smi") else "cpu"
    for row in rows:
        row |= {"utterances": len(references), "vocabulary": vocabulary, "seconds": f"{seconds[row['model']]:.0f}"}
        row |= {**environment(device), "overrides": " ".join(overrides[row["model"]])}
    out.mkdir(parents=True, exist_ok=True)
    with open(out / "finetune_an4.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)

    for row in rows:
        click.echo(f"{row['model']}: WER {row['wer']} % ({row['low']} to {row['high']}), {row['seconds']} s")
    before, after = (float(row["wer"]) for row in rows)
    if before > TRAINED:
        click.echo(f"expected a trained stock model, below {TRAINED:.0f} %, got {before:.2f} %: give it more steps")
    verdict = "no worse" if after <= before else "WORSE"
    click.echo(f"{verdict} than before: {before:.2f} -> {after:.2f} %, fewer errors in {rows[1]['better']} of samples")


if __name__ == "__main__":
    main()
