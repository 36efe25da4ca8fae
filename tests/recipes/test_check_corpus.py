"""What check_corpus.py says of corpora that are not what they should be."""

from __future__ import annotations

import shutil

import pytest
from check_corpus import main
from click.testing import CliRunner
from miniature import MAKE
from skips import Skips


def check(corpus, source, target, *options):
    return CliRunner().invoke(main, [corpus, str(source), str(target), *options])


@pytest.mark.parametrize(
    "corpus, expected",
    [("librispeech", "train-clean-100"), ("aishell", "data_aishell/wav/train"), ("csj", "MORPH/SDB")],
)
def test_wrong_folder(corpus, expected, tmp_path):
    (tmp_path / "holiday").mkdir()
    (tmp_path / "holiday/beach.jpg").touch()
    result = check(corpus, tmp_path / "holiday", tmp_path / "work/corpus")
    assert result.exit_code == 1
    assert f"{expected}" in result.output and "beach.jpg" in result.output
    assert not (tmp_path / "work/corpus").exists()


def test_packed_speakers(tmp_path):
    wav = tmp_path / "data_aishell/wav"
    wav.mkdir(parents=True)
    (wav / "S0002.tar.gz").touch()
    assert "tar xzf" in check("aishell", tmp_path, tmp_path / "out").output


@pytest.mark.parametrize("corpus, skipped", [("librispeech", 7), ("aishell", 5), ("csj", 7)])
def test_too_much_is_skipped(corpus, skipped, tmp_path):
    source = MAKE[corpus](tmp_path / "corpus")
    before = {path: path.stat().st_mtime_ns for path in source.rglob("*")}
    target, listed = tmp_path / "work/corpus", tmp_path / "work/corpus.skipped.tsv"

    result = check(corpus, source, target)
    assert result.exit_code == 1 and "expected to skip at most 1%" in result.output
    assert str(listed) in result.output
    assert not target.exists()

    assert check(corpus, source, target, "--allow-skipped").exit_code == 0
    assert sum(int(line.split("\t")[2]) for line in listed.read_text().splitlines()) == skipped
    assert all(path.exists() for path in target.rglob("*")), "a link leads nowhere"
    assert {path: path.stat().st_mtime_ns for path in source.rglob("*")} == before, "the corpus was touched"
    assert "expected a new folder" in check(corpus, source, target, "--allow-skipped").output


def test_what_is_skipped(tmp_path):
    source = MAKE["librispeech"](tmp_path / "corpus")
    check("librispeech", source, tmp_path / "work", "--allow-skipped")
    lines = (tmp_path / "work.skipped.tsv").read_text().splitlines()
    fields = [line.split("\t") for line in lines]
    reasons = {name.rsplit("-", 1)[-1].removesuffix(".flac"): reason for name, reason, _ in fields}
    assert reasons["0000"] == "no such audio file"
    assert reasons["0001"] == "audio that cannot be read"
    assert reasons["0003"] == "transcript line that does not parse"
    assert reasons["0099"] == "audio without a transcript"
    assert "dev-clean/22/123000\tin a chapter that is missing\t2" in lines
    kept = (tmp_path / "work/train-clean-100/19/121000/19-121000.trans.txt").read_text().splitlines()
    assert [line.split()[0] for line in kept] == ["19-121000-0004", "19-121000-0005"]


def test_partial_librispeech(tmp_path):
    """A part may be missing, but not half of one."""
    source = MAKE["librispeech"](tmp_path / "corpus")
    shutil.rmtree(source / "train-other-500")
    shutil.rmtree(source / "train-clean-360/20/121001")
    output = check("librispeech", source, tmp_path / "work").output
    assert "in a chapter that is missing: 12" in output, "10 utterances of 2.05 minutes, and those of dev-clean"


def test_csj_lacks_a_talk_that_lhotse_names(tmp_path):
    source = MAKE["csj"](tmp_path / "corpus")
    (source / "WAV/noncore/A01M0110.wav").unlink()
    result = check("csj", source, tmp_path / "work", "--allow-skipped")
    assert result.exit_code == 1 and "found 74 of 75 usable; not A01M0110" in result.output


def test_csj_other_encoding(tmp_path):
    source = MAKE["csj"](tmp_path / "corpus")
    talk = source / "MORPH/SDB/core/A01M0578.sdb"
    talk.write_bytes(talk.read_text(encoding="shift_jis").encode("utf-8"))
    check("csj", source, tmp_path / "work", "--allow-skipped")
    assert "A01M0578.sdb\ttranscript that is not Shift JIS" in (tmp_path / "work.skipped.tsv").read_text()


@pytest.mark.parametrize("kept, stops", [(197, True), (198, False)])
def test_one_percent(kept, stops, tmp_path):
    skips = Skips(tmp_path / "skipped.tsv")
    skips.add("one", "broken", 2)
    if stops:
        with pytest.raises(Exception, match="at most 1%.*1.01%.*broken: 2"):
            skips.conclude(kept, allowed=False)
    else:
        assert "2 skipped (1.00%; broken: 2)" in skips.conclude(kept, allowed=False)
