"""Check a corpus as it was unpacked, and make a tree of links to what is usable, which lhotse's recipe then reads.

    python examples/recipes/check_corpus.py aishell /data/aishell work/corpus
    lhotse prepare aishell work/corpus work/lhotse

lhotse stops at the first file or transcript line that it cannot read, and does not say what a partial download lacks.
The corpus itself is not changed. What is left out is listed in `work/corpus.skipped.tsv`.
"""

import re
import shutil
from pathlib import Path

import click
import soundfile
from lhotse.recipes import csj as lhotse_csj
from skips import Skips, allow_skipped
from tqdm import tqdm

LIBRISPEECH = (
    "train-clean-100", "train-clean-360", "train-other-500", "dev-clean", "dev-other", "test-clean", "test-other",
)  # fmt: skip
SECONDS = 12.3  # mean utterance of LibriSpeech, to tell how many a missing chapter has
LIBRISPEECH_LINE = re.compile(r"(\d+-\d+-\d+) (\S.*)")
AISHELL_LINE = re.compile(r"(\S+)\s+(\S.*)")
AISHELL_PARTS = ("train", "dev", "test")
CSJ_VOLUMES = ("core", "noncore")
CSJ_TIME = re.compile(r"(\d+) [\d.]+-[\d.]+ ([LR]):\S*")  # field 3 of a line: "0012 00031.437-00034.190 L:-001-001"
CSJ_FIELDS = 11  # up to the pronunciation


class Tree:
    """The usable part of a corpus.

    Args:
        source: the corpus.
        target: an empty folder for links to its audio, and for transcripts without unusable lines.
        skips: what is left out.
    """

    def __init__(self, source: Path, target: Path, skips: Skips):
        self.source, self.target, self.skips, self.kept = source, target, skips, 0

    def _place(self, file: Path) -> Path:
        place = self.target / file.relative_to(self.source)
        place.parent.mkdir(parents=True, exist_ok=True)
        return place

    def link(self, file: Path) -> None:
        self._place(file).symlink_to(file.resolve())

    def write(self, file: Path, lines: list[str], encoding: str = "utf-8") -> None:
        """The transcripts that stand in ``file`` of the corpus, as far as they are usable."""
        self._place(file).write_text("".join(f"{line}\n" for line in lines), encoding=encoding)

    def skip(self, file: Path, reason: str, utterances: int = 1) -> None:
        self.skips.add(str(file.relative_to(self.source)), reason, utterances)

    def take(self, audio: Path, line_parses: bool) -> bool:
        """Link the audio of a transcript line, or skip it; whether both are usable."""
        problem = audio_problem(audio) if line_parses else "transcript line that does not parse"
        if problem:
            self.skip(audio, problem)
        else:
            self.link(audio)
        return not problem

    def expect(self, *paths: str) -> None:
        """Raises click.ClickException where one of the paths is not in the corpus."""
        missing = [path for path in paths if not (self.source / path).exists()]
        if missing:
            found = sorted(path.name for path in self.source.iterdir())[:12] or "nothing"
            raise click.ClickException(
                f"expected {', '.join(missing)} in {self.source}, found {found}: give the folder that holds "
                f"{missing[0].split('/')[0]}, or unpack what is missing"
            )


def audio_problem(file: Path) -> str | None:
    """Why the audio cannot be used."""
    if not file.is_file():
        return "no such audio file"
    try:
        return None if soundfile.info(file).frames else "audio of zero length"
    except soundfile.LibsndfileError:
        return "audio that cannot be read"


def librispeech(tree: Tree) -> None:
    """<part>/<reader>/<chapter>/<reader>-<chapter>.trans.txt and <reader>-<chapter>-<number>.flac, CHAPTERS.TXT."""
    parts = [part for part in LIBRISPEECH if (tree.source / part).is_dir()]
    tree.expect("CHAPTERS.TXT", *(() if parts else LIBRISPEECH))
    folders = [folder for part in parts for folder in sorted((tree.source / part).glob("*/*")) if folder.is_dir()]
    for line in (tree.source / "CHAPTERS.TXT").read_text(encoding="utf-8").splitlines():
        if line.startswith(";") or not line.strip():
            continue
        chapter, reader, minutes, part = (field.strip() for field in line.split("|")[:4])
        folder = tree.source / part / reader / chapter
        if part in parts and not folder.is_dir():
            tree.skip(folder, "in a chapter that is missing", max(1, round(60 * float(minutes) / SECONDS)))
    for folder in tqdm(folders, desc="chapters", mininterval=1):
        _librispeech_chapter(tree, folder)


def _librispeech_chapter(tree: Tree, folder: Path) -> None:
    transcript = folder / f"{folder.parent.name}-{folder.name}.trans.txt"
    without_line = set(folder.glob("*.flac"))
    lines = []
    for line in transcript.read_text(encoding="utf-8").splitlines() if transcript.is_file() else ():
        match = LIBRISPEECH_LINE.fullmatch(line.strip())
        audio = folder / f"{match[1] if match else line.split(' ')[0]}.flac"
        without_line.discard(audio)
        if tree.take(audio, line_parses=match is not None):
            lines.append(line.strip())
    for audio in sorted(without_line):
        tree.skip(audio, "audio without a transcript")
    if lines:
        tree.write(transcript, lines)
        tree.kept += len(lines)


def aishell(tree: Tree) -> None:
    """data_aishell/transcript/aishell_transcript_v0.8.txt and data_aishell/wav/<part>/<speaker>/<utterance>.wav."""
    transcript = tree.source / "data_aishell/transcript/aishell_transcript_v0.8.txt"
    wav = tree.source / "data_aishell/wav"
    if any(wav.glob("*.tar.gz")) and not any((wav / part).is_dir() for part in AISHELL_PARTS):
        raise click.ClickException(
            f"expected the folders {', '.join(AISHELL_PARTS)} in {wav}, found packed speakers: "
            f"cd {wav} && for f in *.tar.gz; do tar xzf $f; done"
        )
    tree.expect(str(transcript.relative_to(tree.source)), *(f"data_aishell/wav/{part}" for part in AISHELL_PARTS))
    files = {file.stem: file for part in AISHELL_PARTS for file in sorted((wav / part).glob("*/*.wav"))}
    lines = []
    for line in tqdm(transcript.read_text(encoding="utf-8").splitlines(), desc="utterances", mininterval=1):
        if not line.strip():
            continue
        match = AISHELL_LINE.fullmatch(line.strip())
        name = line.split()[0]
        audio = files.pop(name, wav / f"{name}.wav")
        if tree.take(audio, line_parses=match is not None):
            lines.append(line.strip())
    for audio in files.values():
        tree.skip(audio, "audio without a transcript")
    tree.write(transcript, lines)
    tree.kept = len(lines)


def csj(tree: Tree) -> None:
    """MORPH/SDB/<volume>/<talk>.sdb, WAV/<volume>/<talk>.wav; of a dialogue <talk>-L.wav and <talk>-R.wav."""
    tree.expect(*(f"{folder}/{volume}" for folder in ("MORPH/SDB", "WAV") for volume in CSJ_VOLUMES))
    talks = [talk for volume in CSJ_VOLUMES for talk in sorted((tree.source / "MORPH/SDB" / volume).glob("*.sdb"))]
    kept = {talk.stem for talk in tqdm(talks, desc="talks", mininterval=1) if _csj_talk(tree, talk)}
    named = {*lhotse_csj._A01M0056, *lhotse_csj._VALID, *(talk for part in lhotse_csj._EVAL for talk in part)}
    if named - kept:
        raise click.ClickException(
            f"expected all talks that lhotse's recipe sorts into eval1, eval2, eval3, valid and excluded, found "
            f"{len(named & kept)} of {len(named)} usable; not {', '.join(sorted(named - kept)[:8])}. Reasons, if they "
            f"are there at all: {tree.skips.path}"
        )


def _csj_talk(tree: Tree, talk: Path) -> bool:
    """Whether it is usable, except for single segments."""
    try:
        lines = [line for line in talk.read_text(encoding="shift_jis").split("\n") if line.strip()]
    except UnicodeDecodeError:
        tree.skip(talk, "transcript that is not Shift JIS")
        return False
    segments = [CSJ_TIME.match((line.split("\t") + 4 * [""])[3]) for line in lines]
    segments = [match and match.groups() for match in segments]
    spoiled = set()
    for i, line in enumerate(lines):
        if segments[i] is None:  # it may belong to the segment before or after
            spoiled |= {*segments[max(0, i - 1) : i], *segments[i + 1 : i + 2]}
        elif len(line.split("\t")) < CSJ_FIELDS:
            spoiled.add(segments[i])
    count = len({*segments} - {None})
    spoiled.discard(None)
    wav = tree.source / "WAV" / talk.parent.name
    names = [f"{talk.stem}-L", f"{talk.stem}-R"] if talk.stem.startswith("D") else [talk.stem]
    problems = [problem for name in names if (problem := audio_problem(wav / f"{name}.wav"))]
    if problems or count == len(spoiled):
        tree.skip(talk, problems[0] if problems else "transcript without a line that parses", max(1, count))
        return False
    if spoiled:
        tree.skip(talk, "segment with a transcript line that does not parse", len(spoiled))
    for name in names:
        tree.link(wav / f"{name}.wav")
    kept = [line for line, segment in zip(lines, segments, strict=True) if segment and segment not in spoiled]
    tree.write(talk, kept, "shift_jis")
    tree.kept += count - len(spoiled)
    return True


CORPORA = {"librispeech": librispeech, "aishell": aishell, "csj": csj}


@click.command()
@click.argument("corpus", type=click.Choice(list(CORPORA)))
@click.argument("source", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("target", type=click.Path(path_type=Path))
@allow_skipped
def main(corpus, source, target, allow_skipped):
    """Check CORPUS in SOURCE and link what is usable in TARGET."""
    if target.exists():
        raise click.ClickException(f"expected a new folder, found {target}: remove it to check again")
    building = target.with_name(f"{target.name}.building")
    shutil.rmtree(building, ignore_errors=True)  # of a run that was interrupted
    building.mkdir(parents=True)
    skips = Skips(target.with_name(f"{target.name}.skipped.tsv"))
    tree = Tree(source, building, skips)
    try:
        CORPORA[corpus](tree)
        click.echo(skips.conclude(tree.kept, allow_skipped))
        building.rename(target)
    finally:
        skips.file.close()
        shutil.rmtree(building, ignore_errors=True)


if __name__ == "__main__":
    main()
