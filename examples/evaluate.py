"""Word or character error rates of `.nemo` files on manifests, side by side.

    python examples/evaluate.py sampled.nemo exact.nemo --manifest work/test-clean.json --manifest work/test-other.json
    python examples/evaluate.py tuned.nemo --manifest work/test.json --metric cer --strategy maes --beam-size 4

For each model and manifest: error rate with a 95 % confidence interval (bootstrap over utterances, Bisani and Ney
2004), substitutions, deletions, insertions; "better" is, for each model after the first, the share of the bootstrap's
samples in which it makes fewer errors than the first. `--out` keeps what was recognised.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import click
import pandas
import soundfile
import torch
from errors import Errors
from nemo.collections.asr.models import ASRModel
from nemo.collections.common.parts.preprocessing.manifest import get_full_path
from omegaconf import open_dict

import nemo_sampled_rnnt.models  # noqa: F401 - NeMo may then open our models
from nemo_sampled_rnnt.stock import read_config

UNITS = {"wer": str.split, "cer": lambda text: "".join(text.split())}  # what is counted
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


def read_manifest(manifest: Path) -> list[dict]:
    """Its entries, with paths that hold from any folder, and durations."""
    entries = []
    with manifest.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                entry = json.loads(line)
                found = isinstance(entry["text"], str) and isinstance(entry["audio_filepath"], str)
            except (json.JSONDecodeError, KeyError, TypeError):
                found = False
            if not found:
                raise click.ClickException(
                    f'{manifest}, line {number}: expected a JSON object with "text" and "audio_filepath", found '
                    f"{line.strip()[:80]!r}"
                )
            path = get_full_path(entry["audio_filepath"], str(manifest))  # as NeMo's datasets find it
            if entry.get("duration") is None:
                entry["duration"] = soundfile.info(path).duration - (entry.get("offset") or 0)
            entries.append(entry | {"audio_filepath": path})
    if not any(entry["text"].strip() for entry in entries):
        raise click.ClickException(f"expected utterances with text in {manifest}, found none")
    return entries


def restore(path: Path, strategy: str | None, beam_size: int) -> ASRModel:
    """The model with the decoder that is asked for."""
    try:
        read_config(path)
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    model = ASRModel.restore_from(str(path), map_location="cuda" if torch.cuda.is_available() else "cpu")
    if strategy is not None:
        decoding = model.cfg.decoding.copy()
        with open_dict(decoding):
            decoding.strategy = strategy
            if not strategy.startswith("greedy"):
                decoding.setdefault("beam", {})
                decoding.beam.beam_size = beam_size
        model.change_decoding_strategy(decoding)
    return model.eval()


def transcribe(model: ASRModel, entries: list[dict], batch_size: int) -> list[str]:
    """What the model recognises in each utterance."""
    with tempfile.TemporaryDirectory() as folder:
        manifest = Path(folder) / "manifest.json"  # NeMo knows one by its name
        manifest.write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")
        found = model.transcribe(str(manifest), batch_size=batch_size)
    found = found[0] if isinstance(found, tuple) else found
    best = [hypothesis[0] if isinstance(hypothesis, list) else hypothesis for hypothesis in found]
    return [hypothesis if isinstance(hypothesis, str) else hypothesis.text for hypothesis in best]


def row(name: str, metric: str, errors: Errors, first: Errors) -> dict[str, str]:
    """Of the table."""
    counts = errors.counts()
    rate = interval = "-"  # where the references are empty
    if counts["length"]:
        rate = f"{100 * (counts['sub'] + counts['del'] + counts['ins']) / counts['length']:.2f}"
        interval = "{:.2f} to {:.2f}".format(*errors.interval())
    return {
        "model": name,
        f"{metric.upper()} %": rate,
        "95 %": interval,
        **{kind: str(count) for kind, count in counts.items()},
        "better": "" if errors is first else f"{errors.better_than(first):.0%}",
    }


@click.command()
@click.argument("models", nargs=-1, required=True, type=FILE)
@click.option("--manifest", "manifests", multiple=True, required=True, type=FILE, help="NeMo's; may be repeated.")
@click.option("--metric", type=click.Choice(list(UNITS)), default="wer", show_default=True, help="Words or characters.")
@click.option("--strategy", help="Decoder of NeMo: greedy_batch, beam, maes, ...  [default: the model's own]")
@click.option("--beam-size", type=click.IntRange(min=1), default=4, show_default=True)
@click.option("--batch-size", type=click.IntRange(min=1), default=16, show_default=True)
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Folder for what was recognised.")
def main(models, manifests, metric, strategy, beam_size, batch_size, out):
    """Score MODELS, .nemo files, on manifests."""
    entries = {manifest: read_manifest(manifest) for manifest in manifests}
    references = {manifest: [entry["text"] for entry in entries[manifest]] for manifest in manifests}
    split = UNITS[metric]
    if len({manifest.stem for manifest in manifests}) < len(manifests):
        raise click.ClickException(f"expected manifests of different names, found {', '.join(map(str, manifests))}")
    results = {manifest: [] for manifest in manifests}
    for number, path in enumerate(models, 1):
        model = restore(path, strategy, beam_size)
        for manifest in manifests:
            hypotheses = transcribe(model, entries[manifest], batch_size)
            results[manifest].append(Errors(list(map(split, references[manifest])), list(map(split, hypotheses))))
            if out is not None:
                out.mkdir(parents=True, exist_ok=True)
                pairs = zip(references[manifest], hypotheses, strict=True)
                lines = [json.dumps({"text": text, "pred_text": found}, ensure_ascii=False) for text, found in pairs]
                file = out / f"{number}-{path.stem}-{manifest.stem}.json"
                file.write_text("\n".join(lines) + "\n", encoding="utf-8")

    for manifest in manifests:
        first = results[manifest][0]
        rows = [row(str(path), metric, errors, first) for path, errors in zip(models, results[manifest], strict=True)]
        click.echo(f"\n{manifest}: {len(references[manifest])} utterances\n")
        click.echo(pandas.DataFrame(rows).to_string(index=False))


if __name__ == "__main__":
    main()
