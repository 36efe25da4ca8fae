"""Does it hold accuracy? One recipe, many settings.

    python benchmarks/accuracy/main.py --help

docs/accuracy.md says what is run, and what came out.
"""

from __future__ import annotations

import sys
import time
from contextlib import contextmanager
from pathlib import Path

import click

ROOT = Path(__file__).resolve().parents[2]
sys.path += [str(ROOT / "examples" / "demo"), str(ROOT / "benchmarks")]  # espeak-ng, batches of features; GPUs
FOLDER = click.Path(file_okay=False, path_type=Path)
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
RESULTS = ROOT / "benchmarks" / "results" / "accuracy.csv"


@contextmanager
def errors_as_messages():
    """Bad input ends in its message, without a traceback."""
    try:
        yield
    except ValueError as error:
        raise click.ClickException(str(error)) from error


@click.group()
def main():
    """Train one recipe in many settings of the joint, and compare the error rates."""


@main.command()
@click.argument("sentences", type=FILE)
@click.option(
    "--out", type=FOLDER, default="/tmp/mandarin", show_default=True, help="The corpus's name is the folder's."
)
@click.option("--train", default=42400, show_default=True, help="Sentences of the training set.")
@click.option("--copies", default=2, show_default=True, help="Times each is spoken, in different voices.")
@click.option("--held-out", default=1000, show_default=True, help="Other sentences, in other voices.")
def mandarin(sentences: Path, out: Path, train: int, copies: int, held_out: int):
    """Speak the Mandarin SENTENCES, one a line, .txt or .txt.xz, and compute features."""
    from mandarin import TOKENIZER, spoken

    _build(out, spoken(sentences, train, held_out, copies), TOKENIZER)


@main.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--out", type=FOLDER, default="/tmp/an4", show_default=True)
def an4(folder: Path, out: Path):
    """Compute the features of AN4 in FOLDER, where its two manifests are."""
    from an4 import TOKENIZER, recorded

    _build(out, recorded(folder), TOKENIZER)


def _build(out: Path, blocks, tokenizer: dict) -> None:
    import torch
    from corpus import build
    from model import load_recipe

    started = time.perf_counter()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    waited = build(out, blocks, tokenizer, dict(load_recipe(out.name).model.preprocessor), device)
    for path in sorted(out.glob("*.json")):
        lines = len(path.read_text(encoding="utf-8").splitlines())
        click.echo(f"{path.stem}: {lines} utterances, {path.with_suffix('.f16').stat().st_size / 2**30:.2f} GiB")
    click.echo(f"{out}: {time.perf_counter() - started:.0f} s, {waited:.0f} of them waiting for speech")


@main.command()
@click.argument("runs", nargs=-1, required=True, metavar="SETTING:SEED...")
@click.option("--corpus", type=click.Path(exists=True, file_okay=False, path_type=Path), required=True)
@click.option(
    "--out", type=FOLDER, required=True, help="For accuracy.csv and accuracy.npz, rewritten at each evaluation."
)
@click.option("--checkpoints", type=FOLDER, default="/tmp/checkpoints", show_default=True, help="Resume from here.")
@click.option("--minutes", default=float("inf"), help="Of the clock; then every run saves itself.")
@click.option("--processes", type=int, help="Side by side, on the GPUs in turn; by default one a GPU.")
@click.option(
    "--share",
    type=click.FloatRange(0, 1, min_open=True),
    default=1.0,
    show_default=True,
    help="Of a GPU's memory, at most, for each process.",
)
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Of the recipe, such as steps=100.")
def train(
    runs, corpus: Path, out: Path, checkpoints: Path, minutes: float, processes: int | None, share: float, overrides
):
    """Train RUNS in their order, or as far as the minutes allow; the same command goes on."""
    deadline = time.monotonic() + 60 * minutes
    from results import Results
    from torch.cuda import device_count
    from workers import run_all

    for run in runs:
        _check(run)
    results = Results(out / "accuracy.csv")

    def report(evaluations):
        results.add(evaluations)
        results.write()
        for evaluation in evaluations:
            click.echo("  ".join(evaluation.row().values()))

    processes = processes or max(1, device_count())
    left = run_all(list(runs), corpus, overrides, checkpoints / corpus.name, deadline, processes, share, report)
    click.echo(f"left: {' '.join(left) or 'nothing'}")


def _check(run: str) -> None:
    from settings import Run

    with errors_as_messages():
        Run.parse(run)


@main.command()
@click.argument("runs", nargs=-1, required=True, metavar="SETTING:SEED...")
@click.option("--corpus", type=click.Path(exists=True, file_okay=False, path_type=Path), required=True)
@click.option("--checkpoints", type=FOLDER, default="/tmp/checkpoints", show_default=True)
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Of the recipe, as in training.")
def mistakes(runs, corpus: Path, checkpoints: Path, overrides):
    """Print what the checkpoints of RUNS get wrong: known and new sentences, known and new speakers, in Markdown."""
    import torch
    from corpus import Utterances
    from mistakes import of_run
    from model import load_recipe
    from settings import Run
    from spoken import SETS
    from tables import heading, line

    for run in runs:
        _check(run)
    recipe = load_recipe(corpus.name, overrides)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    names = [name for name in SETS if (corpus / f"{name}.f16").exists()]
    sets = [Utterances(corpus, name, device, recipe.model.preprocessor.features) for name in names]
    header = ["run", "step", *(f"{name}, % wrong" for name in names), "of the last: substitutions, %", "homophones, %"]
    click.echo("\n".join(heading(header)))
    for run in runs:
        step, found = of_run(Run.parse(run), recipe, corpus, sets, checkpoints / corpus.name)
        last = found[-1]
        shares = [mistakes.wrong / mistakes.said for mistakes in found] + [last.substituted / max(1, last.wrong)]
        alike = "-" if last.homophones is None else f"{100 * last.homophones / max(1, last.wrong):.1f}"
        click.echo(line([run, str(step), *(f"{100 * share:.2f}" for share in shares), alike]))


@main.command()
@click.argument("files", nargs=-1, required=True, type=FILE)
@click.option("--into", type=click.Path(dir_okay=False, path_type=Path), default=RESULTS, show_default=True)
def merge(files: tuple[Path, ...], into: Path):
    """Take the rows of FILES, the accuracy.csv of calls, into one; later files win."""
    from results import Results

    results = Results(into)
    for file in files:
        results.merge(Results(file))
    results.write()
    click.echo(f"{into}: {len(results.rows)} rows")


@main.command()
@click.argument("corpus")
@click.option("--results", type=FILE, default=RESULTS, show_default=True)
@click.option("--baseline", default="exact", show_default=True, help="What the others are compared with.")
@click.option("--minutes-of", metavar="SETTING", help="Compare at the minute when this setting is complete.")
@click.option("--step", type=int, metavar="N", help="Compare the evaluations after N steps.")
@click.option("--without", multiple=True, metavar="SPEAKER", help="Leave the utterances of a speaker out.")
def table(corpus: str, results: Path, baseline: str, minutes_of: str | None, step: int | None, without):
    """Print a table of CORPUS in Markdown, with confidence intervals."""
    from results import Results
    from tables import table

    with errors_as_messages():
        click.echo("\n".join(table(Results(results), corpus, baseline, minutes_of, step, without)))


@main.command()
@click.argument("corpus")
@click.option("--results", type=FILE, default=RESULTS, show_default=True)
@click.option("--step", type=int, metavar="N", help="Of the evaluations after N steps; by default each run's last.")
def speakers(corpus: str, results: Path, step: int | None):
    """Print the error rates of each held-out speaker of CORPUS in Markdown."""
    from results import Results
    from tables import speakers_table

    with errors_as_messages():
        click.echo("\n".join(speakers_table(Results(results), corpus, step)))


@main.command()
@click.option("--results", type=FILE, default=RESULTS, show_default=True)
def plot(results: Path):
    """Draw error rate against steps and GPU minutes, a PNG for each corpus beside the results."""
    from curves import draw
    from results import Results

    click.echo("\n".join(map(str, draw(Results(results), results.parent))))


@main.command()
@click.argument("checkpoint", type=FILE)
@click.option("--call", default=0, show_default=True, help="Which few of the parts.")
@click.option("--out", type=FOLDER, required=True)
def send(checkpoint: Path, call: int, out: Path):
    """Write some parts of a CHECKPOINT to a folder from which little is handed back."""
    import travel

    with errors_as_messages():
        click.echo(f"call {call} of {travel.send(checkpoint, call, out)}")


@main.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--checkpoints", type=FOLDER, required=True, help="With the corpus's name: /tmp/checkpoints/mandarin.")
def receive(folder: Path, checkpoints: Path):
    """Put the checkpoints together whose parts are all in FOLDER."""
    import travel

    with errors_as_messages():
        click.echo("\n".join(map(str, travel.receive(folder, checkpoints))))


if __name__ == "__main__":
    main()
