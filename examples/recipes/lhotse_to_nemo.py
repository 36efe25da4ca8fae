"""Write lhotse's manifests of a corpus as one NeMo manifest: a line of JSON an utterance.

    python examples/recipes/lhotse_to_nemo.py aishell work/lhotse work/train.json train
    python examples/recipes/lhotse_to_nemo.py csj work/lhotse work/train.json core noncore --recordings 'A*'

Fields: audio_filepath, offset, duration, text, speaker. Texts are normalised as the field does it for the corpus:

    librispeech   lower case
    aishell       NFKC (full-width letters and digits become ASCII), upper case, no spaces
    csj           NFKC, no spaces; segments up to 1 s apart become utterances of up to 10 s, and those with a part that
                  CSJ withholds (×) are left out, both by lhotse's concat_csj_supervisions

It streams, and the same manifests give the same file. An interrupted run goes on where it stopped. What is left out is
listed in `work/train.json.skipped.tsv`.
"""

from __future__ import annotations

import json
import os
import unicodedata
from collections.abc import Iterator
from fnmatch import fnmatchcase
from itertools import groupby, islice
from pathlib import Path

import click
from lhotse import RecordingSet, SupervisionSegment, SupervisionSet
from lhotse.recipes.csj import concat_csj_supervisions
from skips import Skips, allow_skipped
from tqdm import tqdm

CHECKPOINT = 10_000  # utterances
GAP, LONGEST = 1.0, 10.0  # seconds, of CSJ


def without_spaces(text: str) -> str:
    """NFKC, which turns full-width letters and digits into ASCII, and no white space."""
    return "".join(unicodedata.normalize("NFKC", text).split())


NORMALISE = {
    "librispeech": lambda text: " ".join(text.lower().split()),
    "aishell": lambda text: without_spaces(text).upper(),
    "csj": without_spaces,
}


def find(corpus: str, manifests: Path, part: str) -> tuple[Path, Path]:
    """The recordings and the supervisions of a part."""
    prefix, suffix = f"{corpus}_recordings_", ".jsonl.gz"
    names = [path.name for path in sorted(manifests.glob(f"{prefix}*{suffix}"))]
    found = ", ".join(name.removeprefix(prefix).removesuffix(suffix) for name in names)
    paths = tuple(manifests / f"{corpus}_{kind}_{part}.jsonl.gz" for kind in ("recordings", "supervisions"))
    for path in paths:
        if not path.is_file():
            raise click.ClickException(
                f"expected {path.name} in {manifests}, found the parts {found or 'none at all'} of {corpus}: give the "
                f"folder that `lhotse prepare {corpus}` wrote to, and parts of it"
            )
    return paths


def utterances(corpus: str, path: Path) -> Iterator[SupervisionSegment]:
    """The supervisions of a part, in their order; those of CSJ joined to utterances."""
    supervisions = SupervisionSet.from_jsonl_lazy(path)
    if corpus != "csj":
        yield from supervisions
        return
    for _, talk in groupby(supervisions, lambda segment: segment.recording_id):
        yield from concat_csj_supervisions(SupervisionSet.from_segments(talk), GAP, LONGEST)


def entries(corpus: str, manifests: Path, parts: tuple[str, ...], pattern: str):
    """(id, manifest entry, None) of what can be used, (id, None, reason) of the rest; audio is not looked for."""
    normalise = NORMALISE[corpus]
    for part in parts:
        recordings, supervisions = find(corpus, manifests, part)
        audio = {
            recording.id: os.path.abspath(recording.sources[0].source)
            for recording in RecordingSet.from_jsonl_lazy(recordings)
            if fnmatchcase(recording.id, pattern) and recording.sources[0].type == "file"
        }
        for segment in utterances(corpus, supervisions):
            if not fnmatchcase(segment.recording_id, pattern):
                continue
            text = normalise(segment.text or "")
            if segment.recording_id not in audio:
                yield segment.id, None, "no recording in a file"
            elif segment.duration <= 0:
                yield segment.id, None, "zero length"
            elif not text:
                yield segment.id, None, "no text"
            else:
                entry = {
                    "audio_filepath": audio[segment.recording_id],
                    "offset": round(segment.start, 7),
                    "duration": round(segment.duration, 7),
                    "text": text,
                    "speaker": segment.speaker,
                }
                yield segment.id, entry, None


class Output:
    """The manifest under construction, which a later run of the same command goes on with.

    Args:
        path: of the manifest.
        source: what it is made of; a run on anything else starts over.

    Attributes:
        done, kept: utterances seen, and written.
    """

    def __init__(self, path: Path, source: list):
        self.path, self.source = path, source
        self.partial, self.state = (path.with_name(path.name + end) for end in (".partial", ".state"))
        state = json.loads(self.state.read_text()) if self.state.is_file() else {}
        skipped = path.with_name(path.name + ".skipped.tsv")
        shorter = _size(self.partial) < state.get("size", 0) or _size(skipped) < state.get("skipped_size", 0)
        if state.get("source") != source or shorter:  # of something else, or what was written is gone
            state = {"done": 0, "kept": 0, "size": 0, "skipped_size": 0}
        self.done, self.kept = state["done"], state["kept"]
        self.partial.touch()
        self.file = self.partial.open("r+", encoding="utf-8")
        self.file.truncate(state["size"])
        self.file.seek(state["size"])
        self.skips = Skips(skipped, state["skipped_size"])

    def write(self, entry: dict) -> None:
        self.file.write(json.dumps(entry, ensure_ascii=False) + "\n")
        self.kept += 1

    def checkpoint(self) -> None:
        """What is written counts as done from here on."""
        state = {"source": self.source, "done": self.done, "kept": self.kept}
        for key, file in (("size", self.file), ("skipped_size", self.skips.file)):
            file.flush()
            state[key] = os.fstat(file.fileno()).st_size
        new = self.state.with_name(self.state.name + ".new")
        new.write_text(json.dumps(state))
        new.replace(self.state)

    def start_over(self) -> None:
        """The next run looks at every utterance again."""
        self.file.close()
        self.state.unlink()

    def finish(self) -> None:
        self.file.close()
        self.partial.replace(self.path)
        self.state.unlink()


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


@click.command()
@click.argument("corpus", type=click.Choice(list(NORMALISE)))
@click.argument("manifests", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("out", type=click.Path(dir_okay=False, path_type=Path))
@click.argument("parts", nargs=-1, required=True)
@click.option("--recordings", default="*", help="Only recordings whose name fits this pattern, as 'A*' of CSJ.")
@allow_skipped
def main(corpus, manifests, out, parts, recordings, allow_skipped):
    """Write the PARTS of CORPUS, which lhotse prepared in MANIFESTS, to OUT."""
    files = [file for part in parts for file in find(corpus, manifests, part)]
    out.parent.mkdir(parents=True, exist_ok=True)
    source = [[str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in files]
    output = Output(out, [corpus, recordings, *source])
    rest = islice(entries(corpus, manifests, parts, recordings), output.done, None)
    for name, entry, problem in tqdm(rest, desc=str(out), unit=" utterances", initial=output.done, mininterval=1):
        if entry is not None and not os.path.isfile(entry["audio_filepath"]):
            problem = "no such audio file"
        if problem:
            output.skips.add(name, problem)
        else:
            output.write(entry)
        output.done += 1
        if output.done % CHECKPOINT == 0:
            output.checkpoint()
    output.checkpoint()
    try:
        conclusion = output.skips.conclude(output.kept, allow_skipped)
    except click.ClickException:
        output.start_over()  # what was missing may be there by then
        raise
    click.echo(f"{out}: {conclusion}")
    output.finish()


if __name__ == "__main__":
    main()
